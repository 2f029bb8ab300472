"""What learns beside an embedding network and is left out of its file: identities' vectors, projections of outputs.

They are to a network's output what ``features`` is to its layers: a checkpoint holds them, ``student.safetensors`` and
the ONNX file do not.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdexport.distill.losses.checks import at_least_fp32
from kdexport.distill.losses.identities import arcface, identity_cross_entropy
from kdexport.tasks.classification import UNLABELLED


class IdentityHead(nn.Module):
    """A vector for each training identity, by which a network's embedding learns them.

    Args:
        kind: ``"cross_entropy"`` or ``"arcface"``.
        identities: Those of the training split, in order, int64.
        width: Of the embedding.
        options: Of the loss: ``margin`` and ``scale`` of arcface.
    """

    classes: Tensor

    def __init__(self, kind: str, identities: Tensor, width: int, **options: float) -> None:
        super().__init__()
        self.kind, self._options = kind, options
        self.register_buffer("classes", identities)
        self.weight = nn.Parameter(torch.empty(len(identities), width))
        self.bias = nn.Parameter(torch.zeros(len(identities))) if kind == "cross_entropy" else None
        nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, outputs: Tensor, labels: Tensor, *, smoothing: float, labelled: Tensor | None) -> Tensor:
        """Return the labels' loss, a scalar; arguments as ``Task.label_loss``."""
        places = torch.searchsorted(self.classes, labels.clamp(min=0))
        places = torch.where(labels == UNLABELLED, labels, places)
        if self.bias is None:
            return arcface(outputs, self.weight, places, smoothing=smoothing, labelled=labelled, **self._options)
        return identity_cross_entropy(outputs, self.weight, self.bias, places, smoothing=smoothing, labelled=labelled)


class Heads(nn.Module):
    """All that learns beside one network, on its output.

    Args:
        label: The labels' head, or None where they need none.
        projected: Names of the terms whose student side is projected.
        widths: Of the student's output and of the teacher's.
    """

    def __init__(
        self, label: nn.Module | None, projected: Sequence[str] = (), widths: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__()
        self.label = label
        self.projections = nn.ModuleDict({_key(name): nn.Linear(*widths) for name in projected})

    def label_loss(self, outputs: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """Return the labels' loss, a scalar."""
        if self.label is None:
            raise ValueError("there is no head for labels")
        loss: Tensor = self.label(outputs, labels, **options)
        return loss

    def project(self, name: str, outputs: Tensor) -> Tensor:
        """Return a term's student side: projected to the teacher's width where it is to be."""
        if _key(name) not in self.projections:
            return outputs
        with torch.autocast(outputs.device.type, enabled=False):
            found: Tensor = self.projections[_key(name)](at_least_fp32(outputs))
        return found


def _key(name: str) -> str:
    """Return a term's name as a module's: without dots."""
    return name.replace(".", "_")
