"""Data by reference: finds the source, makes the splits that it lacks, and holds that the labels make sense."""

import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kdexport.artifacts import key_of
from kdexport.data.copied_samples import copied
from kdexport.data.samples import Dataset, PicturesNeeded, Reading, Source, Split
from kdexport.data.splits import make_splits
from kdexport.errors import RecipeError, SourceError, did_you_mean
from kdexport.models.preprocessing import Preprocessing, of_features, of_images
from kdexport.progress import SILENT, Progress
from kdexport.recipe import Data
from kdexport.references import Reference, parse
from kdexport.tasks import task_named, task_of

SHOWN = 12
OTHER_SCALE = 50.0  # between the largest values of two splits: pixels to 255 beside pixels to 1

# The keys of [data] that each kind of source looks at, beside those that work with every one.
_EVERY = ("source", "val_fraction", "test_fraction", "fraction", "unlabelled")
_PICTURES = ("image_size", "on_bad_sample")
_TEXT = ("tokenizer", "text_length", "text_column", "label_column")
_PAIRS = ("text_columns", "score_column")


@dataclass(frozen=True)
class DataSource:
    """A kind of data: the function that loads it, ``(data, reading) -> Source``, imported when it is wanted."""

    loader: str  # "module:function"
    form: str  # as a reference is written
    keys: tuple[str, ...] = ()  # of [data]

    def load(self, data: Data, reading: Reading) -> Source:
        """Return what the reference stands for."""
        module, _, name = self.loader.partition(":")
        load = cast(Callable[[Data, Reading], Source], getattr(importlib.import_module(module), name))
        return load(data, reading)


# Everything that [data] source can name: a new kind is a module and a line here.
SOURCES: dict[str, DataSource] = {
    "digits": DataSource("kdexport.data.arrays:digits", "digits"),
    "torchvision": DataSource(
        "kdexport.data.torchvision:torchvision_data", "torchvision:NAME", ("root", "download", "args", *_PICTURES)
    ),
    "imagefolder": DataSource(
        "kdexport.data.image_folder:image_folder", "imagefolder:DIR", (*_PICTURES, "label_columns")
    ),
    "masks": DataSource("kdexport.data.masks:mask_folder", "masks:DIR", _PICTURES),
    "npz": DataSource("kdexport.data.arrays:npz", "npz:FILE", ("standardize",)),
    "table": DataSource(
        "kdexport.data.tables:table",
        "table:FILE",
        ("label_columns", "feature_columns", "on_bad_sample", "standardize"),
    ),
    "csv": DataSource("kdexport.data.text_pairs:csv_data", "csv:FILE", (*_TEXT, *_PAIRS)),
    "hf": DataSource("kdexport.data.hub:hugging_face_data", "hf:NAME_OR_DIR", ("args", *_PICTURES, *_TEXT)),
    "file": DataSource("kdexport.data.arrays:from_callable", "file.py:Name", ("args", "standardize")),
    "object": DataSource("kdexport.data.arrays:from_object", "an object, from Python", ("args", "standardize")),
    "module": DataSource("kdexport.data.arrays:from_callable", "package.module:Name", ("args", "standardize")),
}


def load_data(
    data: Data,
    seed: int,
    cache: Path,
    progress: Progress | None = None,
    needed: PicturesNeeded | None = None,
    task: str | None = None,
) -> Dataset:
    """Load the data of a recipe.

    Args:
        data: What the recipe says.
        seed: Of the splits that the source doesn't give (the test split's is fixed).
        cache: Folder for decoded samples.
        progress: Where long reading shows.
        needed: How large the networks need pictures.
        task: What the data are for; None: read off the targets.

    Raises:
        SourceError: There is no such data, or it cannot be learned from: one class only, labels out of range, NaN.
        RecipeError: A key of [data] does nothing with this source.
    """
    kind, reading = _kind(data.source), Reading(cache, progress or SILENT, needed or PicturesNeeded(), task)
    _check_keys(data, kind)
    source = _for_task(SOURCES[kind].load(data, reading), task, data.source)
    _check(source, data.source)
    unlabelled, notes = source.unlabelled, source.notes
    if data.unlabelled is not None:
        unlabelled, note = _unlabelled(data, source, reading)
        notes = (*notes, f"unlabelled: {note}")
    train, val, test, made_by = make_splits(source, data, seed)
    corpus = train.texts
    if data.fraction < 1 and corpus is not None:  # a vocabulary is that of the training texts, used or not
        corpus = make_splits(source, data.model_copy(update={"fraction": 1.0}), seed)[0].texts
    for split_name, split in (("train", train), ("val", val), ("test", test)):
        if len(split) == 0:
            more = f"{train.task.noun}, two for each split at least" if train.task.embeds else "samples"
            raise SourceError(
                f"{data.source}: no sample is left for the {split_name} split",
                hint=f"give more {more}, or another data.val_fraction, data.test_fraction or data.fraction",
            )
    _check_together({"train": train, "val": val, "test": test}, source.class_names, data.source)
    fitted = train.task.fitted(cast(NDArray[Any], train.labels), source.class_names)
    train, val, test = (replace(split, given_task=fitted) for split in (train, val, test))
    if fitted.calibrated_on_validation:
        test = replace(test, calibration=val)
    leak = copied(test, [train] if made_by["val"].startswith("source") else [train, val])
    first = train.inputs[0]
    pictures = first.dtype == np.uint8 and first.ndim == 4
    default = of_images(first) if pictures and source.preprocessing is None else Preprocessing("none")
    standardize = source.standardize if data.standardize is None else data.standardize
    if standardize:
        default, note = _standardized(train, source, data.source)
        default = replace(default, assumed=data.standardize is None)
        notes = (*notes, note)
    return Dataset(
        name=data.source,
        input_names=source.input_names,
        class_names=source.class_names,
        train=train,
        val=val,
        test=test,
        preprocessing=source.preprocessing or default,
        splits_made_by=made_by,
        corpus=corpus,
        unlabelled=unlabelled,
        skipped=source.skipped,
        notes=(*notes, *_notes_on_labels(source), *(() if standardize else _notes_on_features(source))),
        warnings=(*source.warnings, *([leak] if leak else [])),
        feature_names=source.feature_names,
        measured=pictures and source.preprocessing is None,
    )


def cache_folder(data: Data) -> Path:
    """Return where decoded samples go outside of a run: a folder of the user's cache for each source."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "kdexport" / key_of(data.source, data.root, data.args)


def _kind(source: str) -> str:
    reference: Reference = parse(source)
    kind = reference.target if reference.kind == "builtin" else reference.kind
    if kind not in SOURCES:
        forms = ", ".join(known.form for known in SOURCES.values())
        near = did_you_mean(kind, SOURCES) or f"a data reference is one of: {forms}"
        raise SourceError(f"'{source}' is no data that can be loaded", hint=near.strip())
    return kind


def _check_keys(data: Data, kind: str) -> None:
    """Raise where the recipe says something of the data that this kind of source has no use for."""
    defaults = Data(source=data.source).model_dump()
    used = {*_EVERY, *SOURCES[kind].keys}
    # False asks for nothing either: runs of earlier versions have written it where nothing was said.
    said = {key: value for key, value in data.model_dump().items() if key not in used and value is not False}
    idle = [key for key, value in said.items() if value != defaults[key]]
    if idle:
        raise RecipeError(
            f"{', '.join(f'data.{key}' for key in idle)} would do nothing: the source is {data.source}",
            hint=f"take it out; with this source there are: {', '.join(sorted(used - {'source'}))}",
        )


def _unlabelled(data: Data, source: Source, reading: Reading) -> tuple[Split, str]:
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
    from kdexport.data.image_folder import unlabelled_folder

    size = (first.shape[1], first.shape[2])
    stored = unlabelled_folder(Path(reference.target), data, reading, size, source.levels)
    return Split((stored.images,)), "; ".join((stored.note, *stored.warnings))


def _for_task(source: Source, task: str | None, name: str) -> Source:
    """Return the source with its splits marked as a task's: the one that is asked for, else the one that fits."""
    if source.train.labels is None:
        raise SourceError(f"{name}: the train samples have no labels", hint="give a label for each sample")
    targets = source.train.labels
    given = source.train.given_task
    if task is None:
        found = given or task_of(targets)
    else:
        found = given if given is not None and given.name == task else task_named(task, targets)
    if not found.fits(targets):
        raise SourceError(
            f"{name}: targets of shape {list(targets.shape)} and type {targets.dtype} are not those of {found.name}",
            hint=f"leave the task out, or set it to {(given or task_of(targets)).name}",
        )

    def of_task(split: Split | None) -> Split | None:
        return None if split is None else replace(split, given_task=found)

    train = replace(source.train, given_task=found)
    return replace(source, train=train, val=of_task(source.val), test=of_task(source.test))


def _check(source: Source, name: str) -> None:
    for split_name, split in _splits(source):
        if split.labels is None:
            raise SourceError(f"{name}: the {split_name} samples have no labels", hint="give a label for each sample")
        _check_inputs(split, f"{name}: {split_name}")
        split.task.check_targets(split.labels, source.class_names, f"{name}: {split_name}")
        split.task.check_inputs(split.inputs, split.labels, f"{name}: {split_name}")
    _check_alike(source, name)
    source.train.task.check_training(cast(NDArray[Any], source.train.labels), name)
    _check_together(dict(_splits(source)), source.class_names, name)


def _check_together(splits: dict[str, Split], names: tuple[str, ...], name: str) -> None:
    targets = {split_name: cast(NDArray[Any], split.labels) for split_name, split in splits.items()}
    splits["train"].task.check_splits(targets, names, name)


def _check_alike(source: Source, name: str) -> None:
    """Hold that the splits hold the same kind of numbers: pictures beside floats would be normalized in one alone."""
    for split_name, split in _splits(source):
        for first, other in zip(source.train.inputs, split.inputs, strict=True):
            channels = first.dtype == np.uint8 and first.ndim == 4 == other.ndim and first.shape[3] != other.shape[3]
            table = first.ndim == 2 == other.ndim and first.dtype.kind == "f" and first.shape[1] != other.shape[1]
            if first.dtype != other.dtype or first.ndim != other.ndim or channels or table:
                raise SourceError(
                    f"{name}: the {split_name} inputs are {list(other.shape)} of {other.dtype}, and those of train "
                    f"{list(first.shape)} of {first.dtype}",
                    hint="bring every split into the same form: the same type, axes, channels and features",
                )
            if first.dtype.kind == "f" and first.ndim > 2:
                sizes = [float(np.abs(np.asarray(array[:1000])).max(initial=0.0)) for array in (first, other)]
                if min(sizes) > 0 and max(sizes) > OTHER_SCALE * min(sizes):
                    raise SourceError(
                        f"{name}: the {split_name} inputs go up to {sizes[1]:.3g}, those of train to {sizes[0]:.3g}",
                        hint="scale every split alike, e.g. all by 255",
                    )


def _splits(source: Source) -> Iterator[tuple[str, Split]]:
    for name, split in (("train", source.train), ("val", source.val), ("test", source.test)):
        if split is not None:
            yield name, split


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


def _notes_on_labels(source: Source) -> Iterator[str]:
    """Say which classes no sample of a split has: labels that begin at 1, gaps, classes that are never scored."""
    names = source.class_names
    for split_name, split in _splits(source):
        labels = split.labels
        if labels is None or labels.ndim != 1 or split.task.embeds:
            continue
        absent = sorted(set(range(len(names))) - set(np.unique(labels).tolist()))
        if not absent:
            continue
        shown = ", ".join(names[index] for index in absent[:SHOWN]) + (", ..." if len(absent) > SHOWN else "")
        note = f"no {split_name} sample is of the class{'es' if len(absent) > 1 else ''} {shown}"
        if split_name == "train":
            first = int(labels.min())
            begins = f": the labels begin at {first}" if absent == list(range(first)) else ""
            note += f"{begins}; the networks have outputs for {len(names)} classes all the same"
        yield note


def _standardized(train: Split, source: Source, name: str) -> tuple[Preprocessing, str]:
    first = train.inputs[0]
    if first.ndim != 2 or first.dtype.kind not in "fiu" or source.preprocessing is not None:
        raise RecipeError(
            f"data.standardize is for tables of numbers [samples, features]; {name} gives {list(first.shape)} of "
            f"{first.dtype}",
            hint="take standardize out",
        )
    note = f"the {first.shape[1]} features are standardized: mean 0 and standard deviation 1 of the training samples"
    return of_features(np.asarray(first)), note


def _notes_on_features(source: Source) -> Iterator[str]:
    """Say that numbers are fed as they are, where their ranges differ so that it matters."""
    first = source.train.inputs[0]
    if first.dtype.kind != "f" or first.ndim != 2 or source.preprocessing is not None or len(first) < 2:
        return
    spread = np.asarray(first[:10_000]).std(axis=0)
    used = spread[spread > 0]
    if len(used) > 1 and used.max() > 10 * used.min():
        yield (
            f"the {first.shape[1]} features are fed as they are, not standardized: "
            f"their standard deviations go from {used.min():.3g} to {used.max():.3g}; where that is not meant, set "
            "data.standardize = true"
        )
