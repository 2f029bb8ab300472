"""How the student does on the batches that it learns from, and how near it is to its teacher there.

Summed up on the device, without waiting for it. The definitions are ``kdexport.evaluate``'s, which scores whole splits.
Long epochs are looked at in part: the figures are there to be watched, and are not to cost anything.
"""

from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from kdexport.distill.objective import LabelKind
from kdexport.sources.samples import UNLABELLED

BATCHES_LOOKED_AT = 64  # of an epoch, at least (where it has as many), evenly spread
ADD_UP_AT = 16  # batches: each operation costs as much as a small layer, so many are looked at in one go


class Seen(NamedTuple):
    """What one part of a batch showed."""

    logits: Tensor  # [samples, classes], detached
    teacher_logits: Tensor | None
    labels: Tensor | None


class Closeness:
    """Sums over an epoch.

    Args:
        device: Where they are kept.
        per_epoch: Batches of an epoch.
        label_kind: ``Objective.label_kind``; mixed samples have no class to be right about.
    """

    def __init__(self, device: torch.device, per_epoch: int, label_kind: LabelKind) -> None:
        self._stride = max(1, per_epoch // BATCHES_LOOKED_AT)
        self._kind = label_kind
        self._device = device
        self.clear()

    def clear(self) -> None:
        """Begin an epoch."""
        self._teacher = False
        self._waiting: list[Seen] = []
        # samples, decided, right, teacher right, agreed, KL, and three sums of products for the correlation
        self._sums = torch.zeros(9, dtype=sums_dtype(self._device), device=self._device)

    def looks_at(self, step: int) -> bool:
        """Whether the batch of a step is to be counted."""
        return step % self._stride == 0

    def count(self, seen: Seen) -> None:
        """Add some samples."""
        self._waiting.append(seen)
        if len(self._waiting) >= ADD_UP_AT:
            self._add_up()

    def _add_up(self) -> None:
        if not self._waiting:
            return
        logits, teacher_logits, labels = zip(*self._waiting, strict=True)
        seen = Seen(torch.cat(logits), _joined(teacher_logits), _joined(labels))
        self._waiting = []
        student = seen.logits.float()
        none = student.new_zeros(())
        decided, right = self._right(student, seen.labels)
        values = [none + len(student), decided, right, none, none, none, none, none, none]
        if seen.teacher_logits is not None:
            self._teacher = True
            teacher = seen.teacher_logits.float()
            values[3] = self._right(teacher, seen.labels)[1]
            values[4] = (student.argmax(1) == teacher.argmax(1)).sum()
            ours, theirs = student.log_softmax(1), teacher.log_softmax(1)
            values[5] = (theirs.exp() * (theirs - ours)).sum()
            centred, teachers = student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True)
            values[6:] = [(centred * teachers).sum(), (centred**2).sum(), (teachers**2).sum()]
        self._sums += torch.stack([value.to(self._sums.dtype) for value in values])

    def means(self, accelerator: Accelerator) -> dict[str, float | None]:
        """Return the epoch's figures over all processes; None for what is not known."""
        self._add_up()
        sums = accelerator.reduce(self._sums, "sum").tolist()
        samples, decided, right, teacher_right, agreed, kl, product, ours, theirs = sums
        taught = self._teacher and samples > 0
        return {
            "train_accuracy": right / decided if decided else None,
            "train_teacher_accuracy": teacher_right / decided if decided and taught else None,
            "train_top1_agreement": agreed / samples if taught else None,
            "train_kl": max(kl / samples, 0.0) if taught else None,
            "train_logit_correlation": product / (ours * theirs) ** 0.5 if taught and ours * theirs > 0 else None,
        }

    def state(self) -> dict[str, Any]:
        """Return the sums in a form that a checkpoint may hold."""
        self._add_up()
        return {"teacher": self._teacher, "sums": self._sums}

    def load(self, state: dict[str, Any]) -> None:
        """Take a state back."""
        self._waiting = []
        self._teacher, self._sums = state["teacher"], state["sums"].to(self._device)

    def _right(self, logits: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return how many decisions labels tell of, and how many of them were right."""
        if labels is None or self._kind == "soft":
            return logits.new_zeros(()), logits.new_zeros(())
        if self._kind == "multi_label":
            right = (logits > 0) == (labels > 0.5)
            return logits.new_zeros(()) + right.numel(), right.sum()
        known = labels != UNLABELLED
        return known.sum(), ((logits.argmax(1) == labels) & known).sum()


def _joined(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None


def sums_dtype(device: torch.device) -> torch.dtype:
    """Return what sums are kept in: double, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
