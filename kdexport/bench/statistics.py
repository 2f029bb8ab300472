"""From raw nanoseconds to what is reported. Pure functions over numpy."""

from collections.abc import Sequence

import numpy as np

from kdexport.bench.plan import PERCENTILE_NEEDS
from kdexport.intervals import median_interval, quantile_intervals, ratios_of_rounds, speedup_of_rounds
from kdexport.results import Latency

NS_PER_MS = 1e6


def latency(rounds: Sequence[np.ndarray], turns_ns: Sequence[Sequence[float]] = ()) -> Latency:
    """Summarise the samples of all rounds.

    Args:
        rounds: int64 nanoseconds per call, one array a round.
        turns_ns: The median of each turn, one sequence a round.
    """
    pooled = np.concatenate(rounds) / NS_PER_MS
    found = quantile_intervals([samples / NS_PER_MS for samples in rounds], (0.5, 0.9, 0.95, 0.99))
    p50_ci95, *tails = found if found is not None else [None] * 4
    p90, p95, p99 = (percentile(pooled, which) for which in (90, 95, 99))
    p90_ci95, p95_ci95, p99_ci95 = (
        None if value is None else interval for value, interval in zip((p90, p95, p99), tails, strict=True)
    )
    return Latency(
        p50=float(np.median(pooled)),
        p50_ci95=p50_ci95,
        p90=p90,
        p95=p95,
        p99=p99,
        mean=float(pooled.mean()),
        std=float(pooled.std()),
        samples=int(pooled.size),
        quantiles=tuple(float(value) for value in np.quantile(pooled, np.linspace(0, 1, 101))),
        rounds_p50=tuple(float(np.median(samples)) / NS_PER_MS for samples in rounds),
        turns_p50=tuple(tuple(median / NS_PER_MS for median in turns) for turns in turns_ns),
        p90_ci95=p90_ci95,
        p95_ci95=p95_ci95,
        p99_ci95=p99_ci95,
    )


def percentile(samples: np.ndarray, which: int) -> float | None:
    """Return a percentile, or None where the samples are too few to carry it."""
    return float(np.percentile(samples, which)) if samples.size >= PERCENTILE_NEEDS[which] else None


def precision(rounds: Sequence[np.ndarray]) -> float | None:
    """Return the half-width of the median's interval as a share of its middle; None before there is an interval."""
    interval = median_interval(rounds)
    return None if interval is None else (interval[1] - interval[0]) / (interval[1] + interval[0])


def speedup_precision(baseline: Sequence[Sequence[float]], model: Sequence[Sequence[float]]) -> float | None:
    """Return the half-width of a speed-up's interval as a share of its middle; None before there is an interval.

    Args:
        baseline: Medians of its turns, one sequence a round.
        model: The same of the other model, measured in the same rounds.
    """
    ratios = ratios_of_rounds(baseline, model)
    interval = speedup_of_rounds(ratios)[1] if ratios else None
    return None if interval is None else (interval[1] - interval[0]) / (interval[1] + interval[0])
