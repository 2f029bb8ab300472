"""Embeddings of identities: two samples are compared by the cosine of what the network gives for each.

The identities that are scored are other ones than those that are learned from. The score is the verification accuracy
over pairs of test samples, at the threshold that is best on the validation samples' pairs: both are run through the
same file, so that each file has a threshold of its own. ``tasks.similarity`` holds pairs with a score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdexport.errors import KDExportError, SourceError
from kdexport.results import Agreement, Evaluation
from kdexport.statistics import bootstrap_interval
from kdexport.tasks import verification
from kdexport.tasks.base import Array, Task
from kdexport.tasks.classification import UNLABELLED
from kdexport.tasks.postprocessing import Postprocessing
from kdexport.tasks.rank_correlation import pearson

if TYPE_CHECKING:
    from torch import Tensor

    from kdexport.terms import BaseTerm

SHOWN = 8  # names
COMPARED = 1000  # samples whose cosines are compared with the teacher's
BINS = 50  # of the picture
DEVIATIONS = 4  # above chance, twice the usual: pairs that share a sample are not independent
FARS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Embeddings(Task):
    """What embeddings have in common: any width, compared by cosine."""

    name = "embedding"
    noun = "identities"
    embeds = True
    output_name = "embedding"

    def num_outputs(self, names: Sequence[str]) -> int | None:  # noqa: ARG002
        """Return None: how wide an embedding is has nothing to do with the data."""
        return None

    def postprocessing(self, shape: Sequence[int], *, fresh: bool) -> Postprocessing | None:  # noqa: ARG002
        """Return that every embedding is brought to length 1, in the file too."""
        return Postprocessing("normalize")

    def check_outputs(self, shape: Sequence[int], samples: int, names: Sequence[str], who: str) -> None:  # noqa: ARG002
        """Hold that there is a vector of two numbers or more for each sample."""
        if len(shape) != 2 or shape[0] != samples or shape[1] < 2:
            raise SourceError(
                f"{who} gives {list(shape)} for {samples} samples; an embedding is [batch, width], width at least 2",
                hint="let it return one vector a sample, e.g. the pooled features before its last layer",
            )

    def objection(self, method: BaseTerm | type[BaseTerm]) -> str | None:
        """Object to methods that compare classes."""
        return None if method.embeddings else "compares classes, and an embedding has none"

    def right_in_batch(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return that a training batch decides nothing."""
        return outputs.new_zeros(()), outputs.new_zeros(())

    def agreement(self, teacher: Array, outputs: Array) -> Agreement:
        """Return Pearson's correlation of the two networks' cosines over all pairs of samples, whatever the widths."""
        some = np.unique(np.linspace(0, len(outputs) - 1, min(len(outputs), COMPARED)).astype(np.int64))
        left, right = np.triu_indices(len(some), 1)
        theirs, ours = (verification.cosines(rows[some], left, right) for rows in (teacher, outputs))
        return Agreement(top1=None, kl=None, logit_correlation=pearson(theirs, ours) if len(left) > 1 else None)


@dataclass(frozen=True)
class Embedding(Embeddings):
    """Targets are identities int64 ``[samples]``, outputs embeddings ``[batch, width]``.

    Attributes:
        threshold: The cosine from which on two samples count as one identity; None: the best on what is scored.
    """

    threshold: float | None = None

    metric = "verification_accuracy"
    label = "verification accuracy"
    calibrated_on_validation = True
    other_metrics: ClassVar[dict[str, str]] = {
        "auc": "AUC",
        "tar_at_far_1": "TAR at FAR 1 %",
        "top1_retrieval": "top-1 retrieval",
        "threshold": "threshold (cosine)",
    }
    plain_metrics = ("auc", "threshold")
    charts = ("similarity",)
    label_losses = ("cross_entropy", "arcface")
    label_head = True

    def fits(self, targets: Array) -> bool:
        """Whether targets are whole numbers, one a sample."""
        return targets.ndim == 1 and targets.dtype.kind in "iu"

    def check_targets(self, targets: Array, names: Sequence[str], where: str) -> None:
        """Hold that every target is an identity."""
        if len(targets) and (targets.min() < 0 or targets.max() >= len(names)):
            wrong = int(targets.min()) if targets.min() < 0 else int(targets.max())
            raise SourceError(
                f"{where}: the identity {wrong} is out of range for {len(names)} identities",
                hint=f"identities count from 0 to {len(names) - 1}",
            )

    def check_training(self, targets: Array, name: str) -> None:
        """Hold that there are two identities or more."""
        if len(np.unique(targets)) < 2:
            raise SourceError(
                f"{name}: the training samples are all of one identity",
                hint="give samples of several: an embedding is learned from what differs between them",
            )

    def check_splits(self, splits: Mapping[str, Array], names: Sequence[str], where: str) -> None:
        """Hold that no identity is in two splits, and that validation and test have pairs of both kinds."""
        found = {split: np.unique(targets[targets != UNLABELLED]) for split, targets in splits.items()}
        for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
            shared = np.intersect1d(found.get(one, []), found.get(other, [])).astype(int)
            if len(shared):
                shown = ", ".join(names[number] for number in shared[:SHOWN]) + (", ..." if len(shared) > SHOWN else "")
                raise SourceError(
                    f"{where}: {len(shared)} identit{'ies are' if len(shared) > 1 else 'y is'} in both {one} and "
                    f"{other}: {shown}",
                    hint="a score on identities that were learned from says nothing of new ones: put all samples of an "
                    "identity into one split, or give one folder without splits, which is cut by identity",
                )
        for split, targets in splits.items():
            if split != "train":
                self.check_pairs(targets, f"{where}: {split}")

    @staticmethod
    def check_pairs(targets: Array, where: str) -> None:
        """Hold that there are pairs of one identity, and pairs of two.

        Raises:
            SourceError: There are not.
        """
        identities, sizes = np.unique(targets[targets != UNLABELLED], return_counts=True)
        if len(identities) < 2:
            raise SourceError(
                f"{where}: its samples are of {len(identities)} identity, and it takes two to tell them apart",
                hint="give samples of at least two identities to each split; where one folder is cut, give more "
                "identities or a larger data.val_fraction and data.test_fraction",
            )
        if sizes.max() < 2:
            raise SourceError(
                f"{where} has one sample of each identity: no two are of the same",
                hint="give at least two samples of some identities",
            )

    def kept_together(self, targets: Array) -> NDArray[np.int64]:
        """Return the identities: one is in one split alone."""
        return targets.astype(np.int64)

    def label_loss(self, *given: Any, **options: Any) -> Tensor:  # noqa: ARG002
        """Raise: identities are learned through a head with weights of its own, ``distill.heads``."""
        raise KDExportError("identities are learned through a head", hint="hand over heads")

    def calibrated(self, outputs: Array, targets: Array) -> Embedding:
        """Return this task with the threshold that is best on some samples, those of validation."""
        _, similarity, pairs = _known_pairs(outputs, targets)
        return replace(self, threshold=verification.best_threshold(similarity, pairs.same))

    @property
    def file_entries(self) -> Mapping[str, float]:
        """The threshold, where it has been chosen on validation."""
        return {} if self.threshold is None else {"threshold": self.threshold}

    def score(self, outputs: Array, targets: Array) -> float | None:
        """Return the verification accuracy; None without pairs of both kinds."""
        _, similarity, pairs = _known_pairs(outputs, targets)
        if pairs.same.all() or not pairs.same.any():
            return None
        return verification.balanced_accuracy(similarity, pairs.same, self._threshold(similarity, pairs))

    def evaluate(self, outputs: Array, targets: Array, names: Sequence[str], split: str) -> Evaluation:  # noqa: ARG002
        """Score embeddings; the interval is a bootstrap over identities at a fixed threshold.

        Raises:
            SourceError: There are no pairs of one identity, or none of two.
        """
        self.check_pairs(targets, f"the {split} split")
        known, similarity, pairs = _known_pairs(outputs, targets)
        threshold = self._threshold(similarity, pairs)
        resamples = verification.resampled_accuracy(similarity >= threshold, pairs, targets[known])
        value = verification.balanced_accuracy(similarity, pairs.same, threshold)
        return Evaluation(
            split=split,
            samples=len(known),
            task=self.name,
            score=self.made_score(value, bootstrap_interval(resamples)),
            metrics={
                "auc": verification.area_under_roc(similarity, pairs.same),
                "tar_at_far_1": verification.tar_at_far(similarity, pairs.same),
                "top1_retrieval": verification.top1_retrieval(outputs[known], targets[known]),
                "threshold": threshold,
            },
            resamples=tuple(float(value) for value in resamples),
            chance=0.5,  # of a network that gives one vector: all pairs are accepted or none
            curves=_curves(similarity, pairs),
        )

    def doubt(self, outputs: Array, targets: Array, names: Sequence[str]) -> str | None:  # noqa: ARG002
        """Say where the embeddings are all alike, or tell identities apart no better than chance."""
        _, similarity, pairs = _known_pairs(outputs, targets)
        if pairs.same.all() or not pairs.same.any():
            return None
        if np.ptp(similarity) < 1e-6:
            return "it gives every sample the same embedding; check its weights and its preprocessing"
        area, (same, other) = verification.area_under_roc(similarity, pairs.same), np.bincount(~pairs.same)
        error = math.sqrt((same + other + 1) / (12 * same * other))  # of the area of a guess, were pairs independent
        if area > 0.5 + DEVIATIONS * error:
            return None
        return (
            f"it does not tell these identities apart: verification accuracy {self.score(outputs, targets) or 0:.1%}, "
            f"AUC {area:.3f} (chance is 50 % and 0.5); check its weights and its preprocessing"
        )

    def no_targets(self, count: int, like: Array) -> Array:  # noqa: ARG002
        """Return -1 for each: of no identity."""
        return np.full(count, UNLABELLED, dtype=np.int64)

    def groups(self, targets: Array) -> NDArray[np.int64]:
        """Return 1 for samples that have another one of their identity, else 0."""
        _, place, sizes = np.unique(targets, return_inverse=True, return_counts=True)
        return (sizes > 1)[place.reshape(-1)].astype(np.int64)

    def _threshold(self, similarity: NDArray[np.float64], pairs: verification.Pairs) -> float:
        return verification.best_threshold(similarity, pairs.same) if self.threshold is None else self.threshold


def _known_pairs(outputs: Array, targets: Array) -> tuple[NDArray[np.int64], NDArray[np.float64], verification.Pairs]:
    """Return the labelled samples, their pairs and the pairs' cosines."""
    known = np.flatnonzero(targets != UNLABELLED)
    pairs = verification.verification_pairs(targets[known])
    return known, verification.cosines(outputs[known], pairs.left, pairs.right), pairs


def _curves(similarity: NDArray[np.float64], pairs: verification.Pairs) -> dict[str, tuple[float, ...]]:
    """Return what the picture shows: shares of cosines in bins of -1 to 1, and the ROC."""
    edges = np.linspace(-1, 1, BINS + 1)
    clipped = np.clip(similarity, -1, 1)
    shares = {
        name: np.histogram(clipped[chosen], edges)[0] / max(1, chosen.sum())
        for name, chosen in (("same", pairs.same), ("different", ~pairs.same))
    }
    return {
        **{name: tuple(float(value) for value in found) for name, found in shares.items()},
        "far": FARS,
        "tar": tuple(verification.roc(similarity, pairs.same, np.array(FARS))),
    }
