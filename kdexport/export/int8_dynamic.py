"""int8, dynamic: matrix products with 8-bit weights, whose activations are quantized as they come. No calibration."""

import tempfile
from functools import partial
from pathlib import Path

import onnx

from kdexport.errors import KDExportError
from kdexport.export.accuracy_guard import VariantBuilder
from kdexport.export.quantize import CHANGED_BY, CONVOLUTIONS, census, guarded, layers, load, without
from kdexport.export.variant_inputs import VariantInputs

DYNAMIC_OPERATORS = CHANGED_BY["int8-dynamic"]


def builder(given: VariantInputs) -> VariantBuilder:
    """Return how the graph is made.

    Raises:
        KDExportError: The network consists of convolutions.
    """
    graph = load(given.source)
    found = tuple(layers(graph, DYNAMIC_OPERATORS))
    weighted = census(graph)
    if not set(weighted.kinds) & set(DYNAMIC_OPERATORS):
        convolutional = set(weighted.kinds) & set(CONVOLUTIONS)
        kinds = ", ".join(weighted.kinds) or "no weight matrix at all"
        raise KDExportError(
            f"int8-dynamic would change no weight: it is for matrix products, and this network has {kinds}",
            hint=without("int8-dynamic", weighted.kinds)
            + ("; int8 calibrates on data (--data REF or --input FILE)" if convolutional else ""),
        )
    make = partial(dynamic_int8, graph)
    return VariantBuilder(
        given.spec.precision, found, make, lambda names: make(tuple(name for name in found if name not in names))
    )


def dynamic_int8(model: onnx.ModelProto, exclude: tuple[str, ...] = ()) -> onnx.ModelProto:
    """Return a graph whose matrix products have 8-bit weights and quantize activations as they come.

    Args:
        model: The fp32 graph; it is not changed.
        exclude: Names of nodes that stay in fp32.

    Raises:
        KDExportError: onnxruntime cannot.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with guarded("int8-dynamic"), tempfile.TemporaryDirectory(prefix="kdexport.", ignore_cleanup_errors=True) as folder:
        source, target = Path(folder) / "given.onnx", Path(folder) / "model.onnx"
        onnx.save(model, source)
        quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=list(DYNAMIC_OPERATORS),
            nodes_to_exclude=as_products(exclude),
            per_channel=True,
            reduce_range=True,  # 7 bits: see int8
            weight_type=QuantType.QInt8,
        )
        return onnx.load(target)


def as_products(names: tuple[str, ...]) -> list[str]:
    """Return names with those that a Gemm gets where a quantizer writes it as MatMul and Add."""
    return [*names, *(f"{name}_MatMul" for name in names)]
