"""A candidate is trained in a run directory of its own, from one teacher, one teacher cache, one set of decoded data.

It pauses at the rungs of the search at a checkpoint of its full training, and goes on from there.
"""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdexport import artifacts
from kdexport.artifacts import RunDirectory
from kdexport.data.samples import Dataset
from kdexport.distill.batches import predict_all
from kdexport.distill.optimization import accelerator_for
from kdexport.distill.stage import distill
from kdexport.distill.trainer import Paused
from kdexport.models.loading import load_model
from kdexport.progress import Progress, Task
from kdexport.recipe import Recipe
from kdexport.results import DistillResult, Evaluation


class Quieter:
    """A search's progress as a training of many sees it: bars, and each warning once."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self.label, self._warned = progress, "", set[str]()

    def message(self, message: str) -> None:
        """Drop it: it would be said of every candidate."""

    def warn(self, message: str) -> None:
        """Say it once, with the candidate's name."""
        if message not in self._warned:
            self._warned.add(message)
            self._progress.warn(f"{self.label}: {message}")

    def task(self, name: str, total: float | None = None, *, still: bool = False) -> AbstractContextManager[Task]:
        """Show it."""
        return self._progress.task(name, total, still=still)


def trial_recipe(recipe: Recipe) -> Recipe:
    """Return a candidate's recipe as a search trains it: without the student that learns from labels alone."""
    return recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"baseline": False, "track": ()})})


def train_to(recipe: Recipe, directory: RunDirectory, epochs: int, dataset: Dataset, progress: Progress) -> float:
    """Train a candidate up to a rung, and keep its outputs on the validation split there.

    Args:
        recipe: Of the candidate.
        directory: Of the candidate; the teacher is there.
        epochs: That it has trained then.
        dataset: Of the search.
        progress: Where to say how it goes.

    Returns:
        Seconds that it took.

    Raises:
        KDExportError: It cannot be trained: its loss is not finite, for one.
    """
    started = time.monotonic()
    place = outputs_file(directory, epochs)
    if place.exists():  # the process, or the study, was lost before it was told
        return 0.0

    def keep(outputs: NDArray[np.float32]) -> None:
        artifacts.write_atomically(place, lambda temporary: _save(temporary, outputs))

    def after_epoch(done: int, outputs: Callable[[], NDArray[np.float32]]) -> bool:
        if done == epochs:
            keep(outputs())
        return done >= epochs

    try:
        distill(trial_recipe(recipe), directory, progress, on_change="restart", after_epoch=after_epoch)
    except Paused:
        pass
    else:  # it stopped before, out of patience
        device = accelerator_for(recipe.distill.precision).device
        model = load_model("student", recipe.student, dataset, directory.weights("student"))
        keep(predict_all(model.network.to(device), model.preprocessing, dataset.val, device))
    return time.monotonic() - started


def train_in_full(recipe: Recipe, directory: RunDirectory, progress: Progress) -> DistillResult:
    """Train a finalist to its end, from its checkpoint where there is one; raises as ``train_to``."""
    return distill(trial_recipe(recipe), directory, progress, on_change="restart")


def evaluation_at(directory: RunDirectory, epochs: int, dataset: Dataset) -> Evaluation:
    """Return what a candidate scores on the validation split at a rung."""
    with np.load(outputs_file(directory, epochs)) as kept:
        outputs = kept["outputs"]
    return dataset.task.evaluate(outputs, _labels(dataset), dataset.class_names, "val")


def drop_checkpoints(directory: RunDirectory) -> None:
    """Remove what a dropped candidate would go on from: hundreds of megabytes would be left."""
    for path in directory.checkpoints.glob("*/step-*.pt"):
        path.unlink(missing_ok=True)


def outputs_file(directory: RunDirectory, epochs: int) -> Path:
    """Where a candidate's outputs at a rung are kept."""
    return directory.root / "rungs" / f"epoch-{epochs:05d}.npz"


def bring_teacher(teachers: RunDirectory, names: tuple[str, ...], directory: RunDirectory) -> None:
    """Put the search's teachers into a run directory as if it had trained them: they are not trained again."""
    directory.prepare()
    if teachers.metrics.exists() and not directory.metrics.exists():
        artifacts.write_atomically(directory.metrics, lambda temporary: shutil.copyfile(teachers.metrics, temporary))
    for name in names:
        record = directory.checkpoints / name / "done.json"
        weights = directory.weights(name)
        if not weights.exists():
            artifacts.write_atomically(weights, partial(_link, teachers.weights(name)))
        if not record.exists():
            source = teachers.checkpoints / name / "done.json"
            artifacts.write_atomically(record, partial(shutil.copyfile, source))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _labels(dataset: Dataset) -> NDArray[np.generic]:
    return np.asarray(dataset.val.labels)


def _save(path: Path, outputs: NDArray[np.generic]) -> None:
    with path.open("wb") as handle:
        np.savez(handle, outputs=outputs)
