"""What is decided for each device, in words, the worst first: what page, report.md and CI summary begin with."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kdexport.report.costs import costs_of
from kdexport.report.requirements import ABOVE_CHANCE, describe_interval, describe_limit, describe_value, title
from kdexport.report.view import ConditionView, judged_views
from kdexport.results import DevicePick, Gate, Report

DecisionKind = Literal["fail", "undecided", "compared", "pass"]
SEVERITY: tuple[DecisionKind, ...] = ("fail", "undecided", "compared", "pass")


@dataclass(frozen=True)
class Decision:
    """One device's row; also a row for what fails and belongs to no device's pick."""

    kind: DecisionKind
    where: str  # "jetson · cuda"
    what: str  # "ship student", "nothing to ship"
    reasons: str  # the requirements that fail or are undecided, else what it gains
    why: str = ""  # the pick's own sentence
    noise: str = ""  # "5 of 5 timings noisy: the machine was busy"
    view: ConditionView | None = None

    @property
    def sentence(self) -> str:
        """The whole row as one line."""
        verdict = f"{self.kind}: " if self.kind != "compared" else ""
        where = ", ".join(part for part in (self.where, self.what) if part)
        return f"{verdict}{where}{': ' * bool(self.reasons)}{self.reasons.removesuffix('.')}"


def decisions(report: Report) -> tuple[Decision, ...]:
    """Return a row per device, the worst first; what fails elsewhere (a baseline's gate, a dead device) has its own."""
    judged = judged_views(report)
    found = [_decision(report, pick, view) for pick, view in judged]
    seen = [gate for _, view in judged for gate in report.gates if concerns(gate, view)]
    found += _elsewhere([gate for gate in report.gates if not gate.passed and gate not in seen])
    if not judged:
        what = "nothing was timed, so there is nothing to choose by speed"
        found.append(Decision("fail" if found else "compared", "", what, ""))
    return tuple(sorted(found, key=lambda item: SEVERITY.index(item.kind)))


def headline(report: Report) -> str:
    """Return the decision over all devices in a few words: the page's title."""
    found = decisions(report)
    failed = sum(item.kind == "fail" for item in found)
    worst = found[0]
    if len(found) > 1 and failed:
        devices = len(judged_views(report))
        on_devices = sum(item.kind == "fail" and item.view is not None for item in found)
        return f"fail on {on_devices} of {devices} devices" if devices > 1 and on_devices else f"fail: {worst.what}"
    what = worst.what
    if len({item.what for item in found}) > 1:
        what = f"ship {report.pick.model}" if report.pick else "a model for each device"
    return what if worst.kind == "compared" else f"{worst.kind}: {what}"


def concerns(gate: Gate, view: ConditionView) -> bool:
    """Return whether a gate judges the model chosen under a condition, there or everywhere."""
    chosen = (view.pick.model or view.pick.nearest) if view.pick else None
    machine, device, _, _ = view.condition
    judges_it = gate.model == chosen or (gate.requirement == ABOVE_CHANCE and gate.model == view.baseline)
    return judges_it and gate.machine in ("", machine) and gate.device in ("", device)


def gate_sentence(gate: Gate) -> str:
    """Write a requirement as ``speed-up 2.2x, at least 3x``."""
    doubt = gate.setting or (f"95 % interval {describe_interval(gate)}" if gate.ci95 else "")
    doubt = f" ({doubt})" if gate.verdict == "undecided" and doubt else ""
    return f"{title(gate)} {describe_value(gate)}, {describe_limit(gate)}{doubt}"


def _decision(report: Report, pick: DevicePick, view: ConditionView) -> Decision:
    gates = [gate for gate in report.gates if concerns(gate, view)]
    failed = [gate for gate in gates if not gate.passed]
    doubted = failed or [gate for gate in gates if gate.verdict == "undecided"]
    where = f"{view.condition.machine} · {view.condition.device}"
    if pick.fastest is not None and not failed:
        return Decision("compared", where, "speed only", pick.why, pick.why, view.noise, view)
    what = "nothing to ship" if pick.model is None else f"ship {pick.model}"
    reasons = "; ".join(map(gate_sentence, doubted))
    if pick.model is None or failed:
        return Decision("fail", where, what, reasons or pick.why, pick.why, view.noise, view)
    gains = ", ".join(cost.in_words for cost in costs_of(view)[:3] if cost.against)
    return Decision("undecided" if doubted else "pass", where, what, reasons or gains, pick.why, view.noise, view)


def _elsewhere(gates: Iterable[Gate]) -> list[Decision]:
    rows: dict[tuple[str, str], list[str]] = {}
    for gate in gates:
        place = " · ".join(part for part in (gate.machine, gate.device) if part)
        rows.setdefault((place, gate.model), []).append(gate_sentence(gate))
    return [Decision("fail", place, model, "; ".join(reasons)) for (place, model), reasons in rows.items()]
