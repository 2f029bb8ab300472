"""How the weights move: optimizer, learning-rate schedule and running average, each a function of the recipe.

``with_fitting_lr`` sets learning rates where the recipe names none: what fits a fresh network ruins a pretrained
transformer.
"""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kdexport.distill.context import DistillContext, Spec
from kdexport.errors import KDExportError
from kdexport.models.hub import has_weights
from kdexport.recipe import Distill, Training
from kdexport.references import parse


def make_optimizer(
    network: nn.Module, training: Training, beside: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Return the optimizer; weight decay acts on matrices and kernels, not on biases and normalization.

    Args:
        network: What is trained, on its device.
        training: The recipe's settings.
        beside: More to learn that is no part of the network: projections between layers.
    """
    learned = [parameter for parameter in (*network.parameters(), *beside) if parameter.requires_grad]
    if not learned:
        raise KDExportError(
            "the network has no parameter that can be trained", hint="leave requires_grad on where it is to learn"
        )
    decayed = [parameter for parameter in learned if parameter.ndim > 1]
    others = [parameter for parameter in learned if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    fused = learned[0].device.type in ("cpu", "cuda")  # one pass over the weights instead of one per operation
    if training.optimizer == "sgd":
        nesterov = training.momentum > 0
        return torch.optim.SGD(groups, lr=training.lr, momentum=training.momentum, nesterov=nesterov, fused=fused)
    return torch.optim.AdamW(groups, lr=training.lr, fused=fused)


def lr_factor(training: Training, step: int, per_epoch: int) -> float:
    """Return the share of ``lr`` at a step: linear warm-up, then the schedule over what is left."""
    warmup = training.warmup_epochs * per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1.0, training.epochs * per_epoch - warmup)
    if training.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    if training.schedule == "linear":
        return 1 - share
    if training.schedule == "step":
        return 0.1 ** sum(step >= milestone * training.epochs * per_epoch for milestone in training.milestones)
    return 1.0


def set_lr(optimizer: torch.optim.Optimizer, training: Training, step: int, per_epoch: int) -> None:
    """Set every group's learning rate to that of a step."""
    for group in optimizer.param_groups:
        group["lr"] = training.lr * lr_factor(training, step, per_epoch)


def make_average(network: nn.Module, training: Training) -> AveragedModel | None:
    """Return an exponential moving average of weights and buffers, or None where the recipe wants none."""
    if training.ema_decay is None:
        return None
    decay = get_ema_multi_avg_fn(training.ema_decay)  # type: ignore[no-untyped-call]
    return AveragedModel(network, multi_avg_fn=decay, use_buffers=True)


PATIENCE = timedelta(hours=12)  # of a process that waits: the first decodes, downloads and scores for all


def accelerator_for(precision: str) -> Accelerator:
    """Return an Accelerator of a recipe's precision: ``fp32``, ``bf16`` or ``fp16``.

    Accelerate keeps one precision per process; a run trains a teacher and a student that may differ, one after the
    other, so what the last one set is put back first. Processes and devices stay as they are.
    """
    if precision == "fp16" and not torch.accelerator.is_available():
        raise KDExportError(
            'precision = "fp16" needs a GPU, and there is none: a CPU has no half-precision training',
            hint='set precision = "fp32", or "bf16", for this training',
        )
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise KDExportError(
            f"{processes} processes on this machine need as many GPUs, and it has {torch.cuda.device_count()}",
            hint=f"start torchrun with --nproc_per_node {torch.cuda.device_count()}, or set CUDA_VISIBLE_DEVICES='' to "
            "train on the CPU",
        )
    AcceleratorState._reset_state(reset_partial_state=False)
    # Asked for by name: on a machine without a GPU, Accelerate joins torchrun's processes only then.
    cpu = not torch.accelerator.is_available()
    waiting = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(cpu=cpu, mixed_precision="no" if precision == "fp32" else precision, kwargs_handlers=[waiting])


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Let a GPU compute alike every time, so that a resumed training ends with an undisturbed one's weights.

    A CPU does so by itself. cuDNN otherwise takes whichever kernel was fastest when it was tried, and some add up in
    the order in which threads arrive. An operator that has no other kernel still runs, and may differ in the last bits
    (PyTorch, "Reproducibility"; cuBLAS wants CUBLAS_WORKSPACE_CONFIG, which the command line sets).
    """
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling: Any = torch.utils.deterministic
    benchmark, filled = torch.backends.cudnn.benchmark, filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark, filling.fill_uninitialized_memory = False, False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark, filling.fill_uninitialized_memory = benchmark, filled


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
