"""95 % intervals of what is compared: accuracies on the same samples, medians of the same rounds, percentiles."""

import math
from collections.abc import Sequence

from kdexport.evaluate import Z95, paired_difference
from kdexport.results import Interval, Latency, ModelFile

LEAST_ROUNDS = 3  # fewer say too little of their own spread


def accuracy_delta(model: ModelFile, baseline: ModelFile) -> tuple[float | None, Interval | None]:
    """Return the accuracy of ``model`` minus that of ``baseline``, with a 95 % interval.

    Where both keep which samples they got right, the interval is paired (``evaluate.paired_difference``); where only
    the marginal intervals are known, it is Newcombe's square-and-add (1998, method 10 without correlation), wider.
    """
    if model.accuracy is None or baseline.accuracy is None:
        return None, None
    if model.evaluation is not None and baseline.evaluation is not None:
        paired = paired_difference(baseline.evaluation, model.evaluation)
        if paired is not None:
            return paired
    delta = model.accuracy - baseline.accuracy
    if model.accuracy_ci95 is None or baseline.accuracy_ci95 is None:
        return delta, None
    low = math.hypot(model.accuracy - model.accuracy_ci95[0], baseline.accuracy_ci95[1] - baseline.accuracy)
    high = math.hypot(model.accuracy_ci95[1] - model.accuracy, baseline.accuracy - baseline.accuracy_ci95[0])
    return delta, (max(-1.0, delta - low), min(1.0, delta + high))


def median_ratio(baseline: Latency, model: Latency) -> tuple[float, Interval | None]:
    """Return how many times faster ``model`` is, with a 95 % interval.

    Models are measured in interleaved rounds, so that round i of both saw the same state of the machine: the ratio is
    the geometric mean of the rounds' ratios, its interval Student's t on their logarithms. Without rounds in common it
    is the ratio of the two medians, and the interval what their own intervals allow at their worst.
    """
    rounds = list(zip(baseline.rounds_p50, model.rounds_p50, strict=False))
    same = len(baseline.rounds_p50) == len(model.rounds_p50) >= LEAST_ROUNDS
    if same and all(first > 0 and second > 0 for first, second in rounds):
        logs = [math.log(first / second) for first, second in rounds]
        middle = sum(logs) / len(logs)
        half = student_t95(len(logs) - 1) * math.sqrt(
            sum((log - middle) ** 2 for log in logs) / (len(logs) - 1) / len(logs)
        )
        return math.exp(middle), (math.exp(middle - half), math.exp(middle + half))
    ratio = baseline.p50 / model.p50
    if baseline.p50_ci95 is None or model.p50_ci95 is None or min(model.p50_ci95) <= 0:
        return ratio, None
    return ratio, (baseline.p50_ci95[0] / model.p50_ci95[1], baseline.p50_ci95[1] / model.p50_ci95[0])


def percentile(latency: Latency, percent: int) -> tuple[float | None, Interval | None]:
    """Return a percentile of the latency in ms with its 95 % interval; None where the samples cannot carry it.

    The interval of a percentile above the median is that of its order statistics (normal approximation of the
    binomial), read off the 101 kept quantiles.
    """
    value = {50: latency.p50, 90: latency.p90, 95: latency.p95, 99: latency.p99}[percent]
    if percent == 50:
        return value, latency.p50_ci95
    if value is None or len(latency.quantiles) != 101 or latency.samples < 1:
        return value, None
    share = percent / 100
    spread = Z95 * math.sqrt(share * (1 - share) / latency.samples)
    return value, (_quantile(latency.quantiles, share - spread), _quantile(latency.quantiles, share + spread))


def student_t95(freedom: int) -> float:
    """Return Student's t at 97.5 %, within 1 % from two degrees of freedom on (Abramowitz and Stegun 1964, 26.7.5)."""
    z = Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms)))


def _quantile(quantiles: Sequence[float], share: float) -> float:
    position = min(max(share, 0.0), 1.0) * (len(quantiles) - 1)
    below = math.floor(position)
    above = min(below + 1, len(quantiles) - 1)
    return quantiles[below] + (position - below) * (quantiles[above] - quantiles[below])
