"""What the figures show, in sentences that claim no more than their intervals do.

What the timings' warnings mean stands here too: a line for each kind, in words that say whether the median is touched.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kdexport import figures
from kdexport.report.join import STUDENT, Condition, Joined
from kdexport.report.operators import what_changed
from kdexport.report.scores import Metric
from kdexport.results import DevicePick, Interval, Measurement
from kdexport.statistics import disturbed, median_ratio


@dataclass(frozen=True)
class Kind:
    """A kind of warning."""

    pattern: str  # that bench's words of this kind match
    cause: str
    effect: str  # on the median
    noise: bool = True  # whether the timing varied more than the model does; else a fact to know


# The gravest first: a timing that carries several is counted under the first.
KINDS = (
    Kind(
        r"other work|hypervisor took|quiet machine",
        "the machine was busy",
        "medians may be too high and speed-ups wrong",
    ),
    Kind(r"slowed down for heat|throttled\)", "the CPU slowed down for heat", "medians are those of a hot machine"),
    Kind(
        r"slower while it was measured",
        "it became slower while it was measured",
        "the median lies between both speeds; models took turns, so that speed-ups hardly move",
    ),
    Kind(
        r"fresh processes differ",
        "fresh processes differ",
        "the median depends on the process; its interval says by how much",
    ),
    Kind(r"too few rounds", "too few rounds", "the median has no interval"),
    Kind(
        r"median is known to",
        "the median is known less well than requested",
        "the median's interval says how well",
    ),
    Kind(r"did not settle", "the warm-up was too short", "the median may be a little too high"),
    Kind(r"noisy|vary by", "single calls vary", "the median is hardly touched; mean and slowest calls are"),
    Kind(r"take every core", "no core was left free", "the median is hardly touched; the slowest calls are"),
    Kind(r"threads share", "more threads than cores", "the median holds the waiting for a core", noise=False),
    Kind(
        r"operators were profiled",
        "another speed under the profiler",
        "the profile's shares are those of then, its times are scaled to the median",
        noise=False,
    ),
    Kind(r"governor", "the clock follows the load", "medians may be too high for short calls", noise=False),
    Kind(r"debug build", "a debug build of ONNX Runtime", "medians are too high", noise=False),
)


def is_noisy(measurement: Measurement) -> bool:
    """Return whether a timing varied by more than the model does."""
    return _gravest(measurement) is not None


def noise_summary(measurements: Sequence[Measurement]) -> str:
    """Return ``5 of 5 timings noisy: the machine was busy``, or nothing where none is noisy."""
    noisy = [kind for item in measurements if (kind := _gravest(item)) is not None]
    if not noisy:
        return ""
    gravest = min(noisy, key=KINDS.index)
    return f"{len(noisy)} of {len(measurements)} timings noisy: {gravest.cause}"


def noise_elsewhere(summaries: Sequence[str]) -> str:
    """Return on how many of several devices timings are noisy; nothing where on none."""
    noisy = sum(bool(summary) for summary in summaries)
    return f"noisy timings on {noisy} of {len(summaries)} devices" if noisy else ""


def noise_lines(measurements: Sequence[Measurement]) -> list[str]:
    """Return a sentence for each kind of warning: how many timings, an example, and whether the median is touched."""
    found: dict[Kind, list[tuple[Measurement, str]]] = {}
    for measurement in measurements:
        for text in measurement.warnings:
            found.setdefault(_kind(text), []).append((measurement, text))
    return [_line(kind, warned, len(measurements)) for kind, warned in sorted(found.items(), key=_gravity)]


def _line(kind: Kind, warned: Sequence[tuple[Measurement, str]], every: int) -> str:
    timings = {(item.model, item.machine, item.device, item.batch_size, item.threads) for item, _ in warned}
    first, text = warned[0]
    text = text.removeprefix("noisy: ").removeprefix(f"{kind.cause}: ")
    where = f"{first.model} on {first.device} of {first.machine}, batch {first.batch_size}"
    models = figures.joined_names(list(dict.fromkeys(item.model for item, _ in warned)))
    example = f"{where}: {text}" if len(timings) > 1 else f"{where}"
    which = f"{len(timings)} of {every} timings ({models}), e.g. {example}" if len(timings) > 1 else example
    cause = kind.cause[:1].upper() + kind.cause[1:]
    detail = f": {text}" if len(timings) == 1 and kind.effect else ""
    effect = f" {kind.effect[0].upper()}{kind.effect[1:]}." if kind.effect else ""
    return f"{cause}: {which}{detail}.{effect}"


def _gravest(measurement: Measurement) -> Kind | None:
    kinds = [kind for kind in map(_kind, measurement.warnings) if kind.noise]
    return min(kinds, key=KINDS.index) if kinds else None


def _kind(text: str) -> Kind:
    known = next((kind for kind in KINDS if re.search(kind.pattern, text)), None)
    return known or Kind("", re.sub(r"\d[\d.,]*", "…", text), "", noise=False)


def _gravity(item: tuple[Kind, Iterable[object]]) -> int:
    return KINDS.index(item[0]) if item[0] in KINDS else len(KINDS)


ACCURACY = Metric()
VARIANTS = ("int8", "int8-dynamic", "int4", "fp16", "auto")


def findings(joined: Joined, devices: tuple[DevicePick, ...]) -> tuple[str, ...]:
    """Return the sentences, the most important first."""
    conditions = [Condition(item.machine, item.device, item.batch_size, item.threads) for item in devices]
    return (
        *_left_out(joined),
        *_no_answers(joined),
        *_tested_on(joined),
        *_distillation(joined),
        *_score_lost(joined),
        *_quantization(joined, conditions),
        *_measured_elsewhere(joined),
        *_operators(joined),
        *_placement(joined),
        *_noise(joined),
        *_not_measured(joined),
        *joined.notes,
    )


def _left_out(joined: Joined) -> Iterable[str]:
    for name, why in joined.left_out.items():
        yield f"{name} was left out: {why.removesuffix('.')}."


def _no_answers(joined: Joined) -> Iterable[str]:
    """Say which models give NaN: PyTorch and the file alike, which a proof counts as equal."""
    for name, model in joined.model_by_name.items():
        if model.parity is not None and model.parity.nan_samples:
            yield (
                f"{name} gives NaN for {model.parity.nan_samples:,} of the {model.parity.samples:,} samples of its "
                "parity proof: equal in both, and no answer."
            )


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
    detail = "" if interval is None else f" (95 % interval {metric.write_change_interval(interval)})"
    if interval is not None and interval[0] <= 0 <= interval[1]:
        detail += ": no difference is shown"
    yield f"The student's {metric.label} is {metric.change(delta)} against {baseline.name}'s{detail}."


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


def _measured_elsewhere(joined: Joined) -> Iterable[str]:
    """Say of a file whose precision was chosen by time where else than there it was measured."""
    for name, model in joined.model_by_name.items():
        if model.measured_precision is None:
            continue
        on = model.measured_precision.on
        measured_on = {condition.machine for condition, measured in joined.by_condition.items() if name in measured}
        others = sorted({one.cpu for one in joined.machines if one.name in measured_on} - {on.cpu})
        if others:
            there = figures.joined_names(others)
            yield f"{name} got its precision by time on {on.cpu}: another may be faster on {there}."


def _operators(joined: Joined) -> Iterable[str]:
    """Say of each quantized file which operators made it slower or faster, where both were profiled."""
    for condition, measured in joined.by_condition.items():
        for name in measured:
            base, dot, variant = name.rpartition(".")
            changed = what_changed(measured[base], measured[name]) if dot and base in measured else ""
            if variant in VARIANTS and changed:
                where = f"{condition.device} of {condition.machine}, batch {condition.batch_size}"
                threads = f" and {condition.threads} threads" if condition.threads > 1 else ""
                yield f"Operators of {name} against {base}'s on {where}{threads}: {changed}."


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
                provider: share
                for provider, share in (figures_of.placement or {}).items()
                if provider != figures_of.provider
            }
            if any(share > 0 for share in elsewhere.values()):
                parts = ", ".join(f"{figures.percent(share, 0)} on {provider}" for provider, share in elsewhere.items())
                yield f"{name} ran only partly on {condition.device} of {condition.machine}: {parts} of its nodes."


def _noise(joined: Joined) -> Iterable[str]:
    return noise_lines(joined.measurements)


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
