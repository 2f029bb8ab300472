"""Mean IoU against scikit-learn and against counts of one's own; void pixels count nowhere."""

import numpy as np
import pytest
import torch
from sklearn import metrics

from kdexport.errors import KDExportError, SourceError
from kdexport.statistics import SCORE_RESAMPLES, paired_difference, resample_counts
from kdexport.tasks import TASKS, task_of
from kdexport.tasks.masks import VOID, grid

TASK = TASKS["segmentation"]
NAMES = ("road", "sky", "car")


def made(seed=0, samples=12, skill=0.7, size=(9, 7)):
    """Masks with a few void pixels, and logits that are right as often as ``skill`` makes them."""
    rng = np.random.default_rng(seed)
    targets = rng.choice([0, 1, 2, VOID], p=[0.6, 0.25, 0.05, 0.1], size=(samples, *size)).astype(np.uint8)
    shown = np.stack([targets == c for c in range(3)], axis=1)
    return rng.normal(size=(samples, 3, *size)).astype(np.float32) + skill * shown.astype(np.float32), targets


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_scikit_learns(seed):
    outputs, targets = made(seed)
    known = targets != VOID
    true, predicted = targets[known], outputs.argmax(axis=1)[known]
    found = TASK.evaluate(outputs, targets, NAMES, "test")
    ious = metrics.jaccard_score(true, predicted, average=None, labels=[0, 1, 2])
    assert found.score.value == TASK.score(outputs, targets) == pytest.approx(ious.mean(), abs=1e-12)
    assert [row.iou for row in found.per_class] == pytest.approx(ious.tolist(), abs=1e-12)
    assert found.metrics == {"pixel_accuracy": pytest.approx(metrics.accuracy_score(true, predicted), abs=1e-12)}
    assert found.confusion == tuple(map(tuple, metrics.confusion_matrix(true, predicted).tolist()))
    recalls = metrics.recall_score(true, predicted, average=None)
    assert [row.accuracy for row in found.per_class] == pytest.approx(recalls.tolist(), abs=1e-12)
    assert [row.samples for row in found.per_class] == np.bincount(true).tolist()
    constant = [metrics.jaccard_score(true, np.full_like(true, c), average="macro", labels=[0, 1, 2]) for c in range(3)]
    drawn = [
        metrics.jaccard_score(true, np.random.default_rng(k).permutation(true), average="macro", labels=[0, 1, 2])
        for k in range(20)
    ]
    assert found.chance >= max(constant)
    assert found.chance == pytest.approx(max(*constant, np.mean(drawn)), abs=3 * np.std(drawn) / np.sqrt(20) + 1e-12)
    assert (found.samples, found.accuracy) == (12, None)


def test_what_lies_under_void_changes_nothing():
    outputs, targets = made()
    other = np.where((targets == VOID)[:, None], -outputs, outputs)
    assert TASK.evaluate(outputs, targets, NAMES, "test") == TASK.evaluate(other, targets, NAMES, "test")
    kept = [TASK.kept(array, targets) for array in (outputs, other)]
    assert TASK.agreement(*kept).top1 == 1
    assert TASK.agreement(*kept).kl == 0
    masks, logits = torch.from_numpy(targets), [torch.from_numpy(array) for array in (outputs, other)]
    assert TASK.label_loss(logits[0], masks).item() == pytest.approx(TASK.label_loss(logits[1], masks).item(), rel=1e-6)


def test_a_class_that_the_masks_do_not_hold_is_not_averaged():
    outputs, targets = made()
    targets[targets == 2] = VOID
    known = targets != VOID
    ious = metrics.jaccard_score(targets[known], outputs.argmax(axis=1)[known], average=None, labels=[0, 1])
    found = TASK.evaluate(outputs, targets, NAMES, "test")
    assert found.score.value == pytest.approx(ious.mean(), abs=1e-12)
    assert found.per_class[2].iou is None
    assert TASK.score(outputs, np.full_like(targets, VOID)) is None


def test_a_resample_scores_as_the_images_that_it_draws_and_models_are_compared_in_pairs():
    outputs, targets = made(1)
    found = TASK.evaluate(outputs, targets, NAMES, "test")
    assert len(found.resamples) == SCORE_RESAMPLES
    counts = next(iter(resample_counts(len(outputs))))[:5].astype(int)
    for value, drawn in zip(found.resamples, counts, strict=False):
        again = TASK.score(outputs.repeat(drawn, axis=0), targets.repeat(drawn, axis=0))
        assert value == pytest.approx(again, abs=1e-12)
    better = outputs + 0.4 * np.stack([targets == c for c in range(3)], axis=1)
    difference, (low, high) = paired_difference(found, TASK.evaluate(better.astype(np.float32), targets, NAMES, "test"))
    assert 0 < low < difference < high
    own = found.score.ci95
    assert high - low < own[1] - own[0]


def test_agreement_is_that_of_all_pixels_and_kl_that_of_the_grid():
    teacher, targets = made(0)
    outputs = made(1)[0]
    known = targets != VOID
    near = TASK.agreement(TASK.kept(teacher, targets), TASK.kept(outputs, targets))
    assert near.top1 == pytest.approx((teacher.argmax(axis=1) == outputs.argmax(axis=1))[known].mean(), abs=1e-12)
    p, q = (np.moveaxis(array, 1, -1)[known].astype(np.float64) for array in (teacher, outputs))
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (p, q))
    assert near.kl == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-9)  # 63 pixels: all are on the grid
    teacher, targets = made(0, samples=2, size=(90, 70))
    outputs = made(1, samples=2, size=(90, 70))[0]
    rows, columns = grid(90, 70, 1024)
    on_grid = np.ix_(range(2), range(3), rows, columns)
    chosen = targets[np.ix_(range(2), rows, columns)]
    near = TASK.agreement(*(TASK.kept(array, targets) for array in (teacher, outputs)))
    of_grid = TASK.agreement(*(TASK.kept(array[on_grid], chosen) for array in (teacher, outputs)))
    assert near.kl == pytest.approx(of_grid.kl)
    assert near.top1 != of_grid.top1


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (32, 32), (33, 32), (360, 480), (1, 5000), (513, 2)])
def test_the_grid_is_even_and_bounded(size):
    rows, columns = grid(*size, 1024)
    assert len(rows) * len(columns) <= 1024
    assert len(rows) * len(columns) >= min(size[0] * size[1], 1024) / 4 or min(size) < 4
    for places, side in zip((rows, columns), size, strict=True):
        assert 0 <= places[0] <= places[-1] < side
        assert len(set(np.diff(places))) <= 2


def test_what_is_kept_of_a_batch_is_small():
    outputs, targets = made(samples=1, size=(360, 480))
    kept = TASK.kept(outputs, targets)
    assert kept.nbytes < outputs.nbytes / 10
    assert TASK.score(kept, targets) == TASK.score(outputs, targets)


def test_the_label_loss_is_the_cross_entropy_of_labelled_pixels():
    outputs, targets = made(samples=3)
    known = targets != VOID
    logits = np.moveaxis(outputs, 1, -1)[known].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -log_p[np.arange(len(log_p)), targets[known]].mean()
    found = TASK.label_loss(torch.from_numpy(outputs).double(), torch.from_numpy(targets))
    assert found.item() == pytest.approx(expected, rel=1e-6)
    smooth = TASK.label_loss(torch.from_numpy(outputs).double(), torch.from_numpy(targets), smoothing=0.1)
    assert smooth.item() == pytest.approx(0.9 * expected - 0.1 * log_p.mean(), rel=1e-6)
    none = TASK.label_loss(torch.from_numpy(outputs), torch.full(targets.shape, VOID))
    assert none.item() == 0
    for dtype in (torch.float16, torch.bfloat16):
        half = torch.from_numpy(outputs * 1e4).to(dtype).float().requires_grad_()
        TASK.label_loss(half, torch.from_numpy(targets)).backward()
        assert torch.isfinite(half.grad).all()


def test_targets_are_recognized_and_faults_named():
    outputs, targets = made()
    assert task_of(targets).name == task_of(targets.astype(np.int64)).name == "segmentation"
    TASK.check_targets(targets, NAMES, "d: train")
    with pytest.raises(SourceError, match="mask 3 holds the class 3, and there are 3 classes"):
        TASK.check_targets(np.where(np.arange(12)[:, None, None] == 3, 3, targets), NAMES, "d: train")
    with pytest.raises(SourceError, match="mask 0 holds the class -1"):
        TASK.check_targets(np.full((2, 3, 3), -1), NAMES, "d: train")
    with pytest.raises(SourceError, match="every pixel of every mask is void"):
        TASK.check_targets(np.full((2, 3, 3), VOID), NAMES, "d: train")
    with pytest.raises(SourceError, match="of one class") as caught:
        TASK.check_training(np.where(targets == VOID, VOID, 1), "d")
    assert "255" in caught.value.hint
    with pytest.raises(SourceError, match=r"gives \[12, 3\].*\n?"):
        TASK.check_outputs((12, 3), 12, NAMES, "the model")
    with pytest.raises(SourceError, match="4x4 pixels a sample, the masks have 9x7"):
        TASK.score(outputs[:, :, :4, :4], targets)
    with pytest.raises(KDExportError, match="a class for each pixel"):
        TASK.label_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 5, dtype=torch.uint8))


def test_a_model_that_does_not_beat_one_class_everywhere_is_doubted():
    outputs, targets = made(skill=0.0)
    assert "'road' for every pixel" in TASK.doubt(outputs, targets, NAMES)
    assert TASK.doubt(made(skill=3.0)[0], targets, NAMES) is None


def test_splits_are_stratified_by_the_commonest_class():
    masks = np.full((3, 2, 2), VOID, dtype=np.uint8)
    masks[1], masks[2, 0, 0] = 1, 2
    assert TASK.groups(masks).tolist() == [-1, 1, 2]


def maps_of(predicted, classes=3):
    return np.moveaxis(np.eye(classes, dtype=np.float32)[np.array(predicted)], -1, 1)


def test_a_class_that_is_nowhere_and_a_pixel_without_one_change_no_score():
    """What torchmetrics' users report (1693, 2866; 312, 1385): an absent class is no 0, void is in no union."""
    targets = np.array([[[0, 1], [0, 0]]], np.uint8)
    found = TASK.evaluate(TASK.kept(maps_of([[[0, 1], [0, 1]]]), targets), targets, ("a", "b", "c"), "test")
    assert [row.iou for row in found.per_class] == [pytest.approx(2 / 3), pytest.approx(1 / 2), None]
    assert found.score.value == pytest.approx(7 / 12)
    targets = np.array([[[2, 1], [1, 255]]], np.uint8)
    for void in range(3):  # IoU 0, 1/3 of class 1, 0 of class 2; class 0 is nowhere
        kept = TASK.kept(maps_of([[[1, 2], [1, void]]]), targets)
        assert TASK.evaluate(kept, targets, ("a", "b", "c"), "test").score.value == pytest.approx(1 / 6)


def test_classes_drawn_at_random_are_no_better_than_chance():
    """Of three classes as frequent, noise has a mean IoU of 0.2, nearly twice that of one class everywhere."""
    outputs, targets = np.random.default_rng(0).normal(size=(9, 3, 30, 30)), np.arange(8100).reshape(9, 30, 30) % 3
    found = TASK.evaluate(outputs.astype(np.float32), targets.astype(np.uint8), NAMES, "test")
    assert found.chance == pytest.approx(0.2, abs=1e-12)
    assert found.score.value == pytest.approx(0.2, abs=0.01)
    low, high = found.score.ci95
    assert low <= found.chance <= high
    told = TASK.doubt(outputs.astype(np.float32), targets.astype(np.uint8), NAMES)
    assert "classes drawn by their share, without a look at the image, give 20.0%" in told
