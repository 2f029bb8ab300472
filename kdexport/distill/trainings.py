"""How a training is put together from a run, by a teacher or on the labels alone, and what is told of it at its end."""

from dataclasses import replace
from typing import Literal

import numpy as np
from accelerate import Accelerator

from kdexport import __version__
from kdexport.artifacts import key_of, write_atomically
from kdexport.distill.batches import Batches
from kdexport.distill.cached_teacher import cache_of, cached, kept_answers
from kdexport.distill.checkpoint import Checkpoints
from kdexport.distill.data_free import synthesize, with_images
from kdexport.distill.ensemble import Ensemble
from kdexport.distill.job import Fitted, Job
from kdexport.distill.objective import Objective
from kdexport.distill.run import Run
from kdexport.distill.taps import Taps
from kdexport.distill.teacher import CachedTeacher, ListenedTeacher, Teacher
from kdexport.distill.teaching import Teaching, as_one, identity
from kdexport.distill.trainer import fit
from kdexport.distill.validation import Validation
from kdexport.errors import KDExportError
from kdexport.recipe import DataFree, Distill, Training
from kdexport.sources.augment import Augmentation
from kdexport.sources.models import Model, count_macs
from kdexport.sources.samples import Split


def taught(
    run: Run,
    phase: str,
    model: Model,
    teaching: Teaching,
    settings: Distill,
    objective: Objective,
    accelerator: Accelerator,
) -> Job:
    """Return the training of a student by its teachers.

    Args:
        run: What the phases share.
        phase: Of the epoch log.
        model: The student.
        teaching: Who teaches.
        settings: How it is trained.
        objective: What it minimizes.
        accelerator: Device and processes.

    Raises:
        KDExportError: The objective compares layers and cannot tell whose, or no images can be made for the teacher.
    """
    teacher, who = as_one(run, teaching, accelerator.device), identity(run, teaching)
    shown = (
        run if settings.data_free is None else _with_made_samples(run, teacher, who, settings.data_free, accelerator)
    )
    batches = _batches(shown, shown.dataset.with_unlabelled, settings, accelerator)
    taps = _taps(shown, objective, model, teacher, batches) if objective.needs_features else None
    asked: CachedTeacher | ListenedTeacher | None = None
    if objective.needs_teacher:
        cache = cache_of(shown, teacher, who, batches, accelerator)
        if taps:
            alone = accelerator.num_processes == 1  # else each hears its own part
            asked = ListenedTeacher(teacher, taps, cache if alone else None, len(batches.split))
        else:
            asked = cached(shown, teacher, cache, batches)

    def watched(name: Literal["val", "test"]) -> Validation:
        answers = kept_answers(shown, teacher, who, name, accelerator)
        listened = asked if isinstance(asked, ListenedTeacher) else None
        split = getattr(shown.dataset, name)
        return Validation(split, model.preprocessing, accelerator.device, answers, objective, name, listened)

    return Job(
        phase=phase,
        training=settings,
        seed=run.recipe.seed,
        preprocessing=model.preprocessing,
        batches=batches,
        objective=objective,
        validation=watched("val"),
        test=lambda: watched("test"),
        teacher=asked,
        taps=taps,
        macs=_macs(model, run),
    )


def on_labels(run: Run, phase: str, model: Model, training: Training, accelerator: Accelerator) -> Job:
    """Return the training of a network on the labels alone; arguments as ``taught``."""
    objective = Objective(1.0, label_smoothing=training.label_smoothing, label_kind=run.label_kind(training))

    def watched(name: Literal["val", "test"]) -> Validation:
        split = getattr(run.dataset, name)
        return Validation(split, model.preprocessing, accelerator.device, None, objective, name)

    return Job(
        phase=phase,
        training=training,
        seed=run.recipe.seed,
        preprocessing=model.preprocessing,
        batches=_batches(run, run.dataset.train, training, accelerator),
        objective=objective,
        validation=watched("val"),
        test=lambda: watched("test"),
        macs=_macs(model, run),
    )


def trained(run: Run, model: Model, job: Job, accelerator: Accelerator, key: str) -> Fitted:
    """Train, and tell the log which epoch's weights were kept and what they score on the test split.

    Args:
        run: What the phases share.
        model: Whose network is trained, in place.
        job: Its training.
        accelerator: The job's.
        key: Of the phase: a checkpoint of another one is not gone on from.
    """
    checkpoints = Checkpoints(run.directory.checkpoints / job.phase, key)
    fitted = fit(model.network, job, accelerator, checkpoints, run.log, run.progress)
    test = job.test()
    if accelerator.is_main_process:
        kept = fitted.best_epoch if job.training.keep == "best" else fitted.epochs - 1
        run.log.keep(job.phase, kept, test.score(model.network))
    return fitted


def _with_made_samples(
    run: Run, teacher: Teacher, who: list[object], settings: DataFree, accelerator: Accelerator
) -> Run:
    """Return the run with images made from the teacher in place of its own: no real one is seen in training.

    They are made once, by one process: another device, or a GPU at another time, would make other ones.
    """
    seed, shape = run.recipe.seed, run.dataset.train.inputs[0].shape[1:]
    key = key_of(who, teacher.preprocessing.to_json(), settings.model_dump(), seed, shape, __version__)
    path = run.directory.cache / f"made-{key}.npy"
    if accelerator.is_main_process and not path.exists():
        about = (teacher.network, teacher.preprocessing, shape, settings)
        images = synthesize(*about, seed=seed, device=accelerator.device, progress=run.progress)
        write_atomically(path, lambda temporary: np.save(temporary, images))
    accelerator.wait_for_everyone()
    return replace(run, dataset=with_images(run.dataset, np.load(path)))


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


def _macs(model: Model, run: Run) -> int | None:
    """Count one sample's operations; a network fresh from its class is in training mode, and must not learn of it."""
    mode = model.network.training
    model.network.eval()
    counted = count_macs(model, run.dataset)
    model.network.train(mode)
    return counted


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
