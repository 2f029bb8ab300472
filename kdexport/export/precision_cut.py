"""Which operators to leave in fp32 so that a graph is fast, worked out from the profiles of both extremes.

A *unit* is an operator with a weight, or a matrix product, with the operators behind it up to the next one: what the
runtime fuses, and what shares a scale, stays together. A unit costs what the profile of its precision says; an edge
between units of different precisions costs a QuantizeLinear or DequantizeLinear per element, and a change of layout.
The cheapest choice of both together is a minimum cut (Boykov, Veksler and Zabih 2001): exact, for an edge costs
something only where its ends differ. What the model leaves out (caches, fusions that a neighbor's precision prevents)
is found by measuring what comes out, not here.
"""

import math
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from kdexport.onnx.layers import QUANTIZERS, GraphNode, Layers
from kdexport.results import Profile

LEADERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ELEMENT_MS = 4e-7  # of a QuantizeLinear or DequantizeLinear, where no profile tells
UNKNOWN_SIZE = 64  # of an axis that the graph does not tell


@dataclass(frozen=True)
class Unit:
    """Operators that change their precision together."""

    leader: str  # the node's name
    nodes: tuple[str, ...]  # the leader's too


@dataclass(frozen=True)
class Units:
    """A graph's units in order, and the values that go from one to another."""

    units: tuple[Unit, ...]
    edges: Mapping[tuple[int, int], int]  # (from, to) -> elements
    of_node: Mapping[str, int]
    of_value: Mapping[str, int]  # the unit that makes it; an input's is that of its first taker


@dataclass
class Costs:
    """Milliseconds of each unit in either precision, and of an element that changes it."""

    fp32: list[float]
    int8: list[float]
    element: float = ELEMENT_MS
    fixed: set[int] = field(default_factory=set)  # units that stay in fp32, whatever they cost


def units_of(model: onnx.ModelProto, sizes: Mapping[str, int]) -> Units:
    """Cut a prepared graph into units.

    Args:
        model: With its shapes inferred; nodes in order.
        sizes: Of dynamic axes, by name.
    """
    graph, elements = model.graph, elements_of(model, sizes)
    names: list[list[str]] = []
    of_node: dict[str, int] = {}
    of_value: dict[str, int] = {}
    for node in graph.node:
        before = [of_value[name] for name in node.input if name in of_value]
        if node.op_type in LEADERS or not names:
            names.append([])
        unit = len(names) - 1 if node.op_type in LEADERS or not before else max(before)
        names[unit].append(node.name)
        of_node[node.name] = unit
        of_value.update(dict.fromkeys(node.output, unit))
    edges: dict[tuple[int, int], int] = {}
    counted: set[tuple[str, int]] = set()
    for node in graph.node:
        unit = of_node[node.name]
        for name in node.input:
            made_by = of_value.get(name)
            if made_by is not None and made_by != unit and (name, unit) not in counted:
                counted.add((name, unit))
                edges[made_by, unit] = edges.get((made_by, unit), 0) + elements.get(name, UNKNOWN_SIZE)
    for node in graph.node:  # what goes in counts as its first taker's
        for name in node.input:
            of_value.setdefault(name, of_node[node.name])
    return Units(tuple(Unit(of[0], tuple(of)) for of in names), edges, of_node, of_value)


def _elements(value: onnx.ValueInfoProto, sizes: Mapping[str, int]) -> int:
    dims = value.type.tensor_type.shape.dim
    return math.prod(dim.dim_value or sizes.get(dim.dim_param, UNKNOWN_SIZE) for dim in dims)


def spent(profile: Profile, nodes: Sequence[GraphNode], units: Units) -> list[float]:
    """Return the milliseconds of each unit by a file's profile.

    What the runtime calls by a name of its own counts to all units, by what they take themselves.

    Args:
        profile: Of a file that was made from the units' graph.
        nodes: The file's own.
        units: Of the graph.
    """
    layers = Layers(nodes)
    producers = {value: node for node in nodes for value in node.outputs}
    found = [0.0] * len(units.units)
    unknown = 0.0
    for one in profile.operators:
        unit = _unit(layers.node(one.name, one.operator), producers, units)
        if unit is None:
            unknown += one.ms
        else:
            found[unit] += one.ms
    total = sum(found)
    return [ms * (1 + unknown / total) for ms in found] if total else found


def _unit(node: GraphNode | None, producers: Mapping[str, GraphNode], units: Units) -> int | None:
    while node is not None and node.operator in QUANTIZERS:
        value = node.inputs[0]
        if value in units.of_value:
            return units.of_value[value]
        node = producers.get(value)
    return None if node is None else units.of_node.get(node.name)


def element_ms(profile: Profile, nodes: Sequence[GraphNode], elements: Mapping[str, int]) -> float:
    """Return the milliseconds of one element that is quantized or dequantized, by a file's profile.

    Args:
        profile: Of an int8 file.
        nodes: The file's own.
        elements: Of the graph's values, by name.
    """
    layers = Layers(nodes)
    took, counted = 0.0, 0
    for one in profile.operators:
        node = layers.node(one.name, one.operator) if one.operator in QUANTIZERS else None
        name = "" if node is None else (node.inputs if one.operator == "QuantizeLinear" else node.outputs)[0]
        if name in elements:
            took, counted = took + one.ms, counted + elements[name]
    return took / counted if counted else ELEMENT_MS


def elements_of(model: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return how many elements each value of a graph has."""
    graph = model.graph
    return {item.name: _elements(item, sizes) for item in (*graph.input, *graph.value_info, *graph.output)}


def cheapest(units: Units, costs: Costs, weight: float = 1.0) -> frozenset[int]:
    """Return the units to leave in fp32, at the least cost in all.

    Args:
        units: Of the graph.
        costs: Of either precision.
        weight: Times what a change of precision costs.
    """
    source, sink = -1, -2  # the source's side is int8: its arc to a unit is cut where that is in fp32
    room: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for unit, (fp32, int8) in enumerate(zip(costs.fp32, costs.int8, strict=True)):
        room[source][unit] += fp32
        room[unit][sink] += math.inf if unit in costs.fixed else int8
    for (one, other), elements in units.edges.items():
        cost = elements * costs.element * weight
        room[one][other] += cost
        room[other][one] += cost
    while (path := _path(room, source, sink)) is not None:
        flow = min(room[one][other] for one, other in path)
        for one, other in path:
            room[one][other] -= flow
            room[other][one] += flow
    reached = _reached(room, source)
    return frozenset(unit for unit in range(len(units.units)) if unit not in reached)


def regions(units: Units, in_fp32: frozenset[int]) -> list[tuple[int, ...]]:
    """Return the units that hang together and have one precision, each region's in order."""
    beside: dict[int, set[int]] = defaultdict(set)
    for one, other in units.edges:
        if (one in in_fp32) == (other in in_fp32):
            beside[one].add(other)
            beside[other].add(one)
    found, seen = [], set()
    for unit in range(len(units.units)):
        if unit in seen:
            continue
        region, waiting = {unit}, [unit]
        while waiting:
            new = beside[waiting.pop()] - region
            region |= new
            waiting += new
        seen |= region
        found.append(tuple(sorted(region)))
    return found


def _path(room: Mapping[int, Mapping[int, float]], source: int, sink: int) -> list[tuple[int, int]] | None:
    before = _reached(room, source, sink)
    if sink not in before:
        return None
    path, at = [], sink
    while at != source:
        path.append((before[at], at))
        at = before[at]
    return path


def _reached(room: Mapping[int, Mapping[int, float]], source: int, until: int | None = None) -> dict[int, int]:
    """Return what can still be reached, each with the one before it on a shortest way."""
    before = {source: source}
    waiting = deque([source])
    while waiting and until not in before:
        at = waiting.popleft()
        for other, left in room[at].items():
            if left > 1e-12 and other not in before:
                before[other] = at
                waiting.append(other)
    return before
