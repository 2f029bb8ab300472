"""The distillation methods: one class each, which says all that the rest of the package asks about it.

A class holds the method's options as fields, the function that computes the loss and what that function is fed. To
add a method: a module with its function, tested against numbers worked out another way, and a class in ``BUILT_IN``.
No tensors here: functions and adapters are named as ``package.module:name`` and imported when a training begins. A
loss of the user's own needs no class: ``method = "file.py:name"``.
"""

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

Need = Literal["logits", "labels", "maps", "features"]
# A module's path, a glob over paths (of several the last to run), or the number of a stage: -2 is the last but one.
Layer = str | int
LOSSES = "kdexport.distill.losses"
MAX_TEMPERATURE = 1e6  # every output is the same long before; its square must be a number


class BaseTerm(BaseModel):
    """What every term has: a weight and how it moves over the training.

    Of the class: ``function`` is the loss, ``needs`` what it takes, in its order: ``logits`` (student's and
    teacher's), ``labels``, ``maps`` (of both networks' logits, and which pixels count), ``features`` (what the adapter
    makes of the networks' layers). ``multi_label`` says whether it makes sense where a sample has any number of
    classes, ``classes``, ``numbers`` and ``embeddings`` whether where targets are the one or the other or an output is
    an embedding, ``any_samples`` whether it can be told of samples that are not trained on, ``compares_samples``
    whether it needs more than one at a time, ``raw_logits`` whether it compares logits as they are: a squared error,
    or a decision for each class, ``projected`` whether it needs both networks' outputs to be of one width, so that the
    student's is projected where they are not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    function: ClassVar[str]
    needs: ClassVar[tuple[Need, ...]] = ("logits",)
    multi_label: ClassVar[bool] = True
    classes: ClassVar[bool] = True
    numbers: ClassVar[bool] = False
    any_samples: ClassVar[bool] = True
    compares_samples: ClassVar[bool] = False
    raw_logits: ClassVar[bool] = False
    embeddings: ClassVar[bool] = False
    projected: ClassVar[bool] = False
    loss_options: ClassVar[tuple[str, ...]] = ()  # the fields that the function takes

    method: str = Field(description="Name of the loss, or file.py:name for one of your own.")
    weight: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="Weight of this term in the sum that is minimized."
    )
    schedule: Literal["constant", "warmup", "decay"] = Field(
        "constant",
        description=(
            "How the weight moves over the training: constant, warmup climbs from 0 to it, decay falls from it to 0."
        ),
    )
    schedule_share: float = Field(1.0, gt=0, le=1, description="Share of the training that warmup or decay takes.")

    def weight_at(self, progress: float) -> float:
        """Return the weight when ``progress`` (0 to 1) of the training is done.

        ``warmup`` climbs in a straight line from 0 to ``weight`` over the first ``schedule_share`` of the training,
        ``decay`` falls from ``weight`` to 0 over it and stays there.
        """
        ramp = min(max(progress, 0.0) / self.schedule_share, 1.0)
        share = {"constant": 1.0, "warmup": ramp, "decay": 1.0 - ramp}[self.schedule]
        return self.weight * share

    def options(self) -> dict[str, Any]:
        """Return the arguments for the loss function."""
        return {name: getattr(self, name) for name in self.loss_options}

    @property
    def cache_temperature(self) -> float:
        """The temperature that compressed logits are kept right for; infinity where the logits count as they are."""
        return math.inf if self.raw_logits else float(getattr(self, "temperature", 1.0))


class SoftTargets(BaseTerm):
    """KL divergence of the softened outputs, times T² (Hinton 2015)."""

    function = f"{LOSSES}.logits:soft_targets"
    multi_label = False
    loss_options = ("temperature", "standardize")

    method: Literal["soft_targets"]
    temperature: float = Field(
        4.0, gt=0, le=MAX_TEMPERATURE, description="Temperature that softens both networks' outputs."
    )
    standardize: bool = Field(False, description="Whether logits are standardized per sample first (Sun 2024).")


class HardTargets(BaseTerm):
    """Cross-entropy with the teacher's argmax (DeiT 2021)."""

    function = f"{LOSSES}.logits:hard_targets"
    multi_label = False

    method: Literal["hard_targets"]


class LogitMSE(BaseTerm):
    """Mean squared error of the logits (Kim 2021)."""

    function = f"{LOSSES}.logits:logit_mse"
    raw_logits = True

    method: Literal["logit_mse"]


class DKD(BaseTerm):
    """Decoupled distillation (Zhao 2022)."""

    function = f"{LOSSES}.logits:dkd"
    needs = ("logits", "labels")
    multi_label = False
    loss_options = ("alpha", "beta", "temperature")

    method: Literal["dkd"]
    alpha: float = Field(1.0, ge=0, description="Weight of the part on the true class against the rest.")
    beta: float = Field(8.0, ge=0, description="Weight of the part on the classes other than the true one.")
    temperature: float = Field(
        4.0, gt=0, le=MAX_TEMPERATURE, description="Temperature that softens both networks' outputs."
    )


class DIST(BaseTerm):
    """Inter- and intra-class correlation (Huang 2022)."""

    function = f"{LOSSES}.logits:dist"
    multi_label = False
    compares_samples = True
    loss_options = ("beta", "gamma", "temperature")

    method: Literal["dist"]
    beta: float = Field(1.0, ge=0, description="Weight of the correlation over classes, within a sample.")
    gamma: float = Field(1.0, ge=0, description="Weight of the correlation over samples, within a class.")
    temperature: float = Field(
        1.0, gt=0, le=MAX_TEMPERATURE, description="Temperature that softens both networks' outputs."
    )


class BinarySoftTargets(BaseTerm):
    """Soft targets of a sigmoid per class, for multi-label data."""

    function = f"{LOSSES}.logits:binary_soft_targets"
    raw_logits = True
    loss_options = ("temperature",)

    method: Literal["binary_soft_targets"]
    temperature: float = Field(
        4.0, gt=0, le=MAX_TEMPERATURE, description="Temperature that softens both networks' outputs."
    )


class OutputMSE(BaseTerm):
    """Mean squared error of outputs that are numbers or vectors (Ba 2014)."""

    function = f"{LOSSES}.outputs:output_mse"
    raw_logits = True
    numbers = True
    embeddings = True
    projected = True

    method: Literal["output_mse"]


class TeacherBounded(BaseTerm):
    """Squared error where the teacher is nearer to the label than the student, and nothing elsewhere (Chen 2017)."""

    function = f"{LOSSES}.outputs:teacher_bounded"
    needs = ("logits", "labels")
    raw_logits = True
    classes = False
    numbers = True
    loss_options = ("margin", "toward")

    method: Literal["teacher_bounded"]
    margin: float = Field(
        0.0,
        description=(
            "How much better than the teacher the student must be before a sample stops to count, in squared standard "
            "deviations of the target."
        ),
    )
    toward: Literal["label", "teacher"] = Field(
        "label", description="What the student is drawn to where the teacher is better: the label, or its output."
    )


class ChannelWise(BaseTerm):
    """Where each class is seen: KL of each channel's softmax over the pixels, times T² (Shu 2021)."""

    function = f"{LOSSES}.maps:channel_wise"
    needs = ("maps",)
    multi_label = False
    classes = False
    loss_options = ("temperature",)

    method: Literal["channel_wise"]
    temperature: float = Field(
        4.0, gt=0, le=MAX_TEMPERATURE, description="Temperature that softens both networks' outputs."
    )


class FeatureTerm(BaseTerm):
    """A term on what layers of both networks give; without a name, the layer that the method is meant for.

    Of the class: ``adapter`` brings the student's feature to the teacher's shape, ``adapter_options`` are the fields
    that it takes, ``several_layers`` whether it takes tuples, ``default_layers`` what is compared where none is named.
    """

    needs = ("features",)
    numbers = True
    embeddings = True
    of_embeddings: ClassVar[bool] = False  # whether an embedding network's output is what it compares by itself
    adapter: ClassVar[str] = "kdexport.distill.features:Unchanged"
    adapter_options: ClassVar[tuple[str, ...]] = ()
    several_layers: ClassVar[bool] = False
    default_layers: ClassVar[Literal["last_map", "embedding", "stage_ends"]] = "last_map"

    def layers(self, whose: Literal["student", "teacher"]) -> tuple[Layer, ...]:
        """Return the layers that the recipe names."""
        name = getattr(self, f"{whose}_layer")
        return () if name is None else (name,)


class OneLayerTerm(FeatureTerm):
    """A term on one layer of each network."""

    student_layer: Layer | None = Field(
        None,
        description=(
            "Layer of the student: a module's path, a glob over paths, or a stage's number (-1 is the "
            "last). Left out: the one that the method is meant for."
        ),
    )
    teacher_layer: Layer | None = Field(
        None,
        description=(
            "Layer of the teacher: a module's path, a glob over paths, or a stage's number (-1 is the "
            "last). Left out: the one that the method is meant for."
        ),
    )


class Hint(OneLayerTerm):
    """Mean squared error of two features, projected where shapes differ (Romero 2015)."""

    function = f"{LOSSES}.features:hint"
    adapter = "kdexport.distill.features:Projection"

    method: Literal["hint"]


class Attention(OneLayerTerm):
    """Distance of normalized attention maps (Zagoruyko 2017)."""

    function = f"{LOSSES}.features:attention"

    method: Literal["attention"]


class Similarity(OneLayerTerm):
    """Distance of the batch's similarity matrices (Tung 2019)."""

    function = f"{LOSSES}.features:similarity"
    compares_samples = True

    method: Literal["similarity"]


class Pairwise(OneLayerTerm):
    """Similarities of all pairs of regions within a sample (Liu 2019)."""

    function = f"{LOSSES}.maps:pairwise"
    loss_options = ("nodes",)

    method: Literal["pairwise"]
    nodes: int = Field(16, ge=1, le=64, description="Number of regions along a side, at most; each is averaged.")


class Relational(OneLayerTerm):
    """Distances and angles between samples (Park 2019)."""

    function = f"{LOSSES}.features:relational"
    adapter = "kdexport.distill.features:Pooled"
    of_embeddings = True
    default_layers = "embedding"
    compares_samples = True
    loss_options = ("distance_weight", "angle_weight")

    method: Literal["relational"]
    distance_weight: float = Field(25.0, ge=0, description="Weight of the distances between pairs of samples.")
    angle_weight: float = Field(50.0, ge=0, description="Weight of the angles between triples of samples.")


class Cosine(OneLayerTerm):
    """Angle between embeddings."""

    function = f"{LOSSES}.features:cosine"
    adapter = "kdexport.distill.features:VectorProjection"
    of_embeddings = True
    projected = True
    default_layers = "embedding"

    method: Literal["cosine"]


class CRD(OneLayerTerm):
    """Contrast with a memory of all samples (Tian 2020)."""

    function = f"{LOSSES}.features:crd"
    adapter = "kdexport.distill.contrast_memory:ContrastMemory"
    adapter_options = ("temperature", "width", "negatives", "momentum")
    default_layers = "embedding"
    any_samples = False
    loss_options = ("temperature",)

    method: Literal["crd"]
    temperature: float = Field(0.07, gt=0, le=MAX_TEMPERATURE, description="Temperature of the contrast.")
    width: int = Field(128, ge=1, description="Number of dimensions of the space in which samples are compared.")
    negatives: int = Field(
        4096, ge=1, description="Number of negatives per batch, out of the training samples; the paper takes 16384."
    )
    momentum: float = Field(
        0.5, ge=0, lt=1, description="Share of a remembered embedding that stays when its sample is seen again."
    )


class Review(FeatureTerm):
    """Features fused across stages (Chen 2021); without names, the last map of each resolution."""

    function = f"{LOSSES}.features:review"
    adapter = "kdexport.distill.features:Fusion"
    several_layers = True
    default_layers = "stage_ends"

    method: Literal["review"]
    student_layers: tuple[Layer, ...] = Field(
        (),
        description=(
            "Layers of the student, from the first to the last. Left out: the last feature map of each resolution."
        ),
    )
    teacher_layers: tuple[Layer, ...] = Field(
        (),
        description=(
            "Layers of the teacher, from the first to the last. Left out: the last feature map of each resolution."
        ),
    )

    def layers(self, whose: Literal["student", "teacher"]) -> tuple[Layer, ...]:
        """Return the layers that the recipe names."""
        return self.student_layers if whose == "student" else self.teacher_layers


class OwnLoss(OneLayerTerm):
    """A loss of your own: further keys are the function's keyword arguments.

    It is fed what its positional parameters are called: ``student_logits, teacher_logits``, ``labels``,
    ``student_feature, teacher_feature``. See ``kdexport.distill.objective.loss_of``.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    embeddings = True

    method: str = Field(pattern=":", description="Name of the method, or file.py:name for a loss of your own.")

    def options(self) -> dict[str, Any]:
        """Return the arguments for the loss function."""
        return dict(self.model_extra or {})


BUILT_IN: tuple[type[BaseTerm], ...] = (
    *(SoftTargets, HardTargets, LogitMSE, DKD, DIST, BinarySoftTargets, OutputMSE, TeacherBounded, ChannelWise),
    *(Hint, Attention, Similarity, Pairwise, Relational, Cosine, CRD, Review),
)
METHODS: dict[str, type[BaseTerm]] = {
    cls.model_fields["method"].annotation.__args__[0]: cls  # type: ignore[union-attr]
    for cls in BUILT_IN
}
OWN = "own"  # the tag of OwnLoss within the union


def _tag(term: Any) -> str | None:
    method = term.get("method") if isinstance(term, dict) else getattr(term, "method", None)
    return OWN if isinstance(method, str) and ":" in method else method


if TYPE_CHECKING:
    Term = BaseTerm
else:
    Term = Annotated[
        Union[*(Annotated[cls, Tag(name)] for name, cls in METHODS.items()), Annotated[OwnLoss, Tag(OWN)]],
        Discriminator(_tag),
    ]
