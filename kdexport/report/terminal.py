"""The report on a terminal: 80 columns, a small bar for speed and for size, color only where there is a terminal."""

import textwrap
from typing import TYPE_CHECKING

from kdexport import figures
from kdexport.report.view import ConditionView, gate_words, judged_views
from kdexport.results import DevicePick, Gate, Report

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

WIDTH = 80
SCORE_WIDTH = 9  # cells of the score's heading
BAR_CELLS = 6
FINDINGS_SHOWN = 6
GATES_SHOWN = 10
DEVICES_SHOWN = 8
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def terminal(report: Report) -> "Group":
    """Return the report for a terminal: a table per device, the pick, the requirements, what was found."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Table | Text] = []
    judged = judged_views(report)
    for device, view in judged[:DEVICES_SHOWN]:
        parts += [_table(report.name, view), Text(""), _verdict(device), Text("")]
    if len(judged) > DEVICES_SHOWN:
        parts += [
            Text(f"{len(judged) - DEVICES_SHOWN} more devices in report.md and report.html", style="dim"),
            Text(""),
        ]
    if not judged:
        parts.append(Text("Nothing was timed: only files and scores are reported.", style="yellow"))
    if report.gates:
        parts += [_gates(report.gates), Text("")]
    parts += [Text.assemble(("· ", "dim"), line(sentence)) for sentence in report.findings[:FINDINGS_SHOWN]]
    if len(report.findings) > FINDINGS_SHOWN:
        parts.append(Text(f"· {len(report.findings) - FINDINGS_SHOWN} more in report.md", style="dim"))
    return Group(*parts)


def bar(share: float, cells: int = BAR_CELLS) -> str:
    """Return a bar of eighths of a cell: a share above 0 always shows."""
    eighths = max(1, round(min(max(share, 0.0), 1.0) * cells * 8)) if share > 0 else 0
    return ("█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")).ljust(cells)


def line(text: str) -> str:
    """Return text on one line and without control characters: a name can then do nothing to a terminal."""
    return "".join(character if character.isprintable() else " " for character in " ".join(text.split()))


def _table(name: str, view: ConditionView) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(line(f"{name} · {view.title}")),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        width=WIDTH,
        show_edge=False,
    )
    table.add_column("model", no_wrap=True, overflow="ellipsis", ratio=1)
    # A long name of a score is broken, or the table's width leaves none for the models' names.
    score = "\n".join(textwrap.wrap(view.metric.label, SCORE_WIDTH, break_long_words=False))
    for heading in (score, "change", f"p50, {view.unit.name}", "speed"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    fastest = min(row.measurement.latency_ms.p50 for row in view.rows)
    largest = max(row.model.size_bytes for row in view.rows) or 1
    for row in view.rows:
        median = row.measurement.latency_ms.p50
        table.add_row(
            Text(("▶ " if row.picked else "  ") + line(row.name)),
            row.score,
            row.change,
            view.unit.write(median),
            figures.speedup(row.speedup),
            Text(bar(fastest / median), style="cyan"),
            figures.size(row.model.size_bytes),
            Text(bar(row.model.size_bytes / largest), style="magenta"),
            style="bold green" if row.picked else "dim" if row.dominated else "",
        )
    return table


def _verdict(device: DevicePick) -> "Text":
    from rich.text import Text

    if device.fastest is not None:
        return Text.assemble(("speed only  ", "bold"), line(device.why))
    if device.model is None:
        return Text.assemble(("nothing to ship  ", "bold red"), line(device.why))
    return Text.assemble(("ship ", "bold"), (line(device.model), "bold green"), "  ", line(device.why))


def _gates(gates: tuple[Gate, ...]) -> "Text":
    from rich.text import Text

    shown = (
        gates if len(gates) <= GATES_SHOWN else tuple(gate for gate in gates if gate.verdict != "pass")[:GATES_SHOWN]
    )
    text = Text()
    styles = {"pass": "green", "undecided": "yellow"}
    several = len({gate.model for gate in gates}) > 1
    for index, gate in enumerate(shown):
        words = gate_words(gate)
        counted = "" if gate.verdict != "undecided" else f", counts as {'passed' if gate.passed else 'failed'}"
        subject = f"{gate.model}: " if several else ""
        where = f" on {words['where']}" if words["where"] else ""
        text.append("\n" if index else "").append(f"{gate.verdict:<13}", styles.get(gate.verdict, "bold red"))
        text.append(line(f"{subject}{words['title']} {words['measured']}, {words['required']}{where}{counted}"))
    if len(shown) < len(gates):
        passed = sum(gate.passed for gate in gates)
        text.append("\n" if shown else "")
        text.append(f"{passed} of {len(gates)} requirements pass; report.md has them all", "dim")
    return text
