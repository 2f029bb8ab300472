"""What each trained network scored on each split: the last line that training wrote of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdexport.report import figures, scores
from kdexport.report.scores import Metric
from kdexport.results import Report

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
