"""Variants of an exported file in fewer bits, made by onnxruntime's quantizers.

int8 is static, in the QDQ form that every runtime reads: unsigned activations (signed ones are 2 to 5 times slower on
x86 without VNNI), signed weights, a scale per output channel. Calibration samples are the caller's business: training
data, never test.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from kdexport.errors import KDExportError
from kdexport.export.quiet import quiet, tail
from kdexport.export.runner import Arrays, first_line

# What int8 kernels exist for; normalizing layers, activations with exp and the preprocessing stay in fp32.
INT8_OPERATORS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "MaxPool", "AveragePool",
    "GlobalAveragePool", "Concat", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice",
)  # fmt: skip
CALIBRATION_BATCH = 64


def static_int8(source: Path, target: Path, calibration: Arrays, *, keep_fp32: tuple[str, ...] = ()) -> None:
    """Quantize weights and activations to 8 bits, activations in the range that the calibration samples show.

    Args:
        source: An fp32 file.
        target: Where the variant goes.
        calibration: One array per input, first axis samples, as the file takes them.
        keep_fp32: Names of nodes to leave alone.

    Raises:
        KDExportError: There is nothing to quantize, or onnxruntime cannot.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = onnx.load(source)
    if not len(calibration[0]):
        raise KDExportError(
            "int8 needs calibration samples, and there are none", hint="give training data with --data REF"
        )
    prepared = target.with_suffix(".prepared.onnx")
    with _guarded("int8"):
        try:
            quant_pre_process(str(source), str(prepared), skip_optimization=True, skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(target),
                _Reader([item.name for item in model.graph.input], calibration),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(INT8_OPERATORS),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[*keep_fp32, *preprocessing_nodes(model)],
                calibrate_method=CalibrationMethod.MinMax,
            )
        finally:
            prepared.unlink(missing_ok=True)


def dynamic_int8(source: Path, target: Path) -> None:
    """Quantize the weights of matrix products to 8 bits; activations are quantized as they come.

    Raises:
        KDExportError: onnxruntime cannot.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _guarded("int8-dynamic"):
        quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=["MatMul", "Gemm", "Gather", "Attention", "LSTM"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )


def half(source: Path, target: Path) -> None:
    """Turn weights and arithmetic into fp16; inputs and outputs keep their types.

    Raises:
        KDExportError: onnxruntime cannot.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _guarded("fp16"):
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def preprocessing_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the nodes that an image passes before the first layer of the network: int8 would blur the input."""
    found, reached = [], {item.name for item in model.graph.input}
    for node in model.graph.node:
        if node.op_type not in ("Transpose", "Cast", "Mul", "Add", "Sub", "Div", "Resize", "Slice"):
            continue
        if any(name in reached for name in node.input):
            found.append(node.name)
            reached.update(node.output)
    return found if any(item.type.tensor_type.elem_type == onnx.TensorProto.UINT8 for item in model.graph.input) else []


@contextlib.contextmanager
def _guarded(variant: str) -> Iterator[None]:
    with quiet() as heard:
        try:
            yield
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
