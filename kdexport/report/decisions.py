"""What is decided for each device, in words, the worst first: what page, report.md and CI summary begin with.

Beside it, what the chosen model costs (score, latency, size, memory and energy, each beside the baseline's), and what a
reader does next: use the file, check that it is the file, make it again, see what the recipe changed.
"""

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel

from kdexport import figures
from kdexport.recipe import Recipe
from kdexport.report import scores
from kdexport.report.requirements import ABOVE_CHANCE, describe_interval, describe_limit, describe_value, title
from kdexport.report.view import ConditionView, Row, judged_views
from kdexport.results import DevicePick, Gate, ModelFile, Report

SAME = 0.01  # ratios nearer to 1 are no difference


@dataclass(frozen=True)
class Cost:
    """One of the figures that answer what the pick costs."""

    title: str
    value: str
    interval: str
    against: str  # the change against the baseline, in words
    against_interval: str
    better: bool | None  # None: not shown either way
    baseline: str  # the baseline's own figure
    share: float | None  # of the longer of the two bars
    baseline_share: float | None
    of_score: bool = False

    @property
    def in_words(self) -> str:
        """The change with its interval, where that says that none is shown."""
        if not self.of_score:
            return self.against
        interval = f" ({self.against_interval})" if self.better is None and self.against_interval else ""
        return f"{figures.within_a_sentence(self.title)} {self.against}{interval}"


def costs_of(view: ConditionView) -> tuple[Cost, ...]:
    """Return what the chosen model costs, each figure beside the baseline's."""
    row, base = view.chosen, view.base
    if row is None:
        return ()
    size, base_size = row.model.size_bytes, base.model.size_bytes if base else None
    smaller = base_size / size if base_size and size and row.tradeoff else None
    less_memory, less_energy = (row.saving.memory_ratio, row.saving.energy_ratio) if row.saving else (None, None)
    base_memory = base.memory if base else None
    costs = [
        _score(row, base),
        _latency(row, base, view.unit),
        _amount("File size", figures.size, size, base_size, smaller, ("smaller", "larger")),
        _amount("Peak memory", figures.mib, row.memory, base_memory, less_memory),
    ]
    energy = row.measurement.energy_mj
    if energy is not None:
        base_energy = base.measurement.energy_mj if base else None
        costs.append(_amount("Energy per call", figures.energy, energy, base_energy, less_energy))
    return tuple(costs)


def speed_words(ratio: float | None) -> str:
    """``5.0x as fast``, or for what is slower ``1.3x slower``."""
    if ratio is None:
        return ""
    return f"{figures.times(ratio)} as fast" if ratio >= 1 else f"{figures.times(1 / ratio)} slower"


def _score(row: Row, base: Row | None) -> Cost:
    gains = row.metric.gains(row.tradeoff.score_delta_ci95) if row.tradeoff else None
    same = gains is not None and gains[0] <= 0 <= gains[1]
    change = row.metric.change(row.tradeoff.score_delta) if row.change and row.tradeoff else ""
    shares = _shares(scores.value(row.model), scores.value(base.model) if base else None)
    return Cost(
        row.metric.title,
        row.score,
        row.score_interval,
        f"indistinguishable from {base.name}'s" if same and base else change,
        row.change_interval,
        None if gains is None or same else gains[0] > 0,
        base.score if base else "",
        *(shares if min(filter(None, shares), default=0) >= 0 else (None, None)),
        of_score=True,
    )


def _latency(row: Row, base: Row | None, unit: figures.Unit) -> Cost:
    latency, speedup = row.measurement.latency_ms, row.speedup
    interval = speedup.ci95 if speedup and not speedup.disturbed else None
    doubt = " (undecided: the machine was busy)" if speedup and speedup.disturbed else ""
    return Cost(
        "Median latency",
        f"{unit.write(latency.p50)} {unit.name}",
        unit.write_interval(latency.p50_ci95),
        speed_words(speedup.ratio if speedup else None) + doubt,
        figures.times_interval(interval),
        None if interval is None or interval[0] <= 1 <= interval[1] else interval[0] > 1,
        f"{unit.write(base.measurement.latency_ms.p50)} {unit.name}" if base else "",
        *_shares(latency.p50, base.measurement.latency_ms.p50 if base else None),
    )


def _amount(
    title: str,
    write: Callable[[float | None], str],
    value: float | None,
    base: float | None,
    ratio: float | None,
    words: tuple[str, str] = ("less", "more"),
) -> Cost:
    """Return a cost that has no interval: bytes, memory, energy."""
    return Cost(
        title,
        write(value),
        "",
        _less(ratio, *words),
        "",
        None if ratio is None or abs(ratio - 1) < SAME else ratio > 1,
        "" if base is None else write(base),
        *_shares(value, base),
    )


def _less(ratio: float | None, less: str, more: str) -> str:
    if ratio is None:
        return ""
    return f"{figures.times(ratio)} {less}" if ratio >= 1 else f"{figures.times(1 / ratio)} {more}"


def _shares(value: float | None, base: float | None) -> tuple[float | None, float | None]:
    if value is None or base is None:
        return None, None
    largest = max(value, base) or 1.0
    return value / largest, base / largest


DecisionKind = Literal["fail", "undecided", "compared", "pass"]
SEVERITY: tuple[DecisionKind, ...] = ("fail", "undecided", "compared", "pass")


@dataclass(frozen=True)
class Decision:
    """One device's row; also a row for what fails and belongs to no device's pick."""

    kind: DecisionKind
    where: str  # "jetson · cuda"
    what: str  # "ship student", "nothing to ship"
    reasons: str  # the requirements that fail or are undecided, else what it gains
    why: str = ""  # the pick's own sentence
    noise: str = ""  # "5 of 5 timings noisy: the machine was busy"
    view: ConditionView | None = None

    @property
    def sentence(self) -> str:
        """The whole row as one line."""
        verdict = f"{self.kind}: " if self.kind != "compared" else ""
        where = ", ".join(part for part in (self.where, self.what) if part)
        return f"{verdict}{where}{': ' * bool(self.reasons)}{self.reasons.removesuffix('.')}"


def decisions(report: Report) -> tuple[Decision, ...]:
    """Return a row per device, the worst first; what fails elsewhere (a baseline's gate, a dead device) has its own."""
    judged = judged_views(report)
    found = [_decision(report, pick, view) for pick, view in judged]
    seen = [gate for _, view in judged for gate in report.gates if concerns(gate, view)]
    found += _elsewhere([gate for gate in report.gates if not gate.passed and gate not in seen])
    if not judged:
        what = "nothing was timed, so there is nothing to choose by speed"
        found.append(Decision("fail" if found else "compared", "", what, ""))
    return tuple(sorted(found, key=lambda item: SEVERITY.index(item.kind)))


def headline(report: Report) -> str:
    """Return the decision over all devices in a few words: the page's title."""
    found = decisions(report)
    failed = sum(item.kind == "fail" for item in found)
    worst = found[0]
    if len(found) > 1 and failed:
        devices = len(judged_views(report))
        on_devices = sum(item.kind == "fail" and item.view is not None for item in found)
        return f"fail on {on_devices} of {devices} devices" if devices > 1 and on_devices else f"fail: {worst.what}"
    what = worst.what
    if len({item.what for item in found}) > 1:
        what = f"ship {report.pick.model}" if report.pick else "a model for each device"
    return what if worst.kind == "compared" else f"{worst.kind}: {what}"


def concerns(gate: Gate, view: ConditionView) -> bool:
    """Return whether a gate judges the model chosen under a condition, there or everywhere."""
    chosen = (view.pick.model or view.pick.nearest) if view.pick else None
    machine, device, _, _ = view.condition
    judges_it = gate.model == chosen or (gate.requirement == ABOVE_CHANCE and gate.model == view.baseline)
    return judges_it and gate.machine in ("", machine) and gate.device in ("", device)


def gate_sentence(gate: Gate) -> str:
    """Write a requirement as ``speed-up 2.2x, at least 3x``."""
    doubt = gate.setting or (f"95 % interval {describe_interval(gate)}" if gate.ci95 else "")
    doubt = f" ({doubt})" if gate.verdict == "undecided" and doubt else ""
    return f"{title(gate)} {describe_value(gate)}, {describe_limit(gate)}{doubt}"


def _decision(report: Report, pick: DevicePick, view: ConditionView) -> Decision:
    gates = [gate for gate in report.gates if concerns(gate, view)]
    failed = [gate for gate in gates if not gate.passed]
    doubted = failed or [gate for gate in gates if gate.verdict == "undecided"]
    where = f"{view.condition.machine} · {view.condition.device}"
    if pick.fastest is not None and not failed:
        return Decision("compared", where, "speed only", pick.why, pick.why, view.noise, view)
    what = "nothing to ship" if pick.model is None else f"ship {pick.model}"
    reasons = "; ".join(map(gate_sentence, doubted))
    if pick.model is None or failed:
        return Decision("fail", where, what, reasons or pick.why, pick.why, view.noise, view)
    gains = ", ".join(cost.in_words for cost in costs_of(view)[:3] if cost.against)
    return Decision("undecided" if doubted else "pass", where, what, reasons or gains, pick.why, view.noise, view)


def _elsewhere(gates: Iterable[Gate]) -> list[Decision]:
    rows: dict[tuple[str, str], list[str]] = {}
    for gate in gates:
        place = " · ".join(part for part in (gate.machine, gate.device) if part)
        rows.setdefault((place, gate.model), []).append(gate_sentence(gate))
    return [Decision("fail", place, model, "; ".join(reasons)) for (place, model), reasons in rows.items()]


MOST_CHARACTERS = 120  # of a value of the recipe


def snippet(model: ModelFile) -> str:
    """Return Python that runs a file on zeros of the shapes and types that the file itself states."""
    name = json.dumps(PurePosixPath(model.file).name)
    return f"""import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession({name}, providers=["CPUExecutionProvider"])
kinds = {{"float": "float32", "double": "float64", "float16": "float16"}}
feed = {{}}
for item in session.get_inputs():
    kind = item.type[7:-1]  # "tensor(uint8)" -> "uint8"
    shape = [size if isinstance(size, int) else 1 for size in item.shape]
    feed[item.name] = np.zeros(shape, kinds.get(kind, kind))
for item, output in zip(session.get_outputs(), session.run(None, feed), strict=True):
    print(item.name, output.dtype, output.shape)
"""


def command(report: Report) -> str:
    """Return the command that makes these results again: the run, or the measuring."""
    if report.training or "distill" in (report.recipe or {}):
        return "kdexport run recipe.toml"
    files = " ".join(shlex.quote(model.file) for model in report.models)
    conditions = [
        *(f"--device {shlex.quote(name)}" for name in dict.fromkeys(item.device for item in report.measurements)),
        *(f"--batch-size {size}" for size in sorted({item.batch_size for item in report.measurements})),
        *(f"--threads {count}" for count in sorted({item.threads for item in report.measurements})),
    ]
    return f"kdexport bench {files} {' '.join(conditions)} --out bench.json && kdexport report bench.json"


def changed_settings(recipe: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return the recipe's keys, dotted, whose values are not the defaults, each with its value as it is written."""
    return [(key, _short(value)) for key, value in _differing(Recipe, recipe or {}, "")]


def _differing(section: type[BaseModel], values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        field = section.model_fields.get(name)
        default = _plain(field.get_default(call_default_factory=True)) if field and not field.is_required() else None
        if field is not None and isinstance(value, Mapping) and (nested := _section(field.annotation)) is not None:
            yield from _differing(nested, value, f"{prefix}{name}.")
        elif _plain(value) != default:
            yield prefix + name, value


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
