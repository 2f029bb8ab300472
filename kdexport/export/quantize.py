"""What all precisions need of a graph: names, the project's own nodes, and how many operators have changed.

How a precision is made stands in its own module (``fp16``, ``int8``, ``int8_dynamic``, ``int4``); all use onnxruntime's
quantizers.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from kdexport.errors import KDExportError, StorageError
from kdexport.export.graph import OWN
from kdexport.export.quiet import quiet, tail
from kdexport.onnx.graphs import graphs
from kdexport.onnx.graphs import nodes as nodes_of
from kdexport.onnx.sessions import first_line
from kdexport.precisions import PRECISIONS

# Operators with a weight matrix, in fp32 and as the quantizers write them: what "n of m operators" counts.
LAYERS = (
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "GRU",
    "LSTM",
    "RNN",
    "Gather",
    "Attention",
    "Einsum",
    "DeformConv",
)
QUANTIZED_FORMS = (
    "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul", "QGemm", "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "GatherBlockQuantized", "QAttention",
)  # fmt: skip
# They hand a constant on as it is, in another shape or type.
SAME_CONSTANT = ("DequantizeLinear", "Transpose", "Identity", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Flatten")

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
FEWER_BITS = (
    onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.INT8, onnx.TensorProto.UINT8,
    onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2,
)  # fmt: skip

# Operators whose weights a precision changes; fp16 changes those of all.
CHANGED_BY = {
    "int8": ("Conv", "ConvTranspose", "Gemm", "MatMul"),
    "int8-dynamic": ("MatMul", "Gemm", "Gather", "Attention", "LSTM"),
}
CONVOLUTIONS = ("Conv", "ConvTranspose", "DeformConv")
LEAST_OPSET = 13  # a scale per channel needs it


def load(source: Path) -> onnx.ModelProto:
    """Return a graph whose every node has a name of its own, and whose constants are initializers.

    Quantizers tell nodes apart by their names and look for weights among the initializers; a file that another exporter
    wrote may have neither.
    """
    model = onnx.load(source)
    taken: set[str] = set()
    for number, node in enumerate(nodes_of(model.graph)):
        if not node.name or node.name in taken:
            base = node.name or node.op_type
            node.name = f"{base}_{number}"
            while node.name in taken:
                node.name += "_"
        taken.add(node.name)
    constants = [node for node in model.graph.node if node.op_type == "Constant"]
    for node in constants:
        tensors = [item.t for item in node.attribute if item.name == "value"]
        if tensors:
            model.graph.initializer.add().CopyFrom(tensors[0])
            model.graph.initializer[-1].name = node.output[0]
            model.graph.node.remove(node)
    return model


def prepared(source: Path) -> onnx.ModelProto:
    """Return an fp32 file with the shapes, and the opset, that the quantizers want.

    Raises:
        KDExportError: It cannot be read.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with guarded("int8"), tempfile.TemporaryDirectory(prefix="kdexport.", ignore_cleanup_errors=True) as folder:
        given, target = Path(folder) / "given.onnx", Path(folder) / "prepared.onnx"
        model = load(source)
        if opset_of(model) < LEAST_OPSET:
            model = onnx.version_converter.convert_version(model, LEAST_OPSET)
        onnx.save(model, given)
        quant_pre_process(str(given), str(target), skip_optimization=True, skip_symbolic_shape=True)
        return onnx.load(target)


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators."""
    return int(next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 1))


def in_order(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph with each node behind those that it takes from, as ONNX demands: quantizers append theirs."""
    whole = ir.from_proto(model)
    whole.graph.sort()
    return ir.to_proto(whole)


def own_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the nodes that are not the network's: preprocessing before it, softmax and top-k behind it."""
    return [node.name for node in model.graph.node if node.name.startswith(OWN)]


def layers(model: onnx.ModelProto, operators: tuple[str, ...] = LAYERS) -> list[str]:
    """Return the names of the network's nodes with such an operator, those with weights by default, in order."""
    outside = set(own_nodes(model))
    return [node.name for node in model.graph.node if node.op_type in operators and node.name not in outside]


@dataclass(frozen=True)
class Census:
    """How many of a graph's operators with weights have them in fewer bits."""

    quantized: int
    operators: int
    in_fp32: tuple[str, ...]  # names of the others
    kinds: tuple[str, ...]  # operators that occur among the others
    changed: bool  # whether any constant of the graph, not only such a weight, is in fewer bits

    def __str__(self) -> str:
        return f"{self.quantized} of {self.operators} operators quantized"


def census(model: onnx.ModelProto) -> Census:
    """Count the operators of a graph whose weights are in fewer bits, of those that have any; subgraphs included."""
    outermost = {node.name for node in model.graph.node}
    quantized, others, kinds = 0, [], []
    for node, weights in _weighted(model):
        if any(item.data_type in FEWER_BITS for item in weights):
            quantized += 1
        else:
            others.append(node.name)
            kinds.append(node.op_type if node.name in outermost else f"{node.op_type} within a subgraph")
    constants = {item.name: item for graph in graphs(model.graph) for item in graph.initializer}
    changed = quantized > 0 or any(
        item.data_type in FEWER_BITS and int(np.prod(item.dims)) > 1 for item in constants.values()
    )
    return Census(quantized, quantized + len(others), tuple(others), tuple(dict.fromkeys(kinds)), changed)


def precisions(model: onnx.ModelProto) -> dict[str, str]:
    """Return the precision of each operator with a weight, by its node's name."""
    kinds = onnx.TensorProto
    names: dict[int, str] = {kinds.FLOAT16: "fp16", kinds.INT8: "int8", kinds.UINT8: "int8"}
    found = {}
    for node, weights in _weighted(model):
        fewer = [names[item.data_type] for item in weights if item.data_type in names]
        found[node.name] = fewer[0] if fewer else "fp32"
    return found


def _weighted(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, list[onnx.TensorProto]]]:
    """Yield the network's operators that have weights, with those; subgraphs included."""
    nodes = list(nodes_of(model.graph))
    constants = {item.name: item for graph in graphs(model.graph) for item in graph.initializer}
    producers = {output: node for node in nodes for output in node.output}
    for node in nodes:
        if node.op_type not in (*LAYERS, *QUANTIZED_FORMS) or node.name.startswith(OWN):
            continue
        weights = [constant for name in node.input if (constant := _constant(name, constants, producers)) is not None]
        if weights:
            yield node, weights


def _constant(
    name: str, constants: dict[str, onnx.TensorProto], producers: dict[str, onnx.NodeProto]
) -> onnx.TensorProto | None:
    """Return the weight matrix, float or quantized, that a value is made from, or None."""
    while name not in constants and name in producers and producers[name].op_type in SAME_CONSTANT:
        name = producers[name].input[0]
    found = constants.get(name)
    return found if found is not None and len(found.dims) > 1 and found.data_type in FLOATS + FEWER_BITS else None


# Of protobuf, its faster twin and ONNX Runtime, of a file that ends before its end
CUT_OFF = re.compile("Wire format was corrupt|Error parsing message|Protobuf parsing failed", re.IGNORECASE)


@contextlib.contextmanager
def guarded(variant: str) -> Iterator[None]:
    """Keep the quantizers quiet, and turn whatever they raise into an error that names the variant."""
    with quiet() as captured:
        try:
            yield
        except KDExportError:
            raise
        except Exception as error:  # the quantizers raise whatever comes
            reason = error.strerror if isinstance(error, OSError) and error.errno is not None else None
            if CUT_OFF.search(str(error)):  # a file of their own, whose writer did not look whether there is room
                reason = "a file is cut off"
            if reason is not None:
                place = getattr(error, "filename", None) or tempfile.gettempdir()
                raise StorageError(
                    f"{variant} could not be made: {reason}: {place}",
                    hint="free some space there, or name another folder for temporary files with TMPDIR",
                ) from error
            output = tail(captured)
            raise KDExportError(
                f"{variant} could not be made: {first_line(error)}",
                hint=without(variant) + (f"; its output: {output}" if output else ""),
            ) from error


def without(variant: str, kinds: tuple[str, ...] | None = None) -> str:
    """Return the hint for a variant that cannot be had.

    Args:
        variant: A precision.
        kinds: The network's operators with weights, where they are why: what is offered changes some of those.
    """
    if kinds is None:
        offered = list(PRECISIONS[variant].instead) if variant in PRECISIONS else []
    else:
        offered = [name for name, changed in CHANGED_BY.items() if name != variant and set(changed) & set(kinds)]
        offered += ["fp16"] if variant != "fp16" else []
    hint = f"leave {variant} out of export.quantize"
    return hint + (", or take " + ", or ".join([f"{offered[0]} in its place", *offered[1:]]) if offered else "")
