"""The report's values as people read them: formatted once, for the page, report.md, the card and a CI summary.

No markup here; whoever shows a text escapes it.
"""

from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote

from kdexport import figures
from kdexport.report import findings, scores
from kdexport.report.join import PLAIN_STUDENT, STUDENT, Condition, condition_of
from kdexport.report.requirements import describe_interval, describe_limit, describe_value, title
from kdexport.report.scores import Metric
from kdexport.report.tradeoffs import front, memory
from kdexport.results import DevicePick, Dominated, Gate, Measurement, ModelFile, Report, Saving, Speedup, Tradeoff


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
        names = "/".join(quote(name, safe="", errors="replace") for name in (machine, device))
        return f"{names}/batch-{batch_size}/threads-{threads}"

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
        return findings.noise_summary([row.measurement for row in self.rows])

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


def plain_comparison(report: Report) -> Tradeoff | None:
    """Return the distilled student against the one trained on labels alone, where both were measured."""
    pairs = {(item.model, item.against): item for item in report.tradeoffs}
    return pairs.get((STUDENT, PLAIN_STUDENT))


def _condition(item: Dominated | Saving) -> Condition:
    return Condition(item.machine, item.device, item.batch_size, item.threads)
