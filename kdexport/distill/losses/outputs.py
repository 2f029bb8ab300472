"""Losses that compare outputs as they are: numbers or vectors, not scores of classes.

All take outputs [batch, ...] of any float type, compute in fp32 or wider, pass no gradient to the teacher and return a
scalar. Numbers come in standard deviations of the training targets (``Task.comparable``).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdexport.distill.losses.checks import at_least_fp32, same_batch, teacher_side
from kdexport.errors import KDExportError


def output_mse(student_outputs: Tensor, teacher_outputs: Tensor) -> Tensor:
    """Mean squared error of the outputs: ``mean over samples and outputs of (z - v)²``.

    Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?", equation 2, which regresses on the teacher's output
    before its softmax; a network that estimates numbers has none.

    Args:
        student_outputs: z, [batch, ...].
        teacher_outputs: v, the same shape.

    Raises:
        KDExportError: The shapes differ.
    """
    student, teacher = _pair(student_outputs, teacher_outputs, "output_mse")
    return F.mse_loss(student, teacher)


def teacher_bounded(
    student_outputs: Tensor,
    teacher_outputs: Tensor,
    targets: Tensor,
    *,
    margin: float = 0.0,
    toward: Literal["label", "teacher"] = "label",
) -> Tensor:
    """A squared error that counts where the teacher is better than the student, and is 0 elsewhere.

    ``mean over samples of ‖z - y‖² where ‖z - y‖² + m > ‖v - y‖², else 0``: Chen et al. 2017, "Learning Efficient
    Object Detection Models with Knowledge Distillation", equation 4. A number that the teacher gets wrong is no
    target: it says alone when the student is good enough. With ``toward = "teacher"`` the same samples count and the
    student is drawn to the teacher, ``‖z - v‖²``: outputs that are worse than the student's own are left out.

    ‖·‖² is the mean over the targets of a sample (the paper sums over a box's four), so that weight and margin keep
    their meaning when the number of targets changes.

    Args:
        student_outputs: z, [batch, targets].
        teacher_outputs: v, the same shape.
        targets: y, the same shape. A sample with NaN among them has no label: toward the label it counts 0, toward the
            teacher it always counts, for nothing is known against it.
        margin: m, in squared standard deviations of the targets. Above 0 the student has to be better than the teacher
            by that much before its sample stops to count; below 0 it stops earlier.
        toward: What the student is drawn to.

    Raises:
        KDExportError: The shapes differ.
    """
    student, teacher = _pair(student_outputs, teacher_outputs, "teacher_bounded")
    if targets.shape != student.shape or not targets.is_floating_point():
        raise KDExportError(
            f"teacher_bounded takes a number for each output {list(student.shape)}, the targets are {targets.dtype} "
            f"{list(targets.shape)}",
            hint='use it with task = "regression"; output_mse needs no targets',
        )
    targets = at_least_fp32(targets)
    known = targets.isfinite()
    labelled = known.flatten(1).all(dim=1)
    targets = torch.where(known, targets, 0)
    own, bound = (_squared(outputs - targets) for outputs in (student, teacher))
    counts = own.detach() + margin > bound
    if toward == "teacher":
        return torch.where(counts | ~labelled, _squared(student - teacher), 0).mean()
    return torch.where(counts & labelled, own, 0).mean()


def _pair(student: Tensor, teacher: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Return both outputs ready to compute with: at least fp32, the teacher's without gradient."""
    if student.ndim == 0 or student.shape[0] == 0:
        raise KDExportError(
            f"{method} takes outputs [batch, ...], the student's are {list(student.shape)}",
            hint="let the student return one row per sample, for at least one sample",
        )
    same_batch(student, teacher, method)
    if student.shape != teacher.shape:
        raise KDExportError(
            f"{method}: the student gives {list(student.shape[1:])} a sample, the teacher {list(teacher.shape[1:])}",
            hint="give both networks outputs of one shape, or use a feature method such as similarity",
        )
    return at_least_fp32(student), teacher_side(teacher, student)


def _squared(differences: Tensor) -> Tensor:
    """Return the mean square of each sample's differences, [batch]."""
    return differences.flatten(1).square().mean(dim=1)
