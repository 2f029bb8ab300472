"""Where int8 rounds in a captured network: each layer's weight, input and output, as the exporter's quantizer does.

A place is named by the weight of its layer, which has the same name in the state dict and in the ONNX file:
``conv1.weight:input``, ``conv1.weight:output`` (behind the batch normalization that export folds) and
``conv1.weight:activated`` (behind the ReLU too, where nothing else reads the layer's output).
Sums and products between layers are not rounded here unless a layer reads them: export calibrates those.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

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


LEVELS = 255  # steps between the 256 values of an unsigned byte


def rounded_weight(weight: Tensor, axis: int, bits: int) -> Tensor:
    """Return a weight rounded to ``bits`` bits per output channel; the gradient passes straight through.

    Args:
        weight: Any shape.
        axis: That of the output channels.
        bits: ``export.weight_bits``. 8 are -127 to 127, fewer are symmetric about 0 too: 7 are -64 to 64.
    """
    half = 127 if bits == 8 else 2 ** (bits - 1)
    others = [dim for dim in range(weight.ndim) if dim != axis]
    scale = weight.detach().abs().amax(dim=others).float() / half
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -half, half)


def rounded_activation(value: Tensor, bounds: Tensor) -> Tensor:
    """Return an activation clipped to a range and rounded to one of its 256 values.

    The gradient for the value passes straight through inside the range. Those for the bounds are LSQ's (Esser 2020,
    "Learned Step Size Quantization", equations 3 and 4), written for both ends of a range: what is clipped pulls its
    end outward or inward, what is inside weighs its rounding error.

    Args:
        value: Any shape.
        bounds: The range's ends [2], the first not above 0, the second not below.
    """
    return _RoundedActivation.apply(value, bounds)  # type: ignore[no-any-return]


def scale_and_zero(bounds: Tensor) -> tuple[Tensor, Tensor]:
    """Return the float32 scale and the int32 zero point of a range, computed as onnxruntime does from the same ends."""
    low, high = bounds.detach().double()
    scale = (high - low) / LEVELS
    empty = scale < torch.finfo(torch.float32).tiny  # nothing is looked at on the host: a look waits for the device
    zero = torch.where(empty, 0.0, torch.round(-low / scale))
    return torch.where(empty, 1.0, scale).float(), zero.to(torch.int32)


class _RoundedActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, bounds: Tensor) -> Tensor:
        scale, zero = scale_and_zero(bounds)
        ctx.save_for_backward(value, scale, zero)
        return torch.fake_quantize_per_tensor_affine(value, scale, zero, 0, LEVELS)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        value, scale, zero = ctx.saved_tensors
        # Made again, not saved: the network may change what it was given in place.
        rounded = torch.fake_quantize_per_tensor_affine(value, scale, zero, 0, LEVELS)
        below = value < -zero * scale - scale / 2
        above = value > (LEVELS - zero) * scale + scale / 2
        inside = ~(below | above)
        passed = gradient * inside
        step = (passed * (rounded - value)).sum() / (scale * LEVELS)  # by the scale, which both ends move
        ends = torch.stack([(gradient * below).sum() - step, (gradient * above).sum() + step])
        return passed, ends / (value.numel() * LEVELS) ** 0.5  # LSQ's share, so that a large tensor doesn't shout
