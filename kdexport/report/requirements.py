"""The recipe's [require], held against one model on one device: pass, fail, undecided or not measured.

A measured figure fails only where its 95 % interval lies wholly beyond the limit. Where the interval straddles the
limit the line is undecided, and the recipe says what that counts as. A figure that was not measured never passes: a
gate that passes on nothing cannot be trusted.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from kdexport import figures
from kdexport.recipe import Require
from kdexport.report import scores
from kdexport.report.join import Condition, Joined
from kdexport.report.scores import Metric
from kdexport.report.tradeoffs import memory
from kdexport.results import Evaluation, Gate, Interval, Measurement, ModelFile
from kdexport.statistics import disturbed, median_ratio, percentile_interval

MIB = 2**20
ABOVE_CHANCE = "above_chance"
SCORES = ("min_score", ABOVE_CHANCE)  # requirements whose figure is a score
DROPS = ("max_drop", "baseline_accuracy_drop")  # and those whose figure is a loss of it
Verdict = Literal["pass", "fail", "undecided", "not measured"]


def hold(joined: Joined, require: Require, model: ModelFile, condition: Condition | None) -> tuple[Gate, ...]:
    """Hold every requirement against one model.

    Args:
        joined: All that was measured.
        require: What is required; a line that is None asks for nothing.
        model: The model to judge.
        condition: Where its speed and memory are judged; None where nothing was timed.

    Returns:
        A gate per line of [require], those of the file first. One that nobody wrote comes before them where the
        model or the baseline is not shown to score above chance: what guesses is never shipped, however fast.
    """
    measured = joined.by_condition.get(condition, {}) if condition else {}
    return (
        *_above_chance(joined, model),
        *_of_the_file(joined, require, model),
        *_of_the_device(joined, require, model, condition, measured),
    )


def verdict(
    value: float | None, interval: Interval | None, *, at_least: float | None, at_most: float | None
) -> Verdict:
    """AccuracyGuard a figure against a limit by its interval, or as it stands where it has none."""
    if value is None:
        return "not measured"
    low, high = interval or (value, value)
    if at_most is not None:
        return "pass" if high <= at_most else "fail" if low > at_most else "undecided"
    if at_least is not None:
        return "pass" if low >= at_least else "fail" if high < at_least else "undecided"
    raise ValueError("a limit is needed")


def chance(evaluation: Evaluation | None) -> float | None:
    """Return what the best constant answer scores, of one class a sample the share of the largest; None: not known."""
    if evaluation is None or evaluation.chance is not None:
        return None if evaluation is None else evaluation.chance
    if evaluation.score.metric != "accuracy" or not evaluation.per_class:
        return None
    counts = [score.samples for score in evaluation.per_class]
    return max(counts) / evaluation.samples if sum(counts) == evaluation.samples > 0 else None


def passes(judged: Verdict, undecided: str) -> bool:
    """Return whether a verdict lets the gate pass."""
    return judged == "pass" or (judged == "undecided" and undecided == "pass")


def miss(gate: Gate) -> float:
    """Return by what share of the limit a gate's figure misses it; 0 where it holds, infinite where not measured."""
    if gate.value is None:
        return float("inf")
    beyond = gate.limit - gate.value if is_lower_limit(gate) else gate.value - gate.limit
    return max(0.0, beyond) / (abs(gate.limit) or 0.01)


def is_lower_limit(gate: Gate) -> bool:
    """Return whether a gate's figure has to be above its limit."""
    if gate.requirement in SCORES:
        return gate.higher_is_better
    return gate.requirement.startswith("min_")


def metric(gate: Gate) -> Metric:
    """Return what the score measures that a gate is about."""
    return scores.named(gate.metric or "accuracy", higher_is_better=gate.higher_is_better)


def describe_value(gate: Gate) -> str:
    """Write a gate's figure with its unit."""
    return _with_unit(gate, gate.value)


def describe_limit(gate: Gate) -> str:
    """Write what a gate asks for: ``at most 2.0 ms``."""
    if gate.requirement == "measured":
        return "at least one"
    if gate.requirement == ABOVE_CHANCE:
        if metric(gate).name == "accuracy":
            return f"above {figures.percent(gate.limit)}, which always answering the largest class scores"
        side = "above" if gate.higher_is_better else "below"
        guess = "a guess without the image" if metric(gate).name == "mean_iou" else "the best constant answer"
        return f"{side} {metric(gate).write(gate.limit)}, which {guess} scores"
    bound = "at least" if is_lower_limit(gate) else "at most"
    return f"{bound} {_with_unit(gate, gate.limit)}"


def describe_interval(gate: Gate) -> str:
    """Write a gate's 95 % interval, or nothing where it has none."""
    if gate.ci95 is None:
        return ""
    if gate.requirement in DROPS:
        return metric(gate).write_change_interval(gate.ci95)
    if gate.requirement in SCORES:
        return metric(gate).write_interval(gate.ci95)
    if "latency" in gate.requirement and not gate.requirement.endswith("_ratio"):
        return figures.ms_interval(gate.ci95)
    return figures.times_interval(gate.ci95)


def title(gate: Gate) -> str:
    """Name a requirement for people."""
    label = metric(gate).label
    drop = f"{label} drop" if gate.higher_is_better else f"rise of the {label}"
    known = {
        "max_drop": drop,
        "min_score": label,
        "min_speedup": "speed-up",
        "max_size_mib": "file size",
        "max_latency_ms": "latency",
        "max_memory_mib": "memory",
        "parity": "parity with PyTorch",
        "measured": "a measurement",
        ABOVE_CHANCE: f"{label} better than chance" if metric(gate).name != "accuracy" else "accuracy above chance",
        "baseline_accuracy_drop": f"{drop} since the baseline",
        "baseline_size_ratio": "growth of the file",
        "baseline_latency_ratio": "growth of the median latency",
        "baseline_memory_ratio": "growth of peak memory",
    }
    return known.get(gate.requirement, gate.requirement.replace("_", " "))


def _above_chance(joined: Joined, model: ModelFile) -> Iterable[Gate]:
    for judged in dict.fromkeys((joined.baseline, model.name)):
        found = joined.model_by_name[judged]
        guess = chance(found.evaluation)
        if guess is None or found.score is None:
            continue
        of = scores.of(found.score)
        low, high = interval = found.score.ci95 or (found.score.value, found.score.value)
        nothing_better = of.share and of.higher_is_better and guess >= 1  # all samples are of one class
        if not nothing_better and (low <= guess if of.higher_is_better else high >= guess):
            gate = Gate(ABOVE_CHANCE, guess, found.score.value, passed=False, ci95=interval, verdict="fail")
            yield replace(gate, model=judged, metric=of.name, higher_is_better=of.higher_is_better)


def _of_the_file(joined: Joined, require: Require, model: ModelFile) -> Iterable[Gate]:
    if require.max_drop is not None:
        delta, interval = joined.score_delta(model.name, joined.baseline)
        if model.name == joined.baseline:
            interval = None  # against itself there is nothing to doubt
        drop = None if delta is None else -joined.metric.gain(delta) + 0.0
        gains = joined.metric.gains(interval)
        turned = None if gains is None else (-gains[1], -gains[0])
        yield _of_score(_gate(require, "max_drop", require.max_drop, drop, turned, model), joined.metric)
    if require.min_score is not None:
        lower = joined.metric.higher_is_better
        value, interval = scores.value(model), scores.interval(model)
        gate = _gate(require, "min_score", require.min_score, value, interval, model, lower=lower)
        yield _of_score(gate, joined.metric)
    if require.max_size_mib is not None:
        yield _gate(require, "max_size_mib", require.max_size_mib, model.size_bytes / MIB, None, model)
    if require.parity:
        proof = model.parity
        judged: Verdict = "not measured" if proof is None else "pass" if proof.passed else "fail"
        yield Gate(
            "parity",
            proof.tolerance if proof else 0.0,
            proof.max_rel if proof else None,
            judged == "pass",
            verdict=judged,
            model=model.name,
        )


def _of_the_device(
    joined: Joined, require: Require, model: ModelFile, condition: Condition | None, measured: dict[str, Measurement]
) -> Iterable[Gate]:
    own = measured.get(model.name)
    if require.min_speedup is not None:
        base = measured.get(joined.baseline)
        ratio, interval = (None, None)
        if own is not None and base is not None:
            ratio, interval = (
                (1.0, None) if model.name == joined.baseline else median_ratio(base.latency_ms, own.latency_ms)
            )
        gate = _gate(require, "min_speedup", require.min_speedup, ratio, interval, model, condition)
        doubt = disturbed(base, own) if base and own and model.name != joined.baseline else None
        yield _undecided(gate, doubt, require)
    if require.max_latency_ms is not None:
        value, interval = (
            (None, None) if own is None else percentile_interval(own.latency_ms, require.latency_percentile)
        )
        gate = _gate(require, "max_latency_ms", require.max_latency_ms, value, interval, model, condition)
        if require.latency_percentile != 50:
            gate = replace(gate, setting=f"{require.latency_percentile}th percentile")
        # What holds on a busy machine holds on a quiet one; what fails there may not.
        yield _undecided(gate, own.disturbed if own and gate.verdict == "fail" else None, require)
    if require.max_memory_mib is not None:
        peak = None if own is None else memory(own)
        yield _gate(require, "max_memory_mib", require.max_memory_mib, peak, None, model, condition)


def _undecided(gate: Gate, disturbed: str | None, require: Require) -> Gate:
    """Return the gate undecided where other work disturbed what it judges."""
    if disturbed is None or gate.verdict == "not measured":
        return gate
    told = f"{disturbed}: measure on a quiet machine"
    setting = f"{gate.setting}; {told}" if gate.setting else told
    return replace(gate, verdict="undecided", passed=passes("undecided", require.undecided), setting=setting)


def _of_score(gate: Gate, metric: Metric) -> Gate:
    return replace(gate, metric=metric.name, higher_is_better=metric.higher_is_better)


def _gate(
    require: Require,
    requirement: str,
    limit: float,
    value: float | None,
    interval: Interval | None,
    model: ModelFile,
    condition: Condition | None = None,
    *,
    lower: bool | None = None,
) -> Gate:
    lower = requirement.startswith("min_") if lower is None else lower
    judged = verdict(value, interval, at_least=limit if lower else None, at_most=None if lower else limit)
    return Gate(
        requirement,
        limit,
        value,
        passes(judged, require.undecided),
        ci95=interval,
        verdict=judged,
        model=model.name,
        machine=condition.machine if condition else "",
        device=condition.device if condition else "",
    )


def _with_unit(gate: Gate, value: float | None) -> str:
    requirement = gate.requirement
    if value is None:
        return "not measured"
    if requirement in DROPS:
        return metric(gate).size(value)
    if requirement in SCORES:
        return metric(gate).write(value)
    if requirement.endswith("_ms"):
        return figures.ms(value)
    if requirement == "max_size_mib":
        return figures.size(value * MIB)
    if requirement.endswith("_mib"):
        return figures.mib(value)
    if requirement == "parity":
        return f"{value:.1e}"
    return figures.times(value)
