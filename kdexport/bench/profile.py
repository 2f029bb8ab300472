"""Where the time goes: the time of each operator, without what the profiler itself costs.

ONNX Runtime's profiler writes an event per operator and call. An event costs some 7 µs, a small operator less than 1:
the raw figures of a network of small operators are the profiler's own. What is taken out, and how it is known:

- In one fresh process two sessions of the model take turns, one profiled (``p`` per call) and one not (``u``). They
  differ by ``(p - u) / n`` per event: the profiler's cost, measured on this very model. Where ``p - u`` is small beside
  the model (few large operators), its noise could be anything: it is held within a factor of 2 of the same figure
  of a chain of operators that do next to nothing, measured in the same process.
- Of that cost a part lies within the operator's own event (its arguments are written before the clock is read), the
  rest between events. The chain tells the shares: its operators take as good as no time, so that what their events
  claim to take is cost.
- ``time_i = max(duration_i - within, 0)`` per event; ``between = max(p - sum of durations - outside, 0)``: the
  runtime's own work from one operator to the next, and the call itself. An operator cheaper than its event cannot give
  back all of that cost: ``within`` is raised until the others have, so that no cost of the profiler is left in the sum.
  A subgraph's operators (If, Loop, Scan) are taken out of the operator that runs them. Durations are means of the
  middle half of the calls: events come in whole microseconds, which a median would keep.
- The median of several processes, scaled by ``p50 / sum`` so that the sum is the latency that was measured without any
  profiler. ``Profile.sum_ms`` is the sum before that: where it is far from p50, the machine was another one then.

An accelerator's operators run after their events have ended: such a profile is refused, not guessed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdexport import figures
from kdexport.bench.devices import by_name
from kdexport.bench.plan import Condition, Device, Settings, Target
from kdexport.bench.process import Child, ChildError
from kdexport.bench.web.devices import is_web
from kdexport.errors import KDExportError
from kdexport.onnx.layers import Layers
from kdexport.results import OperatorTime, Profile

ROUNDS = 3  # fresh processes: one alone is never believed
KERNEL = "_kernel_time"
WITH_SUBGRAPHS = ("If", "Loop", "Scan", "SequenceMap")
CHAIN = 200  # operators of the chain that tells the profiler's cost
STEPS = 30  # of a bisection
FAR = 0.05  # between the sum and the latency: beyond it is told


@dataclass(frozen=True)
class Operator:
    """One operator of one process, per call of the model."""

    name: str
    operator: str
    provider: str
    events: float  # of it in one call: several within a Loop
    us: float  # as its events say, those of its subgraphs taken out
    inner: float = 0.0  # events of its subgraphs in one call: what the profiler costs between them is in ``us``


@dataclass(frozen=True)
class Calls:
    """What one process measured of one model."""

    plain_us: float  # median of a call without the profiler
    profiled_us: float  # and with it
    between_us: float  # of a profiled call, outside every operator's event
    operators: tuple[Operator, ...]

    @property
    def events(self) -> float:
        """Events of one call."""
        return sum(operator.events for operator in self.operators)

    @property
    def outer_events(self) -> float:
        """Those of them that lie in no other's."""
        return self.events - sum(operator.inner for operator in self.operators)

    @property
    def cost_us(self) -> float:
        """What an event seems to cost: as noisy as the model is slow."""
        return (self.profiled_us - self.plain_us) / max(self.events, 1.0)


@dataclass(frozen=True)
class Cost:
    """Microseconds that an event of the profiler costs."""

    within: float  # the operator's own event
    outside: float


def chain_model(length: int = CHAIN) -> bytes:
    """Return a model of that many Sin operators of one float, as ONNX writes it (opset 13, IR 7)."""

    def part(number: int, content: bytes) -> bytes:
        size, digits = len(content), b""
        while size > 127:
            digits += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number << 3 | 2]) + digits + bytes([size]) + content

    def value(name: str) -> bytes:
        return part(1, name.encode()) + part(2, b"\n\x08\x08\x01\x12\x04\n\x02\x08\x01")

    nodes = b"".join(
        part(1, part(1, f"v{at}".encode()) + part(2, f"v{at + 1}".encode()) + part(3, f"n{at}".encode()) + b'"\x03Sin')
        for at in range(length)
    )
    graph = nodes + part(2, b"chain") + part(11, value("v0")) + part(12, value(f"v{length}"))
    return b"\x08\x07" + part(7, graph) + b"B\x04\n\x00\x10\r"


def middle(values: Sequence[float]) -> float:
    """Return the mean of the middle half: as little touched by a slow call as a median, and finer than one step."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept)


def read_events(events: Sequence[Mapping[str, Any]], plain_ns: Sequence[int], profiled_ns: Sequence[int]) -> Calls:
    """Return what a profile says of the last calls.

    Args:
        events: The profile that ONNX Runtime wrote.
        plain_ns: Nanoseconds of each call without the profiler; negative where other work had the core.
        profiled_ns: The same of the profile's last calls, in order.
    """
    runs = sorted((one for one in events if one.get("name") == "model_run"), key=lambda one: float(one["ts"]))
    runs = runs[-len(profiled_ns) :]
    profiled_ns = profiled_ns[-len(runs) :]
    quiet = [at for at, ns in enumerate(profiled_ns) if ns > 0]
    kept = quiet if len(quiet) >= 3 else list(range(len(runs)))
    undisturbed = [ns for ns in plain_ns if ns > 0]
    plain = undisturbed if len(undisturbed) >= 3 else [abs(ns) for ns in plain_ns]
    found: dict[tuple[str, str, str, str], dict[int, list[float]]] = {}
    inner: dict[tuple[str, str, str, str], int] = {}
    outside: dict[int, float] = {at: abs(ns) / 1e3 for at, ns in enumerate(profiled_ns)}
    nodes = sorted(
        (one for one in events if one.get("cat") == "Node" and str(one["name"]).endswith(KERNEL)),
        key=lambda one: (one["ts"], -one["dur"]),
    )
    at = 0  # which call
    above: list[tuple[float, list[float], tuple[str, str, str, str]]] = []  # operators whose subgraphs run, their ends
    for event in nodes:
        while at < len(runs) and event["ts"] >= runs[at]["ts"] + runs[at]["dur"]:
            at += 1
        if at == len(runs) or event["ts"] < runs[at]["ts"]:
            continue  # a call to warm up
        args = event["args"]
        name = str(event["name"]).removesuffix(KERNEL)
        key = (name, str(args.get("op_name", "")), str(args.get("provider", "")), str(args.get("node_index", "")))
        durations = found.setdefault(key, {}).setdefault(at, [])
        durations.append(float(event["dur"]))
        above = [one for one in above if event["ts"] < one[0]]
        if above:
            above[-1][1][-1] -= event["dur"]
            inner[above[-1][2]] = inner.get(above[-1][2], 0) + 1
        else:
            outside[at] -= event["dur"]
        if key[1] in WITH_SUBGRAPHS:
            above.append((event["ts"] + event["dur"], durations, key))
    return Calls(
        plain_us=statistics.median(plain) / 1e3,
        profiled_us=middle([abs(profiled_ns[one]) / 1e3 for one in kept]),
        between_us=middle([outside[one] for one in kept]),
        operators=tuple(
            Operator(
                *key[:3],
                sum(len(calls.get(one, ())) for one in kept) / len(kept),
                middle([sum(calls.get(one, ())) for one in kept]),
                inner.get(key, 0) / len(runs),
            )
            for key, calls in found.items()
        ),
    )


def cost_of(model: Calls, chain: Calls) -> Cost:
    """Return what an event of this model's profile costs; see the module's docstring."""
    reference = max(chain.cost_us, 0.1)
    whole = min(max(model.cost_us, reference / 2), reference * 2)
    claimed = sum(operator.us for operator in chain.operators) / max(chain.events, 1.0)
    truly = chain.plain_us / max(chain.events, 1.0)  # the operator and the way to the next one: an upper bound
    share = min(max((claimed - truly / 2) / reference, 0.0), 1.0)
    return Cost(whole * share, whole * (1 - share))


def times(model: Calls, cost: Cost) -> tuple[dict[tuple[str, str, str], float], float]:
    """Return microseconds of each operator (name, type, provider), and between them, without the profiler's cost."""
    between = max(model.between_us - cost.outside * model.outer_events, 0.0)
    rest = model.profiled_us - (cost.within + cost.outside) * model.events - between
    low, high = cost.within, cost.within * 4
    for _ in range(STEPS if sum(_left(one, cost.outside, low) for one in model.operators) > rest else 0):
        half = (low + high) / 2
        low, high = (
            (half, high) if sum(_left(one, cost.outside, half) for one in model.operators) > rest else (low, half)
        )
    found: dict[tuple[str, str, str], float] = {}
    for one in model.operators:
        key = (one.name, one.operator, one.provider)
        found[key] = found.get(key, 0.0) + _left(one, cost.outside, low)
    return found, between


def _left(one: Operator, outside: float, within: float) -> float:
    return max(one.us - within * one.events - outside * one.inner, 0.0)


def combined(processes: Sequence[tuple[Calls, Calls]], p50_ms: float, layers: Layers) -> Profile:
    """Return the profile of several processes, as shares of a latency that was measured without any.

    Args:
        processes: The model's calls and the chain's, of each.
        p50_ms: The latency.
        layers: Of the model's file.
    """
    costs = [cost_of(model, chain) for model, chain in processes]
    each = [times(model, cost) for (model, _), cost in zip(processes, costs)]
    keys = list(dict.fromkeys(key for found, _ in each for key in found))
    operators = {key: statistics.median(found.get(key, 0.0) for found, _ in each) for key in keys}
    between = statistics.median(rest for _, rest in each)
    total_us = sum(operators.values()) + between
    scale = p50_ms / total_us if total_us else 0.0
    return Profile(
        operators=tuple(
            OperatorTime(name, operator, layers.find(name, operator), provider, us * scale)
            for (name, operator, provider), us in sorted(operators.items(), key=lambda item: -item[1])
        ),
        between_ms=between * scale if total_us else p50_ms,
        sum_ms=total_us / 1e3,
        profiler_us=statistics.median(cost.within + cost.outside for cost in costs),
        profiled_ms=statistics.median(model.profiled_us for model, _ in processes) / 1e3,
    )


def tells(device: Device) -> bool:
    """Whether a device tells the time of operators: a browser does not, and an accelerator's only launch them."""
    return not is_web(device) and by_name(device.provider).memory == "cpu"


def measure(
    target: Target,
    task: Mapping[str, Any],
    condition: Condition,
    settings: Settings,
    p50_ms: float,
    processes: int = ROUNDS,
) -> tuple[Profile | None, tuple[str, ...]]:
    """Profile one model in fresh processes.

    Args:
        target: The model.
        task: What the worker needs to load and feed it.
        condition: Device and threads.
        settings: Whether a profile is asked for.
        p50_ms: The latency that was measured without a profiler.
        processes: Fresh ones to take the median of.

    Returns:
        The profile, None where there is none; and what a reader must know, in words.
    """
    if not settings.profile:
        return None, ()
    if is_web(condition.device):
        return None, (f"no profile: a browser does not tell the time of operators ({condition.device.name})",)
    if not tells(condition.device):  # what it only launches looks free
        return None, (f"no profile: operators on {condition.device.name} end after the profiler has looked",)
    seen = []
    try:
        for _ in range(processes):
            with Child(target.name, settings.timeout_s) as child:
                child.ask(do="load", **task)
                child.ask(do="prepare", **task)
                reply, _ = child.ask(do="operators", **task)
                seen.append((from_reply(reply["model"]), from_reply(reply["chain"])))
    except (ChildError, KDExportError) as error:
        return None, (f"no profile: {error}",)
    profile = combined(seen, p50_ms, Layers(target.nodes))
    drift = profile.sum_ms / p50_ms - 1
    if abs(drift) <= FAR:
        return profile, ()
    than = "more" if drift > 0 else "less"
    return profile, (
        f"a call took {figures.percent(abs(drift), 0)} {than} time when its operators were profiled than at the median",
    )


def to_reply(calls: Calls) -> dict[str, Any]:
    """Return calls as JSON values, for the pipe from the measured process."""
    operators = [[one.name, one.operator, one.provider, one.events, one.us, one.inner] for one in calls.operators]
    return {**vars(calls), "operators": operators}


def from_reply(reply: Mapping[str, Any]) -> Calls:
    """Return the calls that ``to_reply`` wrote."""
    return Calls(**{**reply, "operators": tuple(Operator(*values) for values in reply["operators"])})
