"""The report's values as people read them: formatted once, for the page, report.md, the card and a CI summary.

No markup here; whoever shows a text escapes it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import quote

from kdexport.report import figures, noise, scores
from kdexport.report.join import PLAIN_STUDENT, STUDENT, Condition, condition_of
from kdexport.report.requirements import describe_interval, describe_limit, describe_value, title
from kdexport.report.scores import Metric
from kdexport.report.tradeoffs import front, memory
from kdexport.results import DevicePick, Dominated, Gate, Measurement, ModelFile, Report, Saving, Speedup, Tradeoff

SAME = 0.01  # ratios nearer to 1 are no difference


@dataclass(frozen=True)
class Row:
    """One model under one condition."""

    model: ModelFile
    measurement: Measurement
    tradeoff: Tradeoff | None  # against the baseline; None for itself
    speedup: Speedup | None
    saving: Saving | None
    dominated: Dominated | None
    picked: bool
    metric: Metric

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    @property
    def memory(self) -> float | None:
        """The peak in MiB: the device's own where it has one, else the process's."""
        return memory(self.measurement)

    @property
    def change(self) -> str:
        """The score against the baseline's, without its unit."""
        return "" if self.tradeoff is None else self.metric.write_change(self.tradeoff.score_delta)

    @property
    def change_interval(self) -> str:
        """Its 95 % interval."""
        return "" if self.tradeoff is None else self.metric.write_change_interval(self.tradeoff.score_delta_ci95)

    @property
    def score(self) -> str:
        """The score with its unit."""
        return self.metric.write(scores.value(self.model))

    @property
    def score_interval(self) -> str:
        """Its 95 % interval."""
        return self.metric.write_interval(scores.interval(self.model))

    @property
    def status(self) -> str:
        """Whether it is the pick, or what beats it."""
        if self.picked:
            return "ship this"
        if self.dominated is None:
            return ""
        return f"dominated by {self.dominated.by}" + ("" if self.dominated.shown else " (within the noise)")


def quantized(model: ModelFile) -> str:
    """Return ``3 of 4 operators quantized``; empty where that is not known."""
    return "" if model.quantized is None else f"{model.quantized[0]} of {model.quantized[1]} operators quantized"


@dataclass(frozen=True)
class ConditionView:
    """All that is known under one condition."""

    condition: Condition
    rows: tuple[Row, ...]
    pick: DevicePick | None  # of this device; it may have been judged at another batch size
    baseline: str
    metric: Metric

    @property
    def title(self) -> str:
        """The condition in words."""
        machine, device, _, _ = self.condition
        return f"{device} of {machine}, {self.setting}"

    @property
    def setting(self) -> str:
        """Batch size and threads in words."""
        threads = "1 thread" if self.condition.threads == 1 else f"{self.condition.threads} threads"
        return f"batch {self.condition.batch_size}, {threads}"

    @property
    def key(self) -> str:
        """What stands in the page's address for it: ``laptop/cpu/batch-1/threads-1``."""
        machine, device, batch_size, threads = self.condition
        return f"{quote(machine, safe='')}/{quote(device, safe='')}/batch-{batch_size}/threads-{threads}"

    @property
    def judged(self) -> bool:
        """Whether the pick was judged under this very condition."""
        return self.pick is not None and self.condition[2:] == (self.pick.batch_size, self.pick.threads)

    @cached_property
    def by_name(self) -> dict[str, Row]:
        """Rows by model."""
        return {row.name: row for row in self.rows}

    @property
    def chosen(self) -> Row | None:
        """The row of the pick, or of what is nearest where nothing fits."""
        name = (self.pick.model or self.pick.nearest or self.pick.fastest) if self.pick else None
        return self.by_name.get(name) if name else None

    @property
    def base(self) -> Row | None:
        """The row of the baseline."""
        return self.by_name.get(self.baseline)

    @property
    def noise(self) -> str:
        """How many of the timings here are noisy, and why; empty where none is."""
        return noise.summary([row.measurement for row in self.rows])

    @cached_property
    def unit(self) -> figures.Unit:
        """The unit of time that suits all of its medians."""
        return figures.Unit.of([row.measurement.latency_ms.p50 for row in self.rows])

    @property
    def front(self) -> list[str]:
        """Names on the score-latency front, fastest first."""
        return front(
            (row.name, row.measurement.latency_ms.p50, scores.goodness(row.model))
            for row in self.rows
            if row.model.score is not None
        )


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
        return f"{self.title[0].lower()}{self.title[1:]} {self.against}{interval}"


def condition_views(report: Report) -> tuple[ConditionView, ...]:
    """Return every condition, those that picks were judged under first."""
    against_baseline = {item.model: item for item in report.tradeoffs if item.against == report.baseline}
    dominated = {(item.model, _condition(item)): item for item in report.dominated}
    models = {model.name: model for model in report.models}
    picks = {(pick.machine, pick.device): pick for pick in report.devices}
    savings = {
        (name, _condition(saving)): saving for name, tradeoff in against_baseline.items() for saving in tradeoff.savings
    }
    speedups = {
        (name, Condition(item.machine, item.device, item.batch_size, item.threads)): item
        for name, tradeoff in against_baseline.items()
        for item in tradeoff.speedup
    }
    metric = scores.metric_of(report.models, report.baseline)
    measured: dict[Condition, list[Measurement]] = {}
    for measurement in report.measurements:
        measured.setdefault(condition_of(measurement), []).append(measurement)
    views = []
    for condition, measurements in measured.items():
        pick = picks.get((condition.machine, condition.device))
        rows = tuple(
            Row(
                model=models[item.model],
                measurement=item,
                tradeoff=against_baseline.get(item.model),
                speedup=speedups.get((item.model, condition)),
                saving=savings.get((item.model, condition)),
                dominated=dominated.get((item.model, condition)),
                picked=pick is not None and pick.model == item.model,
                metric=metric,
            )
            for item in measurements
            if item.model in models
        )
        views.append(ConditionView(condition, rows, pick, report.baseline, metric))
    return tuple(sorted(views, key=lambda view: not view.judged))


def judged_views(report: Report) -> tuple[tuple[DevicePick, ConditionView], ...]:
    """Return each device's pick with the condition that it was judged under."""
    views = {view.condition: view for view in condition_views(report)}
    return tuple(
        (pick, views[Condition(pick.machine, pick.device, pick.batch_size, pick.threads)]) for pick in report.devices
    )


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


def gate_words(gate: Gate) -> dict[str, str]:
    """Return a requirement in words: title, where, required, measured, interval, verdict."""
    device = f"{gate.device} of {gate.machine}" if gate.machine else gate.device
    counted = "" if gate.verdict != "undecided" else ", passes" if gate.passed else ", fails"
    return {
        "title": title(gate),
        "where": ", ".join(part for part in (device, gate.setting) if part),
        "required": describe_limit(gate),
        "measured": describe_value(gate),
        "interval": describe_interval(gate),
        "verdict": gate.verdict + counted,
    }


def speed_words(ratio: float | None) -> str:
    """``5.0x as fast``, or for what is slower ``1.3x slower``."""
    if ratio is None:
        return ""
    return f"{figures.times(ratio)} as fast" if ratio >= 1 else f"{figures.times(1 / ratio)} slower"


def plain_comparison(report: Report) -> Tradeoff | None:
    """Return the distilled student against the one trained on labels alone, where both were measured."""
    pairs = {(item.model, item.against): item for item in report.tradeoffs}
    return pairs.get((STUDENT, PLAIN_STUDENT))


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


def _condition(item: Dominated | Saving) -> Condition:
    return Condition(item.machine, item.device, item.batch_size, item.threads)


SPLITS = ("train", "val", "test")
# What the epoch log calls each figure; the train split's are of the augmented batches of the epoch that was kept.
AGREEMENT = {"train": "train_top1_agreement", "val": "top1_agreement", "test": "test_top1_agreement"}
TERMS = {"train": "terms", "val": "val_terms", "test": "test_terms"}


@dataclass(frozen=True)
class SplitTable:
    """A table in words: the network, the split, the figures."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def split_table(report: Report) -> SplitTable | None:
    """Return a row per trained network and split; None where no training is recorded.

    Columns that nothing is known of are left out. ``crd`` compares samples with what it remembers of them: train alone.
    """
    kept = [line for line in report.training if line.get("kept") is True and isinstance(line.get("phase"), str)]
    found = [(str(line["phase"]), split, line) for line in kept for split in SPLITS]
    if not found:
        return None
    names = dict.fromkeys(name for _, split, line in found for name in _mapping(line.get(TERMS[split])))
    columns: dict[str, list[str]] = {"network": [phase for phase, _, _ in found], "split": [s for _, s, _ in found]}
    for name in names:
        columns[name] = [_number(_mapping(line.get(TERMS[split])).get(name), 3) for _, split, line in found]
    metric = scores.metric_of(report.models, report.baseline)
    columns[metric.label] = [_score_in(line, split, metric) for _, split, line in found]
    columns["teacher"] = [_score_in(line, f"{split}_teacher", metric) for _, split, line in found]
    columns["agreement"] = [_percent(line.get(AGREEMENT[split])) for _, split, line in found]
    columns["KL"] = [_number(line.get(f"{split}_kl"), 3) for _, split, line in found]
    columns["correlation"] = [_number(line.get(f"{split}_logit_correlation"), 3) for _, split, line in found]
    shown = {name: cells for name, cells in columns.items() if any(cell != figures.DASH for cell in cells)}
    return SplitTable(tuple(_words(shown)), tuple(zip(*shown.values(), strict=True)))


def _words(columns: Mapping[str, object]) -> Iterator[str]:
    for name in columns:
        yield {"labels": "labels' loss"}.get(name, name.replace("_", " "))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else figures.DASH


def _score_in(line: Mapping[str, Any], split: str, metric: Metric) -> str:
    value = line.get(f"{split}_accuracy", line.get(f"{split}_score"))
    return metric.write(value) if isinstance(value, int | float) else figures.DASH


def _percent(value: Any) -> str:
    return figures.percent(value) if isinstance(value, int | float) else figures.DASH
