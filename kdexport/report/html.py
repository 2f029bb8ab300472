"""report.html: one file that opens from disk, with no network, on any screen.

Every name comes from outside, so the template escapes all text, pictures escape theirs, and the page's security policy
lets no script run but the page's own, by its hash.
"""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from kdexport import __version__
from kdexport.report import figures
from kdexport.report.charts import catalog, curves
from kdexport.report.charts.bullet import bullet
from kdexport.report.charts.marks import Mark, marks, swatch
from kdexport.report.decisions import concerns, headline
from kdexport.report.join import PLAIN_STUDENT
from kdexport.report.tradeoffs import speedup_at
from kdexport.report.view import (
    ConditionView,
    Row,
    SplitTable,
    condition_views,
    costs_of,
    gate_words,
    speed_words,
    split_table,
)
from kdexport.results import Gate, Report

MOST_VIEWS = 18  # conditions with pictures of their own: beyond them a page takes longer to load than to read
MOST_BUTTONS = 6  # conditions to choose from by a button each, else from a list
MOST_COLUMNS = 60  # of the map of devices
TRAINING = curves.PICTURE.title


def html(report: Report) -> str:
    """Return the page."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kdexport.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _resource("page", "page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        **_values(report),
        style=Markup(_resource("charts", "style.css") + _resource("page", "page.css")),
        script=Markup(script),
        script_hash=digest,
        version=__version__,
    )


def _values(report: Report) -> dict[str, Any]:
    look = marks(report)
    every = condition_views(report)
    views = every[:MOST_VIEWS]
    timed = {row.name for view in every for row in view.rows}
    pictures = _pictures(report, look, views)
    return {
        "report": report,
        "headline": headline(report),
        "created": report.created[:10],
        "views": views,
        "groups": _groups(views) if len(views) > MOST_BUTTONS else [],
        "left_out": len(every) - len(views),
        "heroes": [_hero(report, view) for view in views],
        "answer_pictures": [item for item in pictures if item["where"] == "answer"],
        "sections": _sections([item for item in pictures if item["where"] == "section"], split_table(report)),
        "findings": report.findings,
        "gates": [_gate(gate) for gate in sorted(report.gates, key=_urgency)],
        "tables": [_table(report, view, look) for view in views],
        "untimed": figures.joined_names([model.name for model in report.models if model.name not in timed]),
        "map": _map(report, every, look) if len(every) > 1 else None,
        "splits": split_table(report),
        "proofs": _proofs(report),
        "warnings": _warnings(report),
    }


def _pictures(report: Report, look: Mapping[str, Mark], views: Sequence[ConditionView]) -> list[dict[str, Any]]:
    """Draw every picture of the catalog, each with the numbers of the conditions that it is shown with."""
    number = {view.condition: index for index, view in enumerate(views)}
    found = []
    for picture in catalog.PICTURES:
        wide = picture.draw(report, look, picture.wide)
        narrow = wide if picture.narrow == picture.wide else picture.draw(report, look, picture.narrow)
        pairs = [(item, item) for item in wide] if narrow is wide else list(zip(wide, narrow, strict=True))
        for one, other in pairs:
            shown_with = [number[condition] for condition in one.conditions if condition in number]
            if shown_with or not one.conditions:
                found.append(
                    {
                        "title": picture.title,
                        "where": picture.where,
                        "wide": one.svg,
                        "narrow": None if other is one else other.svg,
                        "caption": one.caption,
                        "conditions": " ".join(map(str, shown_with)),
                        "shown": not shown_with or 0 in shown_with,
                    }
                )
    return found


def _sections(pictures: Sequence[dict[str, Any]], splits: SplitTable | None) -> list[dict[str, Any]]:
    """Gather pictures under their titles, in their order; the table of splits stands with the training."""
    titles = list(dict.fromkeys(item["title"] for item in pictures))
    if splits is not None and TRAINING not in titles:
        titles.append(TRAINING)
    return [
        {
            "title": title,
            "id": title.lower().replace(" ", "-"),
            "pictures": [item for item in pictures if item["title"] == title],
        }
        for title in titles
    ]


def _groups(views: tuple[ConditionView, ...]) -> list[dict[str, Any]]:
    """Sort conditions under their machines, each with its number on the page."""
    groups: dict[str, list[tuple[int, ConditionView]]] = {}
    for index, view in enumerate(views):
        groups.setdefault(view.condition.machine, []).append((index, view))
    return [{"machine": machine, "views": found} for machine, found in groups.items()]


def _hero(report: Report, view: ConditionView) -> dict[str, Any]:
    chosen = view.chosen
    pick = view.pick
    return {
        "view": view,
        "name": chosen.name if chosen else (pick.model if pick and pick.model else "no pick"),
        "kicker": _kicker(view, several=len(report.devices) > 1),
        "fit": "fit" if pick and (pick.model or pick.fastest) else "unfit",
        "why": (pick.why if pick else "") + ("" if view.judged or not pick else _judged_elsewhere(view)),
        "gates": [_gate(gate) for gate in report.gates if concerns(gate, view)],
        "costs": costs_of(view),
        "file": chosen.model.file if chosen else "",
        "sha": chosen.model.sha256[:16] if chosen else "",
    }


def _kicker(view: ConditionView, *, several: bool) -> str:
    where = f" to {view.condition.device} of {view.condition.machine}" if several else ""
    if view.pick is not None and view.pick.fastest is not None:
        return "Nothing but speed is known; the fastest is"
    return f"Ship{where}" if view.pick and view.pick.model else f"Nothing to ship{where}; nearest is"


def _judged_elsewhere(view: ConditionView) -> str:
    if view.pick is None:
        return ""
    judged = f"batch {view.pick.batch_size} with {view.pick.threads} threads"
    return f" Judged at {judged}; the figures below are those of {view.setting}."


def _urgency(gate: Gate) -> int:
    """Order what failed before what is undecided before what is met."""
    return 2 if gate.verdict == "pass" else 1 if gate.passed else 0


def _gate(gate: Gate) -> dict[str, Any]:
    words = gate_words(gate)
    label = f"{words['title']}: {words['measured']}, asked {words['asked']}, {words['verdict']}"
    kind = gate.verdict if gate.verdict in ("pass", "undecided") else "fail"
    return {"words": words, "kind": kind, "model": gate.model or gate.device, "picture": bullet(gate, label=label)}


def _table(report: Report, view: ConditionView, look: Mapping[str, Mark]) -> dict[str, Any]:
    unit = view.unit
    energy = any(row.measurement.energy_mj is not None for row in view.rows)
    headings = ["Model", "Accuracy", "Change, points", f"Median, {unit.name}", f"p99, {unit.name}", "Speed-up", "Size"]
    headings += ["Memory, MiB", "Load, ms", *(["Energy, mJ"] if energy else [])]
    slowest = max(row.measurement.latency_ms.p50 for row in view.rows)
    largest = max(row.model.size_bytes for row in view.rows)
    rows = [
        {
            "name": row.name,
            "kind": "pick" if row.picked else "dominated" if row.dominated else "",
            "swatch": swatch(look[row.name]),
            "status": row.status,
            "cells": _cells(row, unit, slowest, largest, energy=energy),
        }
        for row in view.rows
    ]
    return {"view": view, "headings": headings, "rows": rows, "plain": _against_plain(report, view)}


def _cells(row: Row, unit: figures.Unit, slowest: float, largest: int, *, energy: bool) -> list[dict[str, Any]]:
    latency, speedup = row.measurement.latency_ms, row.speedup
    delta = row.tradeoff.accuracy_delta if row.tradeoff else None
    cells = [
        _cell(
            figures.percent(row.model.accuracy), row.model.accuracy, figures.percent_interval(row.model.accuracy_ci95)
        ),
        _cell(row.change, delta, row.change_interval),
        _cell(unit.write(latency.p50), latency.p50, unit.write_interval(latency.p50_ci95), latency.p50 / slowest),
        _cell(unit.write(latency.p99), latency.p99),
        _cell(
            figures.times(speedup.ratio) if speedup else "",
            speedup.ratio if speedup else None,
            figures.times_interval(speedup.ci95 if speedup else None),
        ),
        _cell(figures.size(row.model.size_bytes), row.model.size_bytes, "", row.model.size_bytes / (largest or 1)),
        _cell(figures.plain(row.memory), row.memory),
        _cell(figures.plain(row.measurement.load_ms), row.measurement.load_ms),
    ]
    return [*cells, _cell(figures.plain(row.measurement.energy_mj), row.measurement.energy_mj)] if energy else cells


def _cell(text: str, value: float | None, small: str = "", share: float | None = None) -> dict[str, Any]:
    return {"text": text, "value": value, "small": small, "share": share}


def _map(report: Report, views: tuple[ConditionView, ...], look: Mapping[str, Mark]) -> dict[str, Any]:
    in_order = sorted(views, key=lambda view: (view.condition.machine, view.condition.device))
    shown = in_order[:MOST_COLUMNS]
    columns = [
        {"machine": view.condition.machine, "device": view.condition.device, "setting": view.setting} for view in shown
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
    return {"text": text, "small": speed_words(ratio), "tone": tone, "weight": weight, "picked": row.picked and judged}


def _proofs(report: Report) -> list[str]:
    lines = []
    for model in report.models:
        if model.parity is not None:
            verdict = "passed" if model.parity.passed else "FAILED"
            found = f"{model.parity.max_rel:.1e}, tolerance {model.parity.tolerance:.0e}: {verdict}"
            against = f"its {model.parity.reference} reference on {model.parity.samples} samples"
            lines.append(f"{model.name} against {against}: largest relative difference {found}.")
        if model.notes:
            lines.append(f"{model.name}: {'; '.join(model.notes)}.")
    return lines


def _warnings(report: Report) -> list[str]:
    """Return each timing's warnings in one line."""
    lines = []
    for item in report.measurements:
        if item.warnings:
            threads = f"{item.threads} thread{'s' if item.threads != 1 else ''}"
            where = f"{item.model} on {item.device} of {item.machine}, batch {item.batch_size}, {threads}"
            lines.append(f"{where}: {'; '.join(item.warnings)}")
    return lines


def _against_plain(report: Report, view: ConditionView) -> list[dict[str, str]]:
    """Hold every model against the student trained without a teacher, under one condition."""
    rows = []
    for tradeoff in report.tradeoffs:
        if tradeoff.against == PLAIN_STUDENT and report.baseline != PLAIN_STUDENT:
            speedup = speedup_at(tradeoff, view.condition)
            rows.append(
                {
                    "name": tradeoff.model,
                    "change": "" if tradeoff.accuracy_delta is None else figures.signed(100 * tradeoff.accuracy_delta),
                    "change_interval": figures.points_interval(tradeoff.accuracy_delta_ci95),
                    "speed": figures.times(speedup.ratio if speedup else None),
                    "speed_interval": figures.times_interval(speedup.ci95 if speedup else None),
                    "size": figures.times(tradeoff.size_ratio),
                }
            )
    return rows


def _resource(folder: str, name: str) -> str:
    return files("kdexport.report").joinpath(folder, name).read_text(encoding="utf-8")
