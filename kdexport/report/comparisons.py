"""95 % intervals of what is compared: accuracies on the same samples, medians of the same rounds, percentiles."""

import math

from kdexport.evaluate import paired_difference
from kdexport.intervals import LEAST_ROUNDS, speedup
from kdexport.results import Evaluation, Interval, Latency, ModelFile


def accuracy_delta(model: ModelFile, baseline: ModelFile) -> tuple[float | None, Interval | None]:
    """Return the accuracy of ``model`` minus that of ``baseline``, with a 95 % interval.

    Where both keep which samples they got right, the interval is paired (``evaluate.paired_difference``); where only
    the marginal intervals are known, it is Newcombe's square-and-add (1998, method 10 without correlation), wider.
    """
    if model.accuracy is None or baseline.accuracy is None:
        return None, None
    paired = _paired(model.evaluation, baseline.evaluation)
    if paired is not None:
        return paired
    delta = model.accuracy - baseline.accuracy
    if model.accuracy_ci95 is None or baseline.accuracy_ci95 is None:
        return delta, None
    low = math.hypot(model.accuracy - model.accuracy_ci95[0], baseline.accuracy_ci95[1] - baseline.accuracy)
    high = math.hypot(model.accuracy_ci95[1] - model.accuracy, baseline.accuracy - baseline.accuracy_ci95[0])
    return delta, (max(-1.0, delta - low), min(1.0, delta + high))


def _paired(model: Evaluation | None, baseline: Evaluation | None) -> tuple[float, Interval] | None:
    if model is None or baseline is None or not model.correct or not baseline.correct:
        return None
    try:
        return paired_difference(baseline, model)
    except ValueError:  # not base64: the file was edited
        return None


def median_ratio(baseline: Latency, model: Latency) -> tuple[float, Interval | None]:
    """Return how many times faster ``model`` is, with a 95 % interval.

    Models are measured in interleaved rounds, so that round i of both saw the same state of the machine: the rounds are
    paired (``intervals.speedup``). Without rounds in common it is the ratio of the two medians, and the interval
    what their own intervals allow at their worst.
    """
    same = len(baseline.rounds_p50) == len(model.rounds_p50) >= LEAST_ROUNDS
    if same and min(baseline.rounds_p50 + model.rounds_p50) > 0:
        return speedup(baseline, model)
    ratio = baseline.p50 / model.p50
    if baseline.p50_ci95 is None or model.p50_ci95 is None or min(model.p50_ci95) <= 0:
        return ratio, None
    return ratio, (baseline.p50_ci95[0] / model.p50_ci95[1], baseline.p50_ci95[1] / model.p50_ci95[0])


def percentile(latency: Latency, percent: int) -> tuple[float | None, Interval | None]:
    """Return a percentile of the latency in ms with its 95 % interval; None where the samples cannot carry it."""
    return {
        50: (latency.p50, latency.p50_ci95),
        90: (latency.p90, latency.p90_ci95),
        95: (latency.p95, latency.p95_ci95),
        99: (latency.p99, latency.p99_ci95),
    }[percent]
