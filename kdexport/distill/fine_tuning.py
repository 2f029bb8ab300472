"""Learning rates where the recipe names none: what fits a fresh network ruins a pretrained transformer."""

from dataclasses import replace

from torch import nn

from kdexport.distill.context import DistillContext, Spec
from kdexport.models.hub import has_weights
from kdexport.recipe import Distill, Training
from kdexport.references import parse

FINE_TUNING_LR = 5e-5  # the upper end of what Devlin et al. 2019 (BERT, appendix A.3) and the fine-tuning guides take


def with_fitting_lr(context: DistillContext) -> DistillContext:
    """Return the context with ``lr`` set for pretrained transformers, where the recipe leaves it out; it is said."""
    recipe = context.recipe
    distill = recipe.distill
    lr = _lr(context, "student", recipe.student, distill)
    if lr is not None:
        distill = distill.model_copy(update={"lr": lr})
    teacher = recipe.teacher
    if teacher.train is not None:
        lr = _lr(context, "teacher", teacher, teacher.train)
        if lr is not None:
            teacher = teacher.model_copy(update={"train": teacher.train.model_copy(update={"lr": lr})})
    if distill is recipe.distill and teacher is recipe.teacher:
        return context
    return replace(context, recipe=recipe.model_copy(update={"distill": distill, "teacher": teacher}))


def _lr(context: DistillContext, name: str, spec: Spec, training: Training) -> float | None:
    if "lr" in training.model_fields_set or training.optimizer != "adamw":
        return None
    reference = parse(spec.model)
    pretrained = spec.weights is not None or (reference.kind == "hf" and has_weights(reference.target, spec.args))
    if not pretrained or not is_transformer(context.load(name, spec).network):
        return None
    key = "distill.lr" if isinstance(training, Distill) else "teacher.train.lr"
    context.progress.message(
        f"{name}: a pretrained transformer, trained with lr = {FINE_TUNING_LR:g} because {training.lr:g} would ruin it;"
        f" {key} sets another"
    )
    return FINE_TUNING_LR


def is_transformer(network: nn.Module) -> bool:
    """Whether a network attends and has no batch normalization, which convolutional networks with attention have."""
    kinds = {type(module).__name__.lower() for module in network.modules()}
    return any("attention" in kind for kind in kinds) and not any("batchnorm" in kind for kind in kinds)
