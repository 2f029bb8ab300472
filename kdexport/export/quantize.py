"""Fewer bits, by onnxruntime's quantizers. Each function takes a graph and returns a new one; ``variants`` chooses.

int8 is static, in the QDQ form that every runtime reads: unsigned activations (signed ones are 2 to 5 times slower on
x86 without VNNI), signed weights, a scale per output channel. Weights use 7 of their 8 bits: x86 without VNNI adds
pairs of products in 16 bits, which full weights overflow unseen (the digits student: 0.993 to 0.944 correct).
Calibration samples are the caller's business: training data, never test.
"""

import contextlib
import copy
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from kdexport.errors import KDExportError
from kdexport.export.diagnosis import intermediate_outputs, value_names
from kdexport.export.graph import OWN
from kdexport.export.quiet import quiet, tail
from kdexport.onnx.sessions import Arrays, first_line

# What int8 kernels exist for; normalizing layers, activations with exp and the preprocessing stay in fp32.
INT8_OPERATORS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "MaxPool", "AveragePool",
    "GlobalAveragePool", "Concat", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice",
)  # fmt: skip
DYNAMIC_OPERATORS = ("MatMul", "Gemm", "Gather", "Attention", "LSTM")
# Those with weights: what sensitivity is measured on, and what is returned to fp32.
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

CALIBRATION_METHODS = ("minmax", "entropy", "percentile")
CALIBRATION_BATCH = 16
BATCHES_IN_MEMORY = 4  # the histogram methods hold every activation of what they are given at once

LARGEST_FP16 = 65504.0
FP16_MARGIN = 0.5  # a layer whose activations come this near to the largest stays in fp32: the samples are not all

INT4_BLOCK = 32  # weights that share a scale
INT4_LEAST = 4096  # elements of a matrix that is worth it


def prepared(source: Path) -> onnx.ModelProto:
    """Return an fp32 file with the shapes that the quantizers want.

    Raises:
        KDExportError: It cannot be read.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with _guarded("int8"), tempfile.TemporaryDirectory(dir=source.parent, prefix=".quantize.") as folder:
        target = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(target), skip_optimization=True, skip_symbolic_shape=True)
        return onnx.load(target)


def ranges(model: onnx.ModelProto, calibration: Arrays, method: str) -> Any:
    """Return the range of every activation over the calibration samples, as onnxruntime's ``TensorsData``.

    Args:
        model: A prepared graph.
        calibration: One array per input, first axis samples, as the graph takes them.
        method: ``minmax``, ``entropy`` or ``percentile``.

    Raises:
        KDExportError: There are no samples, or onnxruntime cannot.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    if not len(calibration[0]):
        raise KDExportError("int8 needs calibration samples, and there are none", hint="give training data, --data REF")
    how = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}[method]
    names = [item.name for item in model.graph.input]
    with _guarded("int8"), tempfile.TemporaryDirectory(prefix="kdexport.") as folder:
        source = Path(folder) / "model.onnx"
        onnx.save(model, source)
        calibrator = create_calibrator(
            source,
            list(INT8_OPERATORS),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=getattr(CalibrationMethod, how),
        )
        for part in _parts(calibration):
            calibrator.collect_data(_Reader(names, part))
        return calibrator.compute_data()


def static_int8(
    model: onnx.ModelProto,
    activations: Any,
    *,
    weight_bits: int = 7,
    exclude: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """Return a graph with weights and activations in 8-bit integers.

    Args:
        model: A prepared graph; it is not changed.
        activations: From ``ranges``.
        weight_bits: 7, or 8 for processors that add products of 8 bits without overflow (x86 with VNNI, Arm).
        exclude: Names of nodes that stay in fp32.
        only: Names of the only nodes to quantize; empty for all.

    Raises:
        KDExportError: onnxruntime cannot.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    with _guarded("int8"):
        quantizer = QDQQuantizer(
            copy.deepcopy(model),
            per_channel=True,
            reduce_range=weight_bits == 7,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=activations,
            nodes_to_quantize=list(only),
            nodes_to_exclude=[*exclude, *dressing(model)],
            op_types_to_quantize=list(INT8_OPERATORS),
            extra_options={},
        )
        quantizer.quantize_model()
        return quantizer.model.model  # type: ignore[no-any-return]


def dynamic_int8(source: Path, exclude: tuple[str, ...] = ()) -> onnx.ModelProto:
    """Return a graph whose matrix products have 8-bit weights and quantize activations as they come.

    Args:
        source: The fp32 file.
        exclude: Names of nodes that stay in fp32.

    Raises:
        KDExportError: onnxruntime cannot.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _guarded("int8-dynamic"), tempfile.TemporaryDirectory(prefix="kdexport.") as folder:
        target = Path(folder) / "model.onnx"
        quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=list(DYNAMIC_OPERATORS),
            nodes_to_exclude=_as_products(exclude),
            per_channel=True,
            reduce_range=True,  # see above
            weight_type=QuantType.QInt8,
        )
        return onnx.load(target)


def fp16(source: Path, exclude: tuple[str, ...]) -> onnx.ModelProto:
    """Return a graph with fp16 weights and arithmetic.

    Inputs and outputs keep their types. The preprocessing, which sees pixels up to 255 and sums them, stays in fp32.

    Args:
        source: The fp32 file.
        exclude: Names of nodes that stay in fp32; see ``overflowing``.

    Raises:
        KDExportError: onnxruntime cannot.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    with _guarded("fp16"):
        own = {node.name for node in model.graph.node}
        halved = convert_float_to_float16(model, keep_io_types=True, node_block_list=[*exclude, *dressing(model)])
        return _without_round_trips(halved, own)


def int4(source: Path, exclude: tuple[str, ...] = ()) -> onnx.ModelProto:
    """Return a graph whose large weight matrices have 4 bits, in blocks of 32.

    Activations and arithmetic stay in fp32: this saves memory, not time.

    Args:
        source: The fp32 file.
        exclude: Names of nodes that keep their weights.

    Raises:
        KDExportError: There is no large matrix, or onnxruntime cannot.
    """
    with _guarded("int4"):  # importing it configures logging for the whole process: _guarded undoes that
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        model = _gemm_to_matmul(onnx.load(source))
        products = {node.name for node in model.graph.node if node.op_type == "MatMul"}
        small = products - set(large_products(model))
        if small == products:
            raise KDExportError(
                "int4 could not be made: no matrix product has a constant matrix of "
                f"{INT4_LEAST} elements or more (convolutions keep their weights)",
                hint="take int4 out of export.quantize; int8 suits convolutions",
            )
        quantizer = MatMulNBitsQuantizer(
            model, block_size=INT4_BLOCK, is_symmetric=True, nodes_to_exclude=[*small, *_as_products(exclude)]
        )
        quantizer.process()
        return quantizer.model.model  # type: ignore[no-any-return]


def in_order(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph with each node behind those that it takes from, as ONNX demands: quantizers append theirs."""
    whole = ir.from_proto(model)
    whole.graph.sort()
    return ir.to_proto(whole)


def dressing(model: onnx.ModelProto) -> list[str]:
    """Return the nodes that are not the network's: preprocessing before it, softmax and top-k behind it."""
    return [node.name for node in model.graph.node if node.name.startswith(OWN)]


def layers(model: onnx.ModelProto, operators: tuple[str, ...] = LAYERS) -> list[str]:
    """Return the names of the network's nodes with such an operator, those with weights by default, in order."""
    outside = set(dressing(model))
    return [node.name for node in model.graph.node if node.op_type in operators and node.name not in outside]


def large_products(model: onnx.ModelProto) -> list[str]:
    """Return the names of the matrix products whose constant matrix is worth 4 bits, in order."""
    sizes = {item.name: int(np.prod(item.dims)) for item in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    return [node.name for node in products if sizes.get(node.input[1], 0) >= INT4_LEAST]


def _as_products(names: tuple[str, ...]) -> list[str]:
    """Return names with those that a Gemm gets where a quantizer writes it as MatMul and Add."""
    return [*names, *(f"{name}_MatMul" for name in names)]


def _parts(samples: Arrays) -> Iterator[Arrays]:
    """Cut samples into parts of whole batches, the remainder apart: onnxruntime wants batches of one size at a time."""
    count = len(samples[0])
    whole = count - count % CALIBRATION_BATCH
    for start in range(0, whole, CALIBRATION_BATCH * BATCHES_IN_MEMORY):
        yield tuple(array[start : min(whole, start + CALIBRATION_BATCH * BATCHES_IN_MEMORY)] for array in samples)
    if whole < count:
        yield tuple(array[whole:] for array in samples)


def overflowing(source: Path, samples: Arrays) -> tuple[str, ...]:
    """Return the names of the nodes whose activations come near the largest fp16 value on these samples."""
    with _guarded("fp16"):
        return tuple(_overflowing(onnx.load(source), samples))


def _overflowing(model: onnx.ModelProto, samples: Arrays) -> Iterator[str]:
    names = value_names(model)
    largest = dict.fromkeys(names, 0.0)
    for start in range(0, len(samples[0]), CALIBRATION_BATCH):
        batch = tuple(array[start : start + CALIBRATION_BATCH] for array in samples)
        for name, value in intermediate_outputs(model, names, batch).items():
            if name in largest and value.dtype == np.float32:
                largest[name] = max(largest[name], float(np.abs(value).max(initial=0.0)))
    for node in model.graph.node:
        if any(largest.get(name, 0.0) > FP16_MARGIN * LARGEST_FP16 for name in (*node.input, *node.output)):
            yield node.name


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
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = shortcut.get(name, name)
    used = outputs | {name for node in model.graph.node for name in node.input}
    while dead := [node for node in model.graph.node if node.output[0] in casts and node.output[0] not in used]:
        for node in dead:
            model.graph.node.remove(node)
        used = outputs | {name for node in model.graph.node for name in node.input}
    return model


def _target(cast: onnx.NodeProto) -> int:
    return int(next(attribute.i for attribute in cast.attribute if attribute.name == "to"))


def _gemm_to_matmul(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with each Gemm written as MatMul and Add, the form that 4-bit weights exist for."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    wrapped = ONNXModel(model)
    wrapped.replace_gemm_with_matmul()
    for number, node in enumerate(wrapped.model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return wrapped.model  # type: ignore[no-any-return]


@contextlib.contextmanager
def _guarded(variant: str) -> Iterator[None]:
    with quiet() as heard:
        try:
            yield
        except KDExportError:
            raise
        except Exception as error:  # the quantizers raise whatever comes
            said = tail(heard)
            raise KDExportError(
                f"{variant} could not be made: {first_line(error)}",
                hint=f"take {variant} out of export.quantize" + (f"; onnxruntime said: {said}" if said else ""),
            ) from error


class _Reader:
    """Calibration samples in the form that onnxruntime asks for."""

    def __init__(self, names: list[str], calibration: Arrays) -> None:
        self._batches = iter(
            {name: array[start : start + CALIBRATION_BATCH] for name, array in zip(names, calibration, strict=True)}
            for start in range(0, len(calibration[0]), CALIBRATION_BATCH)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


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
        if layer.op_type not in LAYERS or layer.input[1] not in constants:
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
