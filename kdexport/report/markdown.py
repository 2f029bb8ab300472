"""report.md: the report as text that a repository, a pull request or a mail can show, with pictures beside it."""

from collections.abc import Mapping, Sequence

from kdexport import figures
from kdexport.report.charts import catalog
from kdexport.report.charts.marks import marks
from kdexport.report.charts.svg import standalone
from kdexport.report.decisions import decisions
from kdexport.report.join import Condition
from kdexport.report.scores import split_table
from kdexport.report.tables import cut_rows, tried_tables
from kdexport.report.view import ConditionView, gate_words, judged_views, quantized
from kdexport.results import Report

MOST_PICTURES = 6  # devices with pictures of their own
_SPECIAL = str.maketrans({character: "\\" + character for character in "\\`*_[]#|~"} | {"<": "&lt;", ">": "&gt;"})


def markdown(report: Report, pictures: Mapping[str, str] | None = None) -> str:
    """Return the report as GitHub-flavoured Markdown.

    Args:
        report: What to write.
        pictures: File name -> SVG, as ``pictures_of`` returns; those that are there are shown.
    """
    shown = pictures or {}
    lines = [f"# {escape(report.name)}", "", *answer(report), ""]
    for index, (_, view) in enumerate(judged_views(report)):
        lines += [*device_table(view), ""]
        for picture in catalog.PICTURES:
            lines += _image(f"report-{picture.name}-{index + 1}.svg", f"{picture.title}, {view.title}", shown)
    if report.gates:
        lines += ["## Requirements", "", *gate_table(report), ""]
    if report.findings:
        lines += ["## What the figures show", "", *(f"- {escape(sentence)}" for sentence in report.findings), ""]
    for picture in catalog.PICTURES:
        lines += _image(f"report-{picture.name}.svg", picture.title, shown)
    lines += [*_splits(report), ""]
    cuts = cut_rows(report)
    for tried in tried_tables(report):
        lines += [
            f"## How {escape(tried.model)} got its precision",
            "",
            f"Timed in turns on {escape(tried.where)}.",
            "",
        ]
        lines += ["| tried | made of | in fewer bits | speed | 95 % | outcome |", "|---|---|---:|---:|---:|---|"]
        lines += [*(f"| {' | '.join(map(escape, row))} |" for row in tried.rows), ""]
    if cuts:
        lines += ["## What was cut out of the teacher", "", "| layer | before | after |", "|---|---:|---:|"]
        lines += [*(f"| {escape(name)} | {before} | {after} |" for name, before, after in cuts), ""]
    lines += ["## Measured on", "", *_machines(report), ""]
    return "\n".join(lines)


def _splits(report: Report) -> list[str]:
    """Return the table of what each network scored on each split, where its training is known."""
    table = split_table(report)
    if table is None:
        return []
    head = " | ".join(table.header)
    lines = [f"| {head} |", "|---|---|" + "---:|" * (len(table.header) - 2)]
    return lines + [f"| {' | '.join(map(escape, row))} |" for row in table.rows]


def pictures_of(report: Report) -> dict[str, str]:
    """Return the pictures of report.md: file name -> SVG; those of a condition numbered as the devices are."""
    look = marks(report)
    judged = [view.condition for _, view in judged_views(report)[:MOST_PICTURES]]
    found: dict[str, str] = {}
    for picture in catalog.PICTURES:
        for drawing in picture.draw(report, look, picture.wide) if picture.in_markdown else ():
            for suffix in _suffixes(drawing.conditions, judged):
                found[f"report-{picture.name}{suffix}.svg"] = standalone(drawing.svg)
    return found


def _suffixes(conditions: Sequence[Condition], judged: Sequence[Condition]) -> list[str]:
    if not conditions:
        return [""]
    return [f"-{index + 1}" for index, condition in enumerate(judged) if condition in conditions]


def escape(text: str) -> str:
    """Return text that Markdown and HTML show as it is, on one line."""
    return " ".join(text.replace("&", "&amp;").split()).translate(_SPECIAL)


def answer(report: Report) -> list[str]:
    """Return what is decided: one line per device, the worst first, each with what it rests on."""
    found = decisions(report)
    if len(found) == 1 and report.pick is not None and found[0].kind == "pass":
        noise = f" ({escape(found[0].noise)})" if found[0].noise else ""
        return [f"**Ship {escape(report.pick.model)}.** {escape(report.pick.why)}{noise}"]
    lines = []
    for item in found:
        why = "" if not item.why or item.why in item.reasons else f" {escape(item.why)}"
        noise = f" ({escape(item.noise)})" if item.noise else ""
        lines.append(f"- **{escape(item.sentence)}**{noise}.{why}")
    return lines


def device_table(view: ConditionView, level: int = 2) -> list[str]:
    """Return the models under one condition as a table under a heading."""
    unit = view.unit.name
    lines = [
        f"{'#' * level} {escape(view.title)}",
        "",
        f"| model | {view.metric.label} | change{view.metric.change_unit} (95 %) | median, {unit} | speed-up (95 %) | "
        "size | peak memory | |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    return lines + [f"| {' | '.join(cells)} |" for cells in _rows(view)]


def gate_table(report: Report) -> list[str]:
    """Return the requirements as a table."""
    lines = ["| requirement | model | required | measured | 95 % | verdict |", "|---|---|---|---:|---|---|"]
    for gate in report.gates:
        words = gate_words(gate)
        where = f" ({escape(words['where'])})" if words["where"] else ""
        verdict = words["verdict"] if gate.passed else f"**{words['verdict']}**"
        lines.append(
            f"| {words['title']}{where} | {escape(gate.model)} | {words['required']} | {words['measured']} | "
            f"{words['interval']} | {verdict} |"
        )
    return lines


def _rows(view: ConditionView) -> list[list[str]]:
    rows = []
    for row in view.rows:
        change = row.change + (f" ({row.change_interval})" if row.change_interval else "")
        speed = figures.speedup(row.speedup)
        if row.speedup and row.speedup.ci95 and not row.speedup.disturbed:
            speed += f" ({figures.times_interval(row.speedup.ci95)})"
        rows.append(
            [
                f"**{escape(row.name)}**" if row.picked else escape(row.name),
                row.score,
                change,
                view.unit.write(row.measurement.latency_ms.p50),
                speed,
                figures.size(row.model.size_bytes),
                figures.mib(row.memory),
                escape("; ".join(part for part in (row.status, quantized(row.model)) if part)),
            ]
        )
    return rows


def _image(name: str, words: str, shown: Mapping[str, str]) -> list[str]:
    return [f"![{escape(words)}]({name})", ""] if name in shown else []


def _machines(report: Report) -> list[str]:
    lines = []
    for machine in report.machines:
        cores = [] if machine.cores is None else [f"{machine.cores} cores"]
        parts = [machine.cpu, *cores, machine.system, *machine.gpus]
        if machine.container:
            parts.append(machine.container)
        parts += [f"Python {machine.python}"] if machine.python else []
        parts += [f"{name} {version}" for name, version in machine.versions.items()]
        lines.append(f"- **{escape(machine.name)}**: {escape(', '.join(parts))}")
    return lines
