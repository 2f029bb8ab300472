"""The page's tables in values: models under a condition, all conditions at once, proofs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from kdexport import figures
from kdexport.report import findings, scores
from kdexport.report.charts.marks import Mark, swatch
from kdexport.report.decisions import speed_words
from kdexport.report.join import PLAIN_STUDENT
from kdexport.report.requirements import chance
from kdexport.report.tradeoffs import speedup_at
from kdexport.report.view import ConditionView, Row, quantized
from kdexport.results import Report

MOST_CUTS = 200  # layers of a pruned student that are listed
MOST_COLUMNS = 60  # of the map of devices
SHORTEST = 0.06  # share of a bar's length that the least figure has, on a log scale


@dataclass(frozen=True)
class Cell:
    """One figure of a table."""

    text: str
    value: float | None  # to sort by
    small: str = ""  # its interval
    share: float | None = None  # of a bar's length


def model_table(report: Report, view: ConditionView, look: Mapping[str, Mark]) -> dict[str, Any]:
    """Return every model under one condition: what to ship first, what is dominated last, the faster before."""
    time, size = view.unit, figures.SizeUnit.of([row.model.size_bytes for row in view.rows])
    energy = any(row.measurement.energy_mj is not None for row in view.rows)
    score, change = f"{view.metric.title}{view.metric.unit}", f"Change{view.metric.change_unit}"
    headings = ["Model", score, f"Median, {time.name}", "Speed-up, ×", f"Size, {size.name}", change]
    headings += [f"p99, {time.name}", "Memory, MiB", "Load, ms", *(["Energy, mJ"] if energy else [])]
    medians = [row.measurement.latency_ms.p50 for row in view.rows]
    sizes = [float(row.model.size_bytes) for row in view.rows]
    best_first = sorted(view.rows, key=lambda row: (not row.picked, row.dominated is not None, _median(row)))
    rows = [
        {
            "name": row.name,
            "kind": "pick" if row.picked else "dominated" if row.dominated else "",
            "swatch": swatch(look[row.name]),
            "status": row.status,
            "noise": findings.noise_summary([row.measurement]).partition(": ")[2],
            "cells": _cells(row, time, size, medians, sizes, energy=energy),
        }
        for row in best_first
    ]
    guess = next((found for row in view.rows if (found := chance(row.model.evaluation)) is not None), None)
    return {
        "view": view,
        "headings": headings,
        "rows": rows,
        "chance": "" if guess is None else view.metric.write(guess),
        "guess": "A guess without the image" if view.metric.name == "mean_iou" else "The best constant answer",
        "plain": _against_plain(report, view),
    }


def _median(row: Row) -> float:
    return row.measurement.latency_ms.p50


def _cells(
    row: Row,
    time: figures.Unit,
    size: figures.SizeUnit,
    medians: Sequence[float],
    sizes: Sequence[float],
    *,
    energy: bool,
) -> list[Cell]:
    latency, speedup = row.measurement.latency_ms, row.speedup
    delta = row.tradeoff.score_delta if row.tradeoff else None
    bytes_ = row.model.size_bytes
    speed = "" if speedup is None else figures.times_interval(speedup.ci95)
    if speedup is not None and speedup.disturbed:
        speed = "undecided: busy machine"
    cells = [
        Cell(_bare(row.score), scores.value(row.model), _bare(row.score_interval)),
        Cell(time.write(latency.p50), latency.p50, time.write_interval(latency.p50_ci95), _log(latency.p50, medians)),
        Cell(_bare(figures.times(speedup.ratio)), speedup.ratio, _bare(speed)) if speedup else Cell("", None),
        Cell(size.write(bytes_), bytes_, "", _log(bytes_, sizes)),
        Cell(row.change, delta, row.change_interval),
        Cell(time.write(latency.p99), latency.p99),
        Cell(figures.plain(row.memory), row.memory),
        Cell(figures.plain(row.measurement.load_ms), row.measurement.load_ms),
    ]
    return [*cells, Cell(figures.plain(row.measurement.energy_mj), row.measurement.energy_mj)] if energy else cells


def _bare(text: str) -> str:
    """Return a figure without the unit that its column's heading has."""
    return text.removesuffix(" %").removesuffix("×")


def _log(value: float, every: Sequence[float]) -> float:
    """Return the length of a bar on a log scale: a hundredth of the largest is then still seen."""
    low, high = min(every), max(every)
    if value <= 0 or low <= 0 or high <= low:
        return 1.0
    return SHORTEST + (1 - SHORTEST) * math.log(value / low) / math.log(high / low)


def device_map(
    report: Report, views: Sequence[ConditionView], look: Mapping[str, Mark], page: Sequence[ConditionView]
) -> dict[str, Any]:
    """Return every model under every condition, those that are on the page by the number that chooses them."""
    in_order = sorted(views, key=lambda view: (view.condition.machine, view.condition.device))
    shown = in_order[:MOST_COLUMNS]
    keys = {view.condition for view in page}
    columns = [
        {
            "machine": view.condition.machine,
            "device": view.condition.device,
            "setting": view.setting,
            "key": view.key if view.condition in keys else "",
        }
        for view in shown
    ]
    rows = []
    for model in report.models:
        if any(model.name in view.by_name for view in shown):
            cells = [_map_cell(view.by_name.get(model.name), judged=view.judged) for view in shown]
            rows.append({"name": model.name, "swatch": swatch(look[model.name]), "cells": cells})
    return {"columns": columns, "rows": rows, "left_out": len(views) - len(shown)}


def _map_cell(row: Row | None, *, judged: bool) -> dict[str, Any]:
    if row is None:
        return {"text": figures.UNKNOWN, "small": "", "tone": "", "weight": 0.0, "picked": False}
    ratio = row.speedup.ratio if row.speedup else None
    weight = 0.0 if ratio is None else min(abs(math.log2(ratio)) / 3, 1.0)
    tone = "" if ratio is None or weight < 0.02 else "better" if ratio > 1 else "worse"
    text = figures.ms(row.measurement.latency_ms.p50)
    doubt = " (undecided)" if row.speedup and row.speedup.disturbed else ""
    small = speed_words(ratio) + doubt
    return {"text": text, "small": small, "tone": tone, "weight": weight, "picked": row.picked and judged}


@dataclass(frozen=True)
class Proof:
    """What a file was compared with, in words."""

    name: str
    swatch: Markup
    quantized: str
    reference: str
    samples: str
    found: str
    tolerance: str
    passed: bool


def proofs(report: Report, look: Mapping[str, Mark]) -> list[Proof]:
    """Return a row for each file that was compared with what it was made from."""
    return [
        Proof(
            model.name,
            swatch(look[model.name]),
            quantized(model),
            {"torch": "PyTorch", "fp32-onnx": "the fp32 file"}.get(model.parity.reference, model.parity.reference),
            f"{model.parity.samples:,}",
            f"{model.parity.max_rel:.1e}",
            f"{model.parity.tolerance:.0e}",
            model.parity.passed,
        )
        for model in report.models
        if model.parity is not None
    ]


def _against_plain(report: Report, view: ConditionView) -> list[dict[str, str]]:
    """Hold every model against the student without distillation, under one condition."""
    rows = []
    for tradeoff in report.tradeoffs:
        if tradeoff.against == PLAIN_STUDENT and report.baseline != PLAIN_STUDENT:
            speedup = speedup_at(tradeoff, view.condition)
            rows.append(
                {
                    "name": tradeoff.model,
                    "change": view.metric.write_change(tradeoff.score_delta),
                    "change_interval": view.metric.write_change_interval(tradeoff.score_delta_ci95),
                    "speed": figures.times(speedup.ratio if speedup else None),
                    "speed_interval": figures.times_interval(speedup.ci95 if speedup else None),
                    "size": figures.times(tradeoff.size_ratio),
                }
            )
    return rows


@dataclass(frozen=True)
class TriedTable:
    """What was tried for a file whose precision measured time has chosen."""

    model: str
    where: str
    rows: list[tuple[str, str, str, str, str, str]]  # see figures.tried_rows


def tried_tables(report: Report) -> list[TriedTable]:
    """Return what was tried, of each file whose precision measured time has chosen."""
    chosen = [(model.name, model.measured_precision) for model in report.models]
    return [
        TriedTable(name, figures.timed_on(one.on), figures.tried_rows(one)) for name, one in chosen if one is not None
    ]


def cut_rows(report: Report) -> list[tuple[str, str, str]]:
    """Return what was cut out of a pruned student, the whole last: layer, before, after; nothing for other students."""
    pruned = next((model.pruned for model in report.models if model.pruned is not None), None)
    return [] if pruned is None else [*figures.cuts(pruned, MOST_CUTS), *figures.cut_totals(pruned)]
