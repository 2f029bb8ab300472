"""Whether a given model can have been meant for these data: what its answers say before anything learns from them."""

from collections.abc import Sequence

import numpy as np

from kdexport.statistics import wilson
from kdexport.tasks.base import Array
from kdexport.tasks.classification import UNLABELLED

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
