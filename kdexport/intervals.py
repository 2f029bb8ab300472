"""Intervals for medians and for ratios of medians, from measurements that were made in rounds.

Latencies that follow each other are not independent: the machine drifts from second to second. Resampling single
runs would give intervals that are far too narrow, so whole rounds are resampled (block bootstrap, Künsch 1989;
percentile intervals, Efron & Tibshirani 1993, chapter 13). Needs numpy alone.
"""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000
BINS = 1024  # of the pooled quantile grid: a median is read off to about 1/1024 of the distribution's mass
SEED = 20240607  # of the resampling: equal samples give equal intervals

Interval = tuple[float, float]


def median_interval(rounds: Sequence[np.ndarray], confidence: float = 0.95) -> Interval | None:
    """Return the bootstrap interval of the pooled median, resampling rounds.

    Args:
        rounds: The samples of each round, at least one in each.
        confidence: Share of intervals that hold the true median.

    Returns:
        Lower and upper end, or None where there are fewer than three rounds.
    """
    if len(rounds) < 3:
        return None
    pooled = np.sort(np.concatenate(rounds))
    grid = np.unique(pooled[np.linspace(0, pooled.size - 1, min(BINS, pooled.size)).astype(np.int64)])
    counts = np.stack([np.bincount(np.searchsorted(grid, samples), minlength=grid.size) for samples in rounds])
    # In floating point: numpy multiplies integer matrices without BLAS.
    weights = _weights(len(rounds))
    cumulative = np.cumsum(weights @ counts.astype(np.float64), axis=1)
    half = cumulative[:, -1:] / 2
    medians = grid[np.argmax(cumulative >= half, axis=1)]
    return _percentiles(medians, confidence)


def ratio_interval(
    numerator: Sequence[float], denominator: Sequence[float], confidence: float = 0.95
) -> tuple[float, Interval | None]:
    """Return the ratio of two series measured in the same rounds, and its bootstrap interval.

    Entry *i* of both series comes from round *i*, so what the machine did to both at that time cancels. The ratio is
    the median over rounds of the entries' ratios.

    Args:
        numerator: One median per round, e.g. the baseline's.
        denominator: The same of the other model; where one series is longer, its end is left out.
        confidence: Share of intervals that hold the true ratio.

    Returns:
        The ratio and its interval; the interval is None where there are fewer than three common rounds.

    Raises:
        ValueError: A series is empty.
    """
    common = min(len(numerator), len(denominator))
    if common == 0:
        raise ValueError("a ratio needs at least one round of both series")
    ratios = np.asarray(numerator[:common], float) / np.asarray(denominator[:common], float)
    ratio = float(np.median(ratios))
    if common < 3:
        return ratio, None
    chosen = np.random.default_rng(SEED).integers(0, common, (RESAMPLES, common))
    return ratio, _percentiles(np.median(ratios[chosen], axis=1), confidence)


def _weights(rounds: int) -> np.ndarray:
    """Return how often each round is drawn in each resample, [RESAMPLES, rounds]."""
    return np.random.default_rng(SEED).multinomial(rounds, np.full(rounds, 1 / rounds), RESAMPLES).astype(np.float64)


def _percentiles(values: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
