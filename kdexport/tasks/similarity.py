"""Embeddings of pairs with a score: two texts, or any two samples, and how alike they are.

A network sees one sample at a time. So n pairs are 2n samples, one behind the other, and the targets say which two
belong together: float64 ``[samples, 2]``, the pair's number and its score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdexport.errors import SourceError
from kdexport.results import Evaluation, Interval
from kdexport.statistics import bootstrap_interval
from kdexport.tasks import verification
from kdexport.tasks.base import Array
from kdexport.tasks.embedding import Embeddings
from kdexport.tasks.rank_correlation import pearson, resampled_spearman, spearman

if TYPE_CHECKING:
    from torch import Tensor

FEWEST = 3  # pairs of a split: of two, a correlation is 1 or -1
DEVIATIONS = 3  # of a guess' correlation, 1 / sqrt(pairs - 1): what is above it follows the scores
SHOWN_POINTS = 400  # of the picture


def pair_targets(scores: Array) -> NDArray[np.float64]:
    """Return the targets of pairs whose samples stand one behind the other.

    Args:
        scores: float ``[pairs]``.

    Returns:
        ``[2 * pairs, 2]``.
    """
    return np.repeat(np.stack([np.arange(len(scores)), np.asarray(scores, np.float64)], axis=1), 2, axis=0)


def pairs_in(targets: Array) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the places of both samples of each pair and its score; a sample without its other half is left out."""
    order = np.argsort(targets[:, 0], kind="stable")
    numbers = targets[order, 0]
    first = np.flatnonzero(numbers[:-1] == numbers[1:]) if len(numbers) else np.empty(0, np.int64)
    return order[first], order[first + 1], np.asarray(targets[order[first], 1], np.float64)


@dataclass(frozen=True)
class Similarity(Embeddings):
    """Targets are pair numbers and scores float64 ``[samples, 2]``, outputs embeddings ``[batch, width]``.

    Attributes:
        scale: Smallest and largest score of the training pairs: what cosines 0 and 1 are learned for.
    """

    scale: Interval = (0.0, 1.0)

    metric = "spearman"
    label = "Spearman correlation"
    unit = "value"
    bounds = (-1.0, 1.0)
    other_metrics: ClassVar[dict[str, str]] = {"pearson": "Pearson correlation"}
    charts = ("similarity",)
    label_losses = ("cosine_mse",)
    samples_together = 2
    noun = "pairs"

    def fits(self, targets: Array) -> bool:
        """Whether targets are pair numbers with scores, two samples a pair."""
        if targets.ndim != 2 or targets.shape[1] != 2 or targets.dtype.kind != "f" or len(targets) % 2:
            return False
        return bool((targets[::2] == targets[1::2]).all() and len(np.unique(targets[:, 0])) * 2 == len(targets))

    def check_targets(self, targets: Array, names: Sequence[str], where: str) -> None:  # noqa: ARG002
        """Hold that every pair has a score, and that they differ."""
        _, _, scores = pairs_in(targets)
        if not np.isfinite(scores).all():
            wrong = np.flatnonzero(~np.isfinite(scores))
            raise SourceError(
                f"{where}: {len(wrong)} pairs have no finite score, the first is number {wrong[0]}",
                hint="give each pair a score, or take it out",
            )
        if len(scores) < FEWEST:
            raise SourceError(
                f"{where}: {len(scores)} pairs: a correlation needs at least {FEWEST}", hint="give more pairs"
            )
        if np.ptp(scores) == 0:
            raise SourceError(
                f"{where}: all {len(scores)} pairs have the score {scores[0]:g}: nothing can be ranked",
                hint="give pairs of different scores; is it the right column? data.score_column names it",
            )

    def check_training(self, targets: Array, name: str) -> None:
        """Hold nothing more than of any split."""

    def check_splits(self, splits: Mapping[str, Array], names: Sequence[str], where: str) -> None:
        """Hold that each split that was cut can be scored."""
        for split, targets in splits.items():
            self.check_targets(targets, names, f"{where}: {split}")

    def fitted(self, targets: Array, names: Sequence[str]) -> Similarity:  # noqa: ARG002
        """Return the task with the range of the training scores."""
        _, _, scores = pairs_in(targets)
        return replace(self, scale=(float(scores.min()), float(scores.max()))) if len(scores) else self

    def kept_together(self, targets: Array) -> NDArray[np.int64]:
        """Return the pairs' numbers."""
        return targets[:, 0].astype(np.int64)

    def label_loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        *,
        kind: str | None = None,  # noqa: ARG002 - there is one
        smoothing: float = 0.0,  # noqa: ARG002 - no classes to spread over
        labelled: Tensor | None = None,  # noqa: ARG002 - every pair has a score
        mixed: bool = False,  # noqa: ARG002 - nothing is mixed
    ) -> Tensor:
        """Return the mean squared error of the pairs' cosines, the scores brought to 0..1.

        Reimers and Gurevych 2019, "Sentence-BERT", section 3.1, regression objective function.
        """
        import torch.nn.functional as F

        low, high = self.scale
        order = targets[:, 0].argsort(stable=True)
        numbers = targets[order, 0]
        first = (numbers[:-1] == numbers[1:]).nonzero()[:, 0]
        left, right = order[first], order[first + 1]
        wanted = ((targets[left, 1] - low) / ((high - low) or 1.0)).to(outputs.dtype)
        found = F.cosine_similarity(outputs[left], outputs[right], dim=1)
        return ((found - wanted) ** 2).sum() / max(1, len(left))

    def score(self, outputs: Array, targets: Array) -> float | None:
        """Return Spearman's correlation of cosine and score; 0 where the cosines are all equal."""
        left, right, scores = pairs_in(targets)
        if len(scores) < 2 or np.ptp(scores) == 0:
            return None
        return spearman(verification.cosines(outputs, left, right), scores) or 0.0

    def evaluate(self, outputs: Array, targets: Array, names: Sequence[str], split: str) -> Evaluation:  # noqa: ARG002
        """Score embeddings; the interval is a bootstrap over pairs."""
        left, right, scores = pairs_in(targets)
        found = verification.cosines(outputs, left, right)
        resamples = resampled_spearman(found, scores)
        some = np.unique(np.linspace(0, len(scores) - 1, min(len(scores), SHOWN_POINTS)).astype(np.int64))
        return Evaluation(
            split=split,
            samples=len(scores),
            task=self.name,
            score=self.made_score(self.score(outputs, targets) or 0.0, bootstrap_interval(resamples)),
            metrics={"pearson": pearson(found, scores)},
            resamples=tuple(float(value) for value in resamples),
            chance=0.0,  # of a network that gives one vector
            curves={
                "score": tuple(float(value) for value in scores[some]),
                "cosine": tuple(round(float(value), 6) for value in found[some]),
            },
        )

    def doubt(self, outputs: Array, targets: Array, names: Sequence[str]) -> str | None:  # noqa: ARG002
        """Say where the cosines do not follow the scores."""
        left, right, scores = pairs_in(targets)
        if len(scores) < 20:
            return None
        found = verification.cosines(outputs, left, right)
        if np.ptp(found) < 1e-6:
            return "it gives every sample the same embedding; check its weights and its preprocessing"
        value = spearman(found, scores) or 0.0
        if value > DEVIATIONS / math.sqrt(len(scores) - 1):
            return None
        return (
            f"its cosines do not follow the scores: Spearman correlation {value:.3f} over {len(scores)} pairs "
            "(chance is 0); check its weights, its preprocessing and which column holds the score"
        )

    def groups(self, targets: Array) -> NDArray[np.int64]:
        """Return the tenth of the scores' range that each pair is in."""
        scores = targets[:, 1]
        low, high = scores.min(), scores.max()
        tenths: NDArray[np.int64] = np.minimum(9, (scores - low) / ((high - low) or 1.0) * 10).astype(np.int64)
        return tenths

    def spread(self, targets: Array, count: int) -> NDArray[np.int64]:
        """Return the samples of whole pairs."""
        left, right, scores = pairs_in(targets)
        some = np.linspace(0, len(scores) - 1, min(len(scores), max(1, count // 2))).astype(np.int64)
        return np.stack([left[some], right[some]], axis=1).reshape(-1)
