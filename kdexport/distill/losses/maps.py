"""Losses that compare maps: where in an image two networks see something, not only what.

A map is ``[batch, channels, height, width]``. All compute in fp32 or wider, autocast or not, and return a scalar.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdexport.distill.losses.checks import at_least_fp32, positive_temperature, same_batch, teacher_side
from kdexport.errors import KDExportError
from kdexport.tasks.masks import positions


def channel_wise(
    student_map: Tensor, teacher_map: Tensor, counted: Tensor | None = None, *, temperature: float = 4.0
) -> Tensor:
    """KL divergence of each channel's softmax over the positions: ``T²/channels Σ_c KL(φ_T(c) ‖ φ_S(c))``, mean over
    the samples.

    ``φ(c)`` is the softmax of channel c's values over all positions at temperature T: where the network sees the class.
    Shu et al. 2021, "Channel-wise Knowledge Distillation for Dense Prediction", equations 3 and 4.

    Args:
        student_map: [batch, channels, height, width], logits or a feature.
        teacher_map: The same shape.
        counted: bool [batch, height, width], the positions that count; None: all. The softmax is over these alone, and
            a sample without any adds 0.
        temperature: Above 0; the paper takes 4.

    Raises:
        KDExportError: Shapes differ, or these are no maps.
    """
    student, teacher = maps_pair(student_map, teacher_map, "channel_wise")
    positive_temperature(temperature, "channel_wise")
    ours, theirs = student.flatten(2) / temperature, teacher.flatten(2) / temperature
    if counted is not None:
        # Not -inf: the softmax of a sample without any would be NaN, and so would its gradient.
        left_out = ~counted.flatten(1)[:, None]
        lowest = torch.finfo(ours.dtype).min
        ours, theirs = ours.masked_fill(left_out, lowest), theirs.masked_fill(left_out, lowest)
    log_ours, log_theirs = F.log_softmax(ours, dim=2), F.log_softmax(theirs, dim=2)
    divergence = log_theirs.exp() * (log_theirs - log_ours)
    if counted is not None:
        divergence = divergence.masked_fill(left_out, 0.0)
    return divergence.sum() * (temperature**2 / (student.shape[0] * student.shape[1]))


def pairwise(student_feature: Tensor, teacher_feature: Tensor, *, nodes: int = 16) -> Tensor:
    """Squared difference of the similarities of all pairs of regions: ``mean over samples and pairs (i, j) of
    (a_S(i,j) - a_T(i,j))²``.

    ``a(i,j)`` is the cosine of the features of regions i and j, each the average over a cell of an even grid. Liu et
    al. 2019, "Structured Knowledge Distillation for Semantic Segmentation", equations 2 and 3 (all pairs are connected,
    the regions are the paper's nodes). Channels may differ. Costs ``nodes⁴`` numbers a sample.

    Args:
        student_feature: [batch, channels, height, width], or [batch, tokens, channels]: each token is then a node.
        teacher_feature: The same kind; the grid is as coarse as the smaller of both.
        nodes: Regions along a side, at most.

    Raises:
        KDExportError: A feature has no positions, token counts or batches differ.
    """
    same_batch(student_feature, teacher_feature, "pairwise")
    student, teacher = at_least_fp32(student_feature), teacher_side(teacher_feature, student_feature)
    if student.ndim == 4 and teacher.ndim == 4:
        height, width = (min(nodes, *sides) for sides in zip(student.shape[2:], teacher.shape[2:], strict=True))
        student, teacher = (F.adaptive_avg_pool2d(side, (height, width)) for side in (student, teacher))
    # Beside tokens each position of a map is a node.
    student, teacher = (side.flatten(2).transpose(1, 2) if side.ndim == 4 else side for side in (student, teacher))
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[1] != teacher.shape[1]:
        raise KDExportError(
            f"pairwise takes maps [batch, channels, height, width], or as many tokens [batch, tokens, channels]; the "
            f"student's feature is {list(student_feature.shape)}, the teacher's {list(teacher_feature.shape)}",
            hint="name a layer before the pooling of each network, or use hint, attention or similarity",
        )
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = (_similarities(side) for side in (student, teacher))
    return (ours - theirs).square().mean()


def on_grid(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Return maps ``[..., h, w]`` at an even grid of so many rows and columns."""
    if maps.shape[-2:] == (rows, columns):
        return maps
    down, right = (
        torch.from_numpy(positions(size, count)).to(maps.device)
        for size, count in zip(maps.shape[-2:], (rows, columns), strict=True)
    )
    return maps[..., down[:, None], right]


def maps_pair(student: Tensor, teacher: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Return both maps ready to compute with: at least fp32, the teacher's without gradient.

    Raises:
        KDExportError: They are no maps of one shape.
    """
    same_batch(student, teacher, method)
    for whose, given in (("student", student), ("teacher", teacher)):
        _check_map(given, whose, method)
    if student.shape != teacher.shape:
        raise KDExportError(
            f"{method}: the student's map is {list(student.shape)}, the teacher's {list(teacher.shape)}",
            hint="bring them to one size and one number of channels first; a recipe's term does so by itself",
        )
    return at_least_fp32(student), teacher_side(teacher, student)


def _similarities(nodes: Tensor) -> Tensor:
    """Return the cosines of all pairs of nodes [batch, nodes, channels], [batch, nodes, nodes]."""
    directions = F.normalize(nodes, dim=2)
    return directions @ directions.transpose(1, 2)


def _check_map(given: Tensor, whose: str, method: str) -> None:
    if given.ndim != 4 or given.shape[0] == 0:
        raise KDExportError(
            f"{method} takes maps [batch, channels, height, width], the {whose}'s is {list(given.shape)}",
            hint="name a convolutional layer before the pooling, or use hint, attention or similarity",
        )
