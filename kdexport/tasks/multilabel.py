"""Any number of classes a sample: mean average precision, and F1 of the decisions at a logit of 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdexport.errors import SourceError
from kdexport.results import Agreement, Evaluation
from kdexport.statistics import bootstrap_interval, resample_counts
from kdexport.tasks.base import Activation, Array, Task, check_same_shape
from kdexport.tasks.classification import class_scores, correlation, macro_f1

if TYPE_CHECKING:
    from torch import Tensor

    from kdexport.terms import BaseTerm


class MultiLabel(Task):
    """Targets are multi-hot ``[samples, classes]`` of 0 and 1, outputs logits ``[batch, classes]``."""

    name = "multilabel"
    metric = "mean_average_precision"
    label = "mean average precision"
    activation: ClassVar[Activation] = "sigmoid"
    label_losses = ("binary_cross_entropy",)
    mixes = True
    usual_terms: ClassVar[tuple[dict[str, Any], ...]] = ({"method": "binary_soft_targets"},)
    other_metrics: ClassVar[dict[str, str]] = {
        "micro_f1": "micro-F1",
        "macro_f1": "macro-F1",
        "decision_accuracy": "decisions that are right",
    }
    charts = ("classes",)

    def fits(self, targets: Array) -> bool:
        """Whether targets are a table of 0 and 1."""
        return targets.ndim == 2 and bool(np.isin(targets, (0, 1)).all())

    def check_targets(self, targets: Array, names: Sequence[str], where: str) -> None:
        """Hold that targets are a table of 0 and 1, a column per class."""
        if targets.ndim != 2 or targets.shape[1] != len(names) or not np.isin(targets, (0, 1)).all():
            raise SourceError(
                f"{where}: labels of shape {list(targets.shape)} for {len(names)} classes",
                hint="several labels a sample are a table of 0 and 1, a column per class",
            )

    def check_training(self, targets: Array, name: str) -> None:
        """Hold that some sample has a label."""
        if not targets.any():
            raise SourceError(f"{name}: no training sample has a label", hint="give samples of at least one class")

    def label_loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        *,
        kind: str | None = None,  # noqa: ARG002 - there is one
        smoothing: float = 0.0,
        labelled: Tensor | None = None,  # noqa: ARG002 - every sample is labelled
        mixed: bool = False,  # noqa: ARG002 - mixed rows are multi-hot rows with values between
    ) -> Tensor:
        """Return the binary cross-entropy, mean over samples and classes."""
        import torch.nn.functional as F

        check_same_shape(targets, outputs, self.name)
        smoothed = targets.to(outputs.dtype) * (1 - smoothing) + 0.5 * smoothing
        return F.binary_cross_entropy_with_logits(outputs, smoothed)

    def right_in_batch(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many decisions there are, one a sample and class, and how many are right."""
        right = (outputs > 0) == (targets > 0.5)
        return outputs.new_zeros(()) + right.numel(), right.sum()

    def batch_agreement(self, outputs: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Count the decisions that are the teacher's; KL(teacher || outputs) of the classes' Bernoullis."""
        import torch.nn.functional as F

        agreed = ((outputs > 0) == (teacher > 0)).sum()
        kl = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(outputs))
        kl = kl + (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-outputs))
        return outputs.new_zeros(()) + outputs.numel(), agreed, kl.sum()

    def objection(self, method: BaseTerm | type[BaseTerm]) -> str | None:
        """Object to methods of one class a sample."""
        if not method.classes:
            return super().objection(method)
        return None if method.multi_label else "expects one class per sample, and these targets are multi-label"

    def score(self, outputs: Array, targets: Array) -> float | None:
        """Return the mean average precision."""
        found = average_precisions(outputs, targets > 0.5)
        return float(np.nanmean(found)) if np.isfinite(found).any() else None

    def evaluate(self, outputs: Array, targets: Array, names: Sequence[str], split: str) -> Evaluation:
        """Score logits; the interval is a bootstrap over samples."""
        actual, predicted = targets > 0.5, outputs > 0
        hits = (predicted & actual).sum(axis=0)
        per_class = class_scores(hits, actual.sum(axis=0), predicted.sum(axis=0), names)
        decided = int(actual.sum() + predicted.sum())
        counts = np.concatenate(
            [_mean(average_precisions(outputs, actual, block)) for block in resample_counts(len(outputs))]
        )
        return Evaluation(
            split=split,
            samples=len(outputs),
            task=self.name,
            score=self.made_score(self.score(outputs, targets) or 0.0, bootstrap_interval(counts)),
            metrics={
                "micro_f1": float(2 * hits.sum() / decided) if decided else 0.0,
                "macro_f1": macro_f1(per_class),
                "decision_accuracy": float((predicted == actual).mean()),
            },
            per_class=per_class,
            resamples=tuple(float(value) for value in counts),
            chance=float(actual.mean(axis=0)[actual.any(axis=0)].mean()) if actual.any() else None,
        )

    def agreement(self, teacher: Array, outputs: Array) -> Agreement:
        """Return the share of decisions that are the teacher's, the mean KL of the classes' Bernoullis, correlation."""
        theirs, ours = teacher.astype(np.float64), outputs.astype(np.float64)
        log_p, log_not_p = -np.logaddexp(0, -theirs), -np.logaddexp(0, theirs)
        log_q, log_not_q = -np.logaddexp(0, -ours), -np.logaddexp(0, ours)
        kl = float((np.exp(log_p) * (log_p - log_q) + np.exp(log_not_p) * (log_not_p - log_not_q)).sum(axis=1).mean())
        return Agreement(
            top1=float(((theirs > 0) == (ours > 0)).mean()),
            kl=max(kl, 0.0),
            logit_correlation=correlation(theirs, ours),
        )

    def groups(self, targets: Array) -> NDArray[np.int64]:
        """Return one group per combination of labels."""
        return np.unique(targets, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def average_precisions(outputs: Array, actual: Array, counts: Array | None = None) -> NDArray[np.float64]:
    """Return each class's average precision, the mean of the precision over recall (no interpolation).

    As scikit-learn's ``average_precision_score``: equal outputs share one threshold.

    Args:
        outputs: ``[samples, classes]``.
        actual: bool ``[samples, classes]``.
        counts: How often each sample counts, ``[resamples, samples]``; None: once.

    Returns:
        ``[classes]``, or ``[resamples, classes]`` with ``counts``; NaN where a class has no sample.
    """
    weights = np.ones((1, len(outputs))) if counts is None else counts
    found = np.full((len(weights), outputs.shape[1]), np.nan)
    for column in range(outputs.shape[1]):
        order = np.argsort(-outputs[:, column], kind="stable")
        values, positive = outputs[order, column], actual[order, column]
        ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
        weighed = weights[:, order]
        hits, seen = np.cumsum(weighed * positive, axis=1)[:, ends], np.cumsum(weighed, axis=1)[:, ends]
        total = hits[:, -1:]
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(seen > 0, hits / seen, 0.0)
            found[:, column] = (np.diff(hits, axis=1, prepend=0.0) * precision).sum(axis=1) / total[:, 0]
    return found[0] if counts is None else found


def _mean(precisions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the classes that a resample holds."""
    present = np.isfinite(precisions)
    means: NDArray[np.float64] = np.where(present, precisions, 0.0).sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    return means
