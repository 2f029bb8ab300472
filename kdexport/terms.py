"""The distillation terms that a recipe may sum: one class per method, its fields the method's options.

No tensors here: the functions live in ``kdexport.distill.losses`` and are matched by name in
``kdexport.distill.objective``. A test holds that each field is an argument of its function.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class BaseTerm(BaseModel):
    """What every term has."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    weight: float = Field(1.0, ge=0)


class SoftTargets(BaseTerm):
    """KL divergence of the softened outputs, times T² (Hinton 2015)."""

    method: Literal["soft_targets"]
    temperature: float = Field(4.0, gt=0)
    standardize: bool = False  # logit standardization (Sun 2024)


class HardTargets(BaseTerm):
    """Cross-entropy with the teacher's argmax (DeiT 2021)."""

    method: Literal["hard_targets"]


class LogitMSE(BaseTerm):
    """Mean squared error of the logits (Kim 2021)."""

    method: Literal["logit_mse"]


class DKD(BaseTerm):
    """Decoupled distillation (Zhao 2022)."""

    method: Literal["dkd"]
    alpha: float = Field(1.0, ge=0)
    beta: float = Field(8.0, ge=0)
    temperature: float = Field(4.0, gt=0)


class DIST(BaseTerm):
    """Inter- and intra-class correlation (Huang 2022)."""

    method: Literal["dist"]
    beta: float = Field(1.0, ge=0)
    gamma: float = Field(1.0, ge=0)
    temperature: float = Field(1.0, gt=0)


Term = Annotated[SoftTargets | HardTargets | LogitMSE | DKD | DIST, Field(discriminator="method")]

METHODS: dict[str, type[BaseTerm]] = {
    "soft_targets": SoftTargets,
    "hard_targets": HardTargets,
    "logit_mse": LogitMSE,
    "dkd": DKD,
    "dist": DIST,
}
