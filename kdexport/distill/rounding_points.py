"""Where int8 rounds in a captured network: each layer's weight, input and output, as the exporter's quantizer does.

A place is named by the weight of its layer, which has the same name in the state dict and in the ONNX file:
``conv1.weight:input``, ``conv1.weight:output`` (behind the batch normalization that export folds) and
``conv1.weight:activated`` (behind the ReLU too, where nothing else reads the layer's output).
Sums and products between layers are not rounded here unless a layer reads them: export calibrates those.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

WEIGHT_AXIS = {"conv1d": 0, "conv2d": 0, "conv3d": 0, "conv_transpose1d": 1, "conv_transpose2d": 1, "linear": 0}
NORMALIZATIONS = {"batch_norm"}
CLIPPING = {"relu", "relu_", "hardtanh", "hardtanh_", "relu6", "clamp", "clamp_"}
# What hands its input's values on, or means of them: int8 has one range for both sides.
SAME_VALUES = {
    "view", "reshape", "flatten", "squeeze", "squeeze_", "unsqueeze", "unsqueeze_", "permute", "transpose", "t",
    "contiguous", "clone", "alias", "slice", "dropout", "dropout_", "feature_dropout",
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d",
}  # fmt: skip


@dataclass(frozen=True)
class Points:
    """What int8 rounds."""

    weights: tuple[tuple[fx.Node, int], ...]  # layers, with the axis of their weights' output channels
    activations: dict[fx.Node, tuple[str, ...]]  # values, with their places' names


def find_points(graph: fx.Graph, parameters: dict[str, str]) -> Points:
    """Return the places in a graph that torch.export has captured.

    Args:
        graph: Its nodes are ATen operators.
        parameters: Placeholder -> name in the state dict.
    """
    layers = [node for node in graph.nodes if _operator(node) in WEIGHT_AXIS and isinstance(node.args[1], fx.Node)]
    uses = Counter(node.args[1] for node in layers)
    named: dict[fx.Node, list[str]] = {}
    for node in layers:
        weight = parameters.get(node.args[1].name)
        if weight is None or uses[node.args[1]] > 1:  # computed, or shared: its places have no name in the file
            continue
        for value, side in _sides(node):
            named.setdefault(value, []).append(f"{weight}:{side}")
    order = {node: number for number, node in enumerate(graph.nodes)}
    activations = {node: tuple(named[node]) for node in sorted(named, key=lambda node: order[node])}
    return Points(tuple((node, WEIGHT_AXIS[_operator(node)]) for node in layers), activations)


def _sides(layer: fx.Node) -> Iterator[tuple[fx.Node, str]]:
    source = layer.args[0]
    while isinstance(source, fx.Node) and _operator(source) in SAME_VALUES:
        source = source.args[0]
    if isinstance(source, fx.Node):
        yield source, "input"
    output, side = layer, "output"
    if (folded := _only_user(output, NORMALIZATIONS)) is not None:
        output = folded
    if (activated := _only_user(output, CLIPPING)) is not None:
        output, side = activated, "activated"
    yield output, side


def _only_user(node: fx.Node, operators: set[str]) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and _operator(users[0]) in operators else None


def _operator(node: fx.Node) -> str:
    """Return an ATen operator's name without its namespace and overload; empty for anything else."""
    parts = str(node.target).split(".")
    return parts[1] if node.op == "call_function" and parts[0] == "aten" and len(parts) > 1 else ""
