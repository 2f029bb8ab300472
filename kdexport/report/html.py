"""report.html: one file that opens from disk, with no network, on any screen.

Every name comes from outside, so the template escapes all text, pictures escape theirs, and the page's security policy
lets no script run but the page's own, by its hash.
"""

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from kdexport import __version__, figures
from kdexport.report import findings
from kdexport.report.charts import catalog, curves
from kdexport.report.charts.marks import Mark, bullet, legend, marks, swatch
from kdexport.report.decisions import (
    SEVERITY,
    Decision,
    changed_settings,
    command,
    concerns,
    costs_of,
    decisions,
    headline,
    snippet,
)
from kdexport.report.operators import layer_table
from kdexport.report.scores import SplitTable, split_table
from kdexport.report.tables import cut_rows, device_map, model_table, proofs, tried_tables
from kdexport.report.view import (
    ConditionView,
    condition_views,
    gate_words,
)
from kdexport.results import Gate, Report

if TYPE_CHECKING:
    import jinja2

MOST_VIEWS = 18  # conditions with pictures of their own: beyond them a page takes longer to load than to read
MOST_BUTTONS = 6  # conditions to choose from by a button each, else from a list
MOST_VERDICTS = 8  # rows of the strip that are always open
TRAINING = curves.PICTURE.title


def html(report: Report) -> str:
    """Return the page."""
    from markupsafe import Markup

    script = _resource("page", "page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = template_of("kdexport.report", "page.html.j2").render(
        **_values(report),
        style=Markup(_resource("charts", "style.css") + _resource("page", "page.css")),
        script=Markup(script),
        script_hash=digest,
        version=__version__,
    )
    return figures.xml_text(text)


@functools.cache
def template_of(package: str, name: str) -> "jinja2.Template":
    """Return a template of a package's folder ``page``, kept: to compile it takes longer than to fill it."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _values(report: Report) -> dict[str, Any]:
    look = marks(report)
    decided = decisions(report)
    every = _worst_first(condition_views(report), decided)
    views = every[:MOST_VIEWS]
    timed = {row.name for view in every for row in view.rows}
    pictures = _pictures(report, look, views)
    sections = _sections([item for item in pictures if item["where"] == "section"], split_table(report))
    return {
        "report": report,
        "headline": headline(report),
        "created": report.created[:10],
        "decisions": decided,
        "most_verdicts": MOST_VERDICTS,
        "noise": findings.noise_elsewhere([item.noise for item in decided if item.view]) if len(decided) > 1 else "",
        "views": views,
        "groups": _groups(views) if len(views) > MOST_BUTTONS else [],
        "left_out": len(every) - len(views),
        "heroes": [_hero(report, view) for view in views],
        "answer_pictures": [item for item in pictures if item["where"] == "answer"],
        "legend": legend(look.values()),
        "sections": sections,
        "findings": report.findings,
        "gates": [_gate(gate) for gate in sorted(report.gates, key=_urgency)],
        "tables": [model_table(report, view, look) for view in views],
        "untimed": figures.joined_names([model.name for model in report.models if model.name not in timed]),
        "map": device_map(report, every, look, views) if len(every) > 1 else None,
        "splits": split_table(report),
        "cuts": cut_rows(report),
        "tried": tried_tables(report),
        "layers": [_layers(view, look) for view in views if any(row.measurement.profile for row in view.rows)],
        "proofs": proofs(report, look),
        "notes": [f"{model.name}: {'; '.join(model.notes)}." for model in report.models if model.notes],
        "warnings": findings.noise_lines(report.measurements),
        "command": command(report),
        "settings": changed_settings(report.recipe),
    }


def _worst_first(views: Sequence[ConditionView], decided: Sequence[Decision]) -> list[ConditionView]:
    """Put the condition that the gravest decision is about first: it is what the page opens with."""
    kinds = {item.view.condition: item.kind for item in decided if item.view is not None}
    return sorted(views, key=lambda view: SEVERITY.index(kinds[view.condition]) if view.judged else len(SEVERITY))


def _pictures(report: Report, look: Mapping[str, Mark], views: Sequence[ConditionView]) -> list[dict[str, Any]]:
    """Draw every picture of the catalog, each with the numbers of the conditions that it is shown with."""
    number = {view.condition: index for index, view in enumerate(views)}
    found = []
    for picture in catalog.PICTURES:
        wide = list(picture.draw(report, look, picture.wide))
        narrow = wide if picture.narrow == picture.wide else list(picture.draw(report, look, picture.narrow))
        for one, other in zip(wide, narrow, strict=True):
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


def _groups(views: Sequence[ConditionView]) -> list[dict[str, Any]]:
    """Sort conditions under their machines, each with its number on the page."""
    groups: dict[str, list[tuple[int, ConditionView]]] = {}
    for index, view in enumerate(views):
        groups.setdefault(view.condition.machine, []).append((index, view))
    return [{"machine": machine, "views": found} for machine, found in groups.items()]


def _hero(report: Report, view: ConditionView) -> dict[str, Any]:
    chosen = view.chosen
    pick = view.pick
    ships = pick is not None and pick.model is not None
    return {
        "view": view,
        "name": chosen.name if chosen else (pick.model if pick and pick.model else "no pick"),
        "kicker": _kicker(view, several=len(report.devices) > 1),
        "fit": "fit" if ships or (pick and pick.fastest) else "unfit",
        "why": (pick.why if pick else "") + ("" if view.judged or not pick else _judged_elsewhere(view)),
        "gates": [_gate(gate) for gate in report.gates if concerns(gate, view)],
        "costs": costs_of(view),
        "model": chosen.model if chosen else None,
        "snippet": snippet(chosen.model) if chosen and ships else "",
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


def _layers(view: ConditionView, look: Mapping[str, Mark]) -> dict[str, Any]:
    """Return the time of each layer in each model that was profiled under a condition."""
    profiled = {row.name: row.measurement for row in view.rows if row.measurement.profile is not None}
    heads = [(swatch(look[name]), name) for name in profiled]
    return {"title": view.title, "models": heads, "rows": layer_table(profiled)}


def _urgency(gate: Gate) -> int:
    """Order what fails before what is undecided before what passes."""
    return 2 if gate.verdict == "pass" else 1 if gate.passed else 0


def _gate(gate: Gate) -> dict[str, Any]:
    words = gate_words(gate)
    label = f"{words['title']}: {words['measured']}, required {words['required']}, {words['verdict']}"
    kind = gate.verdict if gate.verdict in ("pass", "undecided") else "fail"
    return {"words": words, "kind": kind, "model": gate.model or gate.device, "picture": bullet(gate, label=label)}


def _resource(folder: str, name: str) -> str:
    return files("kdexport.report").joinpath(folder, name).read_text(encoding="utf-8")
