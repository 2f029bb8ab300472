"""Each view of each sample is one thing, wherever and whenever it is asked for."""

import numpy as np
import pytest
import torch
from scipy import stats

from kdexport.data.augment import AUGMENTATIONS, Augmentation
from kdexport.data.draws import uniform
from kdexport.errors import KDExportError, RecipeError

INDICES = np.arange(100, 164)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (64, 16, 24, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_view_does_not_depend_on_its_batch(name, images):
    augment = Augmentation([name], seed=7)
    whole = augment(images, INDICES, view=3)
    assert whole.shape == images.shape
    assert whole.dtype == torch.uint8
    order = np.random.default_rng(1).permutation(64)
    shuffled = augment(images[order], INDICES[order], view=3)
    assert torch.equal(shuffled, whole[order])
    alone = torch.cat([augment(images[i : i + 1], INDICES[i : i + 1], view=3) for i in range(64)])
    assert torch.equal(alone, whole)
    assert torch.equal(Augmentation([name], seed=7)(images, torch.from_numpy(INDICES), 3), whole)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_views_seeds_and_samples_differ(name, images):
    first = Augmentation([name], seed=7)(images, INDICES, 0)
    assert not torch.equal(first, images)
    assert not torch.equal(first, Augmentation([name], seed=7)(images, INDICES, 1))
    assert not torch.equal(first, Augmentation([name], seed=8)(images, INDICES, 0))
    assert not torch.equal(first, Augmentation([name], seed=7)(images, INDICES + 1, 0))


def test_what_is_augmented_is_not_changed_in_place(images):
    before = images.clone()
    Augmentation(list(AUGMENTATIONS), 0)(images, INDICES, 0)
    assert torch.equal(images, before)


def test_the_draws_are_uniform_and_independent():
    draws = uniform(3, "x", np.arange(4000, dtype=np.uint64), 0, 3)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws.reshape(-1), "uniform").pvalue > 1e-3
    others = [draws[:, 1], uniform(3, "x", np.arange(4000, dtype=np.uint64), 1, 1)[:, 0], np.roll(draws[:, 0], 1)]
    for other in others:
        assert abs(np.corrcoef(draws[:, 0], other)[0, 1]) < 0.06


def test_flip_mirrors_about_half():
    images = torch.arange(12, dtype=torch.uint8).reshape(1, 2, 6, 1).expand(2000, 2, 6, 1)
    found = Augmentation(["flip"], 0)(images, np.arange(2000), 0)
    mirrored = (found == images.flip(2)).all(dim=(1, 2, 3)) if torch.__version__ >= "2.2" else None
    kept = (found == images).all(dim=(1, 2, 3))
    assert bool((mirrored | kept).all())
    assert 0.45 < float(mirrored.float().mean()) < 0.55


def test_shift_is_pad_and_crop():
    image = torch.randint(1, 256, (1, 16, 24, 3), dtype=torch.uint8)
    found = Augmentation(["shift"], 0)(image.expand(3000, 16, 24, 3), np.arange(3000), 0)
    padded = torch.nn.functional.pad(image[0], (0, 0, 3, 3, 2, 2))
    possible = {padded[top : top + 16, left : left + 24].numpy().tobytes() for top in range(5) for left in range(7)}
    assert {sample.numpy().tobytes() for sample in found} == possible  # each of the 35 places, and no other


def test_crop_keeps_flat_colors_and_enlarges():
    flat = torch.full((50, 16, 24, 3), 131, dtype=torch.uint8)
    assert torch.equal(Augmentation(["crop"], 0)(flat, np.arange(50), 0), flat)
    ramp = torch.arange(24, dtype=torch.uint8).mul(10).reshape(1, 1, 24, 1).expand(200, 16, 24, 1)
    spans = Augmentation(["crop"], 0)(ramp, np.arange(200), 0)[:, 8, :, 0].int()
    spans = spans[:, -1] - spans[:, 0]
    assert int(spans.max()) <= 230
    assert int(spans.min()) >= 230 * 0.5  # sqrt(0.35 * 3/4) of the width is the narrowest


def test_erase_blacks_out_one_rectangle_in_half():
    white = torch.full((1000, 32, 32, 1), 255, dtype=torch.uint8)
    found = Augmentation(["erase"], 0)(white, np.arange(1000), 0)
    gone = (found == 0)[..., 0]
    touched = gone.flatten(1).any(dim=1)
    assert 0.44 < float(touched.float().mean()) < 0.56
    for mask in gone[touched][:50]:
        assert torch.equal(mask, mask.any(dim=1)[:, None] & mask.any(dim=0)[None])
    shares = gone[touched].float().mean(dim=(1, 2))
    assert float(shares.min()) > 0.005
    assert float(shares.max()) < 0.25


def test_color_leaves_grey_grey():
    grey = torch.randint(0, 256, (20, 8, 8, 1), dtype=torch.uint8).expand(20, 8, 8, 3)
    found = Augmentation(["color"], 0)(grey, np.arange(20), 0)
    assert torch.equal(found[..., 0], found[..., 1])
    assert Augmentation(["color"], 0)(grey[..., :1], np.arange(20), 0).shape == (20, 8, 8, 1)


def test_unknown_names_and_inputs_that_are_no_images():
    with pytest.raises(RecipeError, match="no augmentation is called 'filp'") as caught:
        Augmentation(["filp"], 0)
    assert "did you mean 'flip'" in caught.value.hint
    with pytest.raises(RecipeError, match="works on uint8 images"):
        Augmentation(["flip"], 0)(torch.zeros(3, 4), np.arange(3), 0)


OWN = """
import numpy as np


def noisy(sample, generator):
    return np.clip(sample + generator.integers(0, 20, sample.shape), 0, 255)


def smaller(sample, generator):
    return sample[1:]


def broken(sample, generator):
    return sample.nothing
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return lambda name: f"{tmp_path / 'own.py'}:{name}"


def test_an_augmentation_of_ones_own_gives_the_same_view_in_whatever_batch(own):
    images = torch.randint(0, 200, (9, 6, 5, 3), dtype=torch.uint8)
    augmentation = Augmentation((own("noisy"), "flip"), seed=3)
    whole = augmentation(images, np.arange(9), view=1)
    assert whole.dtype == torch.uint8
    assert not torch.equal(whole, images)
    parts = [augmentation(images[[i]], np.array([i]), view=1) for i in (4, 0, 8)]
    assert torch.equal(torch.cat(parts), whole[[4, 0, 8]])
    assert not torch.equal(augmentation(images, np.arange(9), view=2), whole)
    alone = Augmentation((own("noisy"),), seed=3)(images, np.arange(9), view=1).int() - images
    assert 0 <= int(alone.min()) <= int(alone.max()) < 20


def test_one_of_ones_own_takes_numbers_too(own, tmp_path):
    (tmp_path / "rows.py").write_text("def double(sample, generator):\n    return sample * 2\n")
    rows = torch.randn(4, 7)
    assert torch.equal(Augmentation((f"{tmp_path / 'rows.py'}:double",), seed=0)(rows, np.arange(4), 0), rows * 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smaller", r"own.py:smaller makes \[5, 5, 3\] of \[6, 5, 3\]"),
        ("broken", r"own.py:broken raises AttributeError.*own.py, line"),
        ("noisi", "has no 'noisi'"),
    ],
)
def test_what_is_no_augmentation_is_told(own, name, message):
    with pytest.raises(KDExportError, match=message):
        Augmentation((own(name),), seed=0)(torch.zeros(2, 6, 5, 3, dtype=torch.uint8), np.arange(2), 0)
