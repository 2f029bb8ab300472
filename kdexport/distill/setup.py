"""How a training is put together from a run, by a teacher or on the labels alone, and what is told of it at its end."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator

from kdexport import __version__
from kdexport.artifacts import key_of, write_atomically
from kdexport.data.augment import Augmentation
from kdexport.data.samples import Split
from kdexport.distill.batches import Batches
from kdexport.distill.context import DistillContext, Spec, network_key
from kdexport.distill.data_free import synthesize, with_images
from kdexport.distill.evaluation import Validation
from kdexport.distill.features import FeatureHooks
from kdexport.distill.inference import lay_out_for_inference
from kdexport.distill.job import TrainingResult, TrainingSetup
from kdexport.distill.objective import Objective
from kdexport.distill.optimization import accelerator_for
from kdexport.distill.state import Checkpoints
from kdexport.distill.teacher import CachedTeacher, Ensemble, OnlineTeacher, Teacher, cache_of, cached, kept_answers
from kdexport.distill.trainer import fit
from kdexport.errors import KDExportError
from kdexport.models.loading import Model, count_macs
from kdexport.models.preprocessing import Preprocessing, as_tensor
from kdexport.recipe import DataFree, Distill, TeacherSpec, Training
from kdexport.results import TeacherScore, TrainedNetwork

Teachers = Sequence[tuple[TrainedNetwork, Spec]]  # who teaches, with the recipe's table of each


def build_teacher(run: DistillContext, teaching: Teachers, device: torch.device) -> Teacher:
    """Return whoever teaches as one teacher."""
    models = [run.load_trained(made, spec) for made, spec in teaching]
    for model in models:
        if not model.preprocessing.contiguous:
            few = [as_tensor(array).to(device) for array in run.dataset.train.take(slice(0, 2)).inputs]
            lay_out_for_inference(model.network.to(device), model.preprocessing.apply(few))
    if len(models) == 1:
        return Teacher(models[0].network, models[0].preprocessing, device)
    weights = [spec.weight for _, spec in teaching if isinstance(spec, TeacherSpec)]
    members = [(model.network, model.preprocessing) for model in models]
    return Teacher(Ensemble(members, weights, run.recipe.teacher.combine), Preprocessing(), device)


def votes(run: DistillContext, teaching: Teachers) -> tuple[TeacherScore, ...]:
    """Return how good each of several teachers is, and say how far they agree."""
    device = accelerator_for(run.recipe.distill.precision).device
    ensemble = build_teacher(run, teaching, device).network
    found = ensemble.votes(run.dataset.val, device) if isinstance(ensemble, Ensemble) else ()
    for vote in found:
        run.progress.say(f"{vote.name}: agrees with all teachers together on {vote.agreement.top1:.1%} of the samples")
    return found


def identity(run: DistillContext, teaching: Teachers) -> list[object]:
    """Return what stands for those who teach."""
    made_from: list[object] = [[made.weights_sha256, network_key(taught_as)] for made, taught_as in teaching]
    if len(teaching) > 1:
        weights = [taught_as.weight for _, taught_as in teaching if isinstance(taught_as, TeacherSpec)]
        made_from += [weights, run.recipe.teacher.combine]
    return made_from


def taught(
    run: DistillContext,
    phase: str,
    model: Model,
    teaching: Teachers,
    settings: Distill,
    objective: Objective,
    accelerator: Accelerator,
) -> TrainingSetup:
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
    teacher, who = build_teacher(run, teaching, accelerator.device), identity(run, teaching)
    shown = (
        run if settings.data_free is None else _with_made_samples(run, teacher, who, settings.data_free, accelerator)
    )
    batches = _batches(shown, shown.dataset.with_unlabelled, settings, accelerator)
    taps = _taps(shown, objective, model, teacher, batches) if objective.needs_features else None
    asked: CachedTeacher | OnlineTeacher | None = None
    if objective.needs_teacher:
        cache = cache_of(shown, teacher, who, batches, accelerator)
        if taps:
            alone = accelerator.num_processes == 1  # else each hears its own part
            asked = OnlineTeacher(teacher, taps, cache if alone else None, len(batches.split))
        else:
            asked = cached(shown, teacher, cache, batches)

    def watched(name: Literal["val", "test"]) -> Validation:
        answers = kept_answers(shown, teacher, who, name, accelerator)
        listened = asked if isinstance(asked, OnlineTeacher) else None
        split = getattr(shown.dataset, name)
        return Validation(split, model.preprocessing, accelerator.device, answers, objective, name, listened)

    return TrainingSetup(
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


def on_labels(
    run: DistillContext, phase: str, model: Model, training: Training, accelerator: Accelerator
) -> TrainingSetup:
    """Return the training of a network on the labels alone; arguments as ``taught``."""
    objective = Objective(1.0, label_smoothing=training.label_smoothing, label_kind=run.label_kind(training))

    def watched(name: Literal["val", "test"]) -> Validation:
        split = getattr(run.dataset, name)
        return Validation(split, model.preprocessing, accelerator.device, None, objective, name)

    return TrainingSetup(
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


def trained(
    run: DistillContext, model: Model, job: TrainingSetup, accelerator: Accelerator, key: str
) -> TrainingResult:
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
    run: DistillContext, teacher: Teacher, who: list[object], settings: DataFree, accelerator: Accelerator
) -> DistillContext:
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


def _taps(run: DistillContext, objective: Objective, model: Model, teacher: Teacher, batches: Batches) -> FeatureHooks:
    """Return the taps on both networks, their layers found in one dry run of two samples, and say what they compare."""
    unnamed = [name for name, term in objective.feature_terms.items() if not term.names_teacher]
    if unnamed and isinstance(teacher.network, Ensemble):
        raise KDExportError(
            f"{unnamed[0]} compares layers, and with several teachers it is not clear whose",
            hint="name one as teacher_layer: members.0.PATH is a layer of the first teacher",
        )
    inputs = batches.gather(np.arange(min(2, len(run.dataset.train))), view=0).inputs
    taps = FeatureHooks(
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


def _macs(model: Model, run: DistillContext) -> int | None:
    """Count one sample's operations; a network fresh from its class is in training mode, and must not learn of it."""
    mode = model.network.training
    model.network.eval()
    counted = count_macs(model, run.dataset)
    model.network.train(mode)
    return counted


def _batches(run: DistillContext, split: Split, training: Training, accelerator: Accelerator) -> Batches:
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
