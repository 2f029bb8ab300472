"""Losses by which an embedding learns identities: each has a vector of its own that the embedding is drawn to.

The vectors are parameters beside the network (``kdexport.distill.heads``), thrown away after the training.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdexport.distill.losses.checks import at_least_fp32
from kdexport.errors import KDExportError
from kdexport.tasks.classification import UNLABELLED, check_class_ids

SMALLEST_SINE = 1e-7  # squared: the root's gradient has no end at 0


def arcface(
    embeddings: Tensor,
    weights: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.5,
    scale: float = 64.0,
    smoothing: float = 0.0,
    labelled: Tensor | None = None,
) -> Tensor:
    """Additive angular margin: cross-entropy of ``s·cos(θ_j)``, of the true identity ``s·cos(θ_y + m)``.

    θ_j is the angle between the embedding and the vector of identity j, both brought to length 1. Deng, Guo, Xue,
    Zafeiriou 2019, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", equation 3; m = 0.5 and s = 64
    are the paper's. Where ``θ_y + m`` is beyond π it is as the equation says.

    Args:
        embeddings: [batch, width].
        weights: [identities, width].
        labels: Identities int64 [batch]; -1 where unknown, which does not count.
        margin: m, an angle in radians.
        scale: s, above 0.
        smoothing: Share of each label that is spread over all identities.
        labelled: What the sum is divided by; None: the labelled samples of the batch.

    Raises:
        KDExportError: Shapes differ, or the scale is not above 0.
    """
    if not scale > 0:
        raise KDExportError(f"arcface: the scale is {scale:g}, it must be above 0", hint="the paper takes 64")
    _check(embeddings, weights, labels, "arcface")
    directions = _directions(embeddings)
    cosines = directions @ _directions(weights).T.to(directions.dtype)
    true = F.one_hot(labels.clamp(min=0), weights.shape[0]).bool()
    chosen = cosines.gather(1, labels.clamp(min=0)[:, None])
    sines = (1 - chosen**2).clamp(min=SMALLEST_SINE).sqrt()
    shifted = chosen * math.cos(margin) - sines * math.sin(margin)
    return _cross_entropy(scale * torch.where(true, shifted, cosines), labels, smoothing, labelled)


def identity_cross_entropy(
    embeddings: Tensor,
    weights: Tensor,
    bias: Tensor,
    labels: Tensor,
    *,
    smoothing: float = 0.0,
    labelled: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of a linear classifier on the embedding: ``logits = W·(√d·f/‖f‖) + b``, d the width.

    The embedding is compared by its direction alone, so it is brought to the length that d numbers of unit variance
    have: a classifier on vectors of length 1 could not become sure of anything but by large weights (Wang et al. 2017,
    "NormFace", proposition 2).

    Args:
        embeddings: [batch, width].
        weights: [identities, width].
        bias: [identities].
        labels: Identities int64 [batch]; -1 where unknown, which does not count.
        smoothing: Share of each label that is spread over all identities.
        labelled: What the sum is divided by; None: the labelled samples of the batch.

    Raises:
        KDExportError: Shapes differ.
    """
    _check(embeddings, weights, labels, "cross_entropy")
    scaled = math.sqrt(embeddings.shape[1]) * _directions(embeddings)
    logits = F.linear(scaled, weights.to(scaled.dtype), bias.to(scaled.dtype))
    return _cross_entropy(logits, labels, smoothing, labelled)


def _directions(vectors: Tensor) -> Tensor:
    """Return rows of length 1 in fp32; a row of zeros stays one, with a gradient that has an end."""
    wide = at_least_fp32(vectors)
    lengths = wide.norm(dim=1, keepdim=True)
    return wide / torch.where(lengths > 0, lengths, 1.0)


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float, labelled: Tensor | None) -> Tensor:
    if labelled is None:
        labelled = (labels != UNLABELLED).sum().clamp(min=1)
    total = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, label_smoothing=smoothing, reduction="sum")
    return total / labelled


def _check(embeddings: Tensor, weights: Tensor, labels: Tensor, method: str) -> None:
    if embeddings.ndim != 2 or embeddings.shape[1] != weights.shape[1]:
        raise KDExportError(
            f"{method} takes embeddings [batch, {weights.shape[1]}], these are {list(embeddings.shape)}",
            hint="let the network return one vector per sample, as wide as each identity's",
        )
    check_class_ids(labels, embeddings, method)
