"""The distillation terms that a recipe may sum: one class per method, its fields the method's options.

No tensors here: the functions live in ``kdexport.distill.losses`` and are matched by name in
``kdexport.distill.objective``. A test holds that each field is an argument of its function.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class BaseTerm(BaseModel):
    """What every term has: a weight and how it moves over the training."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    method: str
    weight: float = Field(1.0, ge=0)
    schedule: Literal["constant", "warmup", "decay"] = "constant"
    schedule_share: float = Field(1.0, gt=0, le=1)  # share of the training that the ramp takes

    def weight_at(self, progress: float) -> float:
        """Return the weight when ``progress`` (0 to 1) of the training is done.

        ``warmup`` climbs in a straight line from 0 to ``weight`` over the first ``schedule_share`` of the training,
        ``decay`` falls from ``weight`` to 0 over it and stays there.
        """
        ramp = min(max(progress, 0.0) / self.schedule_share, 1.0)
        share = {"constant": 1.0, "warmup": ramp, "decay": 1.0 - ramp}[self.schedule]
        return self.weight * share

    @property
    def names_teacher(self) -> bool:
        """Whether the recipe says which of the teacher's layers are compared."""
        return getattr(self, "teacher_layer", None) is not None or bool(getattr(self, "teacher_layers", ()))

    def options(self) -> dict[str, Any]:
        """Return the arguments for the loss function."""
        return {name: getattr(self, name) for name in type(self).model_fields if name not in NOT_OPTIONS}


# Handled here, or by what stands between a network's layers and the function.
NOT_OPTIONS = frozenset(
    {
        *("method", "weight", "schedule", "schedule_share"),
        *("student_layer", "teacher_layer", "student_layers", "teacher_layers"),
        *("width", "negatives", "momentum"),
    }
)


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


class BinarySoftTargets(BaseTerm):
    """Soft targets of a sigmoid per class, for multi-label data."""

    method: Literal["binary_soft_targets"]
    temperature: float = Field(4.0, gt=0)


# A module's path, a glob over paths (of several the last to run), or the number of a stage: -2 is the last but one.
Layer = str | int


class FeatureTerm(BaseTerm):
    """A term on what one layer of each network gives; without a name, the layer that the method is meant for."""

    student_layer: Layer | None = None
    teacher_layer: Layer | None = None


class Hint(FeatureTerm):
    """Mean squared error of two features, projected where shapes differ (Romero 2015)."""

    method: Literal["hint"]


class Attention(FeatureTerm):
    """Distance of normalized attention maps (Zagoruyko 2017)."""

    method: Literal["attention"]


class Similarity(FeatureTerm):
    """Distance of the batch's similarity matrices (Tung 2019)."""

    method: Literal["similarity"]


class Relational(FeatureTerm):
    """Distances and angles between samples (Park 2019)."""

    method: Literal["relational"]
    distance_weight: float = Field(25.0, ge=0)
    angle_weight: float = Field(50.0, ge=0)


class Cosine(FeatureTerm):
    """Angle between embeddings."""

    method: Literal["cosine"]


class CRD(FeatureTerm):
    """Contrast with a memory of all samples (Tian 2020)."""

    method: Literal["crd"]
    temperature: float = Field(0.07, gt=0)
    width: int = Field(128, ge=1)  # of the space in which samples are compared
    negatives: int = Field(4096, ge=1)  # per batch, out of the training samples; the paper takes 16384
    momentum: float = Field(0.5, ge=0, lt=1)  # of a remembered embedding, when its sample is seen again


class Review(BaseTerm):
    """Features fused across stages (Chen 2021); without names, the last map of each resolution."""

    method: Literal["review"]
    student_layers: tuple[Layer, ...] = ()
    teacher_layers: tuple[Layer, ...] = ()


Term = Annotated[
    SoftTargets
    | HardTargets
    | LogitMSE
    | DKD
    | DIST
    | BinarySoftTargets
    | Hint
    | Attention
    | Similarity
    | Relational
    | Cosine
    | CRD
    | Review,
    Field(discriminator="method"),
]

METHODS: dict[str, type[BaseTerm]] = {
    "soft_targets": SoftTargets,
    "hard_targets": HardTargets,
    "logit_mse": LogitMSE,
    "dkd": DKD,
    "dist": DIST,
    "binary_soft_targets": BinarySoftTargets,
    "hint": Hint,
    "attention": Attention,
    "similarity": Similarity,
    "relational": Relational,
    "cosine": Cosine,
    "crd": CRD,
    "review": Review,
}
