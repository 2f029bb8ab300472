"""PyTorch to ONNX: one network, captured by torch.export, translated and optimized by torch.onnx and onnxscript.

What is written carries no trace of the machine that wrote it: stack traces, file names and the exporter's own notes
are stripped, and each node is named after the module that it came from (``blocks.0.conv1/Conv``).

Parity is not proved here: see ``parity``.

Why a network could not be exported is told in the user's terms: the operator and its module, or the line that branches.
``try_export`` runs before anything is trained: what ONNX cannot hold is told then, not after the training.
"""

import contextlib
import functools
import gc
import inspect
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import rewriter, version_converter
from onnxscript.rewriter import _pattern_ir as pattern_ir
from torch import Tensor, nn
from torch._export import utils as export_utils
from torch.onnx._internal.exporter import _registration

from kdexport.errors import KDExportError
from kdexport.export.parity import FIXED_BATCH, OTHER_AXIS
from kdexport.export.quiet import quiet, tail
from kdexport.onnx import runtimes

PLACE = re.compile(r'File "([^"]+)", line (\d+), in \w+\n\s+(.+)')
OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")
NODE = re.compile(r"Error when translating node %(\w+)")


def explain(
    error: BaseException, network: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], captured: str
) -> KDExportError:
    """Return what to tell the user of an error of ``torch.onnx.export``.

    Args:
        error: What it raised, with its causes.
        network: What was to be exported.
        args: Its inputs, by position.
        kwargs: The same, by name.
        captured: What was printed and logged meanwhile.
    """
    name = type(network).__name__
    text = "\n".join(_messages(error))
    operator = OPERATOR.search(text)
    if operator:
        node = NODE.search(text)
        where = _module_of(node[1], network, args, kwargs) if node else None
        return KDExportError(
            f"{name} cannot be exported: ONNX has no {operator[1]}" + (f", which {where} uses" if where else ""),
            hint="write that part of its forward with other operators, or try a higher --opset",
        )
    if "data-dependent" in text:
        return KDExportError(
            f"{name} cannot be exported: the way through it depends on the data{_place(text)}",
            hint="ONNX holds one way for all data: use torch.where, or torch.cond, in place of if and while",
        )
    if "Constraints violated" in text or "specialized" in text:
        return KDExportError(
            f"{name} cannot be exported with dynamic axes: {_violated(text)}",
            hint="take the fixed size out of its forward, or export with --static",
        )
    if _packs(network):
        return KDExportError(
            f"{name} cannot be exported: its forward packs sequences of several lengths, and ONNX has none",
            hint="run the recurrent layer on the padded batch, and take its output at each text's last word: "
            "output[torch.arange(len(x)), lengths - 1]; a bidirectional one reads the padding first, so flip each text",
        )
    shown = next((line for line in reversed(_messages(error)) if line.strip()), type(error).__name__)
    return KDExportError(
        f"{name} cannot be exported to ONNX: {shown.strip().splitlines()[0]}{_place(text)}",
        hint="--verbose shows torch's whole account" + (f"; its output: {captured}" if captured else ""),
    )


def _messages(error: BaseException | None) -> list[str]:
    """Return the messages of an error and its causes, the root cause last."""
    return [str(cause) for cause in _causes(error)]


def _packs(network: nn.Module) -> bool:
    """Whether a class of the network's mentions packed sequences: the error comes from what is done with them later."""
    for kind in {type(module) for module in network.modules()}:
        with contextlib.suppress(OSError, TypeError):  # no source at hand
            if not kind.__module__.startswith("torch.") and "pack_padded_sequence" in inspect.getsource(kind):
                return True
    return False


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _place(text: str) -> str:
    """Return the user's own line that a message points at, if it does."""
    places = [match for match in PLACE.finditer(text) if "site-packages" not in match[1]]
    if not places:
        return ""
    file, line, code = places[-1].groups()
    return f": `{code.strip()}` ({Path(file).name}, line {line})"


def _violated(text: str) -> str:
    lines = [line.strip(" -") for line in text.splitlines()]
    told = [line for line in lines if "specialized" in line or "violated" in line]
    return max(told, key=lambda line: "specialized" in line) if told else "a size is fixed in its forward"


def _module_of(node_name: str, network: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> str | None:
    """Return the module that an operator belongs to, as ``blocks.1 (SelfAttention)``."""
    program = torch.export.export(network, args, kwargs, strict=False).run_decompositions()
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if node.name == node_name and stack:
            path, kind = list(stack.values())[-1]
            kind = kind if isinstance(kind, str) else kind.__qualname__
            return f"{path or 'it itself'} ({kind.rpartition('.')[2]})"
    return None


REGISTRY = functools.lru_cache(_registration.ONNXRegistry.from_torchlib)
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
    parameter_names: Sequence[str] | None = None,
) -> Exported:
    """Export a network, in eval mode, with the dynamo exporter.

    Args:
        network: Called as ``network(*example)``, or by the names of ``forward``'s parameters.
        example: One tensor per input; the batch must not be 1, which torch.export would take for a constant. What is
            captured runs on tensors that are ``in_order``.
        input_names: A name for each input.
        output_names: A name for each output.
        opset: ONNX operator set version.
        dynamic: For each input, the axes that may vary and their names, the batch first; None makes the first axis of
            each ``batch``.
        parameter_names: Of ``forward``, one per input; None passes the inputs by position.

    Raises:
        KDExportError: The network cannot be captured, has an operator that ONNX lacks, fixes an axis that is to be
            dynamic, or cannot be written in this opset.
    """
    axes = [{0: "batch"} for _ in example] if dynamic is None else list(dynamic)
    names = sorted({name for spec in axes for name in spec.values()})
    dims = {name: torch.export.Dim(name) for name in names}
    shapes = tuple({axis: dims[name] for axis, name in spec.items()} or None for spec in axes)
    example = tuple(map(in_order, example))
    for parameter in network.parameters():
        parameter.data = in_order(parameter.data)
    args, kwargs = (example, {}) if parameter_names is None else ((), dict(zip(parameter_names, example, strict=True)))
    with quiet() as captured:
        try:
            with _nothing_twice():
                program = torch.onnx.export(
                    network.eval(),
                    args,
                    kwargs=kwargs,
                    dynamo=True,
                    verbose=False,
                    optimize=False,
                    opset_version=opset,
                    input_names=list(input_names),
                    output_names=list(output_names),
                    dynamic_shapes=_by_parameter(network, shapes, parameter_names),
                )
        except Exception as error:
            raise explain(error, network, args, kwargs, tail(captured)) from error
        if program is None or program.exported_program is None:  # the types allow it; the dynamo exporter does not
            raise KDExportError("torch.onnx.export returned nothing", hint="update torch")
        before = operators(program.model)
        _match_exactly()
        program.optimize()
    _check_axes(program.model, axes, type(network).__name__)
    _check_opset(program.model, opset)
    _tidy(program.model)
    return Exported(program.model, before, program.exported_program)


def in_order(tensor: Tensor) -> Tensor:
    """Return a tensor whose strides are those of its shape; itself where they are.

    Channels last would be written into the graph: pooling to one pixel ends in a gather, or a loop over sequences.
    ``contiguous()`` leaves the strides of one channel as they are.
    """
    ordered = torch.empty(tensor.shape, device="meta").stride()
    return (
        tensor
        if tensor.layout != torch.strided or tensor.stride() == ordered
        else tensor.clone(memory_format=torch.contiguous_format)
    )


def operators(model: ir.Model) -> dict[str, int]:
    """Return how often each operator occurs, most frequent first; those of subgraphs included."""
    return dict(Counter(node.op_type for node in model.graph.all_nodes()).most_common())


def _by_parameter(network: nn.Module, shapes: tuple[Any, ...], names: Sequence[str] | None) -> dict[str, Any]:
    """Return the shapes by the names of ``forward``'s parameters; ``*inputs`` gets a tuple, ``**inputs`` a dict."""
    signature = inspect.signature(network.forward)
    bound = signature.bind(*shapes) if names is None else signature.bind(**dict(zip(names, shapes, strict=True)))
    return dict(bound.arguments)


@contextlib.contextmanager
def _nothing_twice() -> Iterator[None]:
    """Let torch do once what it does again and again: that is two thirds of a small network's export.

    It parses the source of 500 functions for its table of ONNX functions, which is kept for the process here. Only
    within kdexport's own: ``custom_translation_table`` of a user's ``torch.onnx.export`` writes into the table. It
    looks up all operators of the dispatcher for each of 30 namespaces, twice, and makes so many small objects that
    the garbage collector is called 300 times.
    """
    registry, collecting = vars(_registration.ONNXRegistry)["from_torchlib"], gc.isenabled()
    look_up = export_utils._materialize_cpp_cia_ops
    setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(REGISTRY))  # noqa: B010 mypy takes no method
    export_utils._materialize_cpp_cia_ops = functools.lru_cache(look_up)
    gc.disable()
    try:
        yield
    finally:
        setattr(_registration.ONNXRegistry, "from_torchlib", registry)  # noqa: B010
        export_utils._materialize_cpp_cia_ops = look_up
        if collecting:
            gc.enable()


def _match_exactly() -> None:
    """Let the optimizer's rules take for 0 or 1 what is 0 or 1, and nothing near it.

    onnxscript matches the constants of its patterns within 1e-8 absolute and 1e-5 relative: ``x + 0`` takes the
    epsilon out of ``h / (norm + 1e-8)``, and a blank sample gives NaN; ``x * 1`` takes out a factor of 1.000001.
    """
    for rule in rewriter._DEFAULT_REWRITE_RULES:  # the library has no other way to its rules
        for node in rule._target_pattern:
            for value in node.inputs:
                if isinstance(value, pattern_ir.Constant):
                    value._rel_tol = value._abs_tol = 0.0


def _check_axes(model: ir.Model, axes: list[dict[int, str]], network: str) -> None:
    """Refuse a graph in which an axis that is to be dynamic has become a number."""
    for value, wanted in zip(model.graph.inputs, axes, strict=True):
        batch_axis = next(iter(wanted), None)
        for axis, name in wanted.items():
            size = value.shape[axis] if value.shape is not None else None
            if isinstance(size, int):
                raise KDExportError(
                    f"axis {axis} of {value.name} is to be dynamic ({name}), and {network} fixes it at {size}",
                    hint=FIXED_BATCH + (OTHER_AXIS if len(axes) > 1 else "")
                    if axis == batch_axis
                    else "its forward takes that size for a Python number, e.g. "
                    "by int(x.shape[2]) or a table of fixed length: compute it from x.shape, or leave that axis fixed",
                )


def _check_opset(model: ir.Model, wanted: int) -> None:
    """Refuse a graph that could not be converted to the opset asked for."""
    version = model.opset_imports.get("")
    if version != wanted:
        nearest = _nearest_opset(model, version or 0, wanted)
        raise KDExportError(
            f"the network cannot be written in opset {wanted}: one of its operators ({', '.join(operators(model))}) "
            f"has no conversion, and the file would be of opset {version}",
            hint=f"give --opset {nearest}, for onnxruntime {runtimes.oldest_runtime(nearest, 0, {})} and later",
        )


def _nearest_opset(model: ir.Model, written: int, wanted: int) -> int:
    """Return the newest opset up to the one asked for that a graph can be converted to."""
    for opset in range(wanted - 1, written, -1):
        tried = model.clone()
        with quiet():
            version_converter.convert_version(tried, opset)
        if tried.opset_imports.get("") == opset:
            return opset
    return written


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
