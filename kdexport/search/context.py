"""What the steps of one search share: the recipe, the directory, the teacher, the study."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kdexport.artifacts import RunDirectory, key_of
from kdexport.data.samples import Dataset
from kdexport.distill.stage import prepare_teacher
from kdexport.errors import RecipeError, SourceError
from kdexport.export.stage import export
from kdexport.progress import Progress
from kdexport.recipe import Recipe, Search
from kdexport.results import DistillResult, ModelFile, TrainedNetwork
from kdexport.search.measure import Candidates
from kdexport.search.space import Candidate, Spaces, recipe_of
from kdexport.search.study import Entry, Study
from kdexport.search.train import Quieter
from kdexport.stage_cache import data_fingerprint, fingerprint, weights_fingerprint


@dataclass(frozen=True)
class SearchContext:
    """What the steps share.

    Attributes:
        recipe: Of the search.
        root: The search's directory.
        dataset: The data.
        teachers: The trained or given teachers.
        teacher_file: The teacher's ONNX file; its path is absolute.
    """

    recipe: Recipe
    root: Path
    dataset: Dataset
    teachers: tuple[TrainedNetwork, ...]
    teacher_file: ModelFile
    study: Study
    spaces: Spaces
    progress: Progress

    @property
    def search(self) -> Search:
        """The recipe's table."""
        return search_of(self.recipe)

    @property
    def epochs(self) -> int:
        """Of the full training."""
        return self.recipe.distill.epochs

    @cached_property
    def quieter(self) -> Quieter:
        """The progress of one training among many."""
        return Quieter(self.progress)

    @cached_property
    def candidates(self) -> Candidates:
        """What measures candidates."""
        return Candidates(self.root, self.search, self.teacher_file, teacher_run(self.root), self.progress)

    def recipe_of(self, candidate: Candidate) -> Recipe:
        """Return the recipe that makes a candidate alone; raises as ``space.recipe_of``."""
        return recipe_of(candidate, self.recipe, self.root)

    def trial_run(self, entry: Entry) -> RunDirectory:
        """Return where a candidate is trained."""
        return RunDirectory(self.root / "trials" / entry.candidate.key, self.root / "cache")

    def entries(self, numbers: Sequence[int] | None = None) -> list[Entry]:
        """Return the trials as they stand, or some of them."""
        found = self.study.entries()
        return found if numbers is None else [entry for entry in found if entry.number in set(numbers)]


def search_of(recipe: Recipe) -> Search:
    """Return the recipe's [search].

    Raises:
        RecipeError: It has none.
    """
    if recipe.search is None:
        raise RecipeError(
            "the recipe has no [search]: there is no budget and nothing to search in",
            hint="add [search] with budget = { latency_ms = 2.0, drop = 0.01 } and a [[search.space]] with a model",
        )
    return recipe.search


def teacher_run(root: Path) -> RunDirectory:
    """Return where a search's teacher is trained and exported."""
    return RunDirectory(root / "teacher", root / "cache")


def ready_teacher(
    recipe: Recipe, root: Path, progress: Progress
) -> tuple[Dataset, tuple[TrainedNetwork, ...], ModelFile]:
    """Take or train the teacher, and export it.

    Raises:
        KDExportError: It cannot be had, or the validation split has no labels.
    """
    directory = teacher_run(root)
    dataset, teachers = prepare_teacher(recipe, directory, progress)
    if dataset.val.labels is None or not len(dataset.val):
        raise SourceError(
            "a search compares candidates by their score on the validation split, which has no labels here",
            hint="give labelled validation samples (val_fraction under [data], or labels in the source)",
        )
    distilled = DistillResult(recipe.name, dataset.class_names, {}, {}, teachers[:1])
    file = export(recipe, distilled, directory, progress).models[0]
    return dataset, teachers, dataclasses.replace(file, file=str((directory.root / file.file).absolute()))


def study_key(recipe: Recipe) -> dict[str, str]:
    """Return what a study stands for, part by part, so that a change can be named."""
    search = search_of(recipe)
    teacher = [
        [fingerprint(spec.model, spec.args), weights_fingerprint(spec.weights), spec.model_dump(exclude=PLACES)]
        for _, spec in recipe.teacher.named()
    ]
    spaces = [
        [fingerprint(space.model), weights_fingerprint(space.weights), space.model_dump(exclude=PLACES)]
        for space in search.space
    ]
    parts = {
        "seed": recipe.seed,
        "[data]": data_fingerprint(recipe.data),
        "[teacher]": teacher,
        "[student]": recipe.student.model_dump(exclude={"weights"}),
        "[distill]": recipe.distill.model_dump(mode="json", exclude={"teacher_cache", "track", "checkpoint_minutes"}),
        "[[search.space]]": spaces,
        **{
            f"search.{name}": value
            for name, value in search.model_dump(mode="json", exclude={"space", "storage", "remote"}).items()
        },
    }
    return {name: key_of(value) for name, value in parts.items()}


PLACES = {"model", "weights", "also"}


def relative_to(path: Path, root: Path) -> str:
    """Return a path within the search's directory as its files hold it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
