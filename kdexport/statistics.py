"""Every 95 % interval and paired comparison: of scores, of medians and of their ratios. Needs numpy alone.

Calls that follow each other are not independent (the machine drifts), and neither are calls of one process: where its
memory came to lie changes a small model's latency by a percent or two for as long as it lives (Mytkowicz et al. 2009,
"Producing Wrong Data Without Doing Anything Obviously Wrong!"). So whole rounds, each from fresh processes, are the
unit here: intervals from single calls would be many times too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdexport.results import Evaluation, Interval, Latency, Measurement, ModelFile

# Percentiles need samples beyond them: at least 6.4 expected above it, so that one outlier does not decide.
PERCENTILE_NEEDS = {90: 64, 95: 130, 99: 662}
Z95 = 1.959963984540054  # the normal distribution's 97.5 % point
UNLIKE = 0.05  # beyond the interval: two ways to compute one ratio that differ by more are not about one speed
LEAST_ROUNDS = 3  # fewer say nothing of their own spread
RESAMPLES = 500
BINS = 256  # of the grid of pooled quantiles, twice: a median is read off to about 1/256 of the distribution's mass
SEED = 20240607  # of the resampling: equal samples give equal intervals

# The same at 99 %, for an interval that is looked at after each round and ends the measuring once it is narrow: for 5 %
# over all, Pocock 1977, "Group Sequential Methods in the Design and Analysis of Clinical Trials", has 2.2 % at each of
# three looks. Of 100 measurements of a model against itself, plain 95 % intervals held 1.00 in 92.
T98 = (
    31.821, 6.965, 4.541, 3.747, 3.365, 3.143, 2.998, 2.896, 2.821, 2.764, 2.718, 2.681, 2.650, 2.624, 2.602, 2.583,
    2.567, 2.552, 2.539, 2.528, 2.518, 2.508, 2.500, 2.492, 2.485, 2.479, 2.473, 2.467, 2.462, 2.457,
)  # fmt: skip

# Student's t at 97.5 % for 1 to 30 degrees of freedom; beyond, its expansion about the normal distribution's 1.96.
T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def median_interval(rounds: Sequence[np.ndarray]) -> Interval | None:
    """Return the 95 % interval of the pooled median; see ``quantile_intervals``."""
    found = quantile_intervals(rounds, (0.5,))
    return None if found is None else found[0]


def quantile_intervals(rounds: Sequence[np.ndarray], shares: Sequence[float]) -> list[Interval] | None:
    """Return the 95 % intervals of pooled quantiles: a bootstrap that resamples whole rounds.

    The percentiles of the resampled quantiles would be too narrow for few rounds, and never reach beyond the rounds'
    own. So the bootstrap gives the standard error, on a logarithmic scale, and Student's t the width (Hesterberg 2015,
    "What Teachers Should Know About the Bootstrap": t interval with bootstrap standard error, small-sample corrected).

    Args:
        rounds: The samples of each round, at least one in each, all above 0.
        shares: Which quantiles, e.g. 0.5 and 0.99.

    Returns:
        For each quantile lower and upper end in the samples' unit; None where there are fewer than three rounds.
    """
    count = len(rounds)
    if count < LEAST_ROUNDS:
        return None
    pooled = np.sort(np.concatenate(rounds))
    # Half of the grid spreads over all samples, half over the upper twentieth: the tail has quantiles of its own.
    steps = np.concatenate([np.linspace(0, 1, BINS), np.linspace(0.95, 1, BINS)])
    grid = np.unique(pooled[np.round(steps * (pooled.size - 1)).astype(np.int64)])
    counts = np.stack([np.bincount(np.searchsorted(grid, samples), minlength=grid.size) for samples in rounds])
    weights = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    # In floating point: numpy multiplies integer matrices without BLAS.
    cumulative = np.cumsum(weights.astype(np.float64) @ counts.astype(np.float64), axis=1)
    found = []
    for share in shares:
        resampled = grid[np.argmax(cumulative >= cumulative[:, -1:] * share, axis=1)]
        error = float(np.log(resampled).std()) * math.sqrt(count / (count - 1))
        middle, half = float(np.quantile(pooled, share)), student_t95(count - 1) * error
        found.append((middle * math.exp(-half), middle * math.exp(half)))
    return found


def speedup(baseline: Latency, model: Latency) -> tuple[float, Interval | None]:
    """Return how many times faster ``model`` is than ``baseline``, measured in the same rounds, with a 95 % interval.

    The ratio is that of the two medians, which stand beside it in every table. Its interval comes from ``paired_ratio``
    and is widened to hold it where the machine changed its speed so that the two differ.

    Raises:
        ValueError: They have no round in common.
    """
    ratio = baseline.p50 / model.p50
    _, interval = paired_ratio(baseline, model)
    return ratio, None if interval is None else (min(interval[0], ratio), max(interval[1], ratio))


def paired_ratio(baseline: Latency, model: Latency) -> tuple[float, Interval | None]:
    """Return the ratio of two models from what each did at the same time, with its 95 % interval.

    Within a round the two take turns of some milliseconds, so turn *k* of both saw the same state of the machine: where
    the turns are kept, a round's ratio is the median over its pairs of turns. A machine that changes between two speeds
    within a round then moves both, not the ratio. What differs from one process to the next is in the interval.

    Raises:
        ValueError: They have no round in common.
    """
    if not (baseline.turns_p50 and model.turns_p50):
        return ratio_interval(baseline.rounds_p50, model.rounds_p50, looks=True)
    return speedup_of_rounds(ratios_of_rounds(baseline.turns_p50, model.turns_p50))


def disturbed(baseline: Measurement, model: Measurement) -> str | None:
    """Return in words why nothing is decided by a speed-up; None where the machine was quiet enough.

    Either was disturbed, or the ratio of their medians is not the one that they had at the same time: then the calls
    have more than one speed, and which of them a median falls on is chance.
    """
    told = model.disturbed or baseline.disturbed
    here, there = baseline.latency_ms, model.latency_ms
    if told or not (here.turns_p50 and there.turns_p50):
        return told
    ratio = here.p50 / there.p50
    paired, interval = paired_ratio(here, there)
    low, high = interval or (paired, paired)
    if ratio > high * (1 + UNLIKE) or ratio * (1 + UNLIKE) < low:
        return f"calls changed their speed: the medians' ratio is {ratio:.3g}, turn by turn it is {paired:.3g}"
    return None


def ratios_of_rounds(baseline: Sequence[Sequence[float]], model: Sequence[Sequence[float]]) -> list[float]:
    """Return each common round's ratio: the median, over its pairs of turns, of baseline's median by model's."""
    ratios = []
    for first, second in zip(baseline, model):
        pairs = min(len(first), len(second))
        ratios.append(float(np.median(np.asarray(first[:pairs]) / np.asarray(second[:pairs]))))
    return ratios


def speedup_of_rounds(ratios: Sequence[float]) -> tuple[float, Interval | None]:
    """Return the mean of the rounds' ratios and its interval, where measuring ended when that was narrow enough."""
    return ratio_interval(ratios, [1.0] * len(ratios), looks=True)


def ratio_interval(
    numerator: Sequence[float], denominator: Sequence[float], *, looks: bool = False
) -> tuple[float, Interval | None]:
    """Return the ratio of two series measured in the same rounds, and its 95 % interval.

    Entry *i* of both comes from round *i*, so what the machine did to both at that time cancels; what differs from one
    process to the next does not, and is in the interval. Student's t on the logarithms of the rounds' ratios.

    Args:
        numerator: One median per round, e.g. the baseline's; above 0.
        denominator: The same of the other model; where one series is longer, its end is left out.
        looks: Whether the interval's own width decided how many rounds there are: it is then wider (``T98``).

    Returns:
        The geometric mean of the rounds' ratios, and its interval: None where there are fewer than three common rounds.

    Raises:
        ValueError: A series is empty.
    """
    common = min(len(numerator), len(denominator))
    if common == 0:
        raise ValueError("a ratio needs at least one round of both series")
    logs = np.log(np.asarray(numerator[:common], float) / np.asarray(denominator[:common], float))
    middle = float(logs.mean())
    if common < LEAST_ROUNDS:
        return math.exp(middle), None
    quantile = student_t98(common - 1) if looks else student_t95(common - 1)
    half = quantile * float(logs.std(ddof=1)) / math.sqrt(common)
    return math.exp(middle), (math.exp(middle - half), math.exp(middle + half))


def student_t95(freedom: int) -> float:
    """Return Student's t at 97.5 % for one degree of freedom or more."""
    return T95[freedom - 1] if freedom <= len(T95) else 1.96 + 2.5 / freedom


def student_t98(freedom: int) -> float:
    """Return Student's t at 99 % for one degree of freedom or more."""
    return T98[freedom - 1] if freedom <= len(T98) else 2.326 + 4.0 / freedom


NS_PER_MS = 1e6


def latency(rounds: Sequence[np.ndarray], turns_ns: Sequence[Sequence[float]] = (), left_out: int = 0) -> Latency:
    """Summarise the samples of all rounds.

    Args:
        rounds: int64 nanoseconds per call, one array a round.
        turns_ns: The median of each turn, one sequence a round.
        left_out: Calls that are not among them, because other work had the core meanwhile.
    """
    pooled = np.concatenate(rounds) / NS_PER_MS
    found = quantile_intervals([samples / NS_PER_MS for samples in rounds], (0.5, 0.9, 0.95, 0.99))
    p50_ci95, *tails = found if found is not None else [None] * 4
    p90, p95, p99 = (percentile(pooled, which) for which in (90, 95, 99))
    p90_ci95, p95_ci95, p99_ci95 = (
        None if value is None else interval for value, interval in zip((p90, p95, p99), tails)
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
        left_out=left_out,
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


def wilson(successes: int, trials: int) -> Interval:
    """Return the 95 % score interval of a share (Wilson, JASA 1927)."""
    if trials == 0:
        return (0.0, 1.0)
    share = successes / trials
    denominator = 1 + Z95**2 / trials
    centre = (share + Z95**2 / (2 * trials)) / denominator
    half = Z95 * math.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2)) / denominator
    return (max(0.0, centre - half), min(1.0, centre + half))


def score_delta(model: ModelFile, baseline: ModelFile) -> tuple[float | None, Interval | None]:
    """Return the score of ``model`` minus that of ``baseline``, with a 95 % interval.

    Where both were scored on the same samples, the interval is paired (``paired_difference``); where only the marginal
    intervals are known, it is Newcombe's square-and-add (1998, method 10 without correlation), wider.
    """
    ours, theirs = model.score, baseline.score
    if ours is None or theirs is None or ours.metric != theirs.metric:
        return None, None
    if model.evaluation is not None and baseline.evaluation is not None:
        paired = paired_difference(baseline.evaluation, model.evaluation)
        if paired is not None:
            return paired
    delta = ours.value - theirs.value
    if ours.ci95 is None or theirs.ci95 is None:
        return delta, None
    low = math.hypot(ours.value - ours.ci95[0], theirs.ci95[1] - theirs.value)
    high = math.hypot(ours.ci95[1] - ours.value, theirs.value - theirs.ci95[0])
    return delta, (delta - low, delta + high) if ours.metric != "accuracy" else _share(delta - low, delta + high)


def paired_difference(baseline: Evaluation, other: Evaluation) -> tuple[float, Interval] | None:
    """Return other's score minus baseline's with its 95 % interval, paired sample by sample.

    Shares of right samples get the score interval of Bonett and Price (2012), "Adjusted Wald confidence interval for a
    difference of binomial proportions based on paired data"; other means Student's t on the differences; a score that
    is no mean over samples the percentiles of paired resamples. None where the two were not scored on the same samples.
    """
    if (baseline.split, baseline.samples, baseline.task) != (other.split, other.samples, other.task):
        return None
    if baseline.resamples and len(baseline.resamples) == len(other.resamples):
        differences = np.asarray(other.resamples) - np.asarray(baseline.resamples)
        interval = bootstrap_interval(differences)
        return other.score.value - baseline.score.value, interval
    left, right = np.asarray(baseline.per_sample), np.asarray(other.per_sample)
    if not left.size or left.shape != right.shape:
        return None
    if np.isin(left, (0, 1)).all() and np.isin(right, (0, 1)).all():
        return _paired_shares(left.astype(bool), right.astype(bool))
    differences, count = right - left, left.size
    middle = float(differences.mean())
    if count < 2:
        return middle, (-math.inf, math.inf)
    half = student_t95(count - 1) * float(differences.std(ddof=1)) / math.sqrt(count)
    return middle, (middle - half, middle + half)


def _paired_shares(left: NDArray[np.bool_], right: NDArray[np.bool_]) -> tuple[float, Interval]:
    gained, lost, total = int((~left & right).sum()), int((left & ~right).sum()), len(left)
    adjusted_gain, adjusted_loss = (gained + 1) / (total + 2), (lost + 1) / (total + 2)
    centre = adjusted_gain - adjusted_loss
    half = Z95 * math.sqrt(max(0.0, adjusted_gain + adjusted_loss - centre**2) / (total + 2))
    return (gained - lost) / total, _share(centre - half, centre + half)


def _share(low: float, high: float) -> Interval:
    return max(-1.0, low), min(1.0, high)


def mean_interval(values: NDArray[Any]) -> Interval | None:
    """Return the 95 % interval of a mean over samples: Student's t; None for fewer than two."""
    if len(values) < 2:
        return None
    middle, half = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half *= student_t95(len(values) - 1)
    return middle - half, middle + half


SCORE_RESAMPLES = 500
RESAMPLES_AT_ONCE = 2**22  # entries of a block of counts: 32 MiB


def resample_counts(samples: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each sample is drawn in each of ``SCORE_RESAMPLES`` bootstrap resamples, in blocks.

    The draws depend on the number of samples alone, so that resample *b* of two models holds the same samples.

    Args:
        samples: How many there are.

    Yields:
        ``[resamples of the block, samples]``.
    """
    at_once = max(1, RESAMPLES_AT_ONCE // max(samples, 1))
    for start in range(0, SCORE_RESAMPLES, at_once):
        block = range(start, min(start + at_once, SCORE_RESAMPLES))
        draws = [np.random.default_rng([SEED, number]).integers(0, samples, samples) for number in block]
        yield np.stack([np.bincount(drawn, minlength=samples) for drawn in draws]).astype(np.float64)


def bootstrap_interval(values: NDArray[Any]) -> Interval:
    """Return the 95 % percentile interval of resampled values."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def median_ratio(baseline: Latency, model: Latency) -> tuple[float, Interval | None]:
    """Return how many times faster ``model`` is, with a 95 % interval.

    Models are measured in interleaved rounds, so that round i of both saw the same state of the machine: the rounds are
    paired (``speedup``). Without rounds in common it is the ratio of the two medians, and the interval
    what their own intervals allow at their worst.
    """
    same = len(baseline.rounds_p50) == len(model.rounds_p50) >= LEAST_ROUNDS
    if same and min(baseline.rounds_p50 + model.rounds_p50) > 0:
        return speedup(baseline, model)
    ratio = baseline.p50 / model.p50
    if baseline.p50_ci95 is None or model.p50_ci95 is None or min(model.p50_ci95) <= 0:
        return ratio, None
    return ratio, (baseline.p50_ci95[0] / model.p50_ci95[1], baseline.p50_ci95[1] / model.p50_ci95[0])


def percentile_interval(latency: Latency, percent: int) -> tuple[float | None, Interval | None]:
    """Return a percentile of the latency in ms with its 95 % interval; None where the samples cannot carry it."""
    return {
        50: (latency.p50, latency.p50_ci95),
        90: (latency.p90, latency.p90_ci95),
        95: (latency.p95, latency.p95_ci95),
        99: (latency.p99, latency.p99_ci95),
    }[percent]
