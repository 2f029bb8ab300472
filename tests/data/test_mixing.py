"""Mixup and CutMix: replayable, with labels that go by the pixels."""

import numpy as np
import pytest
import torch

from kdexport.data.augment import Augmentation
from kdexport.data.samples import Split
from kdexport.errors import RecipeError

CLASSES, SAMPLES = 10, 400
INDICES = np.arange(40, 104)


@pytest.fixture(scope="module")
def split():
    """Sample i is a flat picture of brightness i % 200 + 20, its class i % 10."""
    levels = (np.arange(SAMPLES) % 200 + 20).astype(np.uint8)
    return Split(
        (np.broadcast_to(levels[:, None, None, None], (SAMPLES, 12, 8, 3)).copy(),), np.arange(SAMPLES) % CLASSES
    )


def images(split, indices):
    return torch.from_numpy(split.take(indices).inputs[0])


@pytest.mark.parametrize("names", [["mixup"], ["cutmix"], ["cutmix", "mixup"], ["shift", "mixup", "flip"]])
def test_pictures_and_labels_do_not_depend_on_the_batch(names, split):
    augment = Augmentation(names, 7, split, CLASSES)
    whole, labels = augment(images(split, INDICES), INDICES, 3), augment.labels(INDICES, 3)
    order = np.random.default_rng(1).permutation(len(INDICES))
    shuffled = augment(images(split, INDICES[order]), INDICES[order], 3)
    assert torch.equal(shuffled, whole[order])
    assert np.array_equal(augment.labels(INDICES[order], 3), labels[order])
    alone = [augment(images(split, INDICES[i : i + 1]), INDICES[i : i + 1], 3) for i in range(len(INDICES))]
    assert torch.equal(torch.cat(alone), whole)
    assert not torch.equal(augment(images(split, INDICES), INDICES, 4), whole)


@pytest.mark.parametrize("names", [["mixup"], ["cutmix"], ["cutmix", "mixup"]])
def test_labels_say_what_the_pictures_show(names, split):
    augment = Augmentation(names, 0, split, CLASSES)
    indices = np.arange(SAMPLES)
    mixed = augment(images(split, indices), indices, 0)[..., 0].double().mean(dim=(1, 2)).numpy()
    labels = augment.labels(indices, 0)
    assert np.allclose(labels.sum(axis=1), 1)
    partners = augment._mixing.partners(indices, 0)
    own, other = split.inputs[0][indices, 0, 0, 0].astype(float), split.inputs[0][partners, 0, 0, 0].astype(float)
    one_class = split.labels == split.labels[partners]
    share = np.where(one_class, np.nan, labels[indices, split.labels])
    expected = share * own + (1 - share) * other
    assert np.nanmax(np.abs(mixed - expected)) < 0.51  # half a level of rounding
    assert 0.45 < np.nanmean(share) < (0.60 if names == ["mixup"] else 0.70)
    assert 0.05 < one_class.mean() < 0.16  # partners come from everywhere


def test_cutmix_pastes_one_box(split):
    indices = np.arange(SAMPLES)
    augment = Augmentation(["cutmix"], 0, split, CLASSES)
    changed = (augment(images(split, indices), indices, 0) != images(split, indices))[..., 0]
    assert float(changed.flatten(1).any(dim=1).float().mean()) > 0.8
    for mask in changed:
        assert torch.equal(mask, mask.any(dim=1)[:, None] & mask.any(dim=0)[None])


def test_what_cannot_be_mixed(split):
    with pytest.raises(RecipeError, match="mixes samples, and here are none"):
        Augmentation(["mixup"], 0)
    assert not Augmentation(["flip"], 0).mixes
    with pytest.raises(RecipeError, match="mix no samples"):
        Augmentation(["flip"], 0).labels(INDICES, 0)
    several = Split(split.inputs, np.eye(CLASSES, dtype=np.float32)[split.labels])
    with pytest.raises(RecipeError, match="don't have one each"):
        Augmentation(["mixup"], 0, several, CLASSES).labels(INDICES, 0)
