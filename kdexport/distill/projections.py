"""What stands between two layers of unlike shape and the loss that compares them.

Each module here takes (student feature, teacher feature, sample indices) and returns the first arguments of its loss
function. Their parameters learn with the student and are thrown away afterwards.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdexport.distill.losses.checks import at_least_fp32
from kdexport.errors import KDExportError

Shape = tuple[int, ...]  # without the batch: (channels, height, width), (tokens, channels) or (channels,)


class Adapter(nn.Module):
    """What ``FeatureHooks`` builds for a term: from the features' shapes and the number of training samples."""

    def __init__(self, student: Any = (), teacher: Any = (), *, samples: int = 0) -> None:  # noqa: ARG002
        super().__init__()


class Unchanged(Adapter):
    """For methods that compare features of any shape."""

    def forward(self, student: Tensor, teacher: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return both as they are."""
        return student, teacher


class Pooled(Adapter):
    """For methods that compare embeddings: maps and tokens are averaged over their positions."""

    def forward(self, student: Tensor, teacher: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return both as [batch, channels]."""
        return as_vectors(student), as_vectors(teacher)


class Projection(Adapter):
    """Brings the student's feature to the shape of the teacher's.

    A map becomes tokens or a vector where the other side is one; then heights and widths are average-pooled or
    interpolated, tokens interpolated, and channels mapped by a 1x1 convolution or a linear layer. Where nothing differs
    there are no parameters.

    Args:
        student: Shape of the student's feature.
        teacher: Shape of the teacher's.
        samples: Of no account here.
    """

    vectors = False  # whether averages over the positions are compared

    def __init__(self, student: Shape, teacher: Shape, *, samples: int = 0) -> None:
        super().__init__(student, teacher, samples=samples)
        self._dimensions = 1 if self.vectors else min(len(student), len(teacher))
        ours, theirs = channels_of(student), channels_of(teacher)
        self.channels: nn.Module = nn.Identity()
        if ours != theirs:
            self.channels = nn.Conv2d(ours, theirs, 1) if self._dimensions == 3 else nn.Linear(ours, theirs)

    def forward(self, student: Tensor, teacher: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return both in the teacher's shape, in fp32."""
        student, teacher = _reduced(student, self._dimensions), _reduced(teacher, self._dimensions)
        if self._dimensions == 3 and student.shape[2:] != teacher.shape[2:]:
            student = _resized(student, teacher.shape[2], teacher.shape[3])
        elif self._dimensions == 2 and student.shape[1] != teacher.shape[1]:
            student = F.interpolate(student.transpose(1, 2), size=teacher.shape[1], mode="linear").transpose(1, 2)
        return self.channels(student), teacher


class VectorProjection(Projection):
    """A projection of averages over the positions."""

    vectors = True


class Fusion(Adapter):
    """Attention-based fusion: each stage of the student sees what the later ones made of it.

    Chen et al. 2021, "Distilling Knowledge via Knowledge Review", figure 3: from the last stage to the first, the
    feature is brought to a common width, mixed with the later stages' by two attention maps, and put out in the width
    of the teacher's stage. Convolutions are followed by batch normalization as in the authors' code.

    Args:
        student: Shapes of the student's maps, first stage first.
        teacher: Shapes of as many maps of the teacher.
        samples: Of no account here.

    Raises:
        KDExportError: Counts differ, or a feature is no map.
    """

    def __init__(self, student: tuple[Shape, ...], teacher: tuple[Shape, ...], *, samples: int = 0) -> None:
        super().__init__(student, teacher, samples=samples)
        if len(student) != len(teacher) or not student:
            raise KDExportError(
                f"review compares stage with stage: {len(student)} of the student, {len(teacher)} of the teacher",
                hint="name as many student_layers as teacher_layers, at least one",
            )
        for shape in (*student, *teacher):
            if len(shape) != 3:
                raise KDExportError(
                    f"review fuses maps [channels, height, width], and one of the layers gives {list(shape)}",
                    hint="name convolutional layers as student_layers and teacher_layers, or use hint or similarity",
                )
        width = min(512, student[-1][0])
        self.inward = nn.ModuleList(_convolution(shape[0], width, 1) for shape in student)
        self.outward = nn.ModuleList(_convolution(width, shape[0], 3) for shape in teacher)
        self.mix = nn.ModuleList(nn.Conv2d(2 * width, 2, 1) for _ in student[:-1])

    def forward(
        self,
        student: tuple[Tensor, ...],
        teacher: tuple[Tensor, ...],
        indices: Tensor,  # noqa: ARG002
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the fused features in the teacher's shapes, and the teacher's, in fp32."""
        fused: list[Tensor] = []
        later: Tensor | None = None
        for stage in reversed(range(len(student))):
            current = self.inward[stage](at_least_fp32(student[stage]))
            if later is not None:
                later = F.interpolate(later, size=current.shape[2:], mode="nearest")
                shares = torch.sigmoid(self.mix[stage](torch.cat([current, later], dim=1)))
                current = current * shares[:, :1] + later * shares[:, 1:]
            later = current
            height, width = teacher[stage].shape[2:]
            fused.append(self.outward[stage](_resized(current, height, width)))
        return fused[::-1], [at_least_fp32(feature) for feature in teacher]


def as_vectors(feature: Tensor) -> Tensor:
    """Return [batch, channels] in fp32: the mean over all positions."""
    return _reduced(feature, 1)


def _reduced(feature: Tensor, dimensions: int) -> Tensor:
    feature = at_least_fp32(feature)
    if feature.ndim == 4 and dimensions == 2:
        return feature.flatten(2).transpose(1, 2)
    if feature.ndim == 4 and dimensions == 1:
        return feature.mean(dim=(2, 3))
    if feature.ndim == 3 and dimensions == 1:
        return feature.mean(dim=1)
    return feature


def _resized(feature: Tensor, height: int, width: int) -> Tensor:
    if height <= feature.shape[2] and width <= feature.shape[3]:
        return F.adaptive_avg_pool2d(feature, (height, width))
    return F.interpolate(feature, size=(height, width), mode="bilinear", align_corners=False)


def channels_of(shape: Shape) -> int:
    """Return how many channels a feature has."""
    return shape[1] if len(shape) == 2 else shape[0]


def _convolution(channels_in: int, channels_out: int, size: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, size, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out))
