"""This report against an earlier one: what has become worse by more than a tolerance.

Each comparison is a gate. Like the recipe's own it fails only where the 95 % interval lies wholly beyond the limit. Two
measurements at different times share no rounds, so the interval of a ratio is what both medians' intervals allow, and
the tolerance must cover what a machine differs from day to day.
"""

from dataclasses import replace

from kdexport.errors import KDExportError
from kdexport.report.join import condition_of
from kdexport.report.requirements import passes, verdict
from kdexport.report.scores import of
from kdexport.report.tradeoffs import memory_ratio
from kdexport.results import Gate, Interval, Latency, Measurement, ModelFile, Report
from kdexport.statistics import score_delta

TOLERANCE = 0.05  # of latency, size and memory
ACCURACY_TOLERANCE = 0.005  # half a point


def against_earlier(
    report: Report,
    earlier: Report,
    *,
    tolerance: float = TOLERANCE,
    accuracy_tolerance: float = ACCURACY_TOLERANCE,
    undecided: str = "pass",
) -> Report:
    """Return the report with a gate for each figure that both have, and with what could not be compared said.

    Args:
        report: The new one.
        earlier: The old one.
        tolerance: By what share latency, size and memory may grow.
        accuracy_tolerance: By how much the score may fall (an error rise), as a share of 1 or in the score's unit.
        undecided: ``pass`` or ``fail``: what an interval that straddles the limit counts as.

    Raises:
        KDExportError: The two have nothing in common.
    """
    old_models = {model.name: model for model in earlier.models}
    same = [(model, old_models[model.name]) for model in report.models if model.name in old_models]
    if not same:
        raise KDExportError(
            f"the baseline report '{earlier.name}' has no model in common with this one: "
            f"{', '.join(list(old_models)[:5])} there, {', '.join(model.name for model in report.models[:5])} here",
            hint="give the earlier report of the same models to --baseline",
        )
    gates: list[Gate] = []
    for model, old in same:
        gates += _of_the_file(model, old, tolerance, accuracy_tolerance, undecided)
    unlike = [
        machine.name
        for machine in report.machines
        for old_machine in earlier.machines
        if machine.name == old_machine.name and (machine.cpu, machine.gpus) != (old_machine.cpu, old_machine.gpus)
    ]
    old_figures = {(condition_of(item), item.model): item for item in earlier.measurements}
    compared = 0
    for figures in report.measurements:
        before = old_figures.get((condition_of(figures), figures.model))
        if before is not None and figures.machine not in unlike:
            gates += _of_the_device(figures, before, tolerance, undecided)
            compared += 1
    notes = [
        f"Against the report of {earlier.created[:10] or 'an unknown day'}: {compared} timings of {len(same)} models."
    ]
    notes += [f"{name} is not the machine that it was: its timings are not compared." for name in unlike]
    missing = [name for name in old_models if name not in {model.name for model in report.models}]
    if missing:
        notes.append(f"No longer measured: {', '.join(missing[:10])}.")
    return replace(report, gates=(*report.gates, *gates), findings=(*report.findings, *notes))


def _of_the_file(
    model: ModelFile, old: ModelFile, tolerance: float, accuracy_tolerance: float, undecided: str
) -> list[Gate]:
    gates = []
    delta, interval = score_delta(model, old)
    if delta is not None and model.score is not None:
        metric = of(model.score)
        gains = metric.gains(interval)
        turned = None if gains is None or delta == 0 else (-gains[1], -gains[0])
        drop = -metric.gain(delta) + 0.0
        gate = _gate("baseline_accuracy_drop", accuracy_tolerance, drop, turned, model.name, undecided)
        gates.append(replace(gate, metric=metric.name, higher_is_better=metric.higher_is_better))
    if old.size_bytes:
        ratio = model.size_bytes / old.size_bytes
        gates.append(_gate("baseline_size_ratio", 1 + tolerance, ratio, None, model.name, undecided))
    return gates


def _of_the_device(figures: Measurement, before: Measurement, tolerance: float, undecided: str) -> list[Gate]:
    ratio, interval = _growth(figures.latency_ms, before.latency_ms)
    found = [_gate("baseline_latency_ratio", 1 + tolerance, ratio, interval, figures.model, undecided)]
    grown = memory_ratio(figures, before)
    if grown is not None:
        found.append(_gate("baseline_memory_ratio", 1 + tolerance, grown, None, figures.model, undecided))
    return [replace(gate, machine=figures.machine, device=figures.device, setting=_setting(figures)) for gate in found]


def _growth(new: Latency, old: Latency) -> tuple[float, Interval | None]:
    if new.p50_ci95 is None or old.p50_ci95 is None or min(old.p50_ci95) <= 0:
        return new.p50 / old.p50, None
    return new.p50 / old.p50, (new.p50_ci95[0] / old.p50_ci95[1], new.p50_ci95[1] / old.p50_ci95[0])


def _setting(figures: Measurement) -> str:
    return f"batch {figures.batch_size}, {figures.threads} thread{'s' if figures.threads != 1 else ''}"


def _gate(requirement: str, limit: float, value: float, interval: Interval | None, model: str, undecided: str) -> Gate:
    judged = verdict(value, interval, at_least=None, at_most=limit)
    return Gate(requirement, limit, value, passes(judged, undecided), ci95=interval, verdict=judged, model=model)
