"""What the phases of one distillation share: the recipe, the data, and how a network is built for them."""

from collections.abc import Callable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from kdexport import artifacts
from kdexport.artifacts import RunDirectory
from kdexport.data.mixing import MIXES
from kdexport.data.samples import Dataset
from kdexport.distill.logging import MetricsLog, Trackers
from kdexport.distill.objective import Objective
from kdexport.models.loading import Model, load_model
from kdexport.progress import Progress
from kdexport.recipe import CORPUS, Distill, Recipe, Student, TeacherSpec, Training
from kdexport.results import OnChange, TrainedNetwork
from kdexport.stage_cache import cache_key, data_fingerprint, fingerprint, weights_fingerprint

Spec = TeacherSpec | Student
SEED_STEP = 1_000_003  # between networks that are to start differently


# Is given the number of epochs that are done, and what gives the outputs on the validation split (as ``Task.kept`` has
# them); True pauses the training after its checkpoint.
AfterEpoch = Callable[[int, Callable[[], NDArray[Any]]], bool]


@dataclass(frozen=True)
class DistillContext:
    """What the three phases share."""

    recipe: Recipe
    directory: RunDirectory
    dataset: Dataset
    progress: Progress
    trackers: Trackers
    on_change: OnChange | None = None
    check: Callable[["DistillContext"], None] = lambda _: None  # is called once, before the first training
    checked: list[bool] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)  # that have begun, or were found done: the order of the log
    after_epoch: "AfterEpoch | None" = None  # of the student

    def check_once(self) -> None:
        """Try what is going to be trained, the first time that something is."""
        if not self.checked:
            self.checked.append(True)
            self.check(self)

    @property
    def log(self) -> MetricsLog:
        """The epoch log."""
        return MetricsLog(self.directory.metrics, self.trackers, self.phases, writes=artifacts.is_main())

    @property
    def data_key(self) -> list[object]:
        """What stands for the samples and the order in which they are drawn."""
        return [*data_fingerprint(self.recipe.data), self.recipe.seed, self.dataset.class_names]

    def samples_key(self, split: str) -> list[object]:
        """Return what stands for a split's samples: the seed only where it draws them, so that seeds share a cache."""
        data, distill = self.recipe.data, self.recipe.distill
        drawn = not self.dataset.splits_made_by[split].startswith("source")
        if split == "train":
            made = data.fraction < 1 or bool(distill.augment) or distill.data_free is not None
            drawn = made or any(not origin.startswith("source") for origin in self.dataset.splits_made_by.values())
        else:
            data = data.model_copy(update={"fraction": 1.0})  # of train alone
        return [*data_fingerprint(data), self.recipe.seed if drawn else None, self.dataset.class_names]

    def label_objective(self, training: Training) -> Objective:
        """Return what a network minimizes that learns from the labels alone."""
        return Objective(
            1.0,
            label_smoothing=training.label_smoothing,
            label_loss=training.label_loss,
            task=self.dataset.task,
            mixed=mixes_samples(training),
        )

    @property
    def objective(self) -> Objective:
        """What the student minimizes."""
        return self.objective_of(self.recipe.distill)

    def objective_of(self, settings: Distill) -> Objective:
        """Return what a student minimizes by some settings."""
        return Objective(
            settings.label_weight,
            settings.terms,
            label_smoothing=settings.label_smoothing,
            label_loss=settings.label_loss,
            task=self.dataset.task,
            mixed=mixes_samples(settings),
        )

    def load(self, role: str, spec: Spec, start: Path | None = None) -> Model:
        """Build a network; its initialization depends on the seed alone, so that both students start alike.

        A student that is cut out of a teacher starts from what the run has trained that to: ``start``.

        Further teachers ("teacher-2") and earlier generations ("student-1") start elsewhere: they are to differ.
        """
        number = role.rpartition("-")[2]
        torch.manual_seed(self.recipe.seed + SEED_STEP * (int(number) if number.isdigit() else 0))
        learns = isinstance(spec, Student) or spec.train is not None
        return load_model(role, spec, self.dataset, learns=learns, start=start, seed=self.recipe.seed)

    @property
    def student_starts_from(self) -> Path | None:
        """The teacher's weights in the run, where the student is a part of that teacher; else None: its own files."""
        teacher, student = self.recipe.teacher, self.recipe.student
        if student.prune is not None:
            return self.directory.weights("teacher")
        same = (student.model, student.args, student.weights) == (teacher.model, teacher.args, teacher.weights)
        return self.directory.weights("teacher") if student.cuts and same and teacher.train is not None else None

    def announce_data(self) -> None:
        """Say how the data were read, and what was left out of them."""
        for note in self.dataset.notes:
            self.progress.message(note)
        for reason in self.dataset.skipped:
            self.progress.warn(f"left out, it cannot be decoded: {reason}")
        for warning in self.dataset.warnings:
            self.progress.warn(warning)

    def load_trained(self, made: TrainedNetwork, spec: Spec) -> Model:
        """Build a network with the weights that this run has made for it."""
        return load_model(made.name, spec, self.dataset, self.directory.root / made.weights)


def network_key(spec: Spec) -> list[object]:
    """Return what stands for a network as it starts: its code, arguments, weights and preprocessing."""
    made_from: list[object] = [
        fingerprint(spec.model, spec.args),
        weights_fingerprint(spec.weights),
        spec.strict,
        spec.weights_key,
        spec.output,
    ]
    if isinstance(spec, Student) and spec.cuts:
        tokens = spec.vocabulary if spec.vocabulary in (None, CORPUS) else fingerprint(spec.vocabulary)
        made_from += [list(spec.layers) if isinstance(spec.layers, tuple) else spec.layers, tokens]
    if spec.embedding_dim is not None:
        made_from.append(["embedding_dim", spec.embedding_dim])
    if isinstance(spec, Student) and spec.prune is not None:
        made_from.append(spec.prune.model_dump(mode="json"))
    return [*made_from, spec.preprocessing.model_dump()]


@dataclass(frozen=True)
class Depends:
    """What a phase depends on, in three parts: so that a change can be told, and what it would cost."""

    key: str  # of all of it
    identity: str  # of all but the settings: network, data, teachers, objective
    settings: dict[str, Any]  # how it is trained: epochs, lr, schedule, ...

    def changed(self, earlier: "Depends | None") -> tuple[str, ...]:
        """Return the settings that differ from an earlier training's, each as ``lr 0.002 -> 0.004``."""
        before = {} if earlier is None else earlier.settings
        return tuple(
            f"{name} {before[name]} -> {value}"
            for name, value in self.settings.items()
            if name in before and before[name] != value
        )


# Settings of a training that its weights do not depend on.
WITHOUT_EFFECT = {"checkpoint_minutes", "teacher_cache", "track"}


def depends_on(identity: list[object], training: Training, exclude: Set[str] = frozenset()) -> Depends:
    """Return what a training depends on.

    Args:
        identity: Network, data and teachers.
        training: Its settings; a loss of the user's own counts by its code, not by its place.
        exclude: The settings that this phase does not depend on.
    """
    settings = training.model_dump(mode="json", exclude={*exclude, *WITHOUT_EFFECT})
    if training.label_loss is None:  # the usual one
        del settings["label_loss"]
    settings["augment"] = augment_key(training)
    if training.label_loss != "arcface":
        del settings["arcface_margin"], settings["arcface_scale"]
    for term in settings.get("terms", ()):
        if ":" in term["method"]:
            term["method"] = fingerprint(term["method"])
    how = {name: value for name, value in settings.items() if name in Training.model_fields}
    objective = {name: value for name, value in settings.items() if name not in how}
    whole = cache_key("training", identity=identity, objective=objective)
    return Depends(cache_key("phase", training=whole, how=how), whole, how)


def augment_key(training: Training) -> list[str]:
    """Return what stands for a training's augmentations; one of the user's own counts by its code."""
    return [fingerprint(name) if ":" in name else name for name in training.augment]


def mixes_samples(training: Training) -> bool:
    """Whether a training's augmentation mixes samples with one another."""
    return bool(set(MIXES) & set(training.augment))
