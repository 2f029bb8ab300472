"""Intersection over union of each class, its mean, and what answers by chance would score."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kdexport.statistics import resample_counts
from kdexport.tasks.base import Array
from kdexport.tasks.masks import VOID, in_parts


def confusion(kept: Array, targets: Array, classes: int) -> tuple[tuple[int, ...], ...]:
    """Return how many pixels of each class are taken for which, ``[true][predicted]``."""
    found = np.zeros(classes * classes, dtype=np.int64)
    for start, part in in_parts(targets):
        known = part != VOID
        true, predicted = part[known].astype(np.int64), kept["classes"][start : start + len(part)][known]
        found += np.bincount(true * classes + predicted, minlength=classes * classes)
    return tuple(tuple(int(cell) for cell in row) for row in found.reshape(classes, classes))


def class_counts(kept: Array, targets: Array) -> tuple[NDArray[np.float64], ...]:
    """Return pixels that are right, that are of each class and that are taken for it, each ``[samples, classes]``."""
    classes = kept["logits"].shape[1]
    found = np.zeros((3, len(kept), classes))
    for start, part in in_parts(targets):
        for place, (mask, predicted) in enumerate(zip(part, kept["classes"][start : start + len(part)]), start):
            known = mask != VOID
            true, said = mask[known].astype(np.int64), predicted[known]
            for row, counted in enumerate((true[true == said], true, said)):
                found[row, place] = np.bincount(counted, minlength=classes)
    return tuple(found)


def ious_of(hits: Array, actual: Array, predicted: Array) -> NDArray[np.float64]:
    """Return the IoU of each class from counts of pixels ``[..., classes]``; NaN where the targets do not hold it."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ious: NDArray[np.float64] = np.where(actual > 0, hits / (actual + predicted - hits), np.nan)
    return ious


def resampled_mean_iou(hits: Array, actual: Array, predicted: Array, value: float) -> NDArray[np.float64]:
    """Return the mean IoU of each resample of the samples; ``value`` where nothing but void was drawn."""
    means = np.concatenate(
        [_mean_ious(*(b @ c for c in (hits, actual, predicted))) for b in resample_counts(len(hits))]
    )
    return np.where(np.isfinite(means), means, value)


def constant_mean_iou(total: Array) -> float:
    """Return the mean IoU of one class everywhere: that class's IoU is its share of the pixels and the others' 0."""
    return float(total.max() / total.sum() / (total > 0).sum())


def chance_mean_iou(total: Array) -> float:
    """Return the mean IoU of the better answer that looks at no image, from the pixels of each class ``[classes]``.

    One class everywhere, or classes drawn by their shares p: then p * p of the pixels are right by chance, and the
    union is 2p - p * p, so that the IoU is p / (2 - p). Of three classes as frequent: 0.11 and 0.2.
    """
    shares = total[total > 0] / total.sum()
    return max(constant_mean_iou(total), float((shares / (2 - shares)).mean()))


def _mean_ious(hits: Array, actual: Array, predicted: Array) -> NDArray[np.float64]:
    """Return the mean IoU of rows of counts ``[rows, classes]``; NaN where no pixel has a class."""
    ious, present = ious_of(hits, actual, predicted), actual > 0
    with np.errstate(invalid="ignore"):
        means: NDArray[np.float64] = np.where(present, ious, 0.0).sum(axis=1) / present.sum(axis=1)
    return means


def mean_iou(hits: Array, actual: Array, predicted: Array) -> float | None:
    """Return the mean IoU of counts ``[classes]``; None where no pixel has a class."""
    value = float(_mean_ious(hits[None], actual[None], predicted[None])[0])
    return value if math.isfinite(value) else None
