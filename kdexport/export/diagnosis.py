"""Where a file and its network part: the first layer whose output differs, found among the intermediate outputs.

The exporter names each ONNX value after the torch.export node that it was translated from, so both sides can be
compared value by value. Values that optimization has folded away are passed over.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, fx

from kdexport.export.to_onnx import Exported
from kdexport.onnx.sessions import Arrays, OnnxSession


def first_difference(exported: Exported, example: tuple[Tensor, ...], fed: Arrays, tolerance: float) -> str | None:
    """Return the first layer that differs, in words, or None where no single one does.

    Args:
        exported: The network as translated; its graph may have grown a front and a back since.
        example: Inputs as the network takes them, in the order of the graph's.
        fed: The same as the graph takes them.
        tolerance: On max |onnx - torch| / max |torch| of a layer's output.
    """
    recorder = _Recorder(exported.program.module())
    with torch.no_grad():
        recorder.run(*example)
    graph = ir.to_proto(exported.model)
    names = [name for name in value_names(graph) if name in recorder.seen]
    actual = intermediate_outputs(graph, names, fed)
    for name in names:  # in the graph's order, which is that of the computation
        expected, where = recorder.seen[name]
        if expected.shape != actual[name].shape:
            return f"{where} gives {list(actual[name].shape)}, in PyTorch {list(expected.shape)}"
        largest = float(np.abs(expected).max(initial=0.0))
        difference = float(np.abs(expected - actual[name]).max(initial=0.0))
        if difference > tolerance * largest:
            return f"{where} is the first layer that differs, by {difference / largest if largest else difference:.2g}"
    return None


def value_names(model: onnx.ModelProto) -> list[str]:
    """Return the names of all intermediate values, in the order in which they are computed."""
    return [name for node in model.graph.node for name in node.output if name]


def intermediate_outputs(model: onnx.ModelProto, names: Iterable[str], inputs: Arrays) -> dict[str, np.ndarray]:
    """Return intermediate values of a graph for one batch.

    Args:
        model: The graph; it is not changed.
        names: Which values.
        inputs: One array per input.
    """
    widened = onnx.ModelProto()
    widened.CopyFrom(model)
    present = {item.name for item in widened.graph.output}
    # Without a type: ONNX Runtime infers it.
    widened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    session = OnnxSession(widened.SerializeToString())
    return dict(zip(session.output_names, session(inputs), strict=True))


class _Recorder(fx.Interpreter):
    """Runs a captured network node by node and keeps every float tensor with the module that it came from."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.seen: dict[str, tuple[np.ndarray, str]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, Tensor) and result.is_floating_point():
            stack = list((n.meta.get("nn_module_stack") or {}).values())
            path = stack[-1][0] if stack else ""
            self.seen[n.name] = (result.detach().numpy().astype(np.float64), f"{path or 'the network'} ({n.target})")
        return result
