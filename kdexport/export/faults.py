"""Why a network could not be exported, in the user's terms: the operator and its module, or the line that branches."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from kdexport.errors import KDExportError

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
    shown = next((line for line in reversed(_messages(error)) if line.strip()), type(error).__name__)
    return KDExportError(
        f"{name} cannot be exported to ONNX: {shown.strip().splitlines()[0]}{_place(text)}",
        hint="--verbose shows torch's whole account" + (f"; it said: {captured}" if captured else ""),
    )


def _messages(error: BaseException | None) -> list[str]:
    """Return the messages of an error and its causes, the root cause last."""
    found = []
    while error is not None:
        found.append(str(error))
        error = error.__cause__
    return found


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
