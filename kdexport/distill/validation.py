"""What a network scores on the validation split after each epoch, and how near it is to the teacher."""

import numpy as np
import torch
from torch import nn

from kdexport.evaluate import agreement
from kdexport.sources.preprocessing import Preprocessing
from kdexport.sources.samples import Split

BATCH = 512


class Validation:
    """Scores a network on one split.

    Args:
        split: The samples; without labels only the teacher's agreement can be told.
        preprocessing: The network's own.
        device: Where it runs.
        teacher_logits: The teacher's on the same samples [samples, classes], or None without a teacher.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        device: torch.device,
        teacher_logits: np.ndarray | None = None,
    ) -> None:
        self._split = split
        self._preprocessing, self._device = preprocessing, device
        self._teacher_logits = teacher_logits

    def logits(self, network: nn.Module) -> np.ndarray:
        """Return float32 logits [samples, classes]; the network is left in the mode it was in."""
        return predict_all(network, self._preprocessing, self._split, self._device)

    def score(self, network: nn.Module) -> dict[str, float | None]:
        """Return the network's and the teacher's accuracy, and how near the one is to the other."""
        logits = self.logits(network)
        near = None if self._teacher_logits is None else agreement(self._teacher_logits, logits)
        return {
            "val_accuracy": self._accuracy(logits),
            "val_teacher_accuracy": None if self._teacher_logits is None else self._accuracy(self._teacher_logits),
            "top1_agreement": None if near is None else near.top1,
            "val_kl": None if near is None else near.kl,
            "val_logit_correlation": None if near is None else near.logit_correlation,
        }

    def _accuracy(self, logits: np.ndarray) -> float | None:
        if self._split.labels is None:
            return None
        if self._split.multi_label:  # each class is a decision of its own, as in evaluate
            return float(np.mean((logits > 0) == (np.asarray(self._split.labels) > 0.5)))
        return float(np.mean(logits.argmax(axis=1) == self._split.labels))


def predict_all(network: nn.Module, preprocessing: Preprocessing, split: Split, device: torch.device) -> np.ndarray:
    """Return float32 logits [samples, classes] of a whole split, in evaluation mode and without gradients."""
    mode = network.training
    network.eval()
    parts = []
    with torch.no_grad():
        for batch in split.batches(BATCH):
            inputs = tuple(tensor.to(device) for tensor in preprocessing.apply(batch.inputs))
            parts.append(network(*inputs).float().cpu().numpy())
    network.train(mode)
    return np.concatenate(parts)
