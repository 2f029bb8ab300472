"""[teacher.train] and [distill]: how weights are learned."""

import inspect
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from kdexport import objects
from kdexport.recipe.section import Section
from kdexport.terms import DIST, Term


class Training(Section):
    """How a network is trained."""

    @classmethod
    def from_python(cls, values: Any) -> Any:
        """Take functions for the augmentations of one's own."""
        if not isinstance(values, dict) or not isinstance(values.get("augment"), tuple | list):
            return values
        own = tuple(objects.refer(item) if callable(item) else item for item in values["augment"])
        return {**values, "augment": own}

    epochs: int = Field(30, ge=1, description="Number of passes over the training split.")
    batch_size: int = Field(128, ge=1, description="Samples per step, over all processes together.")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description=(
            "Samples per forward pass, where memory is short: gradients of several passes add up to one "
            "step. Left out: the whole batch at once."
        ),
    )
    optimizer: Literal["adamw", "sgd"] = Field(
        "adamw", description="The optimizer: AdamW, or SGD with Nesterov momentum."
    )
    lr: float = Field(
        0.002,
        gt=0,
        description="Learning rate, at its peak. Left out: 0.002, and 5e-5 for a pretrained transformer under adamw.",
    )
    weight_decay: float = Field(
        0.01, ge=0, description="Weight decay, of weights and not of biases or normalization layers."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd; adamw ignores it.")
    schedule: Literal["cosine", "step", "linear", "constant"] = Field(
        "cosine",
        description=(
            "How the learning rate falls: cosine and linear to 0, step to a tenth at each milestone, "
            "constant not at all."
        ),
    )
    milestones: tuple[float, ...] = Field(
        (0.625, 0.75, 0.875),
        description=(
            "With step, the shares of the training after which the learning rate is divided by ten; the "
            "default is epochs 150, 180 and 210 of 240."
        ),
    )
    warmup_epochs: float = Field(
        0.0, ge=0, description="Epochs over which the learning rate first climbs in a straight line to lr."
    )
    clip_grad_norm: float | None = Field(
        None,
        gt=0,
        description="Largest norm of all gradients together; longer ones are scaled down. Left out: no clipping.",
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description=(
            "Decay of the moving average of the weights, which is then what is validated and kept, e.g. "
            "0.999. Left out: no average."
        ),
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of each label's probability that is spread over all classes."
    )
    label_loss: str | None = Field(
        None,
        description=(
            "Loss of the labels, one of the task's: cross_entropy; binary_cross_entropy; mse, mae or huber of numbers "
            "in standard deviations of the target; cross_entropy or arcface over identities; cosine_mse of pairs. Left "
            "out: its first."
        ),
    )
    arcface_margin: float = Field(
        0.5, ge=0, description="With label_loss arcface, the angle in radians that the true identity is made harder by."
    )
    arcface_scale: float = Field(
        64.0, gt=0, description="With label_loss arcface, the factor of the cosines; of few identities 16 is enough."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32",
        description="Number format of forward and backward passes; bf16 and fp16 mean automatic mixed precision.",
    )
    channels_last: Literal["auto"] | bool = Field(
        "auto",
        description=(
            "Whether tensors lie in channels-last memory format; auto means true on a GPU, and as they "
            "are stored on a CPU."
        ),
    )
    compile: bool = Field(False, description="Whether torch.compile is used, which pays where a training takes hours.")
    checkpoint_minutes: float = Field(
        10.0, gt=0, description="Minutes between two checkpoints, beside the one at the end of each epoch."
    )
    augment: tuple[str, ...] = Field(
        (),
        description=(
            "Augmentations of the training images, applied in the order given: shift, flip, crop, rotate, "
            "color, erase, or file.py:name of your own, (sample, generator) -> sample; mixup and cutmix come last. "
            "Masks are moved with their images, but by your own. Left out: none."
        ),
    )
    balanced: bool = Field(
        False, description="Whether every class is drawn equally often in an epoch, however many samples it has."
    )
    keep: Literal["best", "last"] = Field(
        "best", description="Which weights are kept: those of the epoch with the best validation score, or the last."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description=(
            "Number of epochs without a better validation score after which training stops. Left out: all "
            "epochs are trained."
        ),
    )


class DataFree(Section):
    """[distill.data_free]: make the training images from the teacher alone; no real one is looked at."""

    samples: int = Field(10_000, ge=1, description="Number of images to make.")
    steps: int = Field(
        400, ge=4, description="Number of the generator's training steps; images are kept from the second quarter on."
    )
    latent: int = Field(100, ge=1, description="Number of random numbers that an image is made from.")
    lr: float = Field(0.001, gt=0, description="Learning rate of the generator.")
    one_hot: float = Field(
        1.0, ge=0, description="Weight of the generator's loss that wants the teacher to be sure of a class."
    )
    activation: float = Field(
        0.1, ge=0, description="Weight of the generator's loss that wants a strong embedding in the teacher."
    )
    entropy: float = Field(
        5.0, ge=0, description="Weight of the generator's loss that wants all classes to be equally frequent."
    )
    statistics: float = Field(
        5.0,
        ge=0,
        description=(
            "Weight of the generator's loss that wants the teacher's batch normalizations to see the "
            "statistics of their training."
        ),
    )


class Distill(Training):
    """[distill]: how the student learns from the teacher."""

    @classmethod
    def from_python(cls, values: Any) -> Any:
        """Take functions for the losses of one's own."""
        values = super().from_python(values)
        if not isinstance(values, dict) or not isinstance(values.get("terms"), tuple | list):
            return values
        return {**values, "terms": tuple(_with_function(term) for term in values["terms"])}

    label_weight: float = Field(0.1, ge=0, description="Weight of the labels' own loss, beside the terms.")
    views: int = Field(
        4,
        ge=1,
        description=(
            "Number of augmented views of each sample whose teacher logits are kept and reused over the epochs."
        ),
    )
    teacher_top_k: int | None = Field(
        None,
        ge=1,
        description=(
            "Number of logits that are kept of each view. Left out: all of them, or the 128 largest above "
            "1,000 classes."
        ),
    )
    teacher_pixels: int = Field(
        4096,
        ge=1,
        description=(
            "Segmentation: number of pixels of each view, evenly spread, whose teacher logits are kept; the methods on "
            "logits then compare these alone. Where all views together take more than 4 GiB nothing is kept, and the "
            "teacher runs at every step."
        ),
    )
    teacher_cache: str | None = Field(
        None, description="Folder for the teacher's logits that several runs share. Left out: the run directory's own."
    )
    baseline: bool = Field(
        True,
        description=("Whether the same student is also trained without the teacher, to show what distillation gained."),
    )
    generations: int = Field(
        1,
        ge=1,
        description=(
            "Number of students in a row, each of which teaches the next (born-again networks); the last one is kept."
        ),
    )
    data_free: DataFree | None = Field(
        None,
        description=(
            "Train on images that are made from the teacher alone, without any data. Left out: train on the data."
        ),
    )
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        (), description="Where the epochs of all trainings are shown as well."
    )
    quantize_aware: bool = Field(
        False,
        description=(
            "Whether the student is then fine-tuned with int8's rounding in place; needs int8 in export.quantize."
        ),
    )
    quantize_aware_epochs: int | None = Field(
        None, ge=1, description="Number of epochs of that fine-tuning. Left out: a quarter of epochs."
    )
    quantize_aware_lr: float | None = Field(
        None, gt=0, description="Learning rate of that fine-tuning. Left out: a tenth of lr."
    )
    # The best of those that compare logits alone, in benchmarks/results/methods_cifar10.md; models/README.md says more.
    terms: tuple[Term, ...] = Field(
        (DIST(method="dist", beta=2.0, gamma=2.0, temperature=4.0),),
        description=(
            "What is minimized beside the labels' loss: one [[distill.terms]] table per term. Left out: "
            "dist, the best in benchmarks/results/methods_cifar10.md of those that compare logits alone; cosine "
            "with task embedding, output_mse of numbers, binary_soft_targets of several labels a sample."
        ),
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if self.label_weight == 0 and all(term.weight == 0 for term in self.terms):
            raise ValueError("label_weight and every term's weight are 0: the student would learn nothing")
        return self

    @model_validator(mode="after")
    def _made_samples_have_no_labels(self) -> Self:
        if self.data_free is not None and (self.label_weight > 0 or any("labels" in term.needs for term in self.terms)):
            raise ValueError("samples made by data_free have no labels: set label_weight = 0 and leave out dkd")
        return self


def _with_function(term: Any) -> Any:
    """Return a term with a reference in place of a function: of its method, or of the whole."""
    if isinstance(term, dict) and callable(term.get("method")):
        return {**term, "method": objects.refer(term["method"])}
    return {"method": objects.refer(term)} if inspect.isfunction(term) else term
