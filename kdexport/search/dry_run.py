"""What a search would try and how long it would take, from a few measured steps; nothing of it is kept."""

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kdexport import artifacts
from kdexport.data.samples import Dataset
from kdexport.distill.context import DistillContext
from kdexport.distill.logging import Trackers
from kdexport.errors import KDExportError
from kdexport.export.stage import export
from kdexport.models.fitted_data import load_run_data
from kdexport.models.loading import Model
from kdexport.models.preprocessing import as_tensor
from kdexport.models.weights import save_weights
from kdexport.progress import SILENT, Progress
from kdexport.recipe import Recipe, Training
from kdexport.results import DistillResult, ModelFile, TrainedNetwork
from kdexport.search import halving
from kdexport.search.context import search_of, teacher_run
from kdexport.search.measure import SECOND_LOOK, Candidates, Measured, measure_batch, within
from kdexport.search.space import Candidate, Spaces, one_of_each, recipe_of

TRIED = 3  # candidates that are built and measured: few, drawn from all
ATTEMPTS = 4  # times that so many are drawn, while none can be built
STEPS = 4  # of training that are timed, after one that is not
ENDLESS = 50  # candidates drawn from spaces that cannot be listed


@dataclass(frozen=True)
class Planned:
    """What a search would do."""

    name: str
    candidates: int | None  # in all spaces together; None: without end
    measured: int
    trained: int  # at most: those within the budget
    rungs: tuple[tuple[int, int], ...]  # epochs, and how many go on
    finalists: int
    epochs: int  # of the full training
    examples: tuple[str, ...]
    tried: dict[str, str]  # candidate that was built and measured -> what came of it
    seconds: dict[str, float | None]  # "teacher", "measuring", "training", "final", "total"; None: cannot be told


def dry_run(recipe: Recipe, progress: Progress = SILENT) -> Planned:
    """Say what would be tried, and estimate how long it takes: a few candidates are built, measured and trained for
    some steps, in a temporary folder.

    Args:
        recipe: As ``stage.search``.
        progress: Where to say how it goes.

    Raises:
        KDExportError: A fault that the user can fix.
    """
    search = search_of(recipe)
    with tempfile.TemporaryDirectory(prefix="kdexport-search-", ignore_cleanup_errors=True) as folder:
        root = Path(folder).resolve()
        spaces = Spaces(search, root)
        rng = np.random.default_rng(recipe.seed)
        listed = spaces.listed()
        pool = one_of_each(listed) if listed is not None else spaces.drawn(ENDLESS, rng)
        chosen = [pool[place] for place in rng.permutation(len(pool))]
        size = spaces.size if listed is None else len(pool)
        steps = _Steps(recipe, root, progress)
        tried = steps.measured(chosen)
        teacher_s, training = steps.teacher_s(), steps.training(chosen, tried)
    measured = int(min(search.trials, size))
    trained = min(search.trained, measured)
    rungs = halving.rungs(search, recipe.distill.epochs, trained)
    starts, ends = (
        [trained, *(rung.places for rung in rungs)],
        [*(rung.epochs for rung in rungs), recipe.distill.epochs],
    )
    epochs = sum(count * (end - begin) for count, begin, end in zip(starts, [0, *ends], ends, strict=False))
    each = [found.seconds for found in tried.values() if isinstance(found, Measured)]
    finalists = min(starts[-1], search.finalists.count)
    known = {
        "teacher": teacher_s,
        "measuring": measured * float(np.mean(each)),
        "training": None if training is None else epochs * training[0] + sum(starts) * training[1],
        "final": (finalists + 1) * (float(np.mean(each)) + SECOND_LOOK["min_seconds"] * SECOND_LOOK["rounds"]),
    }
    return Planned(
        name=recipe.name,
        candidates=int(size) if size < float("inf") else None,
        measured=measured,
        trained=trained,
        rungs=tuple((rung.epochs, rung.places) for rung in rungs),
        finalists=finalists,
        epochs=recipe.distill.epochs,
        examples=tuple(candidate.label for candidate in chosen[:6]),
        tried={name: _told(found, recipe) for name, found in tried.items()},
        seconds={**known, "total": None if None in (times := known.values()) else sum(filter(None, times))},
    )


def _told(found: Measured | KDExportError, recipe: Recipe) -> str:
    if isinstance(found, KDExportError):
        return f"fails: {found.message}"
    return "within the budget" if within(found, search_of(recipe).budget) else "over the budget"


class _Steps:
    """The steps of a search that are measured, with a teacher that is not trained."""

    def __init__(self, recipe: Recipe, root: Path, progress: Progress) -> None:
        self.recipe, self.root, self.progress = recipe, root, progress
        self.run = teacher_run(root)
        self.run.prepare()
        self.dataset = load_run_data(recipe, self.run.cache, progress)
        context = DistillContext(recipe, self.run, self.dataset, SILENT, Trackers((), root, recipe.name))
        self.teacher = context.load("teacher", recipe.teacher)
        self.shared = Candidates(root, search_of(recipe), self._teacher_file(), self.run, progress)

    def _teacher_file(self) -> ModelFile:
        weights = self.run.weights("teacher")
        save_weights(self.teacher.network, weights)
        digest = artifacts.sha256(weights)
        count = sum(parameter.numel() for parameter in self.teacher.network.parameters())
        network = TrainedNetwork("teacher", "", weights.name, digest, count, None, 0, None, None, None)
        distilled = DistillResult(self.recipe.name, self.dataset.class_names, {}, {}, (network,))
        file = export(self.recipe, distilled, self.run, SILENT).models[0]
        return dataclasses.replace(file, file=str((self.run.root / file.file).absolute()))

    def measured(self, candidates: list[Candidate]) -> dict[str, Measured | KDExportError]:
        """Build and measure the first candidates as the search does, and the next ones where none can be built.

        Raises:
            KDExportError: None can be: there is nothing to estimate from.
        """
        tried: dict[str, Measured | KDExportError] = {}
        for start in range(0, min(ATTEMPTS * TRIED, len(candidates)), TRIED):
            tried.update(self._measured(candidates[start : start + TRIED]))
            if any(isinstance(found, Measured) for found in tried.values()):
                return tried
        reasons = "; ".join(f"{name}: {_told(found, self.recipe)}" for name, found in list(tried.items())[:TRIED])
        raise KDExportError(
            f"none of {len(tried)} candidates that were tried can be built and measured: {reasons}",
            hint="mend the spaces (search.space), then give the same command again",
        )

    def _measured(self, candidates: list[Candidate]) -> dict[str, Measured | KDExportError]:
        batch, found = [], {}
        labels = {candidate.key: candidate.label for candidate in candidates}
        for candidate in candidates:
            try:
                batch.append((candidate.key, recipe_of(candidate, self.recipe, self.root), candidate.precisions))
            except KDExportError as error:
                found[candidate.label] = error
        measured = measure_batch(self.shared, batch) if batch else {}
        return {**found, **{labels[key]: outcome for key, outcome in measured.items()}}

    def teacher_s(self) -> float:
        """Return what training the teacher takes; 0 where it is given."""
        train = self.recipe.teacher.train
        return 0.0 if train is None else train.epochs * _epoch_s(self.teacher, self.dataset, train)

    def training(
        self, candidates: list[Candidate], tried: dict[str, Measured | KDExportError]
    ) -> tuple[float, float] | None:
        """Return seconds of an epoch and of a training's start, the mean over those that were measured; None where
        they are trained otherwise than on labels.
        """
        epochs, starts = [], []
        for candidate in (one for one in candidates if isinstance(tried.get(one.label), Measured)):
            started = time.monotonic()
            try:
                recipe = recipe_of(candidate, self.recipe, self.root)
                dataset = load_run_data(recipe, self.run.cache)
                context = DistillContext(recipe, self.run, dataset, SILENT, Trackers((), self.root, recipe.name))
                model = context.load("student", recipe.student, context.student_starts_from)
                starts.append(time.monotonic() - started)
                epochs.append(_epoch_s(model, dataset, recipe.distill))
            except (KDExportError, RuntimeError):
                continue
        return (float(np.mean(epochs)), float(np.mean(starts))) if epochs else None


def _epoch_s(model: Model, dataset: Dataset, training: Training) -> float:
    """Return how long an epoch takes, from a few steps on the labels."""
    network, split = model.network.train(), dataset.train
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    count = min(training.batch_size, len(split))
    batch = split.take(slice(0, count))
    inputs = tuple(as_tensor(array) for array in batch.inputs)
    labels = torch.from_numpy(np.asarray(batch.labels))
    started = 0.0
    for step in range(STEPS + 1):
        if step == 1:
            started = time.perf_counter()
        optimizer.zero_grad()
        loss = dataset.task.label_loss(network(*model.preprocessing.apply(inputs)).float(), labels)
        torch.autograd.backward(loss)
        optimizer.step()
    network.eval()
    return (time.perf_counter() - started) / STEPS * len(split) / count
