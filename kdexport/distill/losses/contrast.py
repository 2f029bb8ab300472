"""The contrastive loss of CRD, over keys that a memory (``kdexport.distill.contrast_memory``) hands in."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdexport.distill.losses.checks import at_least_fp32, positive_temperature, same_batch


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
