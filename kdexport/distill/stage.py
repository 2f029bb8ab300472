"""The distill stage: a teacher, a student taught by it, and the same student without it. OPEN FIRST in this folder.

Each of the three is a phase with a key of its own, the hash of what it depends on. A phase whose key and weights are
unchanged is not trained again.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator

from kdexport import __version__, artifacts, processes
from kdexport.artifacts import RunDirectory
from kdexport.distill import quantize_aware
from kdexport.distill.accelerators import accelerator_for
from kdexport.distill.batches import Batches
from kdexport.distill.cached_teacher import cached
from kdexport.distill.checkpoint import Checkpoints
from kdexport.distill.data_free import with_made_samples
from kdexport.distill.ensemble import Ensemble
from kdexport.distill.job import Fitted, Job
from kdexport.distill.objective import Objective
from kdexport.distill.phase import run_phase
from kdexport.distill.run import Run, Spec, network_key
from kdexport.distill.taps import Taps
from kdexport.distill.teacher import CachedTeacher, ListenedTeacher, Teacher
from kdexport.distill.tracking import Trackers
from kdexport.distill.trainer import fit
from kdexport.distill.validation import Validation, predict_all
from kdexport.errors import KDExportError, SourceError
from kdexport.progress import SILENT, Progress
from kdexport.recipe import Colleague, DataFree, Distill, Recipe, Training
from kdexport.results import DistillResult, TeacherVote, TrainedNetwork
from kdexport.sources.augment import Augmentation
from kdexport.sources.datasets import load_data
from kdexport.sources.models import Model, count_macs
from kdexport.sources.preprocessing import Preprocessing
from kdexport.sources.samples import Split

WITHOUT_EFFECT = {"checkpoint_minutes", "track"}  # settings of a training that its weights do not depend on
Teaching = Sequence[tuple[TrainedNetwork, Spec]]  # who teaches, with the recipe's table of each


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
    trackers = Trackers(recipe.distill.track if processes.is_main() else (), directory.root, recipe.name)
    data = load_data(recipe.data, recipe.seed, directory.cache, progress)
    with contextlib.closing(trackers):
        return _distilled(Run(recipe, directory, data, progress, trackers))


def _distilled(run: Run) -> DistillResult:
    recipe, directory = run.recipe, run.directory
    run.say_what_is_special()
    _ = run.objective, run.load("student", recipe.student)  # faults show before the teacher has cost an hour
    teachers = _teachers(run)
    networks = [teachers[0][0], _student(run, teachers)]
    if recipe.distill.baseline:
        if run.dataset.train.labels is None:
            run.progress.warn("the data have no labels: there is no student-plain to compare with")
        else:
            networks.append(_student_plain(run))
    result = DistillResult(
        name=recipe.name,
        class_names=run.dataset.class_names,
        splits={name: len(getattr(run.dataset, name)) for name in ("train", "val", "test")},
        splits_made_by=run.dataset.splits_made_by,
        networks=tuple(networks),
        teachers=_votes(run, teachers) if len(teachers) > 1 else (),
    )
    if processes.is_main():
        directory.finish("distill", result, artifacts.key_of([network.weights_sha256 for network in networks]))
    return result


def _teachers(run: Run) -> Teaching:
    """Return the teacher, and any others that speak with it; only the first is exported and compared with."""
    head = run.recipe.teacher
    named = [("teacher", head), *((f"teacher-{number}", also) for number, also in enumerate(head.also, 2))]
    return [(_teacher(run, name, spec), spec) for name, spec in named]


def _teacher(run: Run, name: str, spec: Colleague) -> TrainedNetwork:
    """Take a teacher as it is, or fit it on the labels where the recipe says how."""
    training = spec.train
    key = artifacts.key_of(
        network_key(spec), training and [run.data_key, training.model_dump(exclude=WITHOUT_EFFECT)], __version__
    )
    if training is None:
        if spec.weights is None and spec.model.partition(":")[0] in ("torchvision", "timm"):
            raise SourceError(
                f"the {name} {spec.model} has no weights: it would teach noise",
                hint='give teacher.weights (a file or "pretrained"), or [teacher.train] to fit it on the labels',
            )
        return run_phase(run, name, spec, key, None)
    return run_phase(run, name, spec, key, lambda model: _fit_on_labels(run, name, model, training, key))


def _as_one(run: Run, teaching: Teaching, device: torch.device) -> Teacher:
    """Return whoever teaches as one teacher."""
    models = [run.load_trained(made, spec) for made, spec in teaching]
    if len(models) == 1:
        return Teacher(models[0].network, models[0].preprocessing, device)
    weights = [spec.weight for _, spec in teaching if isinstance(spec, Colleague)]
    members = [(model.network, model.preprocessing) for model in models]
    return Teacher(Ensemble(members, weights, run.recipe.teacher.combine), Preprocessing(), device)


def _votes(run: Run, teaching: Teaching) -> tuple[TeacherVote, ...]:
    """Return how good each of several teachers is, and say how far they agree."""
    device = accelerator_for(run.recipe.distill.precision).device
    ensemble = _as_one(run, teaching, device).network
    votes = ensemble.votes(run.dataset.val, device) if isinstance(ensemble, Ensemble) else ()
    for vote in votes:
        run.progress.say(f"{vote.name}: agrees with all teachers together on {vote.agreement.top1:.1%} of the samples")
    return votes


def _student(run: Run, teachers: Teaching) -> TrainedNetwork:
    """Train the student; where several generations are asked for, each is taught by the one before."""
    teaching = teachers
    for generation in range(1, run.recipe.distill.generations):
        teaching = [(_generation(run, f"student-{generation}", teaching), run.recipe.student)]
    if not run.recipe.distill.quantize_aware:
        return _generation(run, "student", teaching)
    distilled = _generation(run, "student", teaching, ships_as=quantize_aware.BEFORE)
    return _with_rounding(run, distilled, teaching)


def _generation(run: Run, phase: str, teaching: Teaching, ships_as: str | None = None) -> TrainedNetwork:
    """Train a student on its teachers' word and, by ``label_weight``, on the labels."""
    spec, settings = run.recipe.student, run.recipe.distill
    identity = _identity(run, teaching)
    later = {"baseline", "generations", "quantize_aware", "quantize_aware_epochs", "quantize_aware_lr", *WITHOUT_EFFECT}
    key = artifacts.key_of(network_key(spec), run.data_key, identity, settings.model_dump(exclude=later), __version__)

    def train(model: Model) -> Fitted:
        accelerator = accelerator_for(settings.precision)
        job, teacher = _taught(run, phase, model, teaching, settings, run.objective, accelerator)
        return _fit(run, model, job, accelerator, key, teacher)

    return run_phase(run, phase, spec, key, train, ships_as=ships_as)


def _with_rounding(run: Run, distilled: TrainedNetwork, teaching: Teaching) -> TrainedNetwork:
    """Teach the distilled student on while it rounds as int8 does; its weights are those that ship."""
    spec, settings = run.recipe.student, quantize_aware.settings_of(run.recipe.distill)
    key = artifacts.key_of(
        [distilled.weights_sha256, network_key(spec), run.data_key, _identity(run, teaching)],
        settings.model_dump(exclude={"baseline", "generations", *WITHOUT_EFFECT}),
        run.recipe.export.weight_bits,
        __version__,
    )

    def train(model: Model) -> Fitted:
        accelerator = accelerator_for(settings.precision)
        objective = quantize_aware.objective_of(run, settings)
        job, teacher = _taught(run, quantize_aware.PHASE, model, teaching, settings, objective, accelerator)
        job = replace(job, macs=None)  # no trial: the rounding leaves little for another form to save
        rounded = quantize_aware.rounded(run, model, job.batches, accelerator.device)
        fitted = _fit(run, replace(model, network=rounded), job, accelerator, key, teacher)
        # What ships in fp32 is scored without the rounding.
        accuracy = job.validation.score(model.network)["val_accuracy"]
        return replace(
            fitted,
            epochs=distilled.epochs + fitted.epochs,
            best_epoch=distilled.epochs + fitted.best_epoch,
            seconds=(distilled.seconds or 0.0) + fitted.seconds,
            val_accuracy=accuracy,
            activation_ranges=rounded.ranges(),
        )

    return run_phase(
        run,
        quantize_aware.PHASE,
        spec,
        key,
        train,
        ships_as="student",
        start=partial(run.load_trained, distilled, spec),
    )


def _identity(run: Run, teaching: Teaching) -> list[object]:
    """Return what stands for those who teach."""
    identity: list[object] = [[made.weights_sha256, network_key(taught_as)] for made, taught_as in teaching]
    if len(teaching) > 1:
        weights = [taught_as.weight for _, taught_as in teaching if isinstance(taught_as, Colleague)]
        identity += [weights, run.recipe.teacher.combine]
    return identity


def _taught(
    run: Run,
    phase: str,
    model: Model,
    teaching: Teaching,
    settings: Distill,
    objective: Objective,
    accelerator: Accelerator,
) -> tuple[Job, Teacher]:
    """Return the training of a student by its teachers, and these as one."""
    teacher = _as_one(run, teaching, accelerator.device)
    shown = run if settings.data_free is None else _with_made_samples(run, teacher, settings.data_free, accelerator)
    batches = _batches(shown, shown.dataset.with_unlabelled, settings, accelerator)
    taps = _taps(shown, objective, model, teacher, batches) if objective.needs_features else None
    asked: CachedTeacher | ListenedTeacher | None = None
    if taps:
        asked = ListenedTeacher(teacher, taps)
    elif objective.needs_teacher:
        asked = cached(shown, teacher, _identity(run, teaching), batches, accelerator)
    job = Job(
        phase=phase,
        training=settings,
        seed=run.recipe.seed,
        preprocessing=model.preprocessing,
        batches=batches,
        objective=objective,
        validation=_validation(shown, model, accelerator, objective, teacher, asked),
        teacher=asked,
        taps=taps,
        macs=_macs(model, run),
    )
    return job, teacher


def _with_made_samples(run: Run, teacher: Teacher, settings: DataFree, accelerator: Accelerator) -> Run:
    """Return the run with images made from the teacher in place of its own: no real one is seen in training."""
    seed, device = run.recipe.seed, accelerator.device
    about = (teacher.network, teacher.preprocessing, settings)
    made = with_made_samples(run.dataset, *about, seed=seed, device=device, progress=run.progress)
    return replace(run, dataset=made)


def _taps(run: Run, objective: Objective, model: Model, teacher: Teacher, batches: Batches) -> Taps:
    """Return the taps on both networks, their layers found in one dry run of two samples, and say what they compare."""
    unnamed = [name for name, term in objective.feature_terms.items() if not term.names_teacher]
    if unnamed and isinstance(teacher.network, Ensemble):
        raise KDExportError(
            f"{unnamed[0]} compares layers, and with several teachers it is not clear whose",
            hint="name one as teacher_layer: members.0.PATH is a layer of the first teacher",
        )
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
    run.progress.say("the teacher runs at every step: its features are too large to keep")
    return taps


def _student_plain(run: Run) -> TrainedNetwork:
    """Train the same student from the same start with the same budget, on the labels alone."""
    spec, settings = run.recipe.student, run.recipe.distill
    budget = settings.model_dump(include={*Training.model_fields, "views"} - WITHOUT_EFFECT)
    key = artifacts.key_of(network_key(spec), run.data_key, budget, __version__)
    return run_phase(
        run, "student-plain", spec, key, lambda model: _fit_on_labels(run, "student-plain", model, settings, key)
    )


def _fit_on_labels(run: Run, phase: str, model: Model, training: Training, key: str) -> Fitted:
    accelerator = accelerator_for(training.precision)
    objective = Objective(1.0, label_smoothing=training.label_smoothing, label_kind=run.label_kind(training))
    job = Job(
        phase=phase,
        training=training,
        seed=run.recipe.seed,
        preprocessing=model.preprocessing,
        batches=_batches(run, run.dataset.train, training, accelerator),
        objective=objective,
        validation=_validation(run, model, accelerator, objective),
        macs=_macs(model, run),
    )
    return _fit(run, model, job, accelerator, key)


def _macs(model: Model, run: Run) -> int | None:
    """Count one sample's operations; a network fresh from its class is in training mode, and must not learn of it."""
    mode = model.network.training
    model.network.eval()
    counted = count_macs(model, run.dataset)
    model.network.train(mode)
    return counted


def _fit(
    run: Run, model: Model, job: Job, accelerator: Accelerator, key: str, teacher: Teacher | None = None
) -> Fitted:
    """Train, and tell the log which epoch's weights were kept and what they score on the test split."""
    checkpoints = Checkpoints(run.directory.checkpoints / job.phase, key)
    fitted = fit(model.network, job, accelerator, checkpoints, run.log, run.progress)
    if accelerator.is_main_process:
        test = _validation(run, model, accelerator, job.objective, teacher, job.teacher, "test")
        kept = fitted.best_epoch if job.training.keep == "best" else fitted.epochs - 1
        run.log.keep(job.phase, kept, test.score(model.network))
    return fitted


def _batches(run: Run, split: Split, training: Training, accelerator: Accelerator) -> Batches:
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


def _validation(
    run: Run,
    model: Model,
    accelerator: Accelerator,
    objective: Objective,
    teacher: Teacher | None = None,
    asked: CachedTeacher | ListenedTeacher | None = None,
    name: Literal["val", "test"] = "val",
) -> Validation:
    split, device = getattr(run.dataset, name), accelerator.device
    teacher_logits = predict_all(teacher.network, teacher.preprocessing, split, device) if teacher else None
    listened = asked if isinstance(asked, ListenedTeacher) else None
    return Validation(split, model.preprocessing, device, teacher_logits, objective, name, listened)
