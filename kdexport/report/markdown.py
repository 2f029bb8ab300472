"""report.md: the report as text that a repository, a pull request or a mail can show."""

from kdexport.report import figures
from kdexport.report.joined import Condition, condition_of
from kdexport.report.requirements import describe_interval, describe_limit, describe_value, title
from kdexport.report.tradeoffs import speedup_at
from kdexport.results import DevicePick, Report

_SPECIAL = str.maketrans({character: "\\" + character for character in "\\`*_[]()#+!|~"} | {"<": "&lt;", ">": "&gt;"})


def markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown."""
    lines = [f"# {escape(report.name)}", "", *_answer(report), ""]
    for device in report.devices:
        lines += [*_device_table(report, device), ""]
    if report.gates:
        lines += ["## Requirements", "", *_gate_table(report), ""]
    if report.findings:
        lines += ["## What the figures show", "", *(f"- {escape(sentence)}" for sentence in report.findings), ""]
    lines += ["## Measured on", "", *_machines(report), ""]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Return text that Markdown and HTML show as it is, on one line."""
    return " ".join(text.replace("&", "&amp;").split()).translate(_SPECIAL)


def _answer(report: Report) -> list[str]:
    if report.pick is not None:
        return [f"**Ship {escape(report.pick.model)}.** {escape(report.pick.why)}"]
    if not report.devices:
        return ["Nothing was timed, so there is nothing to choose by speed."]
    return [
        f"- {escape(item.device)} of {escape(item.machine)}: "
        f"**{'ship ' + escape(item.model) if item.model else 'nothing to ship'}.** {escape(item.why)}"
        for item in report.devices
    ]


def _device_table(report: Report, device: DevicePick) -> list[str]:
    place = Condition(device.machine, device.device, device.batch_size, device.threads)
    measured = {item.model: item for item in report.measurements if condition_of(item) == place}
    threads = "1 thread" if place.threads == 1 else f"{place.threads} threads"
    lines = [
        f"## {escape(place.device)} of {escape(place.machine)}: batch {place.batch_size}, {threads}",
        "",
        "| model | accuracy | change (95 %) | p50 | speed-up (95 %) | size | memory |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for model in report.models:
        if model.name not in measured:
            continue
        figure = measured[model.name]
        tradeoff = next(
            (item for item in report.tradeoffs if (item.model, item.against) == (model.name, report.baseline)), None
        )
        speedup = speedup_at(tradeoff, place)
        change = ""
        if tradeoff is not None and tradeoff.accuracy_delta is not None:
            change = figures.signed(100 * tradeoff.accuracy_delta)
            if tradeoff.accuracy_delta_ci95:
                change += f" ({figures.points_interval(tradeoff.accuracy_delta_ci95)})"
        speed = ""
        if speedup is not None:
            speed = figures.times(speedup.ratio) + (
                f" ({figures.times_interval(speedup.ci95)})" if speedup.ci95 else ""
            )
        name = f"**{escape(model.name)}**" if model.name == device.model else escape(model.name)
        cells = (
            name,
            figures.percent(model.accuracy),
            change,
            figures.ms(figure.latency_ms.p50),
            speed,
            figures.size(model.size_bytes),
            figures.mib(figure.memory_mib.peak_rss),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _gate_table(report: Report) -> list[str]:
    lines = ["| requirement | model | asked | measured | 95 % | verdict |", "|---|---|---|---:|---|---|"]
    for gate in report.gates:
        where = f" ({escape(gate.device)} of {escape(gate.machine)})" if gate.device else ""
        counted = "" if gate.verdict != "undecided" else ", passes" if gate.passed else ", fails"
        lines.append(
            f"| {title(gate.requirement)}{where} | {escape(gate.model)} | {describe_limit(gate)} | "
            f"{describe_value(gate)} | {describe_interval(gate)} | {gate.verdict}{counted} |"
        )
    return lines


def _machines(report: Report) -> list[str]:
    lines = []
    for machine in report.machines:
        parts = [machine.cpu, f"{machine.cores} cores", machine.system, *machine.gpus]
        if machine.container:
            parts.append(machine.container)
        parts += [f"Python {machine.python}", *(f"{name} {version}" for name, version in machine.versions.items())]
        lines.append(f"- **{escape(machine.name)}**: {escape(', '.join(parts))}")
    return lines
