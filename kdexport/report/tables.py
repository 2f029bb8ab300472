"""The report on a terminal: 80 columns, a small bar for speed and for size, colour only where there is a terminal."""

from typing import TYPE_CHECKING

from kdexport.report import figures
from kdexport.report.joined import Condition, condition_of
from kdexport.report.tradeoffs import speedup_at
from kdexport.report.view import gate_words
from kdexport.results import DevicePick, Gate, Measurement, Report

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

WIDTH = 80
BAR_CELLS = 6
FINDINGS_SHOWN = 6
GATES_SHOWN = 10
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def terminal(report: Report) -> "Group":
    """Return the report for a terminal: a table per device, the pick, the requirements, what was found."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Table | Text] = []
    for device in report.devices:
        parts += [_table(report, device), Text(""), _verdict(device), Text("")]
    if not report.devices:
        parts.append(Text("Nothing was timed: only files and accuracy are reported.", style="yellow"))
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


def _table(report: Report, device: DevicePick) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    place = Condition(device.machine, device.device, device.batch_size, device.threads)
    measured = {item.model: item for item in report.measurements if condition_of(item) == place}
    threads = "1 thread" if place.threads == 1 else f"{place.threads} threads"
    table = Table(
        title=Text(line(f"{report.name} · {place.device} of {place.machine} · batch {place.batch_size} · {threads}")),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        width=WIDTH,
        show_edge=False,
    )
    table.add_column("model", no_wrap=True, overflow="ellipsis", ratio=1)
    for heading in ("accuracy", "change", "p50", "speed"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    fastest = min((item.latency_ms.p50 for item in measured.values()), default=1.0)
    largest = max((model.size_bytes for model in report.models if model.name in measured), default=1)
    beaten = {item.model for item in report.dominated if condition_of_pick(item) == place}
    for model in report.models:
        if model.name not in measured:
            continue
        figure: Measurement = measured[model.name]
        tradeoff = next(
            (item for item in report.tradeoffs if (item.model, item.against) == (model.name, report.baseline)), None
        )
        speedup = speedup_at(tradeoff, place)
        picked = model.name == device.model
        delta = tradeoff.accuracy_delta if tradeoff else None
        table.add_row(
            Text(("▶ " if picked else "  ") + line(model.name)),
            figures.percent(model.accuracy),
            "" if delta is None else figures.signed(100 * delta),
            figures.ms(figure.latency_ms.p50),
            "" if speedup is None else figures.times(speedup.ratio),
            Text(bar(fastest / figure.latency_ms.p50), style="cyan"),
            figures.size(model.size_bytes),
            Text(bar(model.size_bytes / largest), style="magenta"),
            style="bold green" if picked else "dim" if model.name in beaten else "",
        )
    return table


def condition_of_pick(item: object) -> Condition:
    """Return the condition that a result names in its fields."""
    return Condition(*(getattr(item, name) for name in Condition._fields))


def _verdict(device: DevicePick) -> "Text":
    from rich.text import Text

    if device.model is None:
        return Text.assemble(("nothing to ship  ", "bold red"), line(device.why))
    return Text.assemble(("ship ", "bold"), (line(device.model), "bold green"), "  ", line(device.why))


def _gates(gates: tuple[Gate, ...]) -> "Text":
    from rich.text import Text

    shown = gates if len(gates) <= GATES_SHOWN else tuple(gate for gate in gates if gate.verdict != "met")[:GATES_SHOWN]
    text = Text()
    styles = {"met": "green", "undecided": "yellow"}
    several = len({gate.model for gate in gates}) > 1
    for index, gate in enumerate(shown):
        words = gate_words(gate)
        counted = "" if gate.verdict != "undecided" else f", counts as {'passed' if gate.passed else 'failed'}"
        subject = f"{gate.model}: " if several else ""
        where = f" on {words['where']}" if words["where"] else ""
        text.append("\n" if index else "").append(f"{gate.verdict:<10}", styles.get(gate.verdict, "bold red"))
        text.append(line(f"{subject}{words['title']} {words['measured']}, {words['asked']}{where}{counted}"))
    if len(shown) < len(gates):
        passed = sum(gate.passed for gate in gates)
        text.append("\n" if shown else "")
        text.append(f"{passed} of {len(gates)} requirements pass; report.md has them all", "dim")
    return text
