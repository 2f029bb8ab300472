"""Data as the networks of a recipe need them: pictures large enough, classes in the order of the teacher's outputs,
and what a score on them is worth.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from kdexport import objects
from kdexport.artifacts import key_of
from kdexport.data.datasets import load_data
from kdexport.data.samples import Dataset, PicturesNeeded, Split
from kdexport.errors import KDExportError, SourceError
from kdexport.models.class_names import names_of, order_of
from kdexport.models.own_vocabulary import data_for, with_own_vocabulary
from kdexport.models.preprocessing import Preprocessing
from kdexport.progress import Progress
from kdexport.recipe import Data, Recipe, Student, TeacherSpec
from kdexport.recipe.text import PRETRAINED
from kdexport.references import parse
from kdexport.tasks.masks import VOID

Spec = TeacherSpec | Student
EMBEDDING, REGRESSION = "embedding", "regression"  # tasks


_loaded: ContextVar[dict[str, Dataset] | None] = ContextVar("loaded", default=None)


@contextlib.contextmanager
def loaded_once() -> Iterator[None]:
    """Within it the same data are loaded once: a search asks for them with each candidate, and a user's own function
    may take seconds or draw other samples.
    """
    token = _loaded.set({})
    try:
        yield
    finally:
        _loaded.reset(token)


def _load(
    data: Data, seed: int, cache: Path, progress: Progress | None, needed: PicturesNeeded, task: str | None
) -> Dataset:
    known = _loaded.get()
    if known is None:
        return load_data(data, seed, cache, progress, needed, task)
    key = key_of(data.model_dump(mode="json"), seed, str(cache.resolve()), needed.key, task)
    if key not in known:
        known[key] = load_data(data, seed, cache, progress, needed, task)
    return known[key]


def load_run_data(
    recipe: Recipe, cache: Path, progress: Progress | None = None, class_names: Sequence[str] | None = None
) -> Dataset:
    """Load a recipe's data for its networks.

    Args:
        recipe: What to load, and for whom.
        cache: Folder for decoded samples.
        progress: Where long reading shows.
        class_names: The classes in the order that the run has settled on; None asks the networks for theirs.
    """
    networks: tuple[Spec, ...] = (recipe.teacher, *recipe.teacher.also, recipe.student)
    return load_fitted_data(recipe.data, networks, recipe.seed, cache, progress, class_names, recipe.task)


def load_fitted_data(
    data: Data,
    networks: Sequence[Spec],
    seed: int,
    cache: Path,
    progress: Progress | None = None,
    class_names: Sequence[str] | None = None,
    task: str | None = None,
) -> Dataset:
    """Load data for some networks; the first that carries class names gives their order.

    Raises:
        SourceError: As ``load_data``; or a network's classes are others than the data's.
    """
    data = data_for(data, [Path(spec.model) for spec in networks if spec.model.endswith(".onnx")])
    dataset = _load(data, seed, cache, progress, _pictures_needed(networks), task)
    dataset = with_own_vocabulary(dataset, data, networks)
    if dataset.task.embeds:  # no output stands for a name
        return _with_doubts(dataset, networks)
    if class_names is not None:
        dataset = in_order(dataset, order_of(class_names, dataset.class_names, "the run").outputs)
    else:
        dataset = _in_their_order(dataset, networks)
    return _with_doubts(dataset, networks)


def as_files_say(data: Data, task: str | None, files: Sequence[Path]) -> tuple[Data, str | None]:
    """Return [data] of a table, and the task, with what files say of themselves where the user says nothing.

    A file of embeddings or of numbers says so, for identities and whole numbers look like classes, and zeros and ones
    like several labels. One of numbers knows the columns of a table that it is fed and those that it estimates: a table
    to score it on needs no more than its name.

    Raises:
        SourceError: The user names a task that a file says is not its own.
    """
    said = next((own for own in map(_task_said_by, files) if own is not None), None)
    if said is not None and task not in (None, said):
        raise SourceError(
            f"the task is to be {task}, and the model's file says that it is for {said}",
            hint=f"leave the task out, or name {said}",
        )
    if parse(data.source).kind != "table" or said != REGRESSION:
        return data, task or said
    from kdexport.onnx import metadata

    entries = {"label_columns": "kdexport.labels", "feature_columns": "kdexport.features"}
    known = [metadata.read(file) for file in files if file.suffix == ".onnx" and _task_said_by(file) == REGRESSION]
    told = {
        key: names
        for key, entry in entries.items()
        if known and not getattr(data, key) and (names := _names(known[0].get(entry, "")))
    }
    return data.model_copy(update=told), REGRESSION


def _names(text: str) -> tuple[str, ...]:
    """Return the names that an entry of a file's metadata lists; none where it is no such list."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    return tuple(found) if isinstance(found, list) and all(isinstance(name, str) for name in found) else ()


def _task_said_by(file: Path) -> str | None:
    """Return the task that an ONNX file, or weights, say they are for, of those whose data look like another's.

    What cannot be loaded is told of where it is used.
    """
    with contextlib.suppress(KDExportError):
        if file.suffix == ".safetensors" and file.is_file():
            from kdexport.models.weights import postprocessing_in

            done = postprocessing_in(file)
            return None if done is None else {"normalize": EMBEDDING, "scale": REGRESSION}.get(done.kind)
        if file.suffix == ".onnx" and file.is_file():
            from kdexport.onnx.activation import metadata_of

            said = metadata_of(file).get("kdexport.task")
            return said if said in (EMBEDDING, REGRESSION) else None
    return None


def in_order(dataset: Dataset, outputs: Sequence[int] | None) -> Dataset:
    """Return the same samples with class ``i`` as class ``outputs[i]``; None changes nothing."""
    if outputs is None:
        return dataset
    new = np.asarray(outputs)
    back = np.argsort(new)

    def renumbered(split: Split) -> Split:
        labels = split.labels
        if labels is None:
            return split
        if labels.ndim == 3:
            table = np.arange(VOID + 1, dtype=np.uint8)  # void stays void
            table[: len(new)] = new
            return dataclasses.replace(split, labels=table[np.asarray(labels)])
        return dataclasses.replace(split, labels=labels[:, back] if labels.ndim == 2 else new[labels])

    return dataclasses.replace(
        dataset,
        class_names=tuple(dataset.class_names[index] for index in back),
        train=renumbered(dataset.train),
        val=renumbered(dataset.val),
        test=renumbered(dataset.test),
    )


def _in_their_order(dataset: Dataset, networks: Sequence[Spec]) -> Dataset:
    settled = False
    for number, spec in enumerate(networks, 1):
        if isinstance(spec, Student) and len(networks) > 1:
            continue  # it is trained on the labels: it learns whatever order there is
        names = names_of(spec)
        what = "the model" if len(networks) == 1 else "the teacher" if number == 1 else f"teacher-{number}"
        order = order_of(names, dataset.class_names, f"{what} {spec.model}")
        if order.outputs is not None and settled:
            raise SourceError(
                f"{what} {spec.model} has its classes in another order than the teachers before it",
                hint="give it with the same order of classes, or take it out of teacher.also",
            )
        dataset = in_order(dataset, order.outputs)
        if order.note:
            dataset = dataclasses.replace(dataset, notes=(*dataset.notes, order.note))
        settled = settled or (names is not None and order.note is None) or order.outputs is not None
    return dataset


def _with_doubts(dataset: Dataset, networks: Sequence[Spec]) -> Dataset:
    """Say where a given network may have been trained on what it is scored on."""
    made_by = dataset.splits_made_by
    given = [spec for spec in networks if _is_given(spec)]
    cut = [name for name in ("val", "test") if not made_by[name].startswith("source")]
    if not cut or not given:
        return dataset
    reference = parse(given[0].model)
    name = ":".join(part for part in (_name(given[0]), reference.name) if part)
    doubt = f"the given {name} may have been trained on these samples"
    doubted = dataclasses.replace(
        dataset, splits_made_by={**made_by, **{split: f"{made_by[split]}; {doubt}" for split in cut}}
    )
    if "test" in cut:
        warning = (
            f"the test samples are cut from the data ({made_by['test']}), and {doubt}: its score is then too high; "
            "give a test split that no network has seen"
        )
        return dataclasses.replace(doubted, warnings=(*dataset.warnings, warning))
    if len(networks) == 1:  # scored on one split: how that was made is shown beside the score
        return doubted
    note = (
        f"the val samples are cut from the data ({made_by['val']}), and {doubt}: its score on test is the one to go by"
    )
    return dataclasses.replace(doubted, notes=(*dataset.notes, note))


def _is_given(spec: Spec) -> bool:
    """Whether a network comes with weights that were trained elsewhere and is taken as it is."""
    if isinstance(spec, TeacherSpec) and spec.train is not None:
        return False
    if isinstance(spec, TeacherSpec):
        return True
    return spec.weights is not None or parse(spec.model).kind in ("hf", "path")


def _pictures_needed(networks: Sequence[Spec]) -> PicturesNeeded:
    """Return how large pictures must be stored for the largest of the networks; worked out only when it is asked."""

    def side() -> int:
        return max((_side(spec) for spec in networks), default=0)

    asked = [
        [
            *(parse(spec.model).kind, _name(spec), spec.weights == PRETRAINED),
            spec.preprocessing.model_dump(include={"size", "resize", "crop_share"}),
        ]
        for spec in networks
        if not _takes_what_comes(spec)
    ]
    return PicturesNeeded(key_of(asked), side)


def _takes_what_comes(spec: Spec) -> bool:
    """Whether nothing asks for a size of pictures: candidates of one search then share the decoded data."""
    library = parse(spec.model).kind in ("torchvision", "timm", "file", "module", "builtin", objects.SCHEME)
    return spec.preprocessing.size is None and (library and spec.weights != PRETRAINED)


def _name(spec: Spec) -> str:
    """Return what of a reference decides its picture size, free of places."""
    reference = parse(spec.model)
    placed = reference.kind in ("file", "path") or Path(reference.target).is_absolute()
    return Path(reference.target).name if placed else reference.target


def _side(spec: Spec) -> int:
    """Return the side of the pictures that a network's preprocessing starts from, 0 where it takes what comes."""
    share = spec.preprocessing.crop_share or 1.0
    if spec.preprocessing.size is not None:
        return math.ceil(max(spec.preprocessing.size) / (share if spec.preprocessing.resize == "crop" else 1.0))
    if parse(spec.model).kind in ("file", "module") or parse(spec.model).target.endswith(".pt2"):
        return 0
    from kdexport.models.loading import inferred_preprocessing

    try:
        own = inferred_preprocessing(spec.model, spec.args, spec.weights, Preprocessing("image"))
    except SourceError:  # said when the network is built
        return 0
    if own is None or own.size is None:
        return 0
    return math.ceil(max(own.size) / (own.crop_share if own.resize == "crop" else 1.0))
