"""int4: large weight matrices in blocks of 4-bit integers. Activations and arithmetic stay in fp32: this saves memory,
not time.
"""

from functools import partial

import numpy as np
import onnx

from kdexport.errors import KDExportError
from kdexport.export.accuracy_guard import VariantBuilder
from kdexport.export.int8_dynamic import as_products
from kdexport.export.quantize import census, guarded, load, without
from kdexport.export.variant_inputs import VariantInputs

INT4_BLOCK = 32  # weights that share a scale
INT4_LEAST = 4096  # elements of a matrix that is worth it


def builder(given: VariantInputs) -> VariantBuilder:
    """Return how the graph is made.

    Raises:
        KDExportError: There is no large matrix.
    """
    graph = load(given.source)
    found = tuple(large_products(graph))
    if not found:
        raise KDExportError(
            "int4 could not be made: no matrix product has a constant matrix of "
            f"{INT4_LEAST} elements or more (others keep their weights)",
            hint=without("int4", census(graph).kinds),
        )
    make = partial(int4, graph)
    return VariantBuilder(
        given.spec.precision,
        found,
        make,
        lambda names: make(tuple(name for name in found if name not in names)),
        describe=_described,
    )


def _described(model: onnx.ModelProto) -> str:
    count = sum(node.op_type == "MatMulNBits" for node in model.graph.node)
    return f"4-bit weights in {count} matrix products, all else in fp32"


def int4(model: onnx.ModelProto, exclude: tuple[str, ...] = ()) -> onnx.ModelProto:
    """Return a graph whose large weight matrices have 4 bits, in blocks of 32.

    Args:
        model: The fp32 graph; it is not changed.
        exclude: Names of nodes that keep their weights.

    Raises:
        KDExportError: onnxruntime cannot.
    """
    with guarded("int4"):  # importing it configures logging for the whole process: guarded undoes that
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        model = _gemm_to_matmul(model)
        products = {node.name for node in model.graph.node if node.op_type == "MatMul"}
        small = products - set(large_products(model))
        quantizer = MatMulNBitsQuantizer(
            model, block_size=INT4_BLOCK, is_symmetric=True, nodes_to_exclude=[*small, *as_products(exclude)]
        )
        quantizer.process()
        return quantizer.model.model  # type: ignore[no-any-return]


def large_products(model: onnx.ModelProto) -> list[str]:
    """Return the names of the matrix products whose constant matrix is worth 4 bits, in order."""
    sizes = {item.name: int(np.prod(item.dims)) for item in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    return [node.name for node in products if sizes.get(node.input[1], 0) >= INT4_LEAST]


def _gemm_to_matmul(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with each Gemm written as MatMul and Add, the form that 4-bit weights exist for."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    wrapped = ONNXModel(copied)
    wrapped.replace_gemm_with_matmul()
    for number, node in enumerate(wrapped.model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return wrapped.model  # type: ignore[no-any-return]
