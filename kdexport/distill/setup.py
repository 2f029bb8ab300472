"""How a training is put together from the recipe: by teachers, or on the labels alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from kdexport import figures
from kdexport.artifacts import write_atomically
from kdexport.data.augment import Augmentation
from kdexport.data.samples import Split
from kdexport.distill.batches import Batches, lay_out_for_inference
from kdexport.distill.context import AfterEpoch, DistillContext, Spec, network_key
from kdexport.distill.data_free import synthesize, with_images
from kdexport.distill.evaluation import Validation
from kdexport.distill.features import FeatureHooks
from kdexport.distill.heads import Heads, IdentityHead
from kdexport.distill.objective import Objective
from kdexport.distill.optimization import accelerator_for
from kdexport.distill.teacher import CachedTeacher, Ensemble, OnlineTeacher, Teacher, cache_of, kept_logits
from kdexport.errors import KDExportError
from kdexport.models.loading import Model, evaluating
from kdexport.models.preprocessing import Preprocessing, as_tensor
from kdexport.recipe import DataFree, Distill, TeacherSpec, Training
from kdexport.results import TeacherScore, TrainedNetwork
from kdexport.stage_cache import cache_key, is_done, mark_done
from kdexport.tasks.classification import UNLABELLED


@dataclass(frozen=True)
class TrainingSetup:
    """What ``trainer.fit`` is given, beside the network."""

    phase: str  # "teacher", "student", "student-plain", "student-qat"
    training: Training
    seed: int
    preprocessing: Preprocessing
    batches: Batches
    objective: Objective
    validation: Validation  # after each epoch
    test: Callable[[], Validation]  # of the weights that are kept; all processes make it
    teacher: CachedTeacher | OnlineTeacher | None = None
    hooks: FeatureHooks | None = None  # where the objective compares features
    heads: Heads | None = None  # what learns beside the network on its output
    after_epoch: AfterEpoch | None = None

    @property
    def beside(self) -> list[nn.Parameter]:
        """What has to be learned beside the network."""
        return [*(self.hooks.parameters() if self.hooks else ()), *(self.heads.parameters() if self.heads else ())]


Teachers = Sequence[tuple[TrainedNetwork, Spec]]  # networks that teach, with the recipe's table of each


def build_teacher(context: DistillContext, teachers: Teachers, device: torch.device) -> Teacher:
    """Return the trained or given teachers as one."""
    return teacher_of(context, [(context.load_trained(made, spec), spec) for made, spec in teachers], device)


def teacher_of(context: DistillContext, teachers: Sequence[tuple[Model, Spec]], device: torch.device) -> Teacher:
    """Return networks, with the recipe's table of each, as one teacher."""
    models = [model for model, _ in teachers]
    for model in models:
        if not model.preprocessing.contiguous:
            few = [as_tensor(array).to(device) for array in context.dataset.train.take(slice(0, 2)).inputs]
            lay_out_for_inference(model.network.to(device), model.preprocessing.apply(few))
    if len(models) == 1:
        return Teacher(models[0].network, models[0].preprocessing, device)
    weights = [spec.weight for _, spec in teachers if isinstance(spec, TeacherSpec)]
    members = [(model.network, model.preprocessing) for model in models]
    task, combine = context.dataset.task, context.recipe.teacher.combine
    if task.embeds and combine != "average":
        raise KDExportError(
            f'teacher.combine = "{combine}" is for classes: an embedding is not sure or unsure of a sample',
            hint='set teacher.combine = "average": cosines are then averaged by weight',
        )
    ensemble = Ensemble(members, weights, combine, relative=task.relative_outputs, embeds=task.embeds)
    return Teacher(ensemble, Preprocessing(), device)


def teacher_scores(context: DistillContext, teachers: Teachers) -> tuple[TeacherScore, ...]:
    """Return how good each of several teachers is, and say how far they agree."""
    device = accelerator_for(context.recipe.distill.precision).device
    ensemble = build_teacher(context, teachers, device).network
    scores = ensemble.scores(context.dataset.val, device) if isinstance(ensemble, Ensemble) else ()
    for score in scores:
        if score.agreement.top1 is not None:
            share = figures.percent(score.agreement.top1)
            context.progress.message(f"{score.name}: agrees with all teachers together on {share} of the samples")
    return scores


def key_of_teachers(context: DistillContext, teachers: Teachers) -> list[object]:
    """Return what the teachers' logits depend on."""
    made_from: list[object] = [[made.weights_sha256, network_key(spec)] for made, spec in teachers]
    if len(teachers) > 1:
        weights = [spec.weight for _, spec in teachers if isinstance(spec, TeacherSpec)]
        made_from += [weights, context.recipe.teacher.combine]
    return made_from


def distillation_setup(
    context: DistillContext,
    phase: str,
    model: Model,
    teachers: Teachers,
    settings: Distill,
    objective: Objective,
    accelerator: Accelerator,
) -> TrainingSetup:
    """Return the training of a student by its teachers.

    Args:
        context: What the phases share.
        phase: Of the epoch log.
        model: The student.
        teachers: The networks that teach.
        settings: How it is trained.
        objective: What it minimizes.
        accelerator: Device and processes.

    Raises:
        KDExportError: The objective compares layers and cannot tell whose, or no images can be made for the teacher.
    """
    teacher, teacher_key = build_teacher(context, teachers, accelerator.device), key_of_teachers(context, teachers)
    shown = context
    if settings.data_free is not None:
        if context.dataset.task.map_size is not None:
            raise KDExportError(
                "data_free makes images of one class each, and these data have a class for each pixel",
                hint="take data_free out, and give the images",
            )
        shown = _with_made_samples(context, teacher, teacher_key, settings.data_free, accelerator)
    batches = batches_of(shown, shown.dataset.with_unlabelled, settings, accelerator)
    hooks = feature_hooks(shown, objective, model, teacher, batches) if objective.needs_features else None
    for name, (ours, theirs) in (hooks.pairs if hooks else {}).items():
        context.progress.message(f"{name}: student {', '.join(ours)} <- teacher {', '.join(theirs)}")
    if hooks:
        context.progress.message("the teacher runs at every step: its features are too large to keep")
    heads = output_heads(shown, objective, model, settings, accelerator, teacher)
    source: CachedTeacher | OnlineTeacher | None = None
    if objective.needs_teacher:
        maps = context.dataset.task.map_size is not None
        cache = None if hooks and maps else cache_of(shown, teacher, teacher_key, batches, accelerator)
        if hooks or cache is None:
            alone = accelerator.num_processes == 1  # else each sees its own part
            source = OnlineTeacher(teacher, hooks, cache if alone else None, len(batches.split))
        else:
            source = CachedTeacher(teacher, cache, batches, context.progress, objective.cache_temperature)

    def validation_on(name: Literal["val", "test"]) -> Validation:
        logits = kept_logits(shown, teacher, teacher_key, name, accelerator)
        online = source if isinstance(source, OnlineTeacher) and hooks else None
        split = getattr(shown.dataset, name)
        fitted_on = None
        if split.calibration is not None:
            fitted_on = kept_logits(shown, teacher, teacher_key, "val", accelerator)
        device = accelerator.device
        return Validation(split, model.preprocessing, device, logits, objective, name, online, heads, fitted_on)

    return TrainingSetup(
        phase=phase,
        training=settings,
        seed=context.recipe.seed,
        preprocessing=model.preprocessing,
        batches=batches,
        objective=objective,
        validation=validation_on("val"),
        test=lambda: validation_on("test"),
        teacher=source,
        hooks=hooks,
        heads=heads,
        after_epoch=context.after_epoch,
    )


def label_setup(
    context: DistillContext, phase: str, model: Model, training: Training, accelerator: Accelerator
) -> TrainingSetup:
    """Return the training of a network on the labels alone; arguments as ``distillation_setup``."""
    objective = context.label_objective(training)

    def validation_on(name: Literal["val", "test"]) -> Validation:
        split = getattr(context.dataset, name)
        return Validation(split, model.preprocessing, accelerator.device, None, objective, name)

    return TrainingSetup(
        phase=phase,
        training=training,
        seed=context.recipe.seed,
        preprocessing=model.preprocessing,
        batches=batches_of(context, context.dataset.train, training, accelerator),
        heads=output_heads(context, objective, model, training, accelerator),
        objective=objective,
        validation=validation_on("val"),
        test=lambda: validation_on("test"),
    )


def _with_made_samples(
    context: DistillContext, teacher: Teacher, teacher_key: list[object], settings: DataFree, accelerator: Accelerator
) -> DistillContext:
    """Return the run with images made from the teacher in place of its own: no real one is seen in training.

    They are made once, by one process: another device, or a GPU at another time, would make other ones.
    """
    seed, shape = context.recipe.seed, context.dataset.train.inputs[0].shape[1:]
    key = cache_key(
        "made samples",
        teacher=[teacher_key, teacher.preprocessing.to_json()],
        settings=settings.model_dump(),
        drawn=[seed, shape],
    )
    path = context.directory.cache / f"made-{key}.npy"
    record = path.with_suffix(".json")
    if accelerator.is_main_process and is_done(record, key) is None:
        about = (teacher.network, teacher.preprocessing, shape, settings)
        images = synthesize(*about, seed=seed, device=accelerator.device, progress=context.progress)
        write_atomically(path, lambda temporary: np.save(temporary, images))
        mark_done(record, key, {}, [path])
    accelerator.wait_for_everyone()
    return replace(context, dataset=with_images(context.dataset, np.load(path)))


def output_heads(
    context: DistillContext,
    objective: Objective,
    model: Model,
    training: Training,
    accelerator: Accelerator,
    teacher: Teacher | None = None,
) -> Heads | None:
    """Return what learns beside a network on its output, on its device, and say so; None where nothing does."""
    dataset = context.dataset
    if not dataset.task.embeds:
        return None
    inputs = tuple(as_tensor(array).to(accelerator.device) for array in dataset.train.take(slice(0, 2)).inputs)
    with evaluating(model.network.to(accelerator.device)):
        ours = int(model.network(*model.preprocessing.apply(inputs)).shape[1])
    theirs = None if teacher is None else int(teacher.logits(inputs).shape[1])
    heads = heads_for(objective, np.asarray(dataset.train.labels), (ours, theirs), training, context.recipe.seed)
    if heads is None:
        return None
    if heads.projections:
        context.progress.message(
            f"{', '.join(objective.projected)}: the student's {ours} numbers are projected to the teacher's {theirs} "
            "by a layer that is left out of its file; student.embedding_dim makes it part of the student"
        )
    return heads.to(accelerator.device)


def feature_hooks(
    context: DistillContext, objective: Objective, model: Model, teacher: Teacher, batches: Batches
) -> FeatureHooks:
    """Return the hooks on both networks, whose layers one dry run of two samples finds."""
    unnamed = [name for name, term in objective.feature_terms.items() if not term.layers("teacher")]
    if unnamed and isinstance(teacher.network, Ensemble):
        raise KDExportError(
            f"{unnamed[0]} compares layers, and with several teachers it is not clear whose",
            hint="name one as teacher_layer: members.0.PATH is a layer of the first teacher",
        )
    inputs = batches.gather(np.arange(min(2, len(context.dataset.train))), view=0).inputs
    return FeatureHooks(
        objective.feature_terms,
        model.network.to(inputs[0].device),
        teacher.network,
        model.preprocessing.apply(inputs),
        teacher.preprocessing.apply(inputs),
        samples=len(batches.split),
        seed=context.recipe.seed,
    )


def batches_of(context: DistillContext, split: Split, training: Training, accelerator: Accelerator) -> Batches:
    """Return a training's batches of a split, augmented as the recipe says."""
    augmentation = Augmentation(training.augment, context.recipe.seed, split, context.dataset.num_classes)
    return Batches(
        split,
        batch_size=training.batch_size,
        seed=context.recipe.seed,
        augmentation=augmentation if augmentation else None,
        balanced=training.balanced,
        views=training.views if isinstance(training, Distill) else training.epochs,
        device=accelerator.device,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )


def heads_for(
    objective: Objective, targets: NDArray[Any], widths: tuple[int, int | None], settings: Training, seed: int
) -> Heads | None:
    """Return what learns beside a network on its output; None where nothing does.

    Args:
        objective: What the network minimizes.
        targets: Of the training split.
        widths: Of the network's output and of the teacher's (None: it has none).
        settings: How it is trained: the options of the labels' loss.
        seed: Draws the first weights; the global generator is left as it was.
    """
    ours, theirs = widths
    task = objective.task
    label: IdentityHead | None = None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if task.label_head and objective.label_weight > 0:
            kind = objective.label_loss or task.label_losses[0]
            options = {"margin": settings.arcface_margin, "scale": settings.arcface_scale} if kind == "arcface" else {}
            identities = torch.from_numpy(np.unique(targets[targets != UNLABELLED]).astype(np.int64))
            label = IdentityHead(kind, identities, ours, **options)
        projected = objective.projected if task.embeds and theirs is not None and theirs != ours else ()
        heads = Heads(label, projected, (ours, theirs or ours))
    return heads if label is not None or projected else None
