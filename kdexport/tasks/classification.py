"""One class a sample: accuracy, macro-F1, every class, and what is taken for what.

``doubt_of`` says whether a given model can have been meant for these data: what its answers say before anything learns
from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdexport.errors import KDExportError, SourceError
from kdexport.results import Agreement, ClassScore, Evaluation
from kdexport.statistics import wilson
from kdexport.tasks.base import Activation, Array, Task

if TYPE_CHECKING:
    from torch import Tensor


FEWEST = 20  # samples; fewer say nothing
PERMUTED = 0.6  # of the samples are right once the classes are renamed: as good as none are wrong
SHOWN = 5


def doubt_of(targets: Array, outputs: Array, names: Sequence[str]) -> str | None:
    """Return what is wrong with a classifier's answers as a whole, or None.

    Two things are looked for. A confusion matrix that is nearly a permutation: the model is good, and its classes come
    in another order. An accuracy that is not above the commonest class's share by its 95 % interval: it guesses.

    Args:
        targets: Class ids int64 ``[samples]``; of several labels a sample nothing is said.
        outputs: Logits ``[samples, classes]``.
        names: Of the classes.
    """
    if targets.ndim != 1 or outputs.ndim != 2:
        return None
    known = targets != UNLABELLED
    targets, predicted = targets[known].astype(np.int64), outputs[known].argmax(axis=1)
    samples, classes = len(targets), len(names)
    if samples < FEWEST:
        return None
    counts = np.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    right = int(np.trace(counts))
    renamed = _best_renaming(counts)
    matched = int(sum(counts[true, said] for true, said in renamed.items()))
    if matched / samples >= PERMUTED and wilson(matched, samples)[0] > wilson(right, samples)[1]:
        pairs = [f"{names[true]} -> {names[said]}" for true, said in sorted(renamed.items()) if true != said]
        return (
            f"its classes are in another order than the data's: {right / samples:.1%} of {samples} samples are right, "
            f"{matched / samples:.1%} would be with the classes renamed ({', '.join(pairs[:SHOWN])}"
            f"{', ...' if len(pairs) > SHOWN else ''}); list the data's classes in the order it was trained with"
        )
    commonest = int(counts.sum(axis=1).max())
    if wilson(right, samples)[0] <= commonest / samples:
        return (
            f"it does not classify these data: {right / samples:.1%} of {samples} samples are right, and always saying "
            f"'{names[int(counts.sum(axis=1).argmax())]}' gives {commonest / samples:.1%}; "
            "check its weights, its preprocessing and the order of its classes"
        )
    return None


def _best_renaming(counts: Array) -> dict[int, int]:
    """Return true class -> predicted class, each once, largest counts first; classes without samples are left out."""
    found: dict[int, int] = {}
    taken: set[int] = set()
    rows, columns = np.nonzero(counts)
    for place in np.argsort(-counts[rows, columns], kind="stable"):
        true, said = int(rows[place]), int(columns[place])
        if true not in found and said not in taken:
            found[true] = said
            taken.add(said)
    return found


UNLABELLED = -1  # as a target: the sample has none
MAX_CONFUSION_CLASSES = 100  # beyond that the matrix is larger than all else in report.json


class Classification(Task):
    """Targets are class ids int64 ``[samples]``, outputs logits ``[batch, classes]``."""

    name = "classification"
    metric = "accuracy"
    label = "accuracy"
    activation: ClassVar[Activation] = "softmax"
    label_losses = ("cross_entropy",)
    mixes = True
    relative_outputs = True
    other_metrics: ClassVar[dict[str, str]] = {"macro_f1": "macro-F1"}
    charts = ("classes", "confusions")

    def fits(self, targets: Array) -> bool:
        """Whether targets are whole numbers, one a sample."""
        return targets.ndim == 1 and targets.dtype.kind in "iub"

    def check_targets(self, targets: Array, names: Sequence[str], where: str) -> None:
        """Hold that every target is a class."""
        if len(targets) and (targets.min() < 0 or targets.max() >= len(names)):
            wrong = int(targets.min()) if targets.min() < 0 else int(targets.max())
            raise SourceError(
                f"{where}: the label {wrong} is out of range for {len(names)} classes",
                hint=f"labels count from 0 to {len(names) - 1}",
            )

    def check_training(self, targets: Array, name: str) -> None:
        """Hold that there are two classes or more."""
        if len(np.unique(targets)) < 2:
            raise SourceError(
                f"{name}: the training samples are all of one class", hint="give samples of at least two classes"
            )

    def label_loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        *,
        kind: str | None = None,  # noqa: ARG002 - there is one
        smoothing: float = 0.0,
        labelled: Tensor | None = None,
        mixed: bool = False,
    ) -> Tensor:
        """Return the cross-entropy: with class ids the mean over labelled samples, of which a batch may hold none."""
        import torch.nn.functional as F

        if mixed:
            return F.cross_entropy(outputs, targets.to(outputs.dtype), label_smoothing=smoothing)
        check_class_ids(targets, outputs, "the labels' loss")
        if labelled is None:
            labelled = (targets != UNLABELLED).sum().clamp(min=1)
        total = F.cross_entropy(outputs, targets, label_smoothing=smoothing, ignore_index=UNLABELLED, reduction="sum")
        return total / labelled

    def count_labelled(self, targets: Tensor) -> Tensor | None:
        """Return how many samples have a label; None where samples are mixed."""
        return (targets != UNLABELLED).sum().clamp(min=1) if targets.ndim == 1 else None

    def right_in_batch(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many samples are labelled and how many of them are right."""
        known = targets != UNLABELLED
        return known.sum(), ((outputs.argmax(1) == targets) & known).sum()

    def batch_agreement(self, outputs: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Count samples with the teacher's class; KL(teacher || outputs) of the classes' distributions."""
        ours, theirs = outputs.log_softmax(1), teacher.log_softmax(1)
        agreed = (outputs.argmax(1) == teacher.argmax(1)).sum()
        return outputs.new_zeros(()) + len(outputs), agreed, (theirs.exp() * (theirs - ours)).sum()

    def score(self, outputs: Array, targets: Array) -> float | None:
        """Return the accuracy."""
        known = targets != UNLABELLED
        return float(np.mean((outputs.argmax(axis=1) == targets)[known])) if known.any() else None

    def evaluate(self, outputs: Array, targets: Array, names: Sequence[str], split: str) -> Evaluation:
        """Score logits; the interval is Wilson's."""
        classes = len(names)
        predicted = outputs.argmax(axis=1)
        right = predicted == targets
        confusion = np.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)
        per_class = class_scores(np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0), names)
        rows = tuple(tuple(int(cell) for cell in row) for row in confusion) if classes <= MAX_CONFUSION_CLASSES else ()
        return Evaluation(
            split=split,
            samples=len(right),
            task=self.name,
            score=self.made_score(right.mean(), wilson(int(right.sum()), len(right))),
            metrics={"macro_f1": macro_f1(per_class)},
            per_class=per_class,
            confusion=rows,
            per_sample=tuple(int(value) for value in right),
            chance=float(confusion.sum(axis=1).max() / len(right)),
        )

    def doubt(self, outputs: Array, targets: Array, names: Sequence[str]) -> str | None:
        """Say where it guesses, or where its classes come in another order; see ``doubt_of``."""
        return doubt_of(targets, outputs, names)

    def agreement(self, teacher: Array, outputs: Array) -> Agreement:
        """Return the share of samples with the teacher's class, KL(teacher || model) and the logits' correlation."""
        theirs, ours = teacher.astype(np.float64), outputs.astype(np.float64)
        theirs_log, ours_log = log_softmax(theirs), log_softmax(ours)
        kl = float(np.mean(np.sum(np.exp(theirs_log) * (theirs_log - ours_log), axis=1)))
        return Agreement(
            top1=float(np.mean(theirs.argmax(axis=1) == ours.argmax(axis=1))),
            kl=max(kl, 0.0),  # rounding can put two equal distributions a hair below 0
            logit_correlation=correlation(theirs, ours),
        )

    def no_targets(self, count: int, like: Array) -> Array:  # noqa: ARG002
        """Return ``UNLABELLED`` so many times."""
        return np.full(count, UNLABELLED, dtype=np.int64)

    def groups(self, targets: Array) -> NDArray[np.int64]:
        """Return the class ids."""
        return targets.astype(np.int64)


def check_class_ids(targets: Tensor, logits: Tensor, what: str) -> None:
    """Hold that there is one class index per sample.

    Raises:
        KDExportError: There is not.
    """
    if targets.is_floating_point() or targets.ndim != 1:
        raise KDExportError(
            f"{what} takes one class per sample, the labels are {targets.dtype} {list(targets.shape)}",
            hint="for multi-label targets use binary_soft_targets; for mixed labels use soft_targets or dist",
        )
    if targets.shape[0] != logits.shape[0]:
        raise KDExportError(
            f"{what}: there are {targets.shape[0]} labels for {logits.shape[0]} samples",
            hint="give one label per sample",
        )


def class_scores(hits: Array, actual: Array, predicted: Array, names: Sequence[str]) -> tuple[ClassScore, ...]:
    """Return each class's recall, precision and F1 from counts of samples, one entry a class."""
    return tuple(
        ClassScore(
            name=name,
            samples=int(actual[index]),
            accuracy=float(hits[index] / actual[index]) if actual[index] else 0.0,
            precision=float(hits[index] / predicted[index]) if predicted[index] else None,
            f1=float(2 * hits[index] / (actual[index] + predicted[index])) if actual[index] + predicted[index] else 0.0,
        )
        for index, name in enumerate(names)
    )


def macro_f1(scores: Sequence[ClassScore]) -> float:
    """Return the mean F1 of the classes that occur."""
    present = [score.f1 for score in scores if score.samples]
    return float(np.mean(present)) if present else 0.0


def worst_confusions(evaluation: Evaluation, count: int = 5) -> list[tuple[str, str, int]]:
    """Return the commonest mistakes as (true class, predicted class, samples), most first."""
    names = [score.name for score in evaluation.per_class]
    pairs = [
        (names[true], names[predicted], samples)
        for true, row in enumerate(evaluation.confusion)
        for predicted, samples in enumerate(row)
        if true != predicted and samples
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:count]


def correlation(teacher: Array, outputs: Array) -> float | None:
    """Return Pearson's correlation over all outputs, centred per sample; None where one is constant."""
    teacher = teacher - teacher.mean(axis=1, keepdims=True)
    outputs = outputs - outputs.mean(axis=1, keepdims=True)
    scale = math.sqrt(float((teacher**2).sum()) * float((outputs**2).sum()))
    return float((teacher * outputs).sum()) / scale if scale > 0 else None


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log-probabilities over the last axis."""
    shifted: NDArray[np.float64] = logits - logits.max(axis=-1, keepdims=True)
    normalizer: NDArray[np.float64] = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted - normalizer
