"""The distill stage: a teacher, a student taught by it, and the same student without it. OPEN FIRST in this folder.

Each of the three is a phase with a key of its own, the hash of what it depends on. A phase whose key and weights are
unchanged is not trained again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator, PartialState

from kdexport import __version__, artifacts, processes, references, results
from kdexport.artifacts import RunDirectory
from kdexport.distill.accelerators import accelerator_for
from kdexport.distill.batches import Batches
from kdexport.distill.checkpoint import Checkpoints
from kdexport.distill.metrics import MetricsLog
from kdexport.distill.objective import LabelKind, Objective
from kdexport.distill.taps import Taps
from kdexport.distill.teacher import CachedTeacher, ListenedTeacher, Teacher
from kdexport.distill.teacher_cache import TeacherCache
from kdexport.distill.trainer import Fitted, Job, fit
from kdexport.distill.validation import Validation, predict_all
from kdexport.errors import SourceError
from kdexport.progress import SILENT, Progress
from kdexport.recipe import Distill, Recipe, Student, Training
from kdexport.recipe import Teacher as TeacherSpec
from kdexport.results import DistillResult, TrainedNetwork
from kdexport.sources.augment import Augmentation
from kdexport.sources.datasets import load_data
from kdexport.sources.fingerprint import data_fingerprint, fingerprint, weights_fingerprint
from kdexport.sources.models import Model, count_macs, load_model
from kdexport.sources.mixing import MIXES
from kdexport.sources.samples import Dataset, Split
from kdexport.sources.weights import save_weights


def distill(recipe: Recipe, directory: RunDirectory, progress: Progress = SILENT) -> DistillResult:
    """Train what the recipe asks for into a run directory.

    Args:
        recipe: What to train.
        directory: Where weights, the epoch log, checkpoints and distill.json go.
        progress: Where to say what happens.

    Returns:
        The networks with their weights' paths: teacher, student and, with ``distill.baseline``, student-plain.

    Raises:
        KDExportError: A reference that cannot be loaded, class counts that differ, a loss that is not finite.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written; the same call goes on from there.
    """
    directory.prepare()
    run = _Run(recipe, directory, load_data(recipe.data, recipe.seed, directory.cache), progress)
    _ = run.objective, run.load("student", recipe.student)  # faults show before the teacher has cost an hour
    teacher = _teacher(run)
    networks = [teacher, _student(run, teacher)]
    if recipe.distill.baseline:
        if run.dataset.train.labels is None:
            progress.warn("the data have no labels: there is no student-plain to compare with")
        else:
            networks.append(_student_plain(run))
    result = DistillResult(
        name=recipe.name,
        class_names=run.dataset.class_names,
        splits={name: len(getattr(run.dataset, name)) for name in ("train", "val", "test")},
        splits_made_by=run.dataset.splits_made_by,
        networks=tuple(networks),
    )
    if processes.is_main():
        directory.finish("distill", result, artifacts.key_of([network.weights_sha256 for network in networks]))
    return result


@dataclass(frozen=True)
class _Run:
    """What the three phases share."""

    recipe: Recipe
    directory: RunDirectory
    dataset: Dataset
    progress: Progress

    @property
    def data_key(self) -> list[object]:
        return [*data_fingerprint(self.recipe.data), self.recipe.seed]

    def label_kind(self, training: Training) -> LabelKind:
        if self.dataset.multi_label:
            return "multi_label"
        return "soft" if set(MIXES) & set(training.augment) else "class"

    @property
    def objective(self) -> Objective:
        settings = self.recipe.distill
        smoothing = settings.label_smoothing
        return Objective(settings.label_weight, settings.terms, label_smoothing=smoothing, label_kind=self.label_kind(settings))

    def load(self, role: str, spec: TeacherSpec | Student) -> Model:
        """Build a network; its initialization depends on the seed alone, so that both students start alike."""
        torch.manual_seed(self.recipe.seed)
        return load_model(role, spec, self.dataset)

    def load_trained(self, made: TrainedNetwork, spec: TeacherSpec | Student) -> Model:
        return load_model(made.name, spec, self.dataset, self.directory.root / made.weights)


def _teacher(run: _Run) -> TrainedNetwork:
    """Take the teacher as it is, or fit it on the labels where the recipe says how."""
    spec, training = run.recipe.teacher, run.recipe.teacher.train
    key = artifacts.key_of(_network_key(spec), training and [run.data_key, training.model_dump()], __version__)
    if training is None:
        if spec.weights is None and run.recipe.teacher.model.partition(":")[0] in ("torchvision", "timm"):
            raise SourceError(
                f"the teacher {spec.model} has no weights: it would teach noise",
                hint='give teacher.weights (a file or "pretrained"), or [teacher.train] to fit it on the labels',
            )
        return _phase(run, "teacher", spec, key, None)
    return _phase(run, "teacher", spec, key, lambda model: _fit_on_labels(run, "teacher", model, training, key))


def _student(run: _Run, taught_by: TrainedNetwork) -> TrainedNetwork:
    """Train the student on the teacher's word and, by ``label_weight``, on the labels."""
    spec, settings = run.recipe.student, run.recipe.distill
    key = artifacts.key_of(
        _network_key(spec),
        run.data_key,
        [taught_by.weights_sha256, _network_key(run.recipe.teacher)],
        settings.model_dump(exclude={"baseline"}),
        __version__,
    )

    def train(model: Model) -> Fitted:
        accelerator = accelerator_for(settings.precision)
        teacher_model = run.load_trained(taught_by, run.recipe.teacher)
        teacher = Teacher(teacher_model.network, teacher_model.preprocessing, accelerator.device)
        batches = _batches(run, run.dataset.with_unlabelled, settings, accelerator)
        objective = run.objective
        taps = _taps(run, objective, model, teacher, batches) if objective.needs_features else None
        asked: CachedTeacher | ListenedTeacher | None = None
        if taps:
            asked = ListenedTeacher(teacher, taps)
        elif objective.needs_teacher:
            asked = _cached(
                run, teacher, [taught_by.weights_sha256, _network_key(run.recipe.teacher)], batches, accelerator
            )
        job = Job(
            phase="student",
            training=settings,
            seed=run.recipe.seed,
            preprocessing=model.preprocessing,
            batches=batches,
            objective=objective,
            validation=_validation(run, model, accelerator, teacher),
            teacher=asked,
            taps=taps,
        )
        return _fit(run, model, job, accelerator, key)

    return _phase(run, "student", spec, key, train)


def _cached(
    run: _Run, teacher: Teacher, identity: list[object], batches: Batches, accelerator: Accelerator
) -> CachedTeacher:
    """Return a teacher that is asked once per sample and view."""
    made_from = [identity, teacher.preprocessing.to_json(), run.data_key, [run.recipe.distill.augment, batches.views]]
    cache = TeacherCache(
        run.directory.cache,
        artifacts.key_of(*made_from),
        views=batches.views,
        samples=len(batches.split),
        classes=run.dataset.num_classes,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    return CachedTeacher(teacher, cache, batches, run.progress)


def _taps(run: _Run, objective: Objective, model: Model, teacher: Teacher, batches: Batches) -> Taps:
    """Return the taps on both networks, their layers found in one dry run of two samples, and say what they compare."""
    inputs = batches.gather(np.arange(min(2, len(run.dataset.train))), view=0).inputs
    taps = Taps(
        objective.feature_terms,
        model.network.to(inputs[0].device),
        teacher.network,
        model.preprocessing.apply(inputs),
        teacher.preprocessing.apply(inputs),
        samples=len(batches.split),
        seed=run.recipe.seed,
    )
    for name, (student, taught_by) in taps.pairs.items():
        run.progress.say(f"{name}: student {', '.join(student)} <- teacher {', '.join(taught_by)}")
    return taps


def _student_plain(run: _Run) -> TrainedNetwork:
    """Train the same student from the same start with the same budget, on the labels alone."""
    spec, settings = run.recipe.student, run.recipe.distill
    budget = settings.model_dump(include={*Training.model_fields, "views"})
    key = artifacts.key_of(_network_key(spec), run.data_key, budget, __version__)
    return _phase(
        run, "student-plain", spec, key, lambda model: _fit_on_labels(run, "student-plain", model, settings, key)
    )


def _phase(
    run: _Run, name: str, spec: TeacherSpec | Student, key: str, train: Callable[[Model], Fitted] | None
) -> TrainedNetwork:
    """Return the phase's earlier result where it is still true, else train and write the weights."""
    record = run.directory.checkpoints / name / "done.json"
    weights = run.directory.weights(name)
    done = artifacts.read_json(record)
    if done and done.get("key") == key and weights.exists():
        earlier = results.from_json(TrainedNetwork, done["network"])
        if artifacts.sha256(weights) == earlier.weights_sha256:
            run.progress.say(f"{name}: unchanged, not trained again")
            return earlier
    model = run.load(name, spec)
    fitted = train(model) if train else None
    if processes.is_main():
        save_weights(model.network, weights)
    PartialState().wait_for_everyone()
    made = TrainedNetwork(
        name=name,
        reference=references.relative(spec.model, run.directory.root.resolve()),
        weights=weights.name,
        weights_sha256=artifacts.sha256(weights),
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        macs=count_macs(model, run.dataset),
        epochs=fitted.epochs if fitted else 0,
        seconds=fitted.seconds if fitted else None,
        best_epoch=fitted.best_epoch if fitted else None,
        val_accuracy=fitted.val_accuracy if fitted else None,
    )
    if processes.is_main():
        artifacts.write_json(record, {"key": key, "network": results.to_json(made)})
    return made


def _fit_on_labels(run: _Run, phase: str, model: Model, training: Training, key: str) -> Fitted:
    accelerator = accelerator_for(training.precision)
    job = Job(
        phase=phase,
        training=training,
        seed=run.recipe.seed,
        preprocessing=model.preprocessing,
        batches=_batches(run, run.dataset.train, training, accelerator),
        objective=Objective(1.0, label_smoothing=training.label_smoothing, label_kind=run.label_kind(training)),
        validation=_validation(run, model, accelerator),
    )
    return _fit(run, model, job, accelerator, key)


def _fit(run: _Run, model: Model, job: Job, accelerator: Accelerator, key: str) -> Fitted:
    checkpoints = Checkpoints(run.directory.checkpoints / job.phase, key)
    log = MetricsLog(run.directory.metrics, writes=accelerator.is_main_process)
    return fit(model.network, job, accelerator, checkpoints, log, run.progress)


def _batches(run: _Run, split: Split, training: Training, accelerator: Accelerator) -> Batches:
    augmentation = Augmentation(training.augment, run.recipe.seed, split, run.dataset.num_classes)
    return Batches(
        split,
        batch_size=training.batch_size,
        seed=run.recipe.seed,
        augmentation=augmentation if augmentation else None,
        balanced=training.balanced,
        views=training.views if isinstance(training, Distill) else training.epochs,
        device=accelerator.device,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )


def _validation(run: _Run, model: Model, accelerator: Accelerator, teacher: Teacher | None = None) -> Validation:
    split, device = run.dataset.val, accelerator.device
    teacher_logits = predict_all(teacher.network, teacher.preprocessing, split, device) if teacher else None
    return Validation(split, model.preprocessing, device, teacher_logits)


def _network_key(spec: TeacherSpec | Student) -> list[object]:
    made_from = [fingerprint(spec.model, spec.args), weights_fingerprint(spec.weights), spec.strict]
    return [*made_from, spec.preprocessing.model_dump()]
