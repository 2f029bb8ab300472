"""The distillation losses: plain functions of tensors, each returning a scalar.

Which recipe term calls which stands in the term's class in ``kdexport.terms``; to add a method: its function here,
held against float64 numpy written from the paper, and its class there.
"""

from kdexport.distill.losses.features import attention, cosine, crd, hint, relational, review, similarity
from kdexport.distill.losses.logits import binary_soft_targets, dist, dkd, hard_targets, logit_mse, soft_targets
from kdexport.distill.losses.maps import channel_wise, pairwise

__all__ = [
    "attention",
    "binary_soft_targets",
    "channel_wise",
    "cosine",
    "crd",
    "dist",
    "dkd",
    "hard_targets",
    "hint",
    "logit_mse",
    "pairwise",
    "relational",
    "review",
    "similarity",
    "soft_targets",
]
