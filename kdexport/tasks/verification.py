"""Verification scores: are two samples of one identity? Cosines over pairs, a threshold, and what follows from them.

numpy alone. Nothing here knows of tasks or splits: identities are numbers, embeddings rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdexport.statistics import resample_counts

Array = NDArray[Any]
Floats = NDArray[np.float64]
MAX_PAIRS = (
    1_000_000  # all pairs of 1,414 samples; of more samples, half of them of one identity where there are so many
)
AT_ONCE = 2**22  # numbers of a block
SEED = 0


@dataclass(frozen=True)
class Pairs:
    """Samples in twos, each pair once, ``left < right``."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    same: NDArray[np.bool_]  # whether both are of one identity


def verification_pairs(identities: Array) -> Pairs:
    """Return the pairs that verification is scored on: all of them, or a fixed choice where that is too many.

    The choice depends on the identities alone, so that every model is scored on the same pairs. Beyond ``MAX_PAIRS``
    it holds the pairs of one identity, evenly spread where they are more than half of it, and as many others, drawn.

    Args:
        identities: int ``[samples]``.
    """
    samples = len(identities)
    count = samples * (samples - 1) // 2
    if count <= MAX_PAIRS:
        left, right = _unranked(np.arange(count))
        return Pairs(left, right, identities[left] == identities[right])
    order = np.argsort(identities, kind="stable")
    sizes = np.unique(identities, return_counts=True)[1]
    starts, ends = np.cumsum(sizes) - sizes, np.cumsum(sizes * (sizes - 1) // 2)
    ranks = np.linspace(0, ends[-1] - 1, min(int(ends[-1]), MAX_PAIRS // 2)).astype(np.int64)
    group = np.searchsorted(ends, ranks, side="right")
    first, second = _unranked(ranks - (ends - sizes * (sizes - 1) // 2)[group])
    one = np.sort(np.stack([order[starts[group] + first], order[starts[group] + second]]), axis=0)
    drawn = np.unique(np.random.default_rng(SEED).integers(0, count, 2 * MAX_PAIRS))
    left, right = _unranked(drawn)
    others = np.flatnonzero(identities[left] != identities[right])
    others = others[np.linspace(0, len(others) - 1, min(len(others), MAX_PAIRS // 2)).astype(np.int64)]
    same = np.arange(len(ranks) + len(others)) < len(ranks)
    return Pairs(np.concatenate([one[0], left[others]]), np.concatenate([one[1], right[others]]), same)


def _unranked(ranks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of numbers of the given places in the order (0, 1), (0, 2), (1, 2), (0, 3), ..."""
    right = ((1 + np.sqrt(1 + 8 * ranks.astype(np.float64))) / 2).astype(np.int64)
    right -= right * (right - 1) // 2 > ranks  # where the square root was rounded
    right += right * (right + 1) // 2 <= ranks
    return ranks - right * (right - 1) // 2, right


def unit(outputs: Array) -> Floats:
    """Return rows of length 1 in float64; a row of zeros stays one, its cosine with any other is 0."""
    wide = np.asarray(outputs, dtype=np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    rows: Floats = wide / np.where(lengths > 0, lengths, 1.0)
    return rows


def cosines(outputs: Array, left: Array, right: Array) -> Floats:
    """Return the cosine of each pair of rows of ``outputs [samples, width]``."""
    rows = unit(outputs)
    if len(rows) ** 2 <= AT_ONCE:
        found: Floats = (rows @ rows.T)[left, right]
        return found
    size = max(1, AT_ONCE // rows.shape[1])
    parts = [
        np.einsum("ij,ij->i", rows[left[start : start + size]], rows[right[start : start + size]])
        for start in range(0, len(left), size)
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def best_threshold(similarity: Floats, same: NDArray[np.bool_]) -> float:
    """Return the threshold at which most is right, pairs of one identity and others counting half each.

    A pair counts as the same at or above it. It lies in the middle between two cosines; of several that are equally
    good it is the middle one.
    """
    order = np.argsort(similarity, kind="stable")
    values, positive = similarity[order], same[order]
    found = np.append(0, np.cumsum(positive)), np.append(0, np.cumsum(~positive))
    right = 1 - found[0] / max(1, found[0][-1]) + found[1] / max(1, found[1][-1])  # of a cut before each value
    cuts = np.concatenate([[0], 1 + np.flatnonzero(np.diff(values)), [len(values)]])
    best = cuts[np.flatnonzero(right[cuts] >= right[cuts].max() - 1e-12)]
    cut = int(best[len(best) // 2])
    if cut == 0:
        return float(values[0])
    if cut == len(values):
        return float(np.nextafter(values[-1], np.inf))
    middle = float((values[cut - 1] + values[cut]) / 2)
    return middle if middle > values[cut - 1] else float(values[cut])


def balanced_accuracy(similarity: Floats, same: NDArray[np.bool_], threshold: float) -> float:
    """Return the mean of the share of right pairs among those of one identity and among the others."""
    accepted = similarity >= threshold
    return float((accepted[same].mean() + (~accepted[~same]).mean()) / 2)


def area_under_roc(similarity: Floats, same: NDArray[np.bool_]) -> float:
    """Return the chance that a pair of one identity is nearer than another pair; equal ones count half."""
    positive, negative = int(same.sum()), int((~same).sum())
    ranks = average_ranks(similarity)
    return float((ranks[same].sum() - positive * (positive + 1) / 2) / (positive * negative))


def tar_at_far(similarity: Floats, same: NDArray[np.bool_], far: float = 0.01) -> float:
    """Return the largest share of accepted pairs of one identity with at most ``far`` of the others accepted."""
    order = np.argsort(-similarity, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(similarity[order])), len(order) - 1)
    accepted, false = np.cumsum(same[order])[ends], np.cumsum(~same[order])[ends]
    allowed = false <= far * false[-1]
    return float(accepted[allowed].max(initial=0) / accepted[-1])


def roc(similarity: Floats, same: NDArray[np.bool_], fars: Floats) -> list[float]:
    """Return ``tar_at_far`` at several rates: the points of a picture."""
    return [tar_at_far(similarity, same, float(far)) for far in fars]


def top1_retrieval(outputs: Array, identities: Array) -> float | None:
    """Return the share of samples whose nearest other one is of the same identity.

    Samples that are the only one of their identity are not asked about, only searched through. None where all are.
    """
    rows = unit(outputs)
    _, number, sizes = np.unique(identities, return_inverse=True, return_counts=True)
    asked = np.flatnonzero(sizes[number.reshape(-1)] > 1)
    right = 0
    size = max(1, AT_ONCE // max(1, len(rows)))
    for start in range(0, len(asked), size):
        few = asked[start : start + size]
        similarity = rows[few] @ rows.T
        similarity[np.arange(len(few)), few] = -np.inf
        right += int((identities[similarity.argmax(axis=1)] == identities[few]).sum())
    return right / len(asked) if len(asked) else None


def resampled_accuracy(accepted: NDArray[np.bool_], pairs: Pairs, identities: Array) -> Floats:
    """Return the balanced accuracy of bootstrap resamples of the identities.

    Identities and not pairs are drawn, for pairs that share one are not independent: Bolle, Ratha and Pankanti 2004,
    "Error analysis of pattern recognition systems - the subsets bootstrap". Where a resample holds one identity alone,
    its pairs of two are those of all samples. The threshold stays as it is.

    Returns:
        ``[SCORE_RESAMPLES]``; resample *b* of two models holds the same identities.
    """
    names, number = np.unique(identities, return_inverse=True)
    number, count = number.reshape(-1), len(names)
    first, second = number[pairs.left], number[pairs.right]
    one = pairs.same
    totals = np.bincount(first[one], minlength=count).astype(np.float64)
    hits = np.bincount(first[one], weights=accepted[one], minlength=count)
    codes, place = np.unique(
        np.minimum(first, second)[~one] * count + np.maximum(first, second)[~one], return_inverse=True
    )
    a, b = codes // count, codes % count
    others = np.bincount(place.reshape(-1), minlength=len(codes)).astype(np.float64)
    rejected = np.bincount(place.reshape(-1), weights=~accepted[~one], minlength=len(codes))
    found = []
    at_once = max(1, AT_ONCE // max(1, len(codes)))
    for block in resample_counts(count):
        for start in range(0, len(block), at_once):
            counts = block[start : start + at_once]
            drawn = counts[:, a] * counts[:, b]
            accept = _share(counts @ hits, counts @ totals, hits.sum() / totals.sum())
            reject = _share(drawn @ rejected, drawn @ others, rejected.sum() / others.sum())
            found.append((accept + reject) / 2)
    return np.concatenate(found)


def _share(hits: Floats, totals: Floats, otherwise: float) -> Floats:
    shares: Floats = np.where(totals > 0, hits / np.where(totals > 0, totals, 1.0), otherwise)
    return shares


def average_ranks(values: Array) -> Floats:
    """Return ranks from 1 on; equal values share the mean of theirs."""
    _, place, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    ranks: Floats = (ends - (sizes - 1) / 2)[place.reshape(-1)]
    return ranks
