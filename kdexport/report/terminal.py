"""The report on a terminal: 80 columns, a small bar for speed and for size, color only where there is a terminal."""

from typing import TYPE_CHECKING

from kdexport import figures
from kdexport.report.findings import noise_lines
from kdexport.report.view import ConditionView, gate_words, judged_views
from kdexport.results import DevicePick, Gate, Report
from kdexport.terminal import WIDTH, Column, heading, line, table, warning

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

BAR_CELLS = 6
FINDINGS_SHOWN = 6
GATES_SHOWN = 10
DEVICES_SHOWN = 8
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def terminal(report: Report, width: int = WIDTH) -> "Group":
    """Return the report for a terminal: a table per device, the pick, the requirements, what was found."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Group | Text] = []
    judged = judged_views(report)
    for device, view in judged[:DEVICES_SHOWN]:
        parts += [_table(report.name, view, width), Text(""), _verdict(device), Text("")]
    if len(judged) > DEVICES_SHOWN:
        parts += [
            Text(f"{len(judged) - DEVICES_SHOWN} more devices in report.md and report.html", style="dim"),
            Text(""),
        ]
    if not judged:
        parts.append(Text("Nothing was timed: only files and scores are reported.", style="yellow"))
    if report.gates:
        parts += [_gates(report.gates), Text("")]
    noisy = set(noise_lines(report.measurements))
    for sentence in report.findings[:FINDINGS_SHOWN]:
        parts.append(warning(sentence) if sentence in noisy else Text.assemble(("· ", "dim"), line(sentence)))
    if len(report.findings) > FINDINGS_SHOWN:
        parts.append(Text(f"· {len(report.findings) - FINDINGS_SHOWN} more in report.md", style="dim"))
    return Group(*parts)


def bar(share: float, cells: int = BAR_CELLS) -> str:
    """Return a bar of eighths of a cell: a share above 0 always shows."""
    eighths = max(1, round(min(max(share, 0.0), 1.0) * cells * 8)) if share > 0 else 0
    return ("█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")).ljust(cells)


def _table(name: str, view: ConditionView, width: int) -> "Group":
    from rich.text import Text

    fastest = min(row.measurement.latency_ms.p50 for row in view.rows)
    largest = max(row.model.size_bytes for row in view.rows) or 1
    medians = [row.measurement.latency_ms.p50 for row in view.rows]
    sizes = [row.model.size_bytes for row in view.rows]
    columns = [
        Column("model", [("▶ " if row.picked else "  ") + line(row.name) for row in view.rows], left=True, folds=True),
        Column(heading(view.metric.label), [row.score for row in view.rows]),
        Column("change", [row.change for row in view.rows], spare=1),
        Column(f"p50, {view.unit.name}", [view.unit.write(median) for median in medians]),
        Column("speed", [figures.speedup(row.speedup) for row in view.rows]),
        Column("", [Text(bar(fastest / median), style="cyan") for median in medians], left=True, spare=4),
        Column("size", [figures.size(size) for size in sizes], spare=2),
        Column("", [Text(bar(size / largest), style="magenta") for size in sizes], left=True, spare=3),
    ]
    styles = ["bold green" if row.picked else "dim" if row.dominated else "" for row in view.rows]
    return table(columns, title=f"{name} · {view.title}", width=width, styles=styles)


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
        prefix = f"{gate.model}: " if several else ""
        where = f" on {words['where']}" if words["where"] else ""
        text.append("\n" if index else "").append(f"{gate.verdict:<13}", styles.get(gate.verdict, "bold red"))
        text.append(line(f"{prefix}{words['title']} {words['measured']}, {words['required']}{where}{counted}"))
    if len(shown) < len(gates):
        passed = sum(gate.passed for gate in gates)
        text.append("\n" if shown else "")
        text.append(f"{passed} of {len(gates)} requirements pass; report.md has them all", "dim")
    return text
