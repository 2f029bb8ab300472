"""fp16: weights and arithmetic in half precision, but for what half precision cannot hold.

What overflows or underflows is found in true half-precision arithmetic (see ``half``) on the proof's samples: nodes
whose values come near the largest fp16 number, and, where the outputs suffer, those whose values are so small that
fp16 holds few of their bits or none.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from kdexport.export import half, parity, quantize
from kdexport.export.accuracy_guard import VariantBuilder, output_error
from kdexport.export.diagnosis import value_names
from kdexport.export.quantize import guarded, layers, load, own_nodes
from kdexport.export.variant_inputs import VariantInputs
from kdexport.onnx.isolated import IsolatedRunner
from kdexport.onnx.sessions import Arrays

LARGEST = 65504.0
SMALLEST_NORMAL = 2.0**-14  # below, fp16 has fewer than 11 significant bits; below 2**-25, it has 0
MARGIN = 0.5  # a layer whose activations come this near to the largest stays in fp32: the samples are not all
BATCH = 8

LOST = 0.01  # of a value's norm that rounding to fp16 takes: normal numbers lose less than 0.0005
HARMED = 0.01  # output error from which underflow is looked for
TINY_SHARE = 0.01  # of a value's elements below the smallest normal number, from which it may be what harms another
JUMP = 4.0  # times its inputs' error: what makes a node the place where an error arises
ROUNDS = 8  # of the search
MOST_TRIED = 16  # nodes that are tried without being kept

# They add up all that they reduce; some devices do it in fp16.
SUMMING = ("ReduceMean", "GlobalAveragePool", "ReduceSum", "ReduceL1", "ReduceSumSquare", "ReduceL2")


def builder(given: VariantInputs) -> VariantBuilder:
    """Return how the graph is made, with what fp16 cannot hold in fp32."""
    graph = load(given.source)
    few = tuple(array[parity.spread(len(array), half.SAMPLES)] for array in given.data.samples())
    size = given.guard.fixed_batch or BATCH
    few = tuple(array[: len(array) - len(array) % (given.guard.fixed_batch or 1)] for array in few)
    fed = [given.data.feed(batch) for batch in parity.batches(few, [size])]
    overflowing, underflowing = _out_of_range(graph, fed)
    notes = []
    if overflowing:
        notes.append(f"kept in fp32, near the largest fp16 value: {', '.join(overflowing)}")
    if underflowing:
        notes.append(f"kept in fp32, too small for fp16: {', '.join(underflowing)}")
    kept = (*overflowing, *underflowing)
    # Any node can lose what fp16 does not hold, not only one with weights.
    found = tuple(
        name for name in layers(graph, tuple({node.op_type for node in graph.graph.node})) if name not in kept
    )

    def make(more: tuple[str, ...]) -> onnx.ModelProto:
        return fp16(graph, (*kept, *more))

    return VariantBuilder(
        given.spec.precision,
        found,
        make,
        lambda names: make(tuple(name for name in found if name not in names)),
        notes=tuple(notes),
        judged=lambda model: half.emulated(quantize.in_order(model)),
    )


def fp16(model: onnx.ModelProto, exclude: tuple[str, ...]) -> onnx.ModelProto:
    """Return a graph with fp16 weights and arithmetic.

    Inputs and outputs keep their types. The preprocessing, which sees pixels up to 255 and sums them, stays in fp32.

    Args:
        model: The fp32 graph; it is not changed.
        exclude: Names of nodes that stay in fp32.

    Raises:
        KDExportError: onnxruntime cannot.
    """
    with guarded("fp16"):
        from onnxruntime.transformers.float16 import convert_float_to_float16

        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        # The converter changes the stated type of a weight that it leaves in fp32; the weight itself says its type.
        made = set(value_names(copied))
        typed = [value for value in copied.graph.value_info if value.name in made]
        del copied.graph.value_info[:]
        copied.graph.value_info.extend(typed)
        own = {node.name for node in copied.graph.node}
        halved = convert_float_to_float16(copied, keep_io_types=True, node_block_list=[*exclude, *own_nodes(copied)])
        return _without_round_trips(halved, own)


@dataclass
class _Value:
    """What is known of one value of the graph, over all samples."""

    largest: float = 0.0  # of its magnitudes
    summed: float = 0.0  # the largest sum on the way to it, where its node adds up
    lost: float = 0.0  # share of its norm that rounding to fp16 takes, of the worst sample
    tiny: float = 0.0  # share of its elements that are not 0 and below the smallest normal number


def _out_of_range(graph: onnx.ModelProto, fed: list[Arrays]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the nodes that overflow, and of those that underflow so that the outputs suffer."""
    nodes = {node.name: node for node in graph.graph.node}
    own = set(own_nodes(graph))
    known, outputs = _measured(graph, fed)
    limit = MARGIN * LARGEST

    def overflows(node: onnx.NodeProto) -> bool:
        values = [known[name] for name in (*node.input, *node.output) if name in known]
        if node.op_type in SUMMING and node.output[0] in known and node.input[0] in known:
            values.append(_Value(largest=known[node.output[0]].summed))
        return any(value.largest > limit for value in values)

    overflowing = tuple(name for name, node in nodes.items() if name not in own and overflows(node))
    kept = dict.fromkeys(overflowing)
    producers = {output: node.name for node in nodes.values() for output in node.output}
    for turn in range(ROUNDS):
        error, suspects = _sensitivity(graph, fed, tuple(kept), known, outputs)
        if error <= HARMED:
            break
        count = len(kept)
        if turn == 0:  # all whose values fp16 holds badly, and what takes them
            small = {name for name, value in known.items() if value.lost > LOST}
            kept |= dict.fromkeys(
                name for name, node in nodes.items() if small & {*node.input, *node.output} and name not in own
            )
        if len(kept) == count:  # then where an error arises from tiny elements, that node and what leads to it
            for name in suspects:
                kept |= dict.fromkeys(_leading_to(name, nodes, producers, kept))
        kept = dict.fromkeys(name for name in kept if name not in own)
        if len(kept) == count:
            break
    if len(kept) == len(overflowing):
        return overflowing, ()
    before, after = (_sensitivity(graph, fed, names, known, outputs)[0] for names in (overflowing, tuple(kept)))
    if after > before / 2:  # it was something else: precision, not range
        return overflowing, ()
    for name in [name for name in kept if name not in overflowing][:MOST_TRIED]:  # without those that are not needed
        fewer = tuple(other for other in kept if other != name)
        if _sensitivity(graph, fed, fewer, known, outputs)[0] <= max(after, HARMED):
            del kept[name]
    underflowing = tuple(name for name in nodes if name in kept and name not in overflowing)
    return overflowing, underflowing


def _leading_to(
    name: str, nodes: dict[str, onnx.NodeProto], producers: dict[str, str], kept: dict[str, None]
) -> list[str]:
    """Return a node and the nearest before it that are not in fp32 yet."""
    found, waiting, seen = [name], [name], {name}
    while waiting:
        for item in nodes[waiting.pop()].input:
            before = producers.get(item)
            if before is None or before in seen:
                continue
            seen.add(before)
            if before in kept:
                waiting.append(before)
            else:
                found.append(before)
    return found


def _floats(graph: onnx.ModelProto) -> list[str]:
    """Return the names of the values that are fp32."""
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    floats = {item.name for item in inferred.value_info if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    floats |= {item.name for item in graph.graph.output if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    return [name for name in value_names(graph) if name in floats]


def _with_values(graph: onnx.ModelProto, names: list[str]) -> bytes:
    """Return a graph that gives these values, too."""
    widened = onnx.ModelProto()
    widened.CopyFrom(graph)
    present = {item.name for item in widened.graph.output}
    widened.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in present
    )
    serialized: bytes = widened.SerializeToString()
    return serialized


def _order(graph: onnx.ModelProto, names: list[str]) -> list[str]:
    """Return the names of all that ``_with_values`` gives, in its order."""
    present = [item.name for item in graph.graph.output]
    return present + [name for name in names if name not in present]


def _measured(graph: onnx.ModelProto, fed: list[Arrays]) -> tuple[dict[str, _Value], list[Arrays]]:
    """Return what is known of every float value in fp32, and the outputs, batch by batch."""
    names = _floats(graph)
    order = _order(graph, names)
    runner = IsolatedRunner(_with_values(graph, names), optimize=False)
    known = {name: _Value() for name in names}
    sizes: dict[str, int] = {}
    outputs = []
    for batch in fed:
        values = dict(zip(order, runner(batch), strict=True))
        outputs.append(tuple(values[item.name] for item in graph.graph.output))
        for name in names:
            _note(known[name], values[name])
            sizes[name] = values[name].size
    for item in graph.graph.initializer:
        if item.data_type == onnx.TensorProto.FLOAT:
            known[item.name] = _Value()
            _note(known[item.name], onnx.numpy_helper.to_array(item)[None])
    for node in graph.graph.node:
        if node.op_type in SUMMING and node.output[0] in known and node.input[0] in sizes:
            out = known[node.output[0]]
            count = sizes[node.input[0]] / max(1, sizes[node.output[0]])
            if node.op_type in ("ReduceMean", "GlobalAveragePool"):
                out.summed = out.largest * count
            elif node.op_type == "ReduceL2":
                out.summed = out.largest**2
    return known, outputs


def _note(known: _Value, value: np.ndarray) -> None:
    """Take one batch of a value into account; its first axis is taken for that of the samples."""
    rows = np.abs(value.astype(np.float64)).reshape(len(value) if value.ndim else 1, -1)
    if not rows.size:
        return
    rows = np.where(np.isfinite(rows), rows, 0)  # fp16 holds infinity, and a mask's is meant
    known.largest = max(known.largest, float(rows.max(initial=0.0)))
    with np.errstate(over="ignore"):
        rounded = rows.astype(np.float16).astype(np.float64)
    norms = np.sqrt((rows**2).sum(axis=1))
    within = np.isfinite(rounded).all(axis=1) & (norms > 0)
    if within.any():
        losses = np.sqrt(((rounded[within] - rows[within]) ** 2).sum(axis=1)) / norms[within]
        known.lost = max(known.lost, float(losses.max()))
    known.tiny = max(known.tiny, float(((rows > 0) & (rows < SMALLEST_NORMAL)).mean()))


def _sensitivity(
    graph: onnx.ModelProto, fed: list[Arrays], kept: tuple[str, ...], known: dict[str, _Value], outputs: list[Arrays]
) -> tuple[float, list[str]]:
    """Return the output error in half precision, and the nodes where an error arises that tiny elements may cause."""
    halved = half.emulated(quantize.in_order(fp16(graph, kept)))
    runner = IsolatedRunner(halved.SerializeToString(), optimize=False)
    of_batch = [output_error(expected, runner(batch)) for batch, expected in zip(fed, outputs, strict=True)]
    error = max(of_batch, default=0.0)
    if error <= HARMED:
        return error, []
    made = set(value_names(halved))
    names = [name for name in known if name in made]
    wide = IsolatedRunner(_with_values(graph, names), optimize=False)
    narrow = IsolatedRunner(_with_values(halved, names), optimize=False)
    batch = fed[of_batch.index(error)]
    there = dict(zip(_order(graph, names), wide(batch), strict=True))
    here = dict(zip(_order(halved, names), narrow(batch), strict=True))
    errors = {name: _error(there[name], here[name]) for name in names}
    return error, list(_arising(graph, errors, known, set(kept)))


def _error(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the norm of a difference over that of what is expected; single channels may be as wrong as they like."""
    difference = float(np.linalg.norm((actual.astype(np.float64) - expected).ravel()))
    norm = float(np.linalg.norm(expected.astype(np.float64).ravel()))
    return difference / norm if norm and np.isfinite(difference) else (np.inf if difference else 0.0)


def _arising(
    graph: onnx.ModelProto, errors: dict[str, float], known: dict[str, _Value], kept: set[str]
) -> Iterator[str]:
    """Yield the nodes whose output is far worse than their inputs, with tiny elements within three steps before."""
    producers = {output: node for node in graph.graph.node for output in node.output}

    def tiny(name: str, steps: int) -> bool:
        if name in known and known[name].tiny > TINY_SHARE:
            return True
        node = producers.get(name)
        return steps > 0 and node is not None and any(tiny(item, steps - 1) for item in node.input)

    for node in graph.graph.node:
        worst = max((errors.get(name, 0.0) for name in node.output), default=0.0)
        before = max((errors.get(name, 0.0) for name in node.input), default=0.0)
        if worst > HARMED and (worst > JUMP * before or node.name in kept) and any(tiny(x, 3) for x in node.input):
            yield node.name
            return


def _without_round_trips(model: onnx.ModelProto, own: set[str]) -> onnx.ModelProto:
    """Take out the casts to fp16 and back that the converter puts between two nodes which both stay in fp32.

    They would cost time, and overflow there is what these nodes were kept from. ``own`` names the nodes that were there
    before.
    """
    casts = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast" and node.name not in own}
    outputs = {item.name for item in model.graph.output}
    shortcut: dict[str, str] = {}
    for name, node in casts.items():
        before = casts.get(node.input[0])
        if (
            before is not None
            and _target(before) == onnx.TensorProto.FLOAT16
            and _target(node) == onnx.TensorProto.FLOAT
        ):
            shortcut[name] = before.input[0]
    made = {name for node in model.graph.node for name in node.output}
    renamed = {shortcut[name]: name for name in outputs if shortcut.get(name) in made}  # the output keeps its name
    for node in [casts[name] for name in renamed.values()]:
        model.graph.node.remove(node)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            source = shortcut.get(name, name)
            node.input[position] = renamed.get(source, source)
        for position, name in enumerate(node.output):
            node.output[position] = renamed.get(name, name)
    casts = {name: node for name, node in casts.items() if name not in renamed.values()}
    used = outputs | {name for node in model.graph.node for name in node.input}
    while dead := [node for node in model.graph.node if node.output[0] in casts and node.output[0] not in used]:
        for node in dead:
            model.graph.node.remove(node)
        used = outputs | {name for node in model.graph.node for name in node.input}
    return model


def _target(cast: onnx.NodeProto) -> int:
    return int(next(attribute.i for attribute in cast.attribute if attribute.name == "to"))
