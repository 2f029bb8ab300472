"""Data that comes as arrays: scikit-learn's digits, an npz file, what a user's own function returns."""

import functools
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdexport.data.npz_files import read_arrays
from kdexport.data.samples import Reading, Source, Split
from kdexport.errors import SourceError
from kdexport.models.preprocessing import Preprocessing
from kdexport.recipe import Data
from kdexport.references import call, load_object, parse
from kdexport.tasks.masks import VOID, largest_class
from kdexport.tasks.regression import MOST_CLASSES, as_targets
from kdexport.tasks.similarity import Similarity, pair_targets

MOST_UNNAMED, CLASSES_PER_SAMPLE = 1000, 10  # outputs; more are a slip of the labels, and gigabytes
NAMES = ("class_names", "target_names", "feature_names")
EMBEDDING = "embedding"
DIGITS = Preprocessing("image", mean=(0.3053,), std=(0.376,))  # over all 1,797 scans


def digits(data: Data, reading: Reading) -> Source:  # noqa: ARG001 every loader takes the same arguments
    """Return scikit-learn's 1,797 real 8x8 scans of handwritten digits, their 0..16 stretched to 0..255."""
    table = _digits_table()
    images = np.round(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)[..., None]
    return Source(
        Split((images,), table[:, 64].astype(np.int64)),
        class_names=tuple(str(digit) for digit in range(10)),
        preprocessing=DIGITS,
    )


@functools.cache
def _digits_table() -> NDArray[np.float64]:
    """Return the scans' 64 pixels and the digit of each, read from scikit-learn's file: importing it takes seconds."""
    package = find_spec("sklearn")
    file = Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz" if package and package.origin else None
    if file is not None and file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    found = load_digits()
    return np.column_stack([found.data, found.target])


def npz(data: Data, reading: Reading) -> Source:
    """Return an npz file's ``x_train y_train``, with ``x_val y_val``, ``x_test y_test`` and ``x_unlabelled`` where they
    are; ``class_names`` or ``target_names`` where they are.

    Raises:
        SourceError: No such file, no npz file, or the keys are missing.
    """
    path = Path(parse(data.source).target)
    arrays = read_arrays(path)
    missing = [key for key in ("x_train", "y_train") if key not in arrays]
    missing += [f"y_{name}" for name in ("val", "test") if f"x_{name}" in arrays and f"y_{name}" not in arrays]
    if missing:
        raise SourceError(
            f"{path} has no {' and no '.join(missing)}; it holds {', '.join(sorted(arrays)) or 'nothing'}",
            hint="write it with numpy.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)",
        )
    names = {key: [str(name) for name in arrays[key]] for key in NAMES if key in arrays}
    return from_splits(
        {
            **{
                name: (arrays[f"x_{name}"], arrays[f"y_{name}"])
                for name in ("train", "val", "test")
                if f"x_{name}" in arrays
            },
            **({"unlabelled": arrays["x_unlabelled"]} if "x_unlabelled" in arrays else {}),
            **names,
        },
        str(path),
        reading.task,
    )


def from_callable(data: Data, reading: Reading) -> Source:
    """Return what ``file.py:Name`` gives when it is called with ``data.args``; see ``from_splits`` for the form."""
    reference = parse(data.source)
    found = load_object(reference)
    if not callable(found):
        raise SourceError(
            f"{data.source} is a {type(found).__name__}, not a function", hint="name a function that returns splits"
        )
    return from_splits(call(reference, found, data.args), data.source, reading.task)


def from_object(data: Data, reading: Reading) -> Source:
    """Return the samples that a recipe was given in Python, or what a function gives that it was given."""
    found = load_object(parse(data.source))
    return from_callable(data, reading) if callable(found) else from_splits(found, "data", reading.task)


def from_splits(given: Any, name: str, task: str | None = None) -> Source:
    """Return a source from a mapping of splits.

    Args:
        given: ``{"train": (inputs, labels), ...}`` with ``val`` and ``test`` where they are; ``inputs`` is an array, or
            a mapping of input name to array for a network with several; ``((left, right), scores)`` are pairs with a
            score, each side in either form. Beside them ``unlabelled`` (inputs alone),
            ``class_names`` or ``target_names``, ``feature_names`` and ``preprocessing`` (a mapping of ``mean``,
            ``std``, ``size``, ``resize``).
        name: What messages call it.
        task: What the labels are for, where the recipe says so.

    Raises:
        SourceError: It is something else.
    """
    if not isinstance(given, Mapping) or "train" not in given:
        raise SourceError(
            f"{name} gives {_kind(given)}, not splits",
            hint='return {"train": (inputs, labels), "test": (inputs, labels)}; test and val may be left out',
        )
    known = {"train", "val", "test", "unlabelled", "preprocessing", *NAMES}
    if unknown := sorted(set(map(str, given)) - known):
        raise SourceError(f"{name} gives {', '.join(unknown)} too", hint=f"known are: {', '.join(sorted(known))}")
    parts = {key: given[key] for key in ("train", "val", "test") if given.get(key) is not None}
    pairs = [key for key, part in parts.items() if _are_pairs(part)]
    if pairs and len(pairs) < len(parts):
        raise SourceError(
            f"{name}: {', '.join(pairs)} holds pairs, the other splits do not",
            hint="give each split as ((left, right), scores)",
        )
    splits = {key: _split(part, f"{name}: {key}", task) for key, part in parts.items() if not pairs}
    splits = splits if pairs else _settled(splits, name, task)
    start = 0
    for key in pairs:
        splits[key] = _pairs(parts[key], f"{name}: {key}", start)
        start += len(splits[key])
    notes: tuple[str, ...] = ()
    if task is None and not pairs:
        _check_no_soft_labels(splits, name)
    numbers = not pairs and (task == "regression" or any(_are_amounts(split.labels) for split in splits.values()))
    if pairs:
        classes = 0
    elif numbers:
        splits = {key: replace(split, labels=as_targets(split.labels, name)) for key, split in splits.items()}
        classes = np.asarray(splits["train"].labels).shape[1]
    elif all(split.labels is not None and _is_one_hot(split.labels) for split in splits.values()):
        classes = np.asarray(splits["train"].labels).shape[1]
        notes = (f"every sample has exactly one of the {classes} labels: they are taken as classes, not as several",)
        splits = {key: Split(split.inputs, np.asarray(split.labels).argmax(axis=1)) for key, split in splits.items()}
    else:
        classes = _classes(splits["train"].labels)
    given_names = given.get("target_names" if numbers else "class_names")
    if numbers and (given_names is None or len(given_names) == 0):
        given_names = ["target"] if classes == 1 else [f"target_{number}" for number in range(classes)]
    if task == EMBEDDING and given_names is None and not pairs:
        splits, given_names = _identities(splits)
    if given_names is None or len(given_names) == 0:
        if classes > max(MOST_UNNAMED, CLASSES_PER_SAMPLE * len(splits["train"])):
            raise SourceError(
                f"{name}: train: the largest label is {classes - 1:,}, and there are {len(splits['train']):,} samples",
                hint="labels are whole numbers that count the classes from 0 on",
            )
        given_names = range(classes)
    elif len(set(map(str, given_names))) < len(given_names):
        what, key = ("targets", "target_names") if numbers else ("classes", "class_names")
        raise SourceError(f"{name}: two {what} have one name", hint=f"give each one a name of its own in {key}")
    inputs = given["train"][0][0] if pairs else given["train"][0]
    unlabelled = given.get("unlabelled")
    said = given.get("preprocessing")
    return Source(
        train=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        class_names=tuple(str(item) for item in given_names),
        notes=notes,
        input_names=tuple(inputs) if isinstance(inputs, Mapping) else ("input",),
        preprocessing=Preprocessing.from_json({"kind": "image", **said}) if said else None,
        feature_names=tuple(str(item) for item in given.get("feature_names", ())),
        unlabelled=Split(_inputs(unlabelled, f"{name}: unlabelled")) if unlabelled is not None else None,
    )


def _split(pair: Any, where: str, task: str | None) -> Split:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise SourceError(f"{where} is {_kind(pair)}", hint="each split is a pair: (inputs, labels)")
    if pair[1] is None:
        raise SourceError(
            f"{where} has no labels",
            hint="give a label for each sample; to quantize a file without any: --input calibration.npz",
        )
    labels = np.asarray(pair[1])
    if task == "regression":
        return Split(_inputs(pair[0], where), as_targets(labels, where))
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        return Split(_inputs(pair[0], where), labels.astype(np.float32))
    if labels.ndim in (3, 4) and labels.dtype.kind in "iu":
        return Split(_inputs(pair[0], where), _masks(labels, where))
    if labels.ndim == 1 and labels.dtype.kind == "f":
        return Split(_inputs(pair[0], where), labels)  # what they are, all splits together say
    whole = labels.ndim == 1 and (np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool)
    if not whole:
        raise SourceError(
            f"{where}: labels are {labels.dtype} of shape {list(labels.shape)}",
            hint="give whole numbers from 0: one a sample, a table of 0 and 1 with a column per class, or one a pixel;"
            " or numbers to estimate, [samples] or [samples, targets]",
        )
    return Split(_inputs(pair[0], where), labels.astype(np.int64))


def _masks(labels: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Return masks uint8 ``[samples, h, w]`` of class ids that came with or without an axis of one channel."""
    shape = labels.shape
    if labels.ndim == 4 and 1 in (shape[1], shape[3]):
        labels = labels[..., 0] if shape[3] == 1 else labels[:, 0]
    if labels.ndim == 4:
        raise SourceError(
            f"{where}: masks of shape {list(shape)}", hint="give class ids [samples, h, w]: one-hot masks by argmax"
        )
    if labels.size and (labels.min() < 0 or labels.max() > VOID):
        wrong = int(labels.min() if labels.min() < 0 else labels.max())
        raise SourceError(
            f"{where}: a mask holds the class {wrong}",
            hint=f"classes count from 0, and a pixel without one is {VOID} (not -1 or -100)",
        )
    return labels.astype(np.uint8)


def _settled(splits: Mapping[str, Split], name: str, task: str | None) -> dict[str, Split]:
    """Return splits whose floats are amounts, or class ids as whole numbers where some tool has made them floats.

    Raises:
        SourceError: They may be either.
    """
    floats = [np.asarray(split.labels) for split in splits.values() if split.labels is not None]
    if not all(labels.ndim == 1 and labels.dtype.kind == "f" for labels in floats):
        return dict(splits)
    labels = np.concatenate(floats)
    known = labels[np.isfinite(labels)]
    found = np.unique(known)
    if len(known) == 0 or (known != np.round(known)).any() or (len(found) > MOST_CLASSES and task is None):
        return dict(splits)
    if task == "classification" and len(known) == len(labels):
        return {key: replace(split, labels=np.asarray(split.labels).astype(np.int64)) for key, split in splits.items()}
    raise SourceError(
        f"{name}: labels are {labels.dtype} and hold {len(found)} different whole numbers, from {found[0]:g} to "
        f"{found[-1]:g}: they may be classes or amounts",
        hint='set task = "regression" or task = "classification" (--set task=...), or give class ids as int64',
    )


def _check_no_soft_labels(splits: Mapping[str, Split], name: str) -> None:
    """Hold that tables of floats are amounts: not probabilities of classes, and not -1 and 1 for several labels."""
    for labels in (split.labels for split in splits.values()):
        if labels is None or labels.ndim != 2 or labels.shape[1] < 2 or labels.dtype.kind != "f":
            continue
        said = ""
        if np.isin(labels, (-1, 1)).all():
            said = "are -1 and 1 in each column: several labels a sample are 0 and 1"
        elif (labels >= 0).all() and np.allclose(labels.sum(axis=1), 1, atol=1e-3) and not _is_one_hot(labels):
            said = "are at least 0 and add up to 1 in every row: they look like probabilities of classes"
        if said:
            raise SourceError(
                f"{name}: labels {said}",
                hint="give class ids (labels.argmax(axis=1)) or a table of 0 and 1 (labels > 0); or, for numbers to be "
                'estimated, set task = "regression" (--set task=regression)',
            )


def _are_amounts(labels: NDArray[Any] | None) -> bool:
    """Whether labels are numbers to estimate: floats, and no table of 0 and 1."""
    return labels is not None and labels.dtype.kind == "f" and not (labels.ndim == 2 and np.isin(labels, (0, 1)).all())


def _are_pairs(part: Any) -> bool:
    """Whether a split is ``((left, right), scores)``."""
    inputs = part[0] if isinstance(part, tuple | list) and len(part) == 2 else None
    return isinstance(inputs, tuple) and len(inputs) == 2


def _pairs(part: Any, where: str, start: int) -> Split:
    """Return pairs as samples one behind the other; ``start`` is the first pair's number."""
    left, right = (_inputs(side, where) for side in part[0])
    scores = np.asarray(part[1])
    sizes = {len(array) for array in (*left, *right, scores)} if scores.ndim == 1 else {-1}
    if len(left) != len(right) or len(sizes) != 1 or scores.dtype.kind not in "uif":
        raise SourceError(
            f"{where}: pairs of {[list(array.shape) for array in left]} and {[list(array.shape) for array in right]} "
            f"with scores {scores.dtype} of shape {list(scores.shape)}",
            hint="give ((left, right), scores): both sides in one form, and a number for each pair",
        )
    targets = pair_targets(scores) + np.array([start, 0.0])
    return Split(tuple(_interleaved(*sides) for sides in zip(left, right, strict=True)), targets, Similarity())


def _interleaved(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """Return both sides' samples one behind the other; the shorter of two tables of token ids is padded with 0."""
    if left.ndim == 2 and left.dtype.kind == "i" and left.shape[1] != right.shape[1]:
        width = max(left.shape[1], right.shape[1])
        left, right = (np.pad(side, ((0, 0), (0, width - side.shape[1]))) for side in (left, right))
    return np.stack([left, right], axis=1).reshape(2 * len(left), *left.shape[1:])


def _identities(splits: Mapping[str, Split]) -> tuple[dict[str, Split], list[str]]:
    """Return splits with identities numbered from 0 on, over all of them, and what each was called."""
    labels = [np.asarray(split.labels) for split in splits.values()]
    if any(item.ndim != 1 for item in labels):
        return dict(splits), []
    values, places = np.unique(np.concatenate(labels), return_inverse=True)
    ends = np.cumsum([len(item) for item in labels])[:-1]
    numbered = np.split(places.reshape(-1).astype(np.int64), ends)
    made = {key: Split(split.inputs, found) for (key, split), found in zip(splits.items(), numbered, strict=True)}
    return made, [str(value) for value in values]


def _is_one_hot(labels: NDArray[Any]) -> bool:
    """Whether a table of 0 and 1 marks exactly one class in every row."""
    if labels.ndim != 2 or labels.shape[1] < 2 or len(labels) == 0:
        return False
    return bool(np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all())


def _inputs(given: Any, where: str) -> tuple[NDArray[Any], ...]:
    arrays = [np.asarray(item) for item in given.values()] if isinstance(given, Mapping) else [np.asarray(given)]
    for array in arrays:
        if array.ndim == 0 or array.dtype.kind not in "uifb":
            raise SourceError(
                f"{where}: inputs are {array.dtype} of shape {list(array.shape)}", hint="give arrays of numbers"
            )
        images = array.ndim > 2 if array.dtype.kind == "u" else array.ndim == 4
        if array.dtype.kind in "ui" and array.dtype != np.uint8 and images:
            raise SourceError(
                f"{where}: inputs are {array.dtype} of shape {list(array.shape)}",
                hint="give images as uint8 (scaled alike over the data set), or as float32 to be fed as they are",
            )
    return tuple(_narrowed(array) for array in arrays)


def _narrowed(array: NDArray[Any]) -> NDArray[Any]:
    """Give an array the type that networks take: images as uint8 NHWC, floats as float32, token ids as int64."""
    if array.dtype == np.uint8 and array.ndim == 3:
        return array[..., None]
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] not in (1, 3, 4) and array.shape[1] in (1, 3, 4):
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    if array.dtype.kind in "ib" or (array.dtype.kind == "u" and array.dtype != np.uint8):
        return array.astype(np.int64, copy=False)
    return array


def _classes(labels: NDArray[Any] | None) -> int:
    if labels is None or len(labels) == 0:
        return 0
    if labels.ndim == 3:
        return largest_class(labels) + 1
    return int(labels.shape[1]) if labels.ndim == 2 else max(int(labels.max()) + 1, 0)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
