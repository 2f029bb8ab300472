"""What is tried before the first step: a fault of the recipe or of a network shows in seconds, not after a training.

Each network that is to be trained makes one step of a copy in training mode, on samples that are the most likely to
be refused (the longest text, the largest id), augmented and at the size of the smallest batch, with the terms and the
layers of the recipe. A network that is given is run on the same samples. The networks, their statistics and the
random state are left as they were.

Later, what the teacher itself scores is told before its student is trained: a student of a poor teacher is hours lost.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from kdexport.data.mixing import MIXES
from kdexport.data.samples import Dataset, Split
from kdexport.distill.context import DistillContext, Spec
from kdexport.distill.evaluation import Validation
from kdexport.distill.features import FeatureHooks
from kdexport.distill.objective import Objective
from kdexport.distill.optimization import accelerator_for
from kdexport.distill.setup import batches_of, feature_hooks, heads_for, teacher_of
from kdexport.distill.step import check_output, named
from kdexport.distill.teacher import Teacher
from kdexport.errors import KDExportError, RecipeError
from kdexport.models.loading import Model, evaluating
from kdexport.models.preprocessing import as_tensor
from kdexport.recipe import Recipe, Training
from kdexport.tasks.base import Task

MOST = 2  # samples of the trial: what one of a batch needs, two have

Check = Callable[[str, Model, Dataset], None]


def check(context: DistillContext, further: Check | None = None) -> None:
    """Try every network of a recipe.

    Args:
        context: What the phases share.
        further: Is called with each network's name, the network and the data: the pipeline's trial export.

    Raises:
        KDExportError: Something would fail later; the message says what and where.
    """
    recipe = context.recipe
    check_settings(recipe, context.dataset.task)
    if recipe.distill.terms and all(term.weight == 0 for term in recipe.distill.terms):
        context.progress.warn(
            "every term of distill.terms has the weight 0: the student learns from the labels alone, as student-plain"
        )
    teachers: list[tuple[Model, Spec]] = []
    for name, spec in recipe.teacher.named():
        model = context.load(name, spec)
        _check_extremes(context, name, model)
        if spec.train is not None:
            accelerator = accelerator_for(spec.train.precision)
            _try(context, name, model, spec.train, context.label_objective(spec.train), accelerator, None)
        teachers.append((model, spec))
    student = context.load("student", recipe.student)
    _check_extremes(context, "student", student)
    accelerator = accelerator_for(recipe.distill.precision)
    if further is not None:
        further("teacher", teachers[0][0], context.dataset)
        further("student", student, context.dataset)
    teacher = teacher_of(context, teachers, accelerator.device)
    _try(context, "student", student, recipe.distill, context.objective, accelerator, teacher)


def check_settings(recipe: Recipe, task: Task) -> None:
    """Hold that no setting of a training is for classes where the task has none.

    Raises:
        RecipeError: Some are, by their keys.
    """
    if task.of_classes:
        return
    trainings: dict[str, Training | None] = {"distill": recipe.distill, "teacher.train": recipe.teacher.train}
    faults = []
    for table, training in trainings.items():
        if training is None:
            continue
        faults += [f"{table}.label_smoothing"] if training.label_smoothing else []
        faults += [f"{table}.balanced"] if training.balanced else []
        faults += [f"{name} in {table}.augment" for name in training.augment if name in MIXES]
    faults += ["distill.teacher_top_k"] if recipe.distill.teacher_top_k is not None else []
    faults += ["distill.data_free"] if recipe.distill.data_free is not None else []
    faults += ['teacher.combine = "confidence"'] if recipe.teacher.combine == "confidence" else []
    if faults:
        verb = "is" if len(faults) == 1 else "are"
        raise RecipeError(
            f"{', '.join(faults)} {verb} for classes, and the task is {task.name}", hint="take it out of the recipe"
        )


def _try(
    context: DistillContext,
    name: str,
    model: Model,
    training: Training,
    objective: Objective,
    accelerator: Accelerator,
    teacher: Teacher | None,
) -> None:
    """Make one step of a copy, but for the optimizer's."""
    who, dataset = f"the {name}", context.dataset
    if not any(parameter.requires_grad for parameter in model.network.parameters()):
        raise KDExportError(
            f"{who} has no parameter that can be trained",
            hint="leave requires_grad on where it is to learn; a network from .onnx or .pt2 can be a teacher only",
        )
    try:
        network = copy.deepcopy(model.network).to(accelerator.device)
    except Exception:  # noqa: BLE001 - what cannot be copied is tried by the first step itself
        return
    split = dataset.train if teacher is None else dataset.with_unlabelled
    batches = batches_of(context, split, training, accelerator)
    size = max(1, len(split) // batches.per_epoch // accelerator.num_processes)
    if training.micro_batch_size is not None:
        size = min(size, training.micro_batch_size)
    indices = _samples(split, min(size, MOST))
    batch = batches.gather(indices, view=0)
    with torch.random.fork_rng(devices=[accelerator.device] if accelerator.device.type == "cuda" else []):
        hooks: FeatureHooks | None = None
        if teacher is not None and objective.needs_features:
            hooks = feature_hooks(context, objective, replace(model, network=network), teacher, batches)
        network.train()
        doing = f"in training mode, with a batch of {len(indices)}"
        hint = "fix the code; --verbose shows the traceback"
        if len(indices) == 1:
            hint = "batches hold one sample: set batch_size (and micro_batch_size) to 2 or more"
        with accelerator.autocast():
            with named(who, doing, hint):
                inputs = model.preprocessing.apply(batch.inputs)
                if hooks is None:
                    output = network(*inputs)
                else:
                    with hooks.student(network):
                        output = network(*inputs)
            logits = check_output(output, len(indices), dataset, who, training=True)
            teacher_logits = None
            if teacher is not None and objective.needs_teacher:
                with named("the teacher", "in evaluation mode"):
                    if hooks is None:
                        teacher_logits = teacher.logits(batch.inputs)
                    else:
                        with hooks.teacher():
                            teacher_logits = teacher.logits(batch.inputs)
            features = hooks.features(torch.from_numpy(indices).to(logits.device)) if hooks else None
            heads = None
            if dataset.task.embeds:
                widths = logits.shape[1], None if teacher_logits is None else teacher_logits.shape[1]
                heads = heads_for(objective, np.asarray(split.labels), widths, training, context.recipe.seed)
            with named(f"a loss of {who}", doing):
                loss, _ = objective(
                    logits,
                    batch.labels,
                    teacher_logits,
                    progress_of_training=0.5,
                    features=features,
                    heads=None if heads is None else heads.to(logits.device),
                )
        if not loss.requires_grad:
            raise KDExportError(
                f"{who}'s output has no gradient: it would learn nothing",
                hint="its forward runs under no_grad or detaches what it computes: let gradients pass",
            )
        with named(who, "in the backward pass"):
            loss.backward()  # type: ignore[no-untyped-call]


def _check_extremes(context: DistillContext, name: str, model: Model) -> None:
    """Run a network, in evaluation mode, on the samples of each split that are the most likely to be refused."""
    dataset = context.dataset
    with evaluating(model.network):
        for split_name in ("train", "val", "test"):
            split = getattr(dataset, split_name)
            rows = _samples(split, 2)
            inputs = [as_tensor(array) for array in split.take(rows).inputs]
            shapes = ", ".join(str(list(item.shape)) for item in model.preprocessing.apply(inputs))
            hint = "give its args or its preprocessing in the recipe so that it fits the data"
            if model.preprocessing.kind == "tokens":
                hint = (
                    "texts are longer, or token ids larger, than the network takes: set data.text_length to its number"
                    " of positions, and data.tokenizer to its own"
                )
            with named(f"the {name}", f"on inputs {shapes} of the {split_name} split, its longest and largest", hint):
                output = model.network(*model.preprocessing.apply(inputs))
            check_output(output, len(rows), dataset, f"the {name}", training=False)


def _samples(split: Split, count: int) -> np.ndarray:
    """Return the indices of samples to try: of integer inputs the largest id and the longest first."""
    extremes: list[int] = []
    for array in split.inputs:
        if array.dtype.kind in "iu" and array.ndim == 2:
            values = np.asarray(array)
            extremes += [int(values.max(axis=1).argmax()), int((values != 0).sum(axis=1).argmax())]
    order = dict.fromkeys([*extremes, *range(min(len(split), count + len(extremes)))])
    return np.sort(np.array(list(order)[:count], dtype=np.int64))


def tell(context: DistillContext, name: str, *splits: Validation) -> None:
    """Say how good the teacher is, and warn where it guesses.

    Args:
        context: What the phases share.
        name: Of the network that teaches.
        splits: Validation and test, with the teacher's logits.

    Raises:
        KDExportError: Some of the logits are not finite: nothing can be learned from them.
    """
    told = []
    for split in splits:
        logits = split.teacher_logits
        if logits is None:
            continue
        numbers = split.split.task.compared(logits)[0]
        bad = int((~np.isfinite(numbers)).reshape(len(logits), -1).any(axis=1).sum())
        if bad:
            raise KDExportError(
                f"the {name} gives NaN or infinity for {bad} of {len(logits)} {split.name} samples",
                hint="look at its weights and its preprocessing (a std of 0?); kdexport evaluate shows more",
            )
        score = split.teacher_value()
        if score is not None:
            task = context.dataset.task
            told.append(f"{task.label} {task.write(score)} on {len(logits)} {split.name} samples")
    if told:
        context.progress.message(f"{name}: {', '.join(told)}")
    scored = [(split.teacher_logits, split.split.labels) for split in splits if split.split.labels is not None]
    outputs = [logits for logits, _ in scored if logits is not None]
    if outputs:
        warn_of_doubt(
            context, name, np.concatenate(outputs), np.concatenate([np.asarray(labels) for _, labels in scored])
        )


def warn_of_doubt(context: DistillContext, name: str, outputs: NDArray[np.float32], targets: NDArray[Any]) -> None:
    """Warn where a network's outputs say that it guesses, or that its classes come in another order."""
    doubt = context.dataset.task.doubt(outputs, targets, context.dataset.class_names)
    if doubt:
        context.progress.warn(f"{name}: {doubt}; look at this before a student is trained by it")
