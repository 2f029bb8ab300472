"""PyTorch to ONNX: one network, captured by torch.export, translated and optimized by torch.onnx and onnxscript.

What is written carries no trace of the machine that wrote it: stack traces, file names and the exporter's own notes
are stripped, and each node is named after the module that it came from (``blocks.0.conv1/Conv``).

Parity is not proved here: see ``parity``.
"""

import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from kdexport.errors import KDExportError
from kdexport.export.faults import explain
from kdexport.export.quiet import quiet, tail

SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Exported:
    """A network as ONNX, in memory."""

    model: ir.Model
    operators_before: dict[str, int]  # of the graph as translated, before any optimization
    program: torch.export.ExportedProgram  # what was translated: its nodes have the names of the ONNX values


def to_onnx(
    network: nn.Module,
    example: tuple[Tensor, ...],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str] = ("logits",),
    opset: int = 18,
    dynamic: Sequence[dict[int, str]] | None = None,
) -> Exported:
    """Export a network, in eval mode, with the dynamo exporter.

    Args:
        network: Called as ``network(*example)``.
        example: One tensor per input, first axis the batch; the batch must not be 1, which torch.export would take
            for a constant.
        input_names: A name for each input.
        output_names: A name for each output.
        opset: ONNX operator set version.
        dynamic: For each input, the axes that may vary and their names; None makes the first axis of each ``batch``.

    Raises:
        KDExportError: The network cannot be captured or has an operator that ONNX lacks.
    """
    axes = [{0: "batch"} for _ in example] if dynamic is None else list(dynamic)
    names = sorted({name for spec in axes for name in spec.values()})
    dims = {name: torch.export.Dim(name) for name in names}
    shapes = tuple({axis: dims[name] for axis, name in spec.items()} or None for spec in axes)
    with quiet() as heard:
        try:
            program = torch.onnx.export(
                network.eval(),
                example,
                dynamo=True,
                verbose=False,
                optimize=False,
                opset_version=opset,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=_by_parameter(network, shapes),
            )
        except Exception as error:
            raise explain(error, network, example, tail(heard)) from error
        if program is None or program.exported_program is None:  # the types allow it; the dynamo exporter does not
            raise KDExportError("torch.onnx.export returned nothing", hint="update torch")
        before = operators(program.model)
        program.optimize()
    _tidy(program.model)
    return Exported(program.model, before, program.exported_program)


def operators(model: ir.Model) -> dict[str, int]:
    """Return how often each operator occurs, most frequent first; those of subgraphs included."""
    return dict(Counter(node.op_type for node in model.graph.all_nodes()).most_common())


def _by_parameter(network: nn.Module, shapes: tuple[Any, ...]) -> dict[str, Any]:
    """Return the shapes by the names of ``forward``'s parameters; ``*inputs`` gets a tuple."""
    return dict(inspect.signature(network.forward).bind(*shapes).arguments)


def _tidy(model: ir.Model) -> None:
    """Strip the exporter's notes and name each node after its module."""
    taken: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        name = f"{scope_of(node)}/{node.op_type}".lstrip("/")
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.doc_string = None
            value.metadata_props.clear()
            if not value.is_graph_output():  # shapes that every runtime infers; wrong ones once a quantizer has been
                value.shape = value.type = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.doc_string = None
        value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.shape = value.type = None
    model.graph.doc_string = None
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.doc_string = None


def scope_of(node: ir.Node) -> str:
    """Return the dotted path of the module that a freshly exported node came from; empty at the top level."""
    text = node.metadata_props.get(SCOPES, "")
    scopes = [part.strip(" '\"") for part in text.strip("[]").split(",")]
    return scopes[-2] if len(scopes) > 1 else ""
