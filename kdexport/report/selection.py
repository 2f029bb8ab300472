"""The model to ship: on each device, and one for all of them.

The rule, in a sentence: of the models that meet every requirement, the fastest on that device; of those within 5 % of
its speed, those that are not shown to be less accurate than the best of them, the smallest first. ``prefer`` in
[require] puts size or accuracy in the place of speed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kdexport import figures
from kdexport.errors import KDExportError
from kdexport.recipe import Require
from kdexport.report.join import PLAIN_STUDENT, STUDENT, Condition, Joined
from kdexport.report.requirements import (
    ABOVE_CHANCE,
    describe_interval,
    describe_limit,
    describe_value,
    hold,
    metric,
    miss,
    title,
)
from kdexport.report.scores import goodness
from kdexport.report.tradeoffs import SAME_SIZE
from kdexport.results import DevicePick, Gate, Measurement, ModelFile, Pick
from kdexport.statistics import disturbed, median_ratio

SAME_SPEED = 0.05  # nobody gives up score for less; two runs on one machine differ by about as much
LIMITS = ("max_drop", "min_score", "min_speedup", "max_size_mib", "max_latency_ms", "max_memory_mib")


@dataclass(frozen=True)
class Candidate:
    """A model as judged on one device."""

    model: ModelFile
    measurement: Measurement | None
    gates: tuple[Gate, ...]

    @property
    def fits(self) -> bool:
        """Whether every requirement lets it pass."""
        return all(gate.passed for gate in self.gates)

    @property
    def firm(self) -> bool:
        """Whether every figure as measured is within its limit; what only an interval saves comes second."""
        return all(miss(gate) == 0 for gate in self.gates)


def pick_devices(joined: Joined, require: Require) -> tuple[tuple[DevicePick, ...], tuple[Gate, ...], Pick | None]:
    """Choose for each device, and one model for all devices where one fits them all.

    Returns:
        A pick per device; the gates, held against each device's pick or, where none fits, against what is nearest;
        the pick for all.
    """
    conditions = judged_conditions(joined, require)
    candidates = {condition: _candidates(joined, require, condition) for condition in conditions}
    devices = tuple(_pick(joined, require, condition, candidates[condition]) for condition in conditions)
    gates: dict[tuple[object, ...], Gate] = {}
    for device, condition in zip(devices, conditions, strict=True):
        chosen = device.model or device.nearest
        for gate in (gate for item in candidates[condition] if item.model.name == chosen for gate in item.gates):
            gates.setdefault((gate.requirement, gate.model, gate.machine, gate.device), gate)
    for device_name in dict.fromkeys(failure.device for failure in joined.failures):
        if has_requirements(require) and all(condition.device != device_name for condition in conditions):
            gates[device_name,] = _nothing_measured(device_name)
    if not conditions and has_requirements(require):
        nearest = min(
            (Candidate(model, None, hold(joined, require, model, None)) for model in joined.models), key=_distance
        )
        gates |= {(gate.requirement,): gate for gate in nearest.gates}
    return devices, tuple(gates.values()), _pick_for_all(joined, require, devices, candidates)


def judged_conditions(joined: Joined, require: Require) -> list[Condition]:
    """Return, for each device of each machine, the condition at which its speed is judged.

    That is the batch size and thread count that [require] names, else the smallest measured.

    Raises:
        KDExportError: [require] names a batch size or thread count that was not measured.
    """
    chosen: dict[tuple[str, str], Condition] = {}
    for condition in joined.by_condition:
        if require.batch_size not in (None, condition.batch_size) or require.threads not in (None, condition.threads):
            continue
        key = (condition.machine, condition.device)
        chosen[key] = min(chosen.get(key, condition), condition)
    if joined.by_condition and not chosen:
        measured = ", ".join(
            sorted({f"batch {item.batch_size} with {item.threads} threads" for item in joined.by_condition})
        )
        raise KDExportError(
            f"[require] asks for batch_size {require.batch_size or 'any'} and threads {require.threads or 'any'}, "
            f"but measured were {measured}",
            hint="add it to batch_sizes and threads in [bench] and measure again, or change [require]",
        )
    return list(chosen.values())


def _nothing_measured(device: str) -> Gate:
    """Return the gate of a device that was requested and on which every measurement failed: it never passes."""
    return Gate("measured", 1.0, None, passed=False, verdict="not measured", device=device)


def has_requirements(require: Require) -> bool:
    """Return whether [require] asks for anything."""
    return require.parity or any(getattr(require, key) is not None for key in LIMITS)


def _candidates(joined: Joined, require: Require, condition: Condition) -> list[Candidate]:
    measured = joined.by_condition[condition]
    return [
        Candidate(model, measured.get(model.name), hold(joined, require, model, condition))
        for model in joined.models
        if model.name in measured
    ]


def _pick(joined: Joined, require: Require, condition: Condition, candidates: Sequence[Candidate]) -> DevicePick:
    fitting = [item for item in candidates if item.fits]
    if not has_requirements(require):
        if joined.model_by_name[joined.baseline].score is None:
            return _compare_speed(joined, condition, candidates)
        fitting = [item for item in fitting if _keeps_score(joined, item.model)]
    if not fitting:
        # To hear that the baseline is not faster than itself helps nobody.
        nearest = min([item for item in candidates if item.model.name != joined.baseline] or candidates, key=_distance)
        misses = tuple(_miss_in_words(gate) for gate in nearest.gates if not gate.passed)
        of_what = "meets every requirement" if has_requirements(require) else f"is as good as {joined.baseline}"
        if any(gate.requirement == ABOVE_CHANCE for gate in nearest.gates):
            of_what = "is shown to do better than a guess"
        why = f"No model {of_what}."
        why += f" {nearest.model.name} is nearest{': ' * bool(misses)}{'; '.join(misses)}."
        return DevicePick(*condition, model=None, why=why, nearest=nearest.model.name, misses=misses)
    firm = [item for item in fitting if item.firm] or fitting
    best = _best(joined, firm, require)
    return DevicePick(*condition, model=best.model.name, why=_why(joined, require, best, fitting, len(candidates)))


def _compare_speed(joined: Joined, condition: Condition, candidates: Sequence[Candidate]) -> DevicePick:
    """Say which is the fastest where nothing else is known: a comparison, not a decision to ship."""
    measured = joined.by_condition[condition]
    fastest = min(candidates, key=lambda item: item.measurement.latency_ms.p50 if item.measurement else float("inf"))
    name = fastest.model.name
    words = f"{name} is the only model" if len(candidates) == 1 else f"{name} is the fastest"
    if name != joined.baseline and joined.baseline in measured:
        ratio, interval = median_ratio(measured[joined.baseline].latency_ms, measured[name].latency_ms)
        words = f"{name} is {figures.times(ratio)} as fast as {joined.baseline}"
        if disturbed(measured[joined.baseline], measured[name]):
            words = f"the speed of {name} against {joined.baseline} is undecided (the machine was busy)"
            interval = None
        if interval is not None:
            words += f" (95 % interval {figures.times_interval(interval)})"
        if interval is None or interval[0] <= 1:
            words = f"no model is shown to be faster than {joined.baseline}; {words}"
    scored = any(item.model.score is not None for item in candidates)
    what = f"The {joined.metric.label} of {joined.baseline}" if scored else "Accuracy"
    why = f"{what} was not measured, so speed alone is compared: {words}."
    return DevicePick(*condition, model=None, why=why, fastest=name)


def _best(joined: Joined, fitting: Sequence[Candidate], require: Require) -> Candidate:
    """Narrow by speed, score and size in turn, each time keeping what is practically as good as the best."""
    steps = {"latency": (_fastest, _best_scored, _smallest), "size": (_smallest, _fastest, _best_scored)}
    left = list(fitting)
    for step in steps.get(require.prefer, (_best_scored, _fastest, _smallest)):
        left = step(joined, left)
    names = {item.model.name for item in left}
    # Within the noise of one another: the distilled student goes before the one without distillation.
    left = [item for item in left if _distilled(item.model.name) not in names - {item.model.name}] or left
    return max(left, key=lambda item: goodness(item.model))  # the first of equals


def _distilled(name: str) -> str:
    """Return what the distilled counterpart of a student without distillation is called, and else the name itself."""
    return name.replace(PLAIN_STUDENT, STUDENT, 1) if name.startswith(PLAIN_STUDENT) else name


def _fastest(_: Joined, candidates: list[Candidate]) -> list[Candidate]:
    timed = [item for item in candidates if item.measurement is not None]
    if not timed:
        return candidates
    best = min(timed, key=lambda item: item.measurement.latency_ms.p50 if item.measurement else 0.0)
    return [item for item in timed if item is best or not _slower(item, best)]


def _slower(item: Candidate, best: Candidate) -> bool:
    if item.measurement is None or best.measurement is None:
        return True
    ratio, interval = median_ratio(item.measurement.latency_ms, best.measurement.latency_ms)
    return (interval[0] if interval else ratio) > 1 + SAME_SPEED


def _best_scored(joined: Joined, candidates: list[Candidate]) -> list[Candidate]:
    best = max(candidates, key=lambda item: goodness(item.model))
    kept = []
    for item in candidates:
        delta, interval = joined.score_delta(item.model.name, best.model.name)
        gains = joined.metric.gains(interval)
        if item is best or (gains is not None and gains[1] >= 0) or delta == 0:
            kept.append(item)
    return kept


def _smallest(_: Joined, candidates: list[Candidate]) -> list[Candidate]:
    least = min(item.model.size_bytes for item in candidates)
    return [item for item in candidates if item.model.size_bytes <= least * (1 + SAME_SIZE)]


def _keeps_score(joined: Joined, model: ModelFile) -> bool:
    """Return whether a model is not shown to be worse than the baseline."""
    baseline = joined.model_by_name[joined.baseline]
    if model.name == baseline.name:
        return model.score is not None
    delta, interval = joined.score_delta(model.name, baseline.name)
    gains = joined.metric.gains(interval)
    return delta is not None and (gains[1] >= 0 if gains else joined.metric.gain(delta) >= 0)


def _distance(candidate: Candidate) -> tuple[float, float]:
    """Order by the sum of what is missed, as shares of the limits; ties go to the faster."""
    missed = sum(min(miss(gate), 1e6) for gate in candidate.gates if not gate.passed)
    return missed, candidate.measurement.latency_ms.p50 if candidate.measurement else float("inf")


def _miss_in_words(gate: Gate) -> str:
    name, figure, required = title(gate), describe_value(gate), describe_limit(gate)
    if gate.value is None:
        return f"{name} was not measured"
    if gate.verdict == "undecided":
        return f"{name} is {figure}, and its 95 % interval reaches beyond the limit ({required})"
    if gate.requirement == ABOVE_CHANCE:
        interval = f" ({describe_interval(gate)})" if describe_interval(gate) else ""
        return f"{metric(gate).label} of {gate.model} is {figure}{interval}, not shown to be {required}"
    if gate.requirement == "parity":
        return f"parity with PyTorch failed ({figure} where {required} is required)"
    return f"{name} is {figure} where {required} is required (misses by {100 * miss(gate):.0f} %)"


def _why(joined: Joined, require: Require, best: Candidate, fitting: Sequence[Candidate], measured: int) -> str:
    most = "the most accurate" if joined.metric.name == "accuracy" else f"the best in {joined.metric.label}"
    superlative = {"latency": "the fastest", "size": "the smallest"}.get(require.prefer, most)
    least = min((item.measurement.latency_ms.p50 for item in fitting if item.measurement), default=0.0)
    if require.prefer == "latency" and best.measurement and best.measurement.latency_ms.p50 > least:
        superlative = f"within {100 * SAME_SPEED:.0f} % of the fastest, and the best of those,"
    if has_requirements(require):
        of_what = "the only model that meets every requirement"
        if len(fitting) > 1:
            of_what = f"{superlative} among the {len(fitting)} models (of {measured}) that meet every requirement"
        if not best.firm:
            of_what += ", though not firmly: a limit lies within a 95 % interval"
    else:
        of_what = f"{superlative} among the {len(fitting)} models not shown to be worse than {joined.baseline}"
        if len(fitting) == 1:
            of_what = f"the only model not shown to be worse than {joined.baseline}"
            if best.model.name == joined.baseline:
                of_what = "every other model is shown to be worse"
    return f"{of_what[0].upper()}{of_what[1:]}{_against_baseline(joined, best)}{_tie(joined, best, fitting)}."


def _tie(joined: Joined, best: Candidate, fitting: Sequence[Candidate]) -> str:
    """Say where no difference is shown between the pick and its counterpart without distillation."""
    for item in fitting:
        if item is not best and _distilled(item.model.name) == best.model.name:
            _, interval = joined.score_delta(best.model.name, item.model.name)
            if interval is not None and interval[0] <= 0 <= interval[1]:
                spread = joined.metric.size_interval(interval)
                return f"; a tie in {joined.metric.label} with {item.model.name} ({spread})"
    return ""


def _against_baseline(joined: Joined, best: Candidate) -> str:
    baseline = joined.model_by_name[joined.baseline]
    if best.model.name == baseline.name or best.measurement is None:
        return ""
    condition = Condition(
        best.measurement.machine, best.measurement.device, best.measurement.batch_size, best.measurement.threads
    )
    parts = []
    base = joined.by_condition[condition].get(baseline.name)
    if base is not None:
        ratio, _ = median_ratio(base.latency_ms, best.measurement.latency_ms)
        told = f"{figures.times(ratio)} as fast as {baseline.name}"
        if disturbed(base, best.measurement):
            told = f"speed against {baseline.name} undecided (the machine was busy)"
        parts.append(told)
    parts.append(f"{figures.times(baseline.size_bytes / best.model.size_bytes)} smaller")
    delta, interval = joined.score_delta(best.model.name, baseline.name)
    if interval is not None and interval[0] <= 0 <= interval[1]:
        parts.append(f"{joined.metric.label} indistinguishable ({joined.metric.size_interval(interval)})")
    elif delta is not None:
        parts.append(f"{joined.metric.change(delta)} of {joined.metric.label}")
    return ": " + ", ".join(parts)


def _pick_for_all(
    joined: Joined, require: Require, devices: Sequence[DevicePick], candidates: dict[Condition, list[Candidate]]
) -> Pick | None:
    if not devices or any(device.model is None for device in devices):
        return None
    chosen = {device.model for device in devices}
    if len(devices) == 1:
        return Pick(devices[0].model or "", devices[0].why)
    if len(chosen) == 1:
        return Pick(devices[0].model or "", f"The pick on every one of the {len(devices)} devices. {devices[0].why}")
    fits_all = [
        model.name
        for model in joined.models
        if all(
            any(
                item.model.name == model.name and (item.fits if has_requirements(require) else True)
                for item in candidates[condition]
            )
            for condition in candidates
        )
        and model.name in chosen
    ]
    if not fits_all:
        return None
    most = max(fits_all, key=lambda name: sum(device.model == name for device in devices))
    where = sum(device.model == most for device in devices)
    why = (
        f"Meets every requirement on all {len(devices)} devices and is the pick on {where} of them; see each one's own."
    )
    return Pick(most, why)
