"""Which layers' outputs are still weighed on their way to a network's output: its features, and not its logits.

Read off autograd's graph, so that it holds for networks however they are written: of several heads those that are not
scored are on no way to the output, and what is added to the logits or only resized is logits itself.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def weighed_later(output: Tensor, made_by: Mapping[str, Any]) -> frozenset[str]:
    """Return the layers from which every way to the output leads through a matrix of weights, and there is a way.

    Args:
        output: Of a forward pass with gradients, ``weighable``.
        made_by: Layer -> the node of autograd's graph (``grad_fn``) that its output had when it was made.
    """
    before: set[Any] = set()  # nodes on a way that leads through weights
    beside: set[Any] = set()  # nodes on a way that does not
    todo = [(output.grad_fn, False)]
    while todo:
        node, weighed = todo.pop()
        found = before if weighed else beside
        if node is None or node in found:
            continue
        found.add(node)
        further = weighed or _weighs(node)
        todo += [(next_node, further) for next_node, _ in node.next_functions]
    return frozenset(layer for layer, node in made_by.items() if node in before and node not in beside)


def weighable(network: nn.Module, call: Any) -> Any:
    """Return ``call()`` with autograd's graph behind it, every weight a leaf of it; nothing is kept for a backward
    pass, and gradients are asked for afterwards as before.
    """
    nothing = torch.empty(0)
    asked = {parameter: parameter.requires_grad for parameter in network.parameters()}
    try:
        for parameter in asked:
            parameter.requires_grad_(parameter.is_floating_point())
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda _: nothing, lambda _: nothing):
            return call()
    finally:
        for parameter, wanted in asked.items():
            parameter.requires_grad_(wanted)


def _weighs(node: Any) -> bool:
    """Whether a node multiplies by a matrix of weights: not by a batch normalization's factors, a bias or a scale."""
    for child, _ in node.next_functions:
        if type(child).__name__ in ("TBackward0", "PermuteBackward0", "TransposeBackward0"):  # a linear layer's
            child = child.next_functions[0][0]
        variable = getattr(child, "variable", None)
        if variable is not None and variable.ndim >= 2 and variable.numel() > max(variable.shape):
            return True
    return False
