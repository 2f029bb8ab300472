"""Masks are moved with their images, by the nearest pixel, void where nothing is shown."""

import numpy as np
import pytest
import torch

from kdexport.data.augment import AUGMENTATIONS, COLORS, Augmentation
from kdexport.data.samples import Split
from kdexport.distill.batches import Batches
from kdexport.errors import RecipeError

GEOMETRY = [name for name in AUGMENTATIONS if name not in COLORS]


def scenes(count=6, size=(48, 72)):
    """Masks of three classes in large blocks, and images that show the class as a grey level."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 3, (count, size[0] // 12, size[1] // 12))
    masks = blocks.repeat(12, axis=1).repeat(12, axis=2).astype(np.uint8)
    return torch.from_numpy((masks[..., None] * 60 + 60).repeat(3, axis=3)), torch.from_numpy(masks)


@pytest.mark.parametrize("name", GEOMETRY)
def test_a_mask_goes_where_its_image_goes(name):
    images, masks = scenes()
    indices = np.arange(len(masks))
    augmentation = Augmentation([name], seed=3)
    moved = False
    for view in range(4):
        shown, classes = augmentation(images, indices, view), augmentation.masks(masks, indices, view)
        moved |= not torch.equal(classes, masks)
        assert classes.dtype == torch.uint8
        assert classes.shape == masks.shape
        assert set(classes.unique().tolist()) <= {0, 1, 2, 255}
        grey = shown[..., 0].float()
        known = classes != 255
        level = classes.float() * 60 + 60
        # Between two blocks an image is interpolated and a mask is not: all but the borders must be the same.
        assert ((grey - level).abs()[known] <= 31).float().mean() > 0.95
        assert (grey[~known] <= 91).all()  # nothing is shown, or less than half a pixel
    assert moved


def test_colors_leave_masks_alone_and_views_can_be_asked_for_again():
    _, masks = scenes()
    indices = np.arange(len(masks))
    assert torch.equal(Augmentation(["color"], seed=0).masks(masks, indices, 2), masks)
    every = Augmentation(["flip", "shift", "crop", "rotate", "color", "erase"], seed=5)
    whole = every.masks(masks, indices, 1)
    assert torch.equal(every.masks(masks, indices, 1), whole)
    assert not torch.equal(every.masks(masks, indices, 2), whole)
    for index in (4, 0):  # whatever batch it is asked for in
        assert torch.equal(every.masks(masks[index : index + 1], np.array([index]), 1)[0], whole[index])
    assert torch.equal(Augmentation([], seed=0).masks(masks, indices, 0), masks)


def test_batches_hand_over_both(tmp_path):
    images, masks = scenes(12)
    split = Split((images.numpy(),), masks.numpy())
    batches = Batches(
        split, batch_size=4, seed=0, augmentation=Augmentation(["flip"], 1), views=2, device=torch.device("cpu")
    )
    for batch in batches.epoch(0):
        assert torch.equal(batch.inputs[0][..., 0], batch.labels * 60 + 60)


def test_mixing_is_refused():
    images, masks = scenes()
    augmentation = Augmentation(["mixup"], 0, Split((images.numpy(),), masks.numpy()), classes=3)
    with pytest.raises(RecipeError, match="a mask cannot be mixed") as caught:
        augmentation.masks(masks, np.arange(6), 0)
    assert "mixup" in caught.value.hint


def test_a_rotation_is_one_of_the_picture_about_its_middle():
    images = torch.zeros(1, 31, 61, 1, dtype=torch.uint8)
    images[0, 15, 30] = 255
    images[0, 15, 50] = 255  # 20 pixels to the right of the middle
    rotate = AUGMENTATIONS["rotate"][0]
    turned = rotate(images, torch.tensor([[1.0]]))[0, ..., 0]
    assert turned[15, 30] > 200
    rows, columns = np.nonzero(turned[:, 40:].numpy() > 60)
    angle = np.degrees(np.arctan2(abs(rows.mean() - 15), columns.mean() + 40 - 30))
    assert angle == pytest.approx(15, abs=1.5)
    assert np.hypot(rows.mean() - 15, columns.mean() + 10) == pytest.approx(20, abs=0.7)


def test_a_function_of_ones_own_moves_masks_where_it_says_so(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "def turned(sample, generator, is_mask=False):\n"
        "    sample = sample[:, ::-1] if generator.random() < 0.5 else sample\n"
        "    return sample if is_mask else sample // 2\n\n"
        "def darker(sample, generator):\n"
        "    return sample // 2\n"
    )
    images, masks = scenes(12)
    indices = np.arange(len(masks))
    turned = Augmentation([f"{path}:turned"], seed=0)
    shown, classes = turned(images, indices, 1), turned.masks(masks, indices, 1)
    assert torch.equal(shown[..., 0], (classes * 60 + 60) // 2)
    assert not torch.equal(classes, masks)
    assert torch.equal(Augmentation([f"{path}:darker"], seed=0).masks(masks, indices, 1), masks)
