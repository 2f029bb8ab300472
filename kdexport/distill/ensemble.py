"""Several teachers that speak as one: each sees the raw inputs through its own preprocessing."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdexport.distill.inference import at_once
from kdexport.evaluate import agreement
from kdexport.results import TeacherVote
from kdexport.sources.preprocessing import Preprocessing, as_tensor
from kdexport.sources.samples import Split


class Ensemble(nn.Module):
    """A weighted mean of its members' logits.

    Each row of logits is first brought to mean 0, for a softmax does not see the constants that members differ by. With
    ``"average"`` the shares are the weights. With ``"confidence"`` they are the weights times exp(-entropy) of the
    member's own prediction, sample by sample, so that a member which is lost on a sample says little of it: Kwon et al.
    2020, "Adaptive Knowledge Distillation Based on Entropy", with the entropy in place of labels.

    Args:
        members: Networks with their preprocessing.
        weights: One per member, above 0.
        combine: ``"average"`` or ``"confidence"``.
    """

    def __init__(
        self,
        members: Sequence[tuple[nn.Module, Preprocessing]],
        weights: Sequence[float],
        combine: Literal["average", "confidence"],
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(network for network, _ in members)
        self._preprocessings = [preprocessing for _, preprocessing in members]
        self._weights = [weight / sum(weights) for weight in weights]
        self._combine = combine

    def each(self, *inputs: Tensor) -> list[Tensor]:
        """Return every member's logits [batch, classes] for raw inputs."""
        pairs = zip(self.members, self._preprocessings, strict=True)
        return [member(*preprocessing.apply(inputs)).float() for member, preprocessing in pairs]

    def together(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the members' logits combined, [batch, classes]."""
        stacked = torch.stack([rows - rows.mean(dim=1, keepdim=True) for rows in logits])  # [members, batch, classes]
        shares = torch.tensor(self._weights, device=stacked.device).view(-1, 1, 1).expand(-1, stacked.shape[1], 1)
        if self._combine == "confidence":
            logs = F.log_softmax(stacked, dim=2)
            shares = shares * (logs.exp() * logs).sum(dim=2, keepdim=True).exp()
            shares = shares / shares.sum(dim=0)
        return (shares * stacked).sum(dim=0)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the combined logits [batch, classes] for raw inputs."""
        return self.together(self.each(*inputs))

    def votes(self, split: Split, device: torch.device) -> tuple[TeacherVote, ...]:
        """Return how good each member is on a split, and how near to what all say together."""
        parts = []
        with torch.no_grad():
            for batch in split.batches(at_once(split, device)):
                logits = self.each(*(as_tensor(array).to(device) for array in batch.inputs))
                parts.append([rows.cpu().numpy() for rows in (*logits, self.together(logits))])
        *members, together = (np.concatenate(rows) for rows in zip(*parts, strict=True))
        return tuple(
            TeacherVote(
                name="teacher" if number == 0 else f"teacher-{number + 1}",
                weight=self._weights[number],
                val_accuracy=_accuracy(logits, split),
                agreement=agreement(together, logits),
            )
            for number, logits in enumerate(members)
        )


def _accuracy(logits: np.ndarray, split: Split) -> float | None:
    if split.labels is None:
        return None
    right = (logits > 0) == (split.labels > 0.5) if split.multi_label else logits.argmax(axis=1) == split.labels
    return float(np.mean(right))
