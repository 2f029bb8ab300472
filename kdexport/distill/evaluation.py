"""What a network scores on a split, and how near it is to the teacher: validation after each epoch, test at the end."""

from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from kdexport.data.samples import Split
from kdexport.distill.batches import at_once, even_parts, predict_all
from kdexport.distill.heads import Heads
from kdexport.distill.losses.maps import on_grid
from kdexport.distill.objective import Objective
from kdexport.distill.teacher import OnlineTeacher
from kdexport.models.loading import evaluating
from kdexport.models.preprocessing import Preprocessing, as_tensor
from kdexport.tasks.base import Task


class Validation:
    """Scores a network on one split.

    Args:
        split: The samples; without labels only the teacher's agreement can be told.
        preprocessing: The network's own.
        device: Where it runs.
        teacher_logits: The teacher's on the same samples [samples, classes], or None without a teacher.
        objective: What the network minimizes: its terms are told; None tells none.
        name: What the split is called in the log.
        online: The teacher whose layers the objective compares with the network's, with the hooks on both; None where
            it compares none.
        heads: What learns beside the network on its output; None where nothing does.
        teacher_calibration: The teacher's outputs on ``split.calibration``, where there is one.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        device: torch.device,
        teacher_logits: np.ndarray | None = None,
        objective: Objective | None = None,
        name: str = "val",
        online: OnlineTeacher | None = None,
        heads: Heads | None = None,
        teacher_calibration: np.ndarray | None = None,
    ) -> None:
        self._split, self.name = split, name
        self._preprocessing, self._device = preprocessing, device
        self._teacher_logits = teacher_logits
        self._online, self._heads = online, heads
        self._teacher_calibration = teacher_calibration
        self._objective = objective and objective.for_validation(samples=len(split), features=online is not None)

    @property
    def split(self) -> Split:
        """The samples."""
        return self._split

    @property
    def teacher_logits(self) -> np.ndarray | None:
        """The teacher's, float32 [samples, classes]; None without a teacher."""
        return self._teacher_logits

    def logits(self, network: nn.Module) -> np.ndarray:
        """Return float32 logits [samples, classes]; the network is left in the mode it was in."""
        return predict_all(network, self._preprocessing, self._split, self._device)

    def score(self, network: nn.Module) -> dict[str, Any]:
        """Return the loss's terms, the network's and the teacher's score, and how near the one is to the other.

        The names are the epoch log's, with the split's in front: ``val_score``, and ``val_accuracy`` where that is the
        task's score. ``top1_agreement`` alone is validation's.
        """
        logits = self.logits(network)
        near = None if self._teacher_logits is None else self._split.task.agreement(self._teacher_logits, logits)
        name, metric = self.name, self._split.task.metric
        calibration = self._split.calibration
        fitted_on = None
        if calibration is not None:
            fitted_on = predict_all(network, self._preprocessing, calibration, self._device)
        scores = {"": self.value(logits, fitted_on), "teacher_": self.teacher_value()}
        return {
            f"{name}_terms": self._terms(network, logits),
            **{f"{name}_{whose}score": value for whose, value in scores.items()},
            **({f"{name}_{whose}{metric}": value for whose, value in scores.items()} if metric == "accuracy" else {}),
            "top1_agreement" if name == "val" else f"{name}_top1_agreement": None if near is None else near.top1,
            f"{name}_kl": None if near is None else near.kl,
            f"{name}_logit_correlation": None if near is None else near.logit_correlation,
        }

    def value(self, outputs: np.ndarray, fitted_on: np.ndarray | None = None) -> float | None:
        """Return the task's score; None without labels. ``fitted_on``: the outputs on ``split.calibration``."""
        if self._split.labels is None:
            return None
        task, calibration = self._split.task, self._split.calibration
        if fitted_on is not None and calibration is not None:
            task = task.calibrated(fitted_on, np.asarray(calibration.labels))
        return task.score(outputs, np.asarray(self._split.labels))

    def teacher_value(self) -> float | None:
        """Return the teacher's score; None without a teacher."""
        if self._teacher_logits is None:
            return None
        return self.value(self._teacher_logits, self._teacher_calibration)

    def _terms(self, network: nn.Module, logits: np.ndarray) -> dict[str, float]:
        """Return each term before its weight, the mean over samples; none where labels are needed and missing."""
        objective, labels, teacher = self._objective, self._split.labels, self._teacher_logits
        if objective is None or (objective.needs_labels and labels is None):
            return {}
        task = self._split.task
        logits, labels = task.compared(logits, None if labels is None else np.asarray(labels))
        teacher = None if teacher is None else task.compared(teacher)[0]
        sums: dict[str, float] = {}
        for part in even_parts(np.arange(len(logits)), max(2, at_once(self._split, self._device))):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            _, parts = objective(
                torch.from_numpy(logits[rows]).to(self._device),
                None if labels is None else torch.from_numpy(labels[rows]).to(self._device),
                None if teacher is None else torch.from_numpy(teacher[rows]).to(self._device),
                progress_of_training=1.0,
                features=self._features(network, rows) if objective.needs_features else None,
                heads=self._heads,
            )
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(part)
        return {name: value / len(logits) for name, value in sums.items()}

    @torch.no_grad()
    def _features(self, network: nn.Module, rows: slice) -> dict[str, tuple[Any, ...]] | None:
        """Return what the objective's terms compare, for some of the samples; both networks run again for it."""
        hooks = None if self._online is None else self._online.hooks
        if self._online is None or hooks is None:
            return None
        raw = self._split.take(rows).inputs
        inputs = tuple(as_tensor(array).to(self._device) for array in raw)
        with evaluating(network), hooks.student(network):
            network(*self._preprocessing.apply(inputs))
        self._online.capture(inputs)
        return hooks.features_elsewhere()


BATCHES_LOOKED_AT = 64  # of an epoch, at least (where it has as many), evenly spread
ADD_UP_AT = 16  # batches: each operation costs as much as a small layer, so many are looked at in one go


class Seen(NamedTuple):
    """What one part of a batch showed."""

    logits: Tensor  # [samples, classes], detached
    teacher_logits: Tensor | None
    labels: Tensor | None


class BatchAgreement:
    """Sums over an epoch.

    Args:
        device: Where they are kept.
        per_epoch: Batches of an epoch.
        task: Says which decisions are right, and in how many the teacher is followed.
        mixed: Whether samples are mixed, so that there is nothing to be right about.
    """

    def __init__(self, device: torch.device, per_epoch: int, task: Task, *, mixed: bool = False) -> None:
        self._stride = max(1, per_epoch // BATCHES_LOOKED_AT)
        self._task, self._mixed = task, mixed
        self._device = device
        self.clear()

    def clear(self) -> None:
        """Begin an epoch."""
        self._teacher = False
        self._waiting: list[Seen] = []
        # samples, decided, right, teacher right, compared, agreed, KL, three sums of products for the correlation
        self._sums = torch.zeros(10, dtype=sums_dtype(self._device), device=self._device)

    def looks_at(self, step: int) -> bool:
        """Whether the batch of a step is to be counted."""
        return step % self._stride == 0

    def count(self, seen: Seen) -> None:
        """Add some samples; of maps whose teacher was kept at a grid of pixels, that grid."""
        teacher = seen.teacher_logits
        if teacher is not None and teacher.ndim == 4:
            labels = None if seen.labels is None else on_grid(seen.labels, *teacher.shape[2:])
            seen = Seen(on_grid(seen.logits, *teacher.shape[2:]), teacher, labels)
        self._waiting.append(seen)
        if len(self._waiting) >= ADD_UP_AT or seen.logits.ndim > 2:  # maps are too large to wait
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
        values = [none + len(student), decided, right, *[none] * 7]
        if seen.teacher_logits is not None:
            self._teacher = True
            teacher = seen.teacher_logits.float()
            values[3] = self._right(teacher, seen.labels)[1]
            values[4:7] = self._task.batch_agreement(student, teacher) or (none, none, none)
            if not self._task.embeds:  # two embeddings may be of other widths, and of other axes
                centred, teachers = self._task.centred(student), self._task.centred(teacher)
                values[7:] = [(centred * teachers).sum(), (centred**2).sum(), (teachers**2).sum()]
        self._sums += torch.stack([value.to(self._sums.dtype) for value in values])

    def means(self, accelerator: Accelerator) -> dict[str, float | None]:
        """Return the epoch's figures over all processes; None for what is not known."""
        self._add_up()
        sums = accelerator.reduce(self._sums, "sum").tolist()
        samples, decided, right, teacher_right, compared, agreed, kl, product, ours, theirs = sums
        taught = self._teacher and samples > 0
        return {
            "train_accuracy": right / decided if decided else None,
            "train_teacher_accuracy": teacher_right / decided if decided and taught else None,
            "train_top1_agreement": agreed / compared if compared else None,
            "train_kl": max(kl / samples, 0.0) if compared else None,
            "train_logit_correlation": product / (ours * theirs) ** 0.5 if taught and ours * theirs > 0 else None,
        }

    def state(self) -> dict[str, Any]:
        """Return it in a form that a checkpoint may hold.

        What waits stays so: added up now it would be added up in other parts than undisturbed, and differ in the last
        bits. At an epoch's end nothing waits.
        """
        waiting = [tuple(part if part is None else part.cpu().clone() for part in seen) for seen in self._waiting]
        return {"teacher": self._teacher, "sums": self._sums, "waiting": waiting}

    def load(self, state: dict[str, Any]) -> None:
        """Take a state back."""
        self._waiting = []
        for logits, *others in state["waiting"]:
            teacher, labels = (part if part is None else part.to(self._device) for part in others)
            self._waiting.append(Seen(logits.to(self._device), teacher, labels))
        self._teacher, self._sums = state["teacher"], state["sums"].to(self._device)

    def _right(self, logits: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return how many decisions labels tell of, and how many of them were right."""
        if labels is None or self._mixed:
            return logits.new_zeros(()), logits.new_zeros(())
        return self._task.right_in_batch(logits, labels)


def _joined(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None


def sums_dtype(device: torch.device) -> torch.dtype:
    """Return what sums are kept in: double, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
