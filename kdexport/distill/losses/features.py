"""Losses that compare what two networks hold inside.

A feature is [batch, channels, height, width], [batch, tokens, channels] or [batch, channels]. All compute in fp32 or
wider, autocast or not, and return a scalar. Where shapes must agree and don't, ``kdexport.distill.features`` puts a
projection before the loss; called by hand, that is the caller's.

The last is the contrastive loss of CRD, over keys that a memory (``kdexport.distill.contrast_memory``) hands in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdexport.distill.losses.checks import (
    at_least_fp32,
    positive_temperature,
    same_batch,
    several_samples,
    teacher_side,
)
from kdexport.errors import KDExportError


def hint(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Mean squared error of two features: ``mean over all elements of (f - g)²``.

    Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", equation 3, which sums over the elements and halves; the
    mean keeps the weight's meaning across layers of different sizes, as the field's reimplementations have it. The
    paper trains up to the hint first and distills afterwards: ``schedule = "decay"`` comes close to it.

    Args:
        student_feature: Any shape; projected to the teacher's beforehand.
        teacher_feature: The same shape.

    Raises:
        KDExportError: Shapes differ.
    """
    student, teacher = _same_shape(student_feature, teacher_feature, "hint")
    return F.mse_loss(student, teacher)


def attention(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Squared distance of normalized attention maps: ``mean over samples and positions of (a_S/‖a_S‖ - a_T/‖a_T‖)²``.

    ``a`` is the mean over the channels of the squared feature, one value per position. Channels may differ; where
    heights and widths do, the larger map is average-pooled to the smaller. Zagoruyko & Komodakis 2017, "Paying More
    Attention to Attention", equation 2 with p = 2. The equation takes the norm of the difference and sums over samples;
    the authors' code, and this function, square it and take the mean, which the usual weight of 1000 goes with.

    Args:
        student_feature: [batch, channels, height, width] or [batch, tokens, channels].
        teacher_feature: The same kind.

    Raises:
        KDExportError: A feature has no positions, or token counts differ.
    """
    student, teacher = _ready(student_feature, teacher_feature, "attention")
    for feature in (student, teacher):
        if feature.ndim not in (3, 4):
            raise KDExportError(
                f"attention compares positions, and a feature of shape {list(feature.shape)} has none",
                hint="choose a layer before the pooling, or use hint or similarity",
            )
    if student.ndim == 4 and teacher.ndim == 4 and student.shape[2:] != teacher.shape[2:]:
        size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
        student, teacher = F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)
    maps = [feature.square().mean(1 if feature.ndim == 4 else 2).flatten(1) for feature in (student, teacher)]
    if maps[0].shape != maps[1].shape:
        raise KDExportError(
            f"attention: the student has {maps[0].shape[1]} positions, the teacher {maps[1].shape[1]}",
            hint="choose layers with as many tokens, or use similarity",
        )
    return (F.normalize(maps[0], dim=1) - F.normalize(maps[1], dim=1)).square().mean()


def similarity(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Similarity-preserving: ``(1/batch²) ‖Ĝ_S - Ĝ_T‖²_F``, G the batch's Gram matrix, each row brought to length 1.

    Tung & Mori 2019, "Similarity-Preserving Knowledge Distillation", equation 4, for one pair of layers. The authors
    reduce in the same way.

    Args:
        student_feature: [batch, ...], at least 2 samples; flattened.
        teacher_feature: [batch, ...]; its shape may differ.

    Raises:
        KDExportError: The batch holds one sample, or batches differ.
    """
    student, teacher = _ready(student_feature, teacher_feature, "similarity")
    several_samples(student, "similarity")
    with torch.autocast(student.device.type, enabled=False):
        grams = [F.normalize(feature.flatten(1) @ feature.flatten(1).T, dim=1) for feature in (student, teacher)]
    return (grams[0] - grams[1]).square().mean()


def relational(
    student_embedding: Tensor, teacher_embedding: Tensor, *, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    """Relations between samples: ``distance_weight · L_D + angle_weight · L_A``.

    L_D is the Huber loss of the pairwise distances, each network's divided by their mean; L_A that of the cosines of
    all angles that three samples form. Park et al. 2019, "Relational Knowledge Distillation", equations 5 to 10. As in
    the authors' code both are means over all pairs and triples, those with a repeated sample included, where the
    equations sum. Costs batch² · channels and batch³ of memory.

    Args:
        student_embedding: [batch, ...], at least 2 samples; flattened.
        teacher_embedding: [batch, ...]; its width may differ.
        distance_weight: Weight of L_D.
        angle_weight: Weight of L_A; at 0 the triples are not formed.

    Raises:
        KDExportError: The batch holds one sample, or batches differ.
    """
    student, teacher = _ready(student_embedding, teacher_embedding, "relational")
    several_samples(student, "relational")
    student, teacher = student.flatten(1), teacher.flatten(1)
    loss = student.new_zeros(())
    with torch.autocast(student.device.type, enabled=False):
        if distance_weight:
            loss = loss + distance_weight * F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))
        if angle_weight:
            loss = loss + angle_weight * F.smooth_l1_loss(_angles(student), _angles(teacher))
    return loss


def cosine(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Angle to the teacher's embedding: ``mean over samples of 1 - cos(f, g)``.

    For embedding models, whose direction is all that is used. There is no one paper; the reduction is
    ``torch.nn.CosineEmbeddingLoss``'s for positive pairs.

    Args:
        student_embedding: [batch, ...]; flattened.
        teacher_embedding: The same shape.

    Raises:
        KDExportError: Shapes differ.
    """
    student, teacher = _same_shape(student_embedding, teacher_embedding, "cosine")
    return (1 - F.cosine_similarity(student.flatten(1), teacher.flatten(1), dim=1)).mean()


def review(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """Knowledge review: ``Σ over stages of HCL(f, g)``, f the student's features after they were fused across stages.

    HCL is the hierarchical context loss: the mean squared error of the maps, of their averages over a 4x4, a 2x2 and a
    1x1 grid (those smaller than the map), weighted 1, 1/2, 1/4, 1/8 and divided by the sum of the weights. Chen et al.
    2021, "Distilling Knowledge via Knowledge Review", section 3.3. The authors reduce in the same way, and ramp the
    weight up over the first 20 epochs. The fusion (ABF) is ``kdexport.distill.fusion``.

    Args:
        student_features: Each [batch, channels, height, width].
        teacher_features: As many, of the same shapes.

    Raises:
        KDExportError: Counts or shapes differ, or a feature is no map.
    """
    if len(student_features) != len(teacher_features) or not student_features:
        raise KDExportError(
            f"review: {len(student_features)} features of the student, {len(teacher_features)} of the teacher",
            hint="name as many student_layers as teacher_layers, at least one",
        )
    total = at_least_fp32(student_features[0]).new_zeros(())
    for student_feature, teacher_feature in zip(student_features, teacher_features, strict=True):
        student, teacher = _same_shape(student_feature, teacher_feature, "review")
        if student.ndim != 4:
            raise KDExportError(
                f"review takes maps [batch, channels, height, width], this feature is {list(student.shape)}",
                hint="choose convolutional layers, or use hint, attention or similarity",
            )
        loss, weight, weights = F.mse_loss(student, teacher), 1.0, 1.0
        for grid in (4, 2, 1):
            if grid < student.shape[2]:
                weight /= 2
                weights += weight
                pooled = F.adaptive_avg_pool2d(student, grid), F.adaptive_avg_pool2d(teacher, grid)
                loss = loss + weight * F.mse_loss(*pooled)
        total = total + loss / weights
    return total


def _ready(student: Tensor, teacher: Tensor, method: str) -> tuple[Tensor, Tensor]:
    same_batch(student, teacher, method)
    return at_least_fp32(student), teacher_side(teacher, student)


def _same_shape(student: Tensor, teacher: Tensor, method: str) -> tuple[Tensor, Tensor]:
    same_batch(student, teacher, method)
    if student.shape != teacher.shape:
        raise KDExportError(
            f"{method}: the student's feature is {list(student.shape)}, the teacher's {list(teacher.shape)}",
            hint="project one to the other's shape first; a recipe's term does so by itself",
        )
    return _ready(student, teacher, method)


def _relative_distances(embedding: Tensor) -> Tensor:
    """Return the distances of all pairs over their mean, the distances of 0 left out of it: [batch, batch]."""
    distances = torch.cdist(embedding, embedding, compute_mode="donot_use_mm_for_euclid_dist")
    count = (distances > 0).sum().clamp(min=1)
    mean = distances.sum() / count
    return distances / torch.where(mean > 0, mean, 1)


def _angles(embedding: Tensor) -> Tensor:
    """Return the cosine of the angle that samples i and k form at j, for all j, i, k: [batch, batch, batch]."""
    directions = F.normalize(embedding[None] - embedding[:, None], dim=2)
    return directions @ directions.transpose(1, 2)


@dataclass(frozen=True)
class Keys:
    """What one network's embeddings are compared with: the other network's, remembered. All rows have length 1."""

    positives: Tensor  # [batch, width]: the other network's embedding of the same sample
    negatives: Tensor  # [negatives, width]: its embeddings of other samples
    log_normalizer: Tensor  # scalar: log Z, the mean of exp(similarity / temperature) times the number of samples


def crd(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    student_keys: Keys,
    teacher_keys: Keys,
    own: Tensor,
    samples: int,
    *,
    temperature: float = 0.07,
) -> Tensor:
    """Contrastive representation distillation: noise-contrastive estimation from the student's side and the teacher's.

    Each side is ``mean over samples of -log h(positive) - Σ_negatives log(1 - h(negative))``; ``h = P / (P + K/M)``
    and ``P = exp(f·g / temperature) / Z``, with K negatives out of M samples. Tian, Krishnan, Isola 2020, "Contrastive
    Representation Distillation", equations 17 to 19, with the constant Z of the authors' code. It is computed on
    logarithms, so nothing overflows; the authors' code adds 1e-7 instead. The batch shares its negatives, where the
    authors draw some for each sample: the expectation is the same, the cost a product of two matrices.

    Args:
        student_embedding: [batch, width], rows of length 1.
        teacher_embedding: [batch, width], rows of length 1; its projection learns as well.
        student_keys: What the student's embeddings are compared with: the teacher's memory.
        teacher_keys: What the teacher's are compared with: the student's memory.
        own: bool [batch, negatives], where a negative is the sample itself: left out.
        samples: M, how many samples the memory holds.
        temperature: Above 0.

    Raises:
        KDExportError: Batches differ, or the temperature is not above 0.
    """
    positive_temperature(temperature, "crd")
    same_batch(student_embedding, teacher_embedding, "crd")
    with torch.autocast(student_embedding.device.type, enabled=False):
        return _side(student_embedding, student_keys, own, samples, temperature) + _side(
            teacher_embedding, teacher_keys, own, samples, temperature
        )


def _side(embedding: Tensor, keys: Keys, own: Tensor, samples: int, temperature: float) -> Tensor:
    embedding = at_least_fp32(embedding)
    # h = P / (P + K/M) is the sigmoid of log P - log(K/M).
    offset = keys.log_normalizer + math.log(keys.negatives.shape[0] / samples)
    positive = (embedding * keys.positives).sum(dim=1) / temperature - offset
    negative = embedding @ keys.negatives.T / temperature - offset
    refused = F.logsigmoid(-negative).masked_fill(own, 0)
    return -(F.logsigmoid(positive) + refused.sum(dim=1)).mean()
