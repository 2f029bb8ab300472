"""int8, static: weights and activations in 8-bit integers, in the QDQ form that every runtime reads.

Unsigned activations (signed ones are 2 to 5 times slower on x86 without VNNI), signed weights, a scale per output
channel. Weights use 7 of their 8 bits: x86 without VNNI adds pairs of products in 16 bits, which full weights overflow
unseen (the digits student: 0.993 to 0.944 correct). Calibration samples are the caller's business: training data, never
test.
"""

import copy
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from kdexport.errors import KDExportError, StorageError
from kdexport.export.accuracy_guard import VariantBuilder
from kdexport.export.graph import OWN
from kdexport.export.quantize import guarded, own_nodes, prepared
from kdexport.export.variant_inputs import Ranges, VariantInputs
from kdexport.onnx.sessions import Arrays

# What int8 kernels exist for; normalizing layers, activations with exp and the preprocessing stay in fp32.
INT8_OPERATORS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "MaxPool", "AveragePool",
    "GlobalAveragePool", "Concat", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice",
)  # fmt: skip

LEARNT_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # beside which training learns ranges

CALIBRATION_METHODS = ("minmax", "entropy", "percentile")
CALIBRATION_BATCH = 16
BATCHES_IN_MEMORY = 4  # the histogram methods hold every activation of what they are given at once


def builder(given: VariantInputs) -> VariantBuilder:
    """Calibrate by each method that was asked for, and return how the graph is made with the best of them.

    A method that fails (on some text networks entropy's histogram has "too many bins") gives way to the others, and to
    minmax where it was the only one.
    """
    spec, progress = given.spec, given.progress
    graph = with_transposed_constants(prepared(given.source))
    samples = given.data.calibration()
    found, failed = _calibrated(graph, samples, given)
    notes = [f"calibration by {method} failed ({why})" for method, why in failed.items()]
    for note in notes:
        progress.warn(f"{spec.precision}: {note}; calibrated by {', '.join(found)}")
    exact = given.data.task is not None and given.data.task.exact_outputs
    quantize = partial(static_int8, weight_bits=spec.weight_bits, exact_outputs=exact)
    make = {method: partial(quantize, graph, data) for method, data in found.items()}
    best = next(iter(found))
    chosen = ""
    if len(found) > 1:
        best = max(found, key=lambda method: given.guard.score_or_worst(make[method]))  # of equals the first: minmax
        chosen = f", the best on {given.guard.samples_are} of {', '.join(found)}"
    elif spec.calibration != "auto" and not failed and not spec.learnt:
        chosen = ", as asked"
    origin = f"calibrated by {best}{chosen}"
    if spec.learnt:
        data, missing = with_learnt(graph, found[best], spec.learnt)
        make[best] = partial(quantize, graph, data)
        origin = f"activation ranges learnt by quantization-aware distillation, beside {_layers(spec.learnt, missing)}"
        origin += f"; others calibrated by {best}"
        if missing:
            progress.warn(f"int8: no place in the graph for the learnt {', '.join(missing)}")
    build = make[best]
    own = set(own_nodes(graph))
    candidates = [node.name for node in graph.graph.node if node.op_type in INT8_OPERATORS and node.name not in own]
    return VariantBuilder(
        spec.precision,
        tuple(candidates),
        lambda kept: build(exclude=kept),
        lambda names: build(only=names),
        notes=(origin, *notes),
        changed=_quantized,
    )


def with_transposed_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph in which no constant is transposed while it runs.

    onnxruntime's quantizer takes the input of a Transpose for an activation: a matrix that two products share, one of
    them transposed (tied embeddings), would stay in fp32.
    """
    constants = {item.name: item for item in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in constants]:
        array = onnx.numpy_helper.to_array(constants[node.input[0]])
        axes = next((list(item.ints) for item in node.attribute if item.name == "perm"), None)
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(np.ascontiguousarray(array.transpose(axes)), node.output[0])
        )
        model.graph.node.remove(node)
    return model


def _calibrated(graph: onnx.ModelProto, samples: Arrays, given: VariantInputs) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the activations' ranges by each method, and why the others failed."""
    requested = given.spec.calibration
    methods = CALIBRATION_METHODS if requested == "auto" else (requested,)
    if given.spec.learnt:
        methods = methods[:1]  # little to choose
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    error: KDExportError | None = None
    for method in (*methods, "minmax"):
        if method == "minmax" and (found or "minmax" in failed):
            continue
        try:
            found[method] = ranges(graph, samples, method, given.data.feed)
        except StorageError:
            raise
        except KDExportError as fault:
            failed[method], error = fault.message.partition(": ")[2] or fault.message, fault
    if not found and error is not None:
        raise error
    return {method: found[method] for method in CALIBRATION_METHODS if method in found}, failed


def _quantized(model: onnx.ModelProto) -> set[str]:
    """Return the names of the nodes that take a quantized value."""
    made = {output for node in model.graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    return {node.name for node in model.graph.node if node.op_type != "QuantizeLinear" and made & set(node.input)}


def _layers(ranges: Ranges, missing: tuple[str, ...]) -> str:
    """Say beside how many layers the ranges were learnt."""
    found = {name.partition(":")[0] for name in ranges if name not in missing}
    return f"{len(found)} layer{'s' if len(found) != 1 else ''}"


# They hand their input's values on, or means of them; onnxruntime's quantizer gives both sides one scale.
SAME_VALUES = (
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "MaxPool", "AveragePool", "Slice",
    "Identity",
)  # fmt: skip


def ranges(
    model: onnx.ModelProto, calibration: Arrays, method: str, feed: Callable[[Arrays], Arrays] = lambda batch: batch
) -> Any:
    """Return the range of every activation over the calibration samples, as onnxruntime's ``TensorsData``.

    Args:
        model: A prepared graph.
        calibration: One array per input, first axis samples.
        method: ``minmax``, ``entropy`` or ``percentile``.
        feed: Turns a batch of them into what the graph takes.

    Raises:
        KDExportError: There are no samples, or onnxruntime cannot.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    if not len(calibration[0]):
        raise KDExportError("int8 needs calibration samples, and there are none", hint="give training data, --data REF")
    how = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}[method]
    names = [item.name for item in model.graph.input]
    with guarded("int8"), tempfile.TemporaryDirectory(prefix="kdexport.", ignore_cleanup_errors=True) as folder:
        source = Path(folder) / "model.onnx"
        onnx.save(model, source)
        calibrator = create_calibrator(
            source,
            list(INT8_OPERATORS),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=getattr(CalibrationMethod, how),
        )
        size = _batch_size(model)
        for part in _parts(calibration, size):
            calibrator.collect_data(_Reader(names, part, size, feed))
        return calibrator.compute_data()


def static_int8(
    model: onnx.ModelProto,
    activations: Any,
    *,
    weight_bits: int = 7,
    exclude: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    exact_outputs: bool = False,
) -> onnx.ModelProto:
    """Return a graph with weights and activations in 8-bit integers.

    Args:
        model: A prepared graph; it is not changed.
        activations: From ``ranges``.
        weight_bits: 7, or 8 for processors that add products of 8 bits without overflow (x86 with VNNI, Arm).
        exclude: Names of nodes that stay in fp32.
        only: Names of the only nodes to quantize; empty for all.
        exact_outputs: Whether the outputs come as the last layer computes them, not rounded to 256 values.

    Raises:
        KDExportError: onnxruntime cannot.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    with guarded("int8"):
        quantizer = QDQQuantizer(
            copy.deepcopy(model),
            per_channel=True,
            reduce_range=weight_bits == 7,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=activations,
            nodes_to_quantize=list(only),
            nodes_to_exclude=[*exclude, *own_nodes(model)],
            op_types_to_quantize=list(INT8_OPERATORS),
            extra_options={},
        )
        quantizer.quantize_model()
        made: onnx.ModelProto = quantizer.model.model
        return without_output_rounding(made) if exact_outputs else made


def without_output_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph whose outputs are not quantized and dequantized at its end, nor before its scaling."""
    for output in model.graph.output:
        value = output.name
        while True:
            producer = {name: node for node in model.graph.node for name in node.output}
            node = producer.get(value)
            if node is None:
                break
            if node.op_type == "DequantizeLinear":
                if not _bypassed(model, producer, value):
                    break
            elif node.name.startswith(OWN) or node.op_type in RESHAPING:
                value = next((name for name in node.input if name in producer), "")
            else:
                break
    return model


def _bypassed(model: onnx.ModelProto, producer: Mapping[str, onnx.NodeProto], value: str) -> bool:
    """Take out the pair that rounds a value, in place, and say whether there was one; the value keeps its name."""
    back = producer[value]
    there = producer.get(back.input[0])
    if there is None or there.op_type != "QuantizeLinear" or there.input[0] not in producer:
        return False
    exact = there.input[0]
    model.graph.node.remove(back)
    if not any(there.output[0] in node.input for node in model.graph.node):
        model.graph.node.remove(there)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                names[position] = value if name == exact else name
    return True


RESHAPING = ("Squeeze", "Unsqueeze", "Reshape", "Flatten", "Identity")


def _batch_size(model: onnx.ModelProto) -> int:
    """Return how many samples go in at once: what the graph fixes, or some."""
    first = model.graph.input[0].type.tensor_type.shape.dim
    return int(first[0].dim_value) or CALIBRATION_BATCH if first else CALIBRATION_BATCH


def _parts(samples: Arrays, size: int) -> Iterator[Arrays]:
    """Cut samples into parts of whole batches, the remainder apart: onnxruntime wants batches of one size at a time."""
    count = len(samples[0])
    whole = count - count % size
    for start in range(0, whole, size * BATCHES_IN_MEMORY):
        yield tuple(array[start : min(whole, start + size * BATCHES_IN_MEMORY)] for array in samples)
    if whole < count:
        yield tuple(array[whole:] for array in samples)


class _Reader:
    """Calibration samples in the form that onnxruntime asks for."""

    def __init__(self, names: list[str], samples: Arrays, size: int, feed: Callable[[Arrays], Arrays]) -> None:
        self._batches = iter(
            dict(zip(names, feed(tuple(array[start : start + size] for array in samples)), strict=True))
            for start in range(0, len(samples[0]), size)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


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
        if layer.op_type not in LEARNT_LAYERS or layer.input[1] not in constants:
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
