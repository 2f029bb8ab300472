"""Which layer of the PyTorch module a node belongs to, as far as its file tells, also after the runtime fused it.

Told by, the surest first: the weight that a node takes (``layer1.0.conv1.weight``: a batch normalization that was
folded into a convolution leaves its own name on the node), torch.onnx's ``name_scopes``, the node's name
(``layer1.0/Add`` as kdexport writes it, ``/layer1/layer1.0/Add`` as torch's older exporter does), and for a quantizer's
nodes, which have no name of a module, their neighbors. Read where onnx is; looked up where only the runtime is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SCOPES = "pkg.torch.onnx.name_scopes"
HOPS = 6  # between a convolution and the activation that the runtime fused behind it, at most
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
LAYOUT = ("ReorderInput", "ReorderOutput", "Transpose")  # what the runtime puts between layouts

_FAMILY = re.compile(
    r"^(?:QLinear|NhwcFused|Nhwc|Fused|DynamicQuantize(?=MatMul|LSTM)|Q(?=Gemm|Attention))?(\w+?)(?:Integer(?:ToFloat)?)?$"
)
_WEIGHT = re.compile(r"^(?P<layer>[\w.]+)\.(?:\w+_)?weight(?:$|[^\w.]|_)")
_FUSED = re.compile(r"^fused |/\w*Fusion\w*/?.*$|_(?:fused|nchwc|nhwc|quant|token_\d+)+$|_[A-Za-z]+(?:_\d+)?$")


@dataclass(frozen=True)
class GraphNode:
    """A node of a file, without its attributes."""

    name: str
    operator: str
    layer: str  # empty: the file does not tell
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()


def family(operator: str) -> str:
    """Return the operator that a fused or quantized form computes: ``Conv`` of ``QLinearConv`` and ``FusedConv``."""
    found = _FAMILY.match(operator)
    return found.group(1) if found else operator


def graph_nodes(path: Path) -> tuple[GraphNode, ...]:
    """Read the nodes of an ONNX file, those of subgraphs included; raises as ``describe.load_graph``."""
    from kdexport.onnx.describe import load_graph
    from kdexport.onnx.graphs import nodes

    found = []
    for node in nodes(load_graph(path).graph):
        scopes = next((entry.value for entry in getattr(node, "metadata_props", ()) if entry.key == SCOPES), "")
        layer = layer_of(node.name, tuple(node.input), scopes)
        found.append(GraphNode(node.name, node.op_type, layer, tuple(node.input), tuple(node.output)))
    return tuple(found)


def layer_of(name: str, inputs: Sequence[str], scopes: str = "") -> str:
    """Return a node's layer as a dotted path, empty where neither its weight, its scopes nor its name tell."""
    weight = next((match for text in inputs[1:] if (match := _WEIGHT.match(text))), None)
    if weight:
        return weight["layer"]
    if scopes:
        parts = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
        return parts[-2] if len(parts) > 1 else ""
    path: list[str] = []
    for part in name.strip("/").split("/")[:-1]:
        if path and part.startswith(f"{path[-1]}."):  # torch's older exporter: /layer1/layer1.0/conv1/Conv
            path.pop()
        path.append(part)
    return ".".join(path)


class Layers:
    """Looks up the layer of an operator as the runtime reports it.

    Args:
        nodes: Of the file; see ``graph_nodes``.
    """

    def __init__(self, nodes: Sequence[GraphNode]) -> None:
        self._by_name: Mapping[str, GraphNode] = {node.name: node for node in nodes if node.name}
        self._producer = {value: node for node in nodes for value in node.outputs if value}
        self._consumers: dict[str, list[GraphNode]] = {}
        for node in nodes:
            for value in node.inputs:
                self._consumers.setdefault(value, []).append(node)

    def find(self, name: str, operator: str) -> str:
        """Return the layer; empty where the file does not tell.

        Args:
            name: As the runtime calls the operator: a node's own name, or one made of a node's or a value's.
            operator: Its type as it runs.
        """
        node = self.node(name, operator)
        return "" if node is None else self._layer(node)

    def node(self, name: str, operator: str) -> GraphNode | None:
        """Return the file's node; None where that is not to be told. Arguments as ``find``."""
        while name:
            if name in self._by_name:
                return self._by_name[name]
            if name in self._producer:
                return self._computed_by(self._producer[name], family(operator))
            shorter = _FUSED.sub("", name, count=1)
            if shorter == name:
                return None
            name = shorter
        return None

    def _computed_by(self, node: GraphNode, operator: str) -> GraphNode:
        """Return the operator that a value is of: a fused one is called after its last part's output."""
        at: GraphNode | None = node
        for _ in range(HOPS):
            if at is None:
                break
            if family(at.operator) == operator:
                return at
            at = next((self._producer[value] for value in at.inputs if value in self._producer), None)
        return node

    def _layer(self, node: GraphNode) -> str:
        """Return a node's layer; a quantizer's is its neighbor's: of what it takes, else of what takes it."""
        if node.layer or node.operator not in QUANTIZERS:
            return node.layer
        before: GraphNode | None = node
        while before is not None and before.operator in QUANTIZERS:
            before = next((self._producer[value] for value in before.inputs[:1] if value in self._producer), None)
        if before is not None and before.layer:
            return before.layer
        behind = [node]
        for _ in range(2):  # a weight's DequantizeLinear, or a QuantizeLinear and its DequantizeLinear
            behind = [taker for one in behind for value in one.outputs for taker in self._consumers.get(value, ())]
            found = next((taker.layer for taker in behind if taker.layer), "")
            if found:
                return found
        return ""
