"""Splits that a data source does not give: stratified and seeded, so that they are the same on every machine."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kdexport.data.samples import Source, Split
from kdexport.errors import RecipeError, SourceError
from kdexport.recipe import Data
from kdexport.tasks.classification import UNLABELLED

TEST_SEED = 0  # not the recipe's: two runs with different seeds are measured on the same test samples
SPLIT_NAMES = {
    "train": ("train", "training", "trainset", "tr"),
    "val": ("val", "valid", "validation", "validate", "valset", "dev", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tests", "testset", "tst"),
}
LEAST = 2  # samples of a split that is cut: batch normalization needs two, and one decides nothing


def make_splits(source: Source, data: Data, seed: int) -> tuple[Split, Split, Split, dict[str, str]]:
    """Return train, val and test, with how each came about.

    Given splits are kept. Where there is a validation split and no test split, that becomes the test split: what it
    says is then of samples that no training has seen. A missing test split is otherwise taken from train with a fixed
    seed, a missing validation split with the recipe's; ``data.fraction`` then thins what is left of train.
    """
    train, val, test = source.train, source.val, source.test
    made_by = dict.fromkeys(("train", "val", "test"), "source")
    if test is None and val is not None:
        test, val = val, None
        made_by["test"] = "source: its validation split"
    whole = train.task.kept_together(cast(NDArray[Any], train.labels)) is not None
    how = f"whole {train.task.noun}, " if whole else "stratified "
    if test is None:
        train, test = _divide(train, data.test_fraction, TEST_SEED)
        made_by["test"] = f"{how}{data.test_fraction:g} of all, seed {TEST_SEED}"
        made_by["train"] = "what is left"
    if val is None:
        train, val = _divide(train, data.val_fraction, seed)
        made_by["val"] = f"{how}{data.val_fraction:g} of train, seed {seed}"
        made_by["train"] = "what is left"
    if data.fraction < 1:
        _, train = _divide(train, data.fraction, seed + 1)
        made_by["train"] += f", {how}{data.fraction:g} of it, seed {seed + 1}"
    return train, val, test, made_by


def split_of(name: str) -> str | None:
    """Return which split a folder, a column's value or a part of a data set is, by its usual names, or None."""
    plain = name.strip().casefold()
    return next((split for split, names in SPLIT_NAMES.items() if plain in names), None)


def split_folders(names: Sequence[str], where: str) -> dict[str, str]:
    """Return split -> its name among some, as ``split_of`` reads them.

    Raises:
        SourceError: Two of them are the same split.
    """
    found: dict[str, str] = {}
    for name in names:
        split = split_of(name)
        if split is None:
            continue
        if split in found:
            raise SourceError(
                f"{where} holds {found[split]} and {name}, which both mean the {split} split",
                hint="keep one of them, or put the samples of both together",
            )
        found[split] = name
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def stratified(groups: NDArray[np.int64], fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide sample indices into two, each group in the same share.

    Args:
        groups: ``[samples]``, as ``Task.groups`` gives them: the class of each sample.
        fraction: Share that is taken.
        seed: Of the choice.

    Returns:
        Indices of the rest and of what was taken, each ascending. Of a group with two samples or more, both get some.
    """
    generator = np.random.default_rng(seed)
    taken = np.zeros(len(groups), dtype=bool)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        count = round(fraction * len(members))
        if len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        taken[generator.permutation(members)[:count]] = True
    return np.flatnonzero(~taken), np.flatnonzero(taken)


def balanced_order(labels: NDArray[Any], generator: np.random.Generator) -> NDArray[np.int64]:
    """Return an epoch's order in which every class is as frequent: rare samples come again, common ones now and then.

    Args:
        labels: int ``[samples]``.
        generator: Draws.

    Returns:
        As many indices as there are samples. No sample comes again before all others of its class have come. Samples
        without a label are no class: each comes once.

    Raises:
        RecipeError: The samples have several labels each.
    """
    if labels.ndim != 1:
        raise RecipeError(
            "balanced = true needs one class per sample, and these have several labels", hint="take balanced out"
        )
    unlabelled = np.flatnonzero(labels == UNLABELLED)
    classes = np.unique(labels[labels != UNLABELLED])
    shares = np.array_split(np.arange(len(labels) - len(unlabelled)), len(classes))  # evened out to a sample
    order = [unlabelled]
    for group, share in zip(generator.permutation(classes), shares, strict=True):
        members = np.flatnonzero(labels == group)
        rounds = -(-len(share) // len(members))
        order.append(np.concatenate([generator.permutation(members) for _ in range(rounds)])[: len(share)])
    return generator.permutation(np.concatenate(order))


def _divide(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    targets = cast(NDArray[Any], split.labels)
    together, groups = split.task.kept_together(targets), split.task.groups(targets)
    if together is not None:  # what is divided are whole identities, or pairs
        _, first, unit = np.unique(together, return_index=True, return_inverse=True)
        groups = groups[first]
    rest, taken = stratified(groups, fraction, seed)
    if len(taken) < LEAST and len(rest) > LEAST:  # of classes with a sample each
        more = np.random.default_rng(seed).permutation(rest)[: LEAST - len(taken)]
        rest, taken = np.setdiff1d(rest, more), np.union1d(taken, more)
    if together is not None:
        chosen = np.isin(unit.reshape(-1), taken)
        rest, taken = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    return split.select(rest), split.select(taken)
