"""Spearman's and Pearson's correlation, of samples and of their bootstrap resamples. numpy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdexport.statistics import resample_counts

Floats = NDArray[np.float64]


def spearman(first: NDArray[Any], second: NDArray[Any]) -> float | None:
    """Return Spearman's rank correlation; equal values share their mean rank. None where one is constant."""
    return _one(spearmans(first, second, np.ones((1, len(first)))))


def pearson(first: NDArray[Any], second: NDArray[Any]) -> float | None:
    """Return Pearson's correlation; None where one is constant."""
    one = np.asarray(first, np.float64)[None], np.asarray(second, np.float64)[None]
    return _one(_weighted(*one, np.ones((1, len(first)))))


def resampled_spearman(first: NDArray[Any], second: NDArray[Any]) -> Floats:
    """Return Spearman's correlation of each of ``SCORE_RESAMPLES`` resamples; 0 where one is constant."""
    found: Floats = np.concatenate([spearmans(first, second, block) for block in resample_counts(len(first))])
    return np.where(np.isfinite(found), found, 0.0)


def spearmans(first: NDArray[Any], second: NDArray[Any], counts: Floats) -> Floats:
    """Return Spearman's correlation where each sample counts as often as ``counts [resamples, samples]`` says.

    Returns:
        ``[resamples]``, NaN where one is constant.
    """
    return _weighted(_ranks(first, counts), _ranks(second, counts), counts)


def _ranks(values: NDArray[Any], counts: Floats) -> Floats:
    """Return each resample's ranks, ``[resamples, samples]``."""
    order = np.argsort(values, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(order) - 1)
    sums = np.cumsum(counts[:, order], axis=1)[:, ends]
    sizes = np.diff(sums, axis=1, prepend=0.0)
    groups = np.empty(len(values), dtype=np.int64)
    groups[order] = np.searchsorted(ends, np.arange(len(order)))
    ranks: Floats = (sums - (sizes - 1) / 2)[:, groups]
    return ranks


def _weighted(first: Floats, second: Floats, counts: Floats) -> Floats:
    total = counts.sum(axis=1, keepdims=True)
    first = first - (first * counts).sum(axis=1, keepdims=True) / total
    second = second - (second * counts).sum(axis=1, keepdims=True) / total
    scale = np.sqrt((counts * first**2).sum(axis=1) * (counts * second**2).sum(axis=1))
    product = (counts * first * second).sum(axis=1)
    found: Floats = np.where(scale > 0, product / np.where(scale > 0, scale, 1.0), np.nan)
    return found


def _one(found: Floats) -> float | None:
    return float(found[0]) if np.isfinite(found[0]) else None
