"""True half precision on a CPU: every operator's result rounded to fp16, as a device that computes in fp16 stores it.

ONNX Runtime's CPU has few fp16 kernels: it computes an fp16 file in fp32 and casts between operators, or not at all, so
that its outputs say nothing of underflow (below 6e-8 all is 0) or overflow (above 65504 all is infinite). Here the
file's graph is written in fp32 with a cast to fp16 and back behind every operator, and run without optimization, which
would take the casts out. Sums within one operator are in fp32, as on tensor cores.
"""

import onnx
from onnx import TensorProto

HALF = TensorProto.FLOAT16
SAMPLES = 64  # that the search for underflow looks at


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that computes in fp32 what an fp16 graph gives in true half precision; see the module.

    Args:
        model: A graph with fp16 nodes, its inputs and outputs in fp32; it is not changed.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    inferred = onnx.shape_inference.infer_shapes(copied)
    halves = set(_halves(inferred.graph)) | set(_halves(copied.graph))
    _widen(copied.graph, halves)
    return copied


def _halves(graph: onnx.GraphProto) -> list[str]:
    """Return the names of a graph's fp16 values, those of its subgraphs included."""
    values = (*graph.value_info, *graph.input, *graph.output)
    names = [value.name for value in values if value.type.tensor_type.elem_type == HALF]
    names += [item.name for item in graph.initializer if item.data_type == HALF]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                names += _halves(attribute.g)
    return names


def _widen(graph: onnx.GraphProto, halves: set[str]) -> None:
    for item in graph.initializer:
        _widened(item)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == HALF:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _widen(attribute.g, halves)
            elif attribute.type == onnx.AttributeProto.TENSOR:
                _widened(attribute.t)
            elif attribute.name in ("to", "dtype") and attribute.i == HALF:
                attribute.i = TensorProto.FLOAT
        casts = []
        for position, name in enumerate(node.output):
            if name in halves:
                exact, rounded = f"{name}/exact", f"{name}/rounded"
                node.output[position] = exact
                casts.append(onnx.helper.make_node("Cast", [exact], [rounded], to=HALF))
                casts.append(onnx.helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT))
        graph.node.extend([node, *casts])


def _widened(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == HALF:
        array = onnx.numpy_helper.to_array(tensor).astype("float32")
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
