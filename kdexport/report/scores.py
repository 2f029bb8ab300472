"""A task's score for people: how it is called and written, and which of two is better.

An accuracy is written in percent and its differences in points; an error in its own unit, and a lower one is better.

``split_scores`` is what each trained network scored on each split: the last line that training wrote of it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdexport import figures
from kdexport.results import Interval, ModelFile, Report, Score
from kdexport.tasks import task_of_metric


@dataclass(frozen=True)
class Metric:
    """What a score measures."""

    name: str = "accuracy"  # as in JSON
    label: str = "accuracy"
    share: bool = True  # of 1, written in percent; else a value in its own unit
    higher_is_better: bool = True

    @property
    def title(self) -> str:
        """The label as a heading begins with it."""
        return self.label[0].upper() + self.label[1:]

    @property
    def unit(self) -> str:
        """What stands behind a heading: the values below go without it."""
        return ", %" if self.share else ""

    @property
    def change_unit(self) -> str:
        """The same of a change."""
        return ", points" if self.share else ""

    def write(self, value: float | None) -> str:
        """Write a score: ``98.3 %``, or ``0.0312``."""
        return figures.percent(value) if self.share else figures.plain(value)

    def write_interval(self, interval: Interval | None) -> str:
        """Write a score's interval."""
        if interval is None:
            return ""
        if self.share:
            return figures.percent_interval(interval)
        return f"{figures.plain(interval[0])}{figures.DASH}{figures.plain(interval[1])}"

    def write_change(self, delta: float | None) -> str:
        """Write a difference with its sign, without its unit."""
        if delta is None:
            return ""
        return figures.signed(100 * delta) if self.share else figures.signed_plain(delta)

    def write_change_interval(self, interval: Interval | None) -> str:
        """Write a difference's interval: ``-0.3 to +1.1``."""
        if interval is None:
            return ""
        if self.share:
            return figures.points_interval(interval)
        return " to ".join(map(figures.signed_plain, interval))

    def change(self, delta: float | None) -> str:
        """Write a difference with its unit: ``+0.4 points``."""
        return figures.UNKNOWN if delta is None else self.write_change(delta) + self.change_unit.replace(",", "")

    def size(self, difference: float | None) -> str:
        """Write how large a loss or gain is, without a plus: ``2.78 points``."""
        if difference is None:
            return figures.UNKNOWN
        if self.share:
            return f"{round(100 * difference, 2) + 0.0:.2f} points".replace("-", figures.MINUS)
        return figures.plain(difference).replace("-", figures.MINUS)

    def size_interval(self, interval: Interval | None) -> str:
        """Write the interval of a loss, with its unit."""
        return "" if interval is None else self.write_change_interval(interval) + self.change_unit.replace(",", "")

    def tick(self, value: float) -> str:
        """Write a round value on an axis."""
        return f"{100 * value:g} %" if self.share else f"{value:g}"

    def gain(self, delta: float) -> float:
        """Return a difference so that more is better."""
        return delta if self.higher_is_better else -delta

    def gains(self, interval: Interval | None) -> Interval | None:
        """Return the interval of a difference so that more is better."""
        if interval is None or self.higher_is_better:
            return interval
        return (-interval[1], -interval[0])


def named(name: str, *, higher_is_better: bool = True) -> Metric:
    """Return a metric by its name in JSON; one that no task has is written as it stands."""
    task = task_of_metric(name)
    if task is None:
        return Metric(name, name.replace("_", " "), share=False, higher_is_better=higher_is_better)
    return Metric(name, task.label, task.unit == "share", task.higher_is_better)


def metric_of(models: Iterable[ModelFile], baseline: str = "") -> Metric:
    """Return what the models' scores measure: the baseline's, else the first that is known, else an accuracy."""
    scores = {model.name: model.score for model in models if model.score is not None}
    score = scores.get(baseline) or next(iter(scores.values()), None)
    return Metric() if score is None else of(score)


def of(score: Score) -> Metric:
    """Return what a score measures."""
    return named(score.metric, higher_is_better=score.higher_is_better)


def value(model: ModelFile) -> float | None:
    """Return a model's score."""
    return None if model.score is None else model.score.value


def interval(model: ModelFile) -> Interval | None:
    """Return its 95 % interval."""
    return None if model.score is None else model.score.ci95


def goodness(model: ModelFile) -> float:
    """Return a model's score so that more is better: negative infinity where it is not known."""
    return float("-inf") if model.score is None else of(model.score).gain(model.score.value)


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
    metric = metric_of(report.models, report.baseline)
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
