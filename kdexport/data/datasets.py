"""Data by reference: finds the source, makes the splits that it lacks, and holds that the labels make sense."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdexport.artifacts import key_of
from kdexport.data.arrays import digits, from_callable, npz
from kdexport.data.hub import hugging_face_data
from kdexport.data.image_cache import Stored
from kdexport.data.image_folder import image_folder, unlabelled_folder
from kdexport.data.samples import Dataset, Source, Split
from kdexport.data.splits import make_splits
from kdexport.data.text import csv_text
from kdexport.data.torchvision import torchvision_data
from kdexport.errors import RecipeError, SourceError, did_you_mean
from kdexport.models.preprocessing import Preprocessing, of_images
from kdexport.progress import Progress, Silent
from kdexport.recipe import Data
from kdexport.references import parse


def load_data(data: Data, seed: int, cache: Path, progress: Progress | None = None) -> Dataset:
    """Load the data of a recipe.

    Args:
        data: What the recipe says.
        seed: Of the splits that the source doesn't give (the test split's is fixed).
        cache: Folder for decoded samples.
        progress: Where long reading shows.

    Raises:
        SourceError: There is no such data, or it cannot be learned from: one class only, labels out of range, NaN.
        RecipeError: A key of [data] does nothing with this source.
    """
    reference = parse(data.source)
    name = reference.target if reference.kind == "builtin" else reference.kind
    loader = _LOADERS.get(name)
    if loader is None:
        near = did_you_mean(name, _LOADERS) or f"a data reference is one of: {', '.join(_FORMS)}"
        raise SourceError(f"'{data.source}' is no data that can be loaded", hint=near.strip())
    _check_keys(data, name)
    source = loader(data, cache, progress or Silent())
    _check(source, data.source)
    unlabelled, notes = source.unlabelled, source.notes
    if data.unlabelled is not None:
        stored = _unlabelled(data, source, cache, progress or Silent())
        unlabelled, notes = Split((stored.images,)), (*notes, f"unlabelled: {stored.note}")
    train, val, test, made_by = make_splits(source, data, seed)
    for split_name, split in (("train", train), ("val", val), ("test", test)):
        if len(split) == 0:
            raise SourceError(
                f"{data.source}: no sample is left for the {split_name} split",
                hint="give more samples, or another data.val_fraction, data.test_fraction or data.fraction",
            )
    return Dataset(
        name=data.source,
        input_names=source.input_names,
        class_names=source.class_names,
        train=train,
        val=val,
        test=test,
        preprocessing=source.preprocessing or _default_preprocessing(train.inputs[0]),
        splits_made_by=made_by,
        unlabelled=unlabelled,
        skipped=source.skipped,
        notes=notes,
    )


def _check_keys(data: Data, kind: str) -> None:
    """Raise where the recipe says something of the data that this kind of source has no use for."""
    defaults = Data(source=data.source).model_dump()
    used = {*_EVERY, *_KEYS[kind]}
    idle = [key for key, value in data.model_dump().items() if key not in used and value != defaults[key]]
    if idle:
        raise RecipeError(
            f"{', '.join(f'data.{key}' for key in idle)} would do nothing: the source is {data.source}",
            hint=f"take it out; with this source there are: {', '.join(sorted(used - {'source'}))}",
        )


def cache_folder(data: Data) -> Path:
    """Return where decoded samples go outside of a run: a folder of the user's cache for each source."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "kdexport" / key_of(data.source, data.root, data.args)


def _unlabelled(data: Data, source: Source, cache: Path, progress: Progress) -> Stored:
    reference = parse(str(data.unlabelled))
    first = source.train.inputs[0]
    if reference.kind != "imagefolder" or first.dtype != np.uint8 or first.ndim != 4:
        raise SourceError(
            f"unlabelled = '{data.unlabelled}' cannot be used with {data.source}",
            hint="give unlabelled pictures as imagefolder:DIR, beside data that are pictures too",
        )
    if first.shape[3] != 3:
        raise SourceError(
            f"{data.source} has {first.shape[3]} channels; the unlabelled pictures are decoded to 3",
            hint="give both as pictures in RGB",
        )
    return unlabelled_folder(Path(reference.target), data, cache, (first.shape[1], first.shape[2]), progress)


def _default_preprocessing(first: NDArray[Any]) -> Preprocessing:
    if first.dtype == np.uint8 and first.ndim == 4:
        return of_images(first)
    return Preprocessing("none")


def _check(source: Source, name: str) -> None:
    classes = len(source.class_names)
    for split_name, split in (("train", source.train), ("val", source.val), ("test", source.test)):
        if split is None:
            continue
        if split.labels is None:
            raise SourceError(f"{name}: the {split_name} samples have no labels", hint="give a label for each sample")
        _check_inputs(split, f"{name}: {split_name}")
        _check_labels(split.labels, classes, f"{name}: {split_name}")
    if source.train.labels is not None and not source.train.multi_label and len(np.unique(source.train.labels)) < 2:
        raise SourceError(
            f"{name}: the training samples are all of one class", hint="give samples of at least two classes"
        )


def _check_inputs(split: Split, where: str) -> None:
    for array in split.inputs:
        if len(array) != len(split.inputs[0]) or (split.labels is not None and len(array) != len(split.labels)):
            raise SourceError(
                f"{where}: {len(array)} samples and {len(split.labels) if split.labels is not None else 0} labels",
                hint="give as many labels as samples",
            )
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            rows = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
            raise SourceError(
                f"{where}: {len(rows)} samples hold NaN or infinity, the first is number {rows[0]}",
                hint="clean or leave out these samples",
            )


def _check_labels(labels: NDArray[Any], classes: int, where: str) -> None:
    if labels.ndim == 2:
        if labels.shape[1] != classes or not np.isin(labels, (0, 1)).all():
            raise SourceError(
                f"{where}: labels of shape {list(labels.shape)} for {classes} classes",
                hint="several labels a sample are a table of 0 and 1, a column per class",
            )
    elif len(labels) and (labels.min() < 0 or labels.max() >= classes):
        wrong = int(labels.min()) if labels.min() < 0 else int(labels.max())
        raise SourceError(
            f"{where}: the label {wrong} is out of range for {classes} classes",
            hint=f"labels count from 0 to {classes - 1}",
        )


_LOADERS: dict[str, Callable[[Data, Path, Progress], Source]] = {
    "digits": digits,
    "npz": npz,
    "imagefolder": image_folder,
    "torchvision": torchvision_data,
    "csv": csv_text,
    "hf": hugging_face_data,
    "file": from_callable,
    "module": from_callable,
}
# The keys of [data] that each kind of source looks at, beside those that work with every one.
_EVERY = ("source", "val_fraction", "test_fraction", "fraction", "unlabelled")
_PICTURES = ("image_size", "on_bad_sample")
_TEXT = ("tokenizer", "text_length", "text_column", "label_column")
_KEYS: dict[str, tuple[str, ...]] = {
    "digits": (),
    "npz": (),
    "imagefolder": _PICTURES,
    "torchvision": ("root", "download", "args", *_PICTURES),
    "csv": _TEXT,
    "hf": ("args", *_PICTURES, *_TEXT),
    "file": ("args",),
    "module": ("args",),
}
_FORMS = (
    "digits",
    "torchvision:NAME",
    "imagefolder:DIR",
    "npz:FILE",
    "csv:FILE",
    "hf:NAME_OR_DIR",
    "file.py:Name",
    "package.module:Name",
)
