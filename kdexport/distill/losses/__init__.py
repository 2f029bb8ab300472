"""The distillation losses: plain functions of tensors, each returning a scalar.

Which recipe term calls which is one table in ``kdexport.distill.objective``. To add a method: its function here, its
term with the function's options as fields in ``kdexport.terms``, its row in that table. A test holds that the three
agree; one beside the others should hold the function against float64 numpy, written from the paper.
"""

from kdexport.distill.losses.contrast import crd
from kdexport.distill.losses.features import attention, cosine, hint, relational, review, similarity
from kdexport.distill.losses.logits import binary_soft_targets, dist, dkd, hard_targets, logit_mse, soft_targets

__all__ = [
    "attention",
    "binary_soft_targets",
    "cosine",
    "crd",
    "dist",
    "dkd",
    "hard_targets",
    "hint",
    "logit_mse",
    "relational",
    "review",
    "similarity",
    "soft_targets",
]
