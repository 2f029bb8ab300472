"""The distillation losses: plain functions of tensors, each returning a scalar.

Which recipe term calls which is one table in ``kdexport.distill.objective``.
"""

from kdexport.distill.losses.logits import binary_soft_targets, dist, dkd, hard_targets, logit_mse, soft_targets

__all__ = ["binary_soft_targets", "dist", "dkd", "hard_targets", "logit_mse", "soft_targets"]
