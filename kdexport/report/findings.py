"""What the figures show, in sentences that claim no more than their intervals do."""

from collections.abc import Iterable

from kdexport.report import figures, noise
from kdexport.report.join import STUDENT, Condition, Joined
from kdexport.report.scores import Metric
from kdexport.results import DevicePick, Interval
from kdexport.statistics import disturbed, median_ratio

ACCURACY = Metric()
VARIANTS = ("int8", "int8-dynamic", "int4", "fp16")


def findings(joined: Joined, devices: tuple[DevicePick, ...]) -> tuple[str, ...]:
    """Return the sentences, the most important first."""
    conditions = [Condition(item.machine, item.device, item.batch_size, item.threads) for item in devices]
    return (
        *_left_out(joined),
        *_tested_on(joined),
        *_distillation(joined),
        *_score_lost(joined),
        *_quantization(joined, conditions),
        *_placement(joined),
        *_noise(joined),
        *_not_measured(joined),
        *joined.notes,
    )


def _left_out(joined: Joined) -> Iterable[str]:
    for name, why in joined.left_out.items():
        yield f"{name} was left out: {why.removesuffix('.')}."


def _tested_on(joined: Joined) -> Iterable[str]:
    """Say where the test samples come from, where they are not the data's own test split."""
    told = any(joined.tested_on.partition(";")[0] in warning for warning in joined.data_warnings)
    if joined.tested_on and joined.tested_on != "source" and not told:
        yield f"Tested on {joined.tested_on.removeprefix('source: ')}."
    for warning in joined.data_warnings:
        yield f"{warning[0].upper()}{warning[1:].removesuffix('.')}."


def gain_in_words(delta: float, interval: Interval | None, samples: int | None, metric: Metric = ACCURACY) -> str:
    """Say what distillation gained over the same student trained on labels alone, and whether that is shown."""
    counted = f", {samples:,} test samples" if samples else ""
    if interval is None:
        return (
            f"Distillation: {metric.change(delta)} against the same student trained on labels; "
            "without an interval that shows nothing."
        )
    low, high = metric.gains(interval) or interval
    shown = "shown to help" if low > 0 else "shown to hurt" if high < 0 else "not shown to help"
    verb = "lost" if metric.gain(delta) < 0 else "gained"
    amount = metric.change(delta).lstrip(figures.MINUS)
    if not metric.share:
        verb, amount = "changed", f"the {metric.label} by {metric.change(delta)}"
    return (
        f"Distillation {verb} {amount} over the same student trained on labels "
        f"(95 % interval {metric.write_change_interval(interval)}{counted}): {shown}."
    )


def _distillation(joined: Joined) -> Iterable[str]:
    student, plain = joined.model_by_name.get(STUDENT), joined.plain_student
    if student is None or plain is None:
        return
    delta, interval = joined.score_delta(student.name, plain)
    if delta is not None:
        samples = student.evaluation.samples if student.evaluation else None
        yield gain_in_words(delta, interval, samples, joined.metric)


def _score_lost(joined: Joined) -> Iterable[str]:
    student, baseline = joined.model_by_name.get(STUDENT), joined.model_by_name[joined.baseline]
    if student is None or student is baseline:
        return
    delta, interval = joined.score_delta(student.name, baseline.name)
    if delta is None:
        return
    metric = joined.metric
    said = "" if interval is None else f" (95 % interval {metric.write_change_interval(interval)})"
    if interval is not None and interval[0] <= 0 <= interval[1]:
        said += ": no difference is shown"
    yield f"The student's {metric.label} is {metric.change(delta)} against {baseline.name}'s{said}."


def _quantization(joined: Joined, conditions: list[Condition]) -> Iterable[str]:
    """Say of each quantized file whether it is faster than what it was made from, device by device."""
    for name in joined.model_by_name:
        base, dot, variant = name.rpartition(".")
        if not dot or variant not in VARIANTS or base not in joined.model_by_name:
            continue
        found: dict[str, list[tuple[str, float, Interval | None]]] = {}
        for condition in conditions:
            measured = joined.by_condition[condition]
            if name in measured and base in measured:
                ratio, interval = median_ratio(measured[base].latency_ms, measured[name].latency_ms)
                where = f"{condition.device} of {condition.machine}, batch {condition.batch_size}"
                shown = None if disturbed(measured[base], measured[name]) else interval
                found.setdefault(_direction(ratio, shown), []).append((where, ratio, interval))
        sizes = [joined.model_by_name[item].size_bytes for item in (base, name)]
        for direction, devices in found.items():
            yield f"{name} is {direction} than {base} on {_devices(devices, len(conditions))}; {_size_change(*sizes)}."


def _direction(ratio: float, interval: Interval | None) -> str:
    if interval is None or interval[0] <= 1 <= interval[1]:
        return "not shown to be faster or slower"
    return "slower" if ratio < 1 else "faster"


def _devices(devices: list[tuple[str, float, Interval | None]], every: int) -> str:
    if len(devices) == 1:
        where, ratio, interval = devices[0]
        spread = f", 95 % interval {figures.times_interval(interval)}" if interval else ""
        return f"{where} ({figures.times(ratio)} the speed{spread})"
    ratios = [ratio for _, ratio, _ in devices]
    alike = figures.times(min(ratios)) == figures.times(max(ratios))
    whole = figures.times(ratios[0]) if alike else figures.times_interval((min(ratios), max(ratios)))
    if len(devices) == every:
        return f"all {every} devices ({whole} the speed)"
    return f"{len(devices)} devices ({whole} the speed): {figures.joined_names([where for where, _, _ in devices])}"


def _size_change(base: int, variant: int) -> str:
    if not base or not variant:
        return "its size is not known"
    if variant > base:
        return f"its file is {figures.times(variant / base)} larger"
    return f"its file is {figures.times(base / variant)} smaller"


def _placement(joined: Joined) -> Iterable[str]:
    for condition, measured in joined.by_condition.items():
        for name, figures_of in measured.items():
            elsewhere = {
                provider: share for provider, share in figures_of.placement.items() if provider != figures_of.provider
            }
            if any(share > 0 for share in elsewhere.values()):
                parts = ", ".join(f"{figures.percent(share, 0)} on {provider}" for provider, share in elsewhere.items())
                yield f"{name} ran only partly on {condition.device} of {condition.machine}: {parts} of its nodes."


def _noise(joined: Joined) -> Iterable[str]:
    return noise.lines(joined.measurements)


def _not_measured(joined: Joined) -> Iterable[str]:
    for failure in joined.failures:
        yield f"{failure.model} on {failure.device} could not be measured: {failure.reason}"
    for condition, measured in joined.by_condition.items():
        if joined.baseline not in measured:
            yield (
                f"No speed-up on {condition.device} of {condition.machine} at batch {condition.batch_size}: "
                f"{joined.baseline} was not measured there."
            )
    missing = [model.name for model in joined.models if model.score is None]
    if missing:
        yield f"{joined.metric.title} was not measured for {', '.join(missing)}."
