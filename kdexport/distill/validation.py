"""What a network scores on a split, and how near it is to the teacher: validation after each epoch, test at the end."""

from typing import Any

import numpy as np
import torch
from torch import nn

from kdexport.distill.inference import at_once, predict_all
from kdexport.distill.objective import LabelKind, Objective
from kdexport.distill.teacher import ListenedTeacher
from kdexport.evaluate import agreement
from kdexport.sources.preprocessing import Preprocessing, as_tensor
from kdexport.sources.samples import Split


class Validation:
    """Scores a network on one split.

    Args:
        split: The samples; without labels only the teacher's agreement can be told.
        preprocessing: The network's own.
        device: Where it runs.
        teacher_logits: The teacher's on the same samples [samples, classes], or None without a teacher.
        objective: What the network minimizes: its terms are told; None tells none.
        name: What the split is called in the log.
        listened: Whose layers the objective compares with the network's, and the taps on both; None where it compares
            none.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        device: torch.device,
        teacher_logits: np.ndarray | None = None,
        objective: Objective | None = None,
        name: str = "val",
        listened: ListenedTeacher | None = None,
    ) -> None:
        self._split, self._name = split, name
        self._preprocessing, self._device = preprocessing, device
        self._teacher_logits = teacher_logits
        kind: LabelKind = "multi_label" if split.multi_label else "class"
        self._listened = listened
        self._objective = None if objective is None else objective.elsewhere(kind, features=listened is not None)

    def logits(self, network: nn.Module) -> np.ndarray:
        """Return float32 logits [samples, classes]; the network is left in the mode it was in."""
        return predict_all(network, self._preprocessing, self._split, self._device)

    def score(self, network: nn.Module) -> dict[str, Any]:
        """Return the loss's terms, the network's and the teacher's accuracy, and how near the one is to the other.

        The names are the epoch log's, with the split's in front: ``val_accuracy``. ``top1_agreement`` alone is
        validation's.
        """
        logits = self.logits(network)
        near = None if self._teacher_logits is None else agreement(self._teacher_logits, logits)
        name = self._name
        return {
            f"{name}_terms": self._terms(network, logits),
            f"{name}_accuracy": self._accuracy(logits),
            f"{name}_teacher_accuracy": None if self._teacher_logits is None else self._accuracy(self._teacher_logits),
            "top1_agreement" if name == "val" else f"{name}_top1_agreement": None if near is None else near.top1,
            f"{name}_kl": None if near is None else near.kl,
            f"{name}_logit_correlation": None if near is None else near.logit_correlation,
        }

    def _accuracy(self, logits: np.ndarray) -> float | None:
        if self._split.labels is None:
            return None
        if self._split.multi_label:  # each class is a decision of its own, as in evaluate
            return float(np.mean((logits > 0) == (np.asarray(self._split.labels) > 0.5)))
        return float(np.mean(logits.argmax(axis=1) == self._split.labels))

    def _terms(self, network: nn.Module, logits: np.ndarray) -> dict[str, float]:
        """Return each term before its weight, the mean over samples; none where labels are needed and missing."""
        objective, labels, teacher = self._objective, self._split.labels, self._teacher_logits
        if objective is None or (objective.needs_labels and labels is None):
            return {}
        sums: dict[str, float] = {}
        size = at_once(self._split, self._device)
        for start in range(0, len(logits), size):
            rows = slice(start, start + size)
            _, parts = objective(
                torch.from_numpy(logits[rows]).to(self._device),
                None if labels is None else torch.from_numpy(np.asarray(labels)[rows]).to(self._device),
                None if teacher is None else torch.from_numpy(teacher[rows]).to(self._device),
                progress_of_training=1.0,
                features=self._features(network, rows) if objective.needs_features else None,
            )
            for part, value in parts.items():
                sums[part] = sums.get(part, 0.0) + float(value) * len(logits[rows])
        return {part: value / len(logits) for part, value in sums.items()}

    @torch.no_grad()
    def _features(self, network: nn.Module, rows: slice) -> dict[str, tuple[Any, ...]] | None:
        """Return what the objective's terms compare, for some of the samples; both networks run again for it."""
        if self._listened is None:
            return None
        raw = self._split.take(rows).inputs
        inputs = tuple(as_tensor(array).to(self._device) for array in raw)
        mode = network.training
        network.eval()
        with self._listened.taps.student(network):
            network(*self._preprocessing.apply(inputs))
        network.train(mode)
        self._listened.listen(inputs)
        return self._listened.taps.features_elsewhere()
