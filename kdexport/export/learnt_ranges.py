"""Activation ranges that the student has learnt with its weights, put in the place of calibrated ones.

Distillation names a range by the weight of the layer beside it (``conv1.weight:input``): the exporter gives a weight
the name that it has in the state dict. Here each name becomes the graph's value that int8 rounds there. A value without
a learnt range keeps the calibrated one.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from kdexport.export import quantize

Ranges = Mapping[str, tuple[float, float]]

# They hand their input's values on, or means of them; onnxruntime's quantizer gives both sides one scale.
SAME_VALUES = (
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "MaxPool", "AveragePool", "Slice",
    "Identity",
)  # fmt: skip


def with_learnt(model: onnx.ModelProto, calibrated: Any, learnt: Ranges) -> tuple[Any, tuple[str, ...]]:
    """Return onnxruntime's ``TensorsData`` with the learnt ranges in it, and the names that the graph has no value for.

    Args:
        model: A prepared graph.
        calibrated: From ``quantize.ranges``; it is not changed.
        learnt: Ends by name.
    """
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    found = dict(calibrated.data)
    missing = set(learnt)
    for name, value in _values(model):
        if name in learnt and value in found:
            low, high = (np.array(end, np.float32) for end in learnt[name])
            found[value] = TensorData(lowest=low, highest=high)
            missing.discard(name)
    return TensorsData(calibrated.calibration_method, found), tuple(sorted(missing))


def _values(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Yield the name of each place beside a layer, with the value there; all of several that hold the same."""
    producer = {output: node for node in model.graph.node for output in node.output}
    constants = {item.name for item in model.graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            users[name].append(node)
    for layer in model.graph.node:
        if layer.op_type not in quantize.LAYERS or layer.input[1] not in constants:
            continue
        # A product with a transposed weight has a nameless copy of it, but its own name is its module's.
        weight = layer.input[1] if layer.op_type != "MatMul" else f"{layer.name.rpartition('/')[0]}.weight"
        source = layer.input[0]
        yield f"{weight}:input", source
        while source in producer and producer[source].op_type in SAME_VALUES:
            source = producer[source].input[0]
            yield f"{weight}:input", source
        output = layer.output[0]
        after = _only_user(users, output)
        if layer.op_type == "MatMul" and after is not None and after.op_type == "Add" and constants & set(after.input):
            output = after.output[0]  # the bias
            after = _only_user(users, output)
        if after is not None and after.op_type in ("Relu", "Clip"):
            yield f"{weight}:activated", after.output[0]
        elif after is None or after.op_type != "BatchNormalization":  # one that stayed: the place is behind it
            yield f"{weight}:output", output


def _only_user(users: Mapping[str, list[onnx.NodeProto]], value: str) -> onnx.NodeProto | None:
    return users[value][0] if len(users.get(value, ())) == 1 else None
