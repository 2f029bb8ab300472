"""What the user asks for: TOML plus overrides, validated, every fault reported at once.

A ``Recipe`` in memory holds absolute paths; ``write`` turns them relative to the file that it writes, so that a run
directory can be moved together with what it refers to.
"""

import inspect
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeGuard

import tomli_w
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kdexport import objects, references
from kdexport.artifacts import write_text
from kdexport.errors import RecipeError, did_you_mean
from kdexport.precisions import checked, checked_or_fp32
from kdexport.recipe_text import map_references, parsed_toml, tuples, validated, with_absolute_paths
from kdexport.terms import DIST, Term

DAY = 86_400.0  # seconds


class Section(BaseModel):
    """A table of the recipe: unknown keys and wrong types are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    OLD_NAMES: ClassVar[dict[str, str]] = {}  # keys that are still read: old name -> name

    @classmethod
    def from_python(cls, values: Any) -> Any:
        """Return what Python code gives for the table in the form that TOML has: references in place of objects."""
        return values

    @model_validator(mode="before")
    @classmethod
    def _as_in_toml(cls, values: Any) -> Any:
        values = cls.from_python(values)
        if not isinstance(values, dict):
            return values
        for old, new in cls.OLD_NAMES.items():
            if old in values and new in values:
                raise ValueError(f"{old} is the old name of {new}: give one of the two")
            values = {new if key == old else key: value for key, value in values.items()}
        return {key: tuples(value) for key, value in values.items()}


Side = Annotated[int, Field(ge=1, lt=1 << 16)]  # of an image, in pixels


class PreprocessingSpec(Section):
    """What the recipe says of a model's preprocessing; what is left out is inferred."""

    size: tuple[Side, Side] | None = Field(
        None,
        description=(
            "Height and width, in pixels, that the network takes. Left out: what the model itself states, "
            "else the size of the data."
        ),
    )
    resize: Literal["squash", "crop"] | None = Field(
        None,
        description=(
            "How an image becomes that size: squash ignores its aspect ratio, crop resizes the shorter "
            "side and cuts out the center. Left out: what the model states."
        ),
    )
    crop_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description=(
            "With crop, the share of the resized shorter side that is kept: ImageNet's 224 of 256 is "
            "0.875. Left out: what the model states."
        ),
    )
    resample: Literal["bilinear", "bicubic"] | None = Field(
        None, description="The filter that resizes. Left out: what the model states, else bilinear."
    )
    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] | None = Field(
        None,
        description=(
            "Mean per channel, of pixels scaled to 0..1, which is subtracted. Left out: what the model "
            "states, else that of the training split."
        ),
    )
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] | None = Field(
        None,
        description=(
            "Standard deviation per channel, of pixels scaled to 0..1, which is divided by. Left out: "
            "what the model states, else that of the training split."
        ),
    )


class Data(Section):
    """[data]: where the samples come from and how they are split.

    In Python samples may stand for the reference or for the whole table: see ``kdexport.objects.splits_reference``.
    """

    @classmethod
    def from_python(cls, values: Any) -> Any:
        """Take samples for the table or for its reference."""
        if isinstance(values, BaseModel):
            return values
        if not isinstance(values, dict) or "train" in values:
            return {"source": objects.splits_reference(values)}
        return {**values, "source": objects.splits_reference(values["source"])} if "source" in values else values

    source: str = Field(
        description=(
            "Where the samples come from: digits, imagefolder:DIR, npz:FILE, csv:FILE, table:FILE, torchvision:NAME, "
            "hf:NAME_OR_DIR, or file.py:Name, a function that returns the splits. A path is relative to "
            "the recipe."
        )
    )
    val_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the training split that becomes the validation split, where the source has none.",
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="Share of all samples that becomes the test split, where the source has none."
    )
    fraction: float = Field(1.0, gt=0, le=1, description="Share of the training split that is used; 1.0 is all of it.")
    root: str | None = Field(
        None, description="Folder that holds the files of a torchvision data set; a path is relative to the recipe."
    )
    download: bool = Field(
        False, description="Whether torchvision may download the data set into root. By default nothing is downloaded."
    )
    args: dict[str, Any] = Field(
        {}, description="Keyword arguments of the function that file.py:Name names, or of the torchvision class."
    )
    text_column: str = Field("text", description="Name of the column that holds the text, for csv and hf.")
    label_column: str = Field(
        "label", description="Name of the column that holds the label, for csv and hf; of hf data with masks, the mask."
    )
    text_columns: tuple[str, str] | None = Field(
        None,
        description=(
            "Names of the two columns that hold the texts of a pair, for csv with pairs and their scores. Left out: "
            "the two columns beside score_column, where the file has neither text_column nor label_column."
        ),
    )
    score_column: str = Field(
        "score", description="Name of the column that holds a pair's score, a number: how alike its two texts are."
    )
    on_bad_sample: Literal["fail", "skip"] = Field(
        "fail",
        description=(
            "What happens at a file that cannot be read: fail stops and names it, skip leaves it out and "
            "tells how many."
        ),
    )
    tokenizer: str | None = Field(
        None, description="Tokenizer of text, as hf:NAME_OR_DIR. Text from csv or hf needs one: usually the teacher's."
    )
    text_length: int = Field(128, ge=1, description="Number of tokens at which a text is cut.")
    standardize: bool | None = Field(
        None,
        description=(
            "Whether numeric features are brought to mean 0 and standard deviation 1 of the training samples; the ONNX "
            "file then does it itself. Left out: those of a table are, others are fed as they are."
        ),
    )
    label_columns: tuple[str, ...] = Field(
        (),
        description=(
            "Names of a table's columns that are to be estimated: one, or several for several numbers; also of the "
            "list of an image folder (metadata.csv or labels.csv). Left out: of a list all but the pictures' names."
        ),
    )
    feature_columns: tuple[str, ...] = Field(
        (), description="Names of a table's columns that are fed, in this order. Left out: all but label_columns."
    )
    unlabelled: str | None = Field(
        None,
        description=(
            "More images without labels, as imagefolder:DIR, that the student learns from through the "
            "teacher alone. Left out: none."
        ),
    )
    image_size: tuple[Side, Side] | None = Field(
        None,
        description=(
            "Height and width, in pixels, to which image files are decoded. Left out: what the networks need."
        ),
    )


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


class NetworkSpec(Section):
    """A network by reference, its weights and its inputs: what [teacher] and [student] have in common.

    In Python a network, or a function that makes one, may stand for the reference or for the whole table.
    """

    @classmethod
    def from_python(cls, values: Any) -> Any:
        """Take a network, or a function that makes one, for the table or for its reference."""
        if not isinstance(values, dict | BaseModel):
            values = {"model": values}
        if isinstance(values, dict) and "model" in values:
            values = {**values, "model": objects.network_reference(values["model"])}
        return values

    model: str = Field(
        description=(
            "The network: torchvision:NAME, timm:NAME, hf:NAME_OR_DIR, file.py:Name, package.module:Name; "
            "a teacher may also be model.pt2 or model.onnx, a student also teacher: a part of that."
        )
    )
    args: dict[str, Any] = Field({}, description="Keyword arguments of the class or function that builds the network.")
    weights: str | None = Field(
        None,
        description=(
            'A checkpoint to start from (.safetensors, .pt, .pth, .th, .ckpt), or "pretrained" for the library\'s own. '
            "Left out: new weights."
        ),
    )
    weights_key: str | None = Field(
        None,
        description=(
            "Which of several sets of weights in the file is meant, by its key or prefix. Left out: the "
            "one that fits best."
        ),
    )
    strict: bool = Field(
        True,
        description=(
            "Whether every name and shape of the weights must match; false takes what fits and lists the rest."
        ),
    )
    output: str | int | None = Field(
        None,
        description=(
            "Which output is meant where the network returns several: a key, a field or an index, with dots into a "
            "nest. Left out: a lone tensor, else logits or out."
        ),
    )
    embedding_dim: int | None = Field(
        None,
        ge=2,
        description=(
            "With task embedding, the number of values of the embedding: a factory that takes num_classes or "
            "embedding_dim gets it, else a linear layer at the network's end brings its output there. Left out: what "
            "the network gives."
        ),
    )
    class_order: Literal["by_name", "by_position"] = Field(
        "by_name",
        description=(
            "How the model's classes are matched to the data's: by the names that it carries, or by "
            "position whatever those names are."
        ),
    )
    preprocessing: PreprocessingSpec = Field(
        PreprocessingSpec(),
        description=(
            "What the model's inputs must look like; keys that are left out are inferred from the model and the data."
        ),
    )


class TeacherSpec(NetworkSpec):
    """[[teacher.also]]: one more network to learn from."""

    train: Training | None = Field(
        None,
        description=(
            "How to train this teacher on the labels first; its keys are those of [distill] down to "
            "patience. Left out: it is used as it is."
        ),
    )
    weight: float = Field(1.0, gt=0, description="Weight of this teacher's output against that of the other teachers.")


class Teacher(TeacherSpec):
    """[teacher]: the network to learn from, first among several if there are ``also`` others."""

    also: tuple[TeacherSpec, ...] = Field(
        (), description="Further teachers: [[teacher.also]] takes the keys of [teacher] but also and combine."
    )
    combine: Literal["average", "confidence"] = Field(
        "average",
        description=(
            "How several teachers' outputs become one: average, or confidence, where a teacher that is "
            "surer of a sample counts more."
        ),
    )

    def named(self) -> tuple[tuple[str, TeacherSpec], ...]:
        """Return all teachers by the names of their files: teacher, teacher-2, ..."""
        return ("teacher", self), *((f"teacher-{number}", also) for number, also in enumerate(self.also, 2))


def _checked_layers(value: Any) -> Any:
    """Say what ``layers`` can be in one line, not in one for each form."""
    value = tuple(value) if isinstance(value, list) else value
    number = isinstance(value, int) and not isinstance(value, bool)
    places = isinstance(value, tuple) and value and all(isinstance(one, int) and one is not True for one in value)
    if value is None or value == "every-other" or number or places:
        return value
    raise ValueError('is "every-other", a number of layers, or a list of layers counted from 0, e.g. [0, 5]')


TEACHER = "teacher"  # as the student's model: the teacher's own, of which layers or tokens are kept
SEARCHED = "search"  # as the student's model: it is to be found by `kdexport search`
CORPUS = "corpus"  # as vocabulary: cut to the tokens of the training texts


def _checked_keep(value: Any) -> Any:
    """Say what a share can be, and that a latency is none yet."""
    if isinstance(value, dict):
        raise ValueError(
            "a budget of latency cannot be pruned to yet: give the share of the parameters to keep, e.g. keep = 0.4"
        )
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1):
        return value
    raise ValueError(f"is the share of the parameters to keep, above 0 and below 1, e.g. 0.4, not {value!r}")


def _checked_blocks(value: Any) -> Any:
    """Say what blocks to take out can be in one line, not in one for each form."""
    value = tuple(value) if isinstance(value, list) else value
    named = isinstance(value, tuple) and value and all(isinstance(one, int | str) and one is not True for one in value)
    if value is None or value == "every-other" or named:
        return value
    raise ValueError('is "every-other", or a list of the blocks to take out: paths, or numbers counted from 0')


class Prune(Section):
    """[student.prune]: what is taken out of the teacher to make the student."""

    keep: Annotated[float | None, BeforeValidator(_checked_keep)] = Field(
        None,
        description=(
            "Share of the parameters that is kept where channels are taken out, of what layers leaves. "
            "Left out: no channels are taken out."
        ),
    )
    importance: Literal["magnitude", "taylor", "random"] = Field(
        "magnitude",
        description=(
            "Which channels stay: those with the largest weights, those that the loss of the labels on training data "
            "depends on most (taylor), or any."
        ),
    )
    round_to: int = Field(
        8, ge=1, le=1024, description="The number of channels that a layer keeps is rounded down to a multiple of this."
    )
    layers: Annotated[Literal["every-other"] | tuple[int | str, ...] | None, BeforeValidator(_checked_blocks)] = Field(
        None,
        description=(
            "Whole blocks to take out, whose output has the shape of their input: every-other, or a list of paths or "
            "of numbers counted from 0. Left out: none."
        ),
    )
    ignore: tuple[str, ...] = Field(
        (), description="Paths of layers whose channels are left whole, with all that is in them. By default none."
    )

    @model_validator(mode="after")
    def _something_to_take_out(self) -> Self:
        if self.keep is None and self.layers is None:
            raise ValueError("says nothing of what is taken out: set keep (e.g. 0.4), layers, or both")
        return self


class Student(NetworkSpec):
    """[student]: the network to ship."""

    prune: Prune | None = Field(
        None, description='What is taken out of the teacher where model = "teacher". Left out: nothing.'
    )

    layers: Annotated[Literal["every-other"] | int | tuple[int, ...] | None, BeforeValidator(_checked_layers)] = Field(
        None,
        description=(
            "Which layers of the hf: transformer the student has, with their weights: every-other, as DistilBERT began "
            "(half of them, evenly spread), a number of them, evenly spread, or a list counted from 0. Left out: all."
        ),
    )
    vocabulary: str | None = Field(
        None,
        description=(
            "Which tokens the student has: corpus cuts tokenizer and embedding to those of the training texts, a path "
            "takes the tokenizer.json of an earlier cut. The cut tokenizer.json is shipped with the model. Left out: "
            "the whole vocabulary."
        ),
    )
    max_unknown: float = Field(
        0.05,
        ge=0,
        le=1,
        description=(
            "Largest share of the validation or test texts' tokens that may be unknown to the cut vocabulary, beyond "
            "those that are unknown to the whole one."
        ),
    )

    @property
    def cuts(self) -> bool:
        """Whether it is a part of the network that ``model`` names."""
        return self.layers is not None or self.vocabulary is not None

    @model_validator(mode="after")
    def _check_vocabulary(self) -> Self:
        if self.vocabulary is not None and self.vocabulary != CORPUS and not self.vocabulary.endswith(".json"):
            raise ValueError(f'vocabulary is "{CORPUS}" or the path of a tokenizer.json, not "{self.vocabulary}"')
        return self


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


class Export(Section):
    """[export]: the ONNX files to write."""

    OLD_NAMES = {"max_accuracy_drop": "max_drop", "licence": "license"}

    opset: int = Field(18, ge=17, le=26, description="ONNX operator set of the files.")
    quantize: Annotated[tuple[str, ...], AfterValidator(checked)] = Field(
        (),
        description=(
            "Smaller variants to write beside the fp32 file: fp16, int8, int8-dynamic, int4. By default none."
        ),
    )
    also_outputs: tuple[str, ...] = Field(
        (),
        description=(
            "Further outputs of the student that its files hold, behind the one that is scored: keys, fields or "
            "indices as in student.output. Left out: none."
        ),
    )
    bake_preprocessing: bool = Field(
        True,
        description=(
            "Whether resizing and normalization are part of the graph, so that uint8 images in NHWC layout go in."
        ),
    )
    any_image_size: bool = Field(
        False, description="Whether images of any size go in and are resized in the graph; needs bake_preprocessing."
    )
    softmax: bool = Field(False, description="Whether probabilities come out in place of logits.")
    top_k: int = Field(
        0, ge=0, description="Number of best classes that come out as well, with their scores; 0 means none."
    )
    license: str | None = Field(
        None, description="License of the weights, which is written into the files. Left out: none is written."
    )
    parity_tolerance: float = Field(
        1e-4,
        gt=0,
        description=("Largest relative difference between PyTorch's and ONNX Runtime's outputs that passes as equal."),
    )
    calibration: Literal["auto", "minmax", "entropy", "percentile"] = Field(
        "auto",
        description=(
            "How the ranges of int8 activations are found; auto tries all and takes the best on the validation split."
        ),
    )
    calibration_samples: int = Field(256, ge=1, description="Number of training samples that the ranges are found on.")
    weight_bits: Literal[7, 8] = Field(
        7, description="Bits of an int8 weight; 8 is finer, and overflows on x86 processors without VNNI."
    )
    max_drop: float | None = Field(
        None,
        ge=0,
        description=(
            "Largest loss of a variant's score on the validation split, as a share; operators return to "
            "fp32 until it holds. Left out: none does."
        ),
    )
    max_output_error: float | None = Field(
        None,
        gt=0,
        description=(
            "Largest RMS difference of a variant's outputs from the fp32 file's, as a share of their RMS, "
            "where there is no accuracy; operators return to fp32 until it holds. Left out: none does."
        ),
    )


Count = Annotated[int, Field(ge=1)]


class Bench(Section):
    """[bench]: what to measure on."""

    model_config = ConfigDict(allow_inf_nan=False)

    devices: tuple[str, ...] = Field(
        ("cpu",),
        min_length=1,
        description=(
            "Devices to measure on: cpu, cuda, cuda:1, tensorrt, openvino, web:wasm, web:wasm-threads, web:webgpu, "
            "...; one that is not there is an error."
        ),
    )
    batch_sizes: tuple[Count, ...] = Field(
        (1,), min_length=1, description="Samples per call, each of which is measured."
    )
    threads: tuple[Count, ...] = Field(
        (1,), min_length=1, description="Threads within one operator, each number of which is measured."
    )
    precision: float = Field(
        0.02,
        gt=0,
        description="Half-width of the median's 95 % interval at which measuring ends, as a share of the median.",
    )
    min_seconds: float = Field(
        1.0,
        gt=0,
        le=DAY,
        description="Least seconds that are measured per model, device, batch size and number of threads.",
    )
    max_seconds: float = Field(
        20.0,
        gt=0,
        le=DAY,
        description=(
            "Most seconds by the clock per model, device, batch size and number of threads, unless the "
            "fewest rounds take longer."
        ),
    )
    rounds: Count = Field(5, description="Fewest fresh processes per model: one process alone is never believed.")
    allow_fallback: bool = Field(
        False,
        description=(
            "Whether a model is measured even where operators fall back to the CPU; by default that is an error."
        ),
    )
    streams: tuple[Count, ...] = Field(
        (1,),
        description=("Numbers of concurrent callers of one session, for throughput beside the latency of one caller."),
    )
    profile: bool = Field(
        False,
        description=(
            "Whether the time of each operator is measured too, by type and by layer, without the profiler's own cost."
        ),
    )
    provider_options: dict[str, str] = Field(
        {}, description="Options of the execution provider, for every device but the CPU."
    )
    browser: str | None = Field(
        None, description="Browser of web devices: its path. Left out: Chromium, Chrome or Edge on PATH."
    )
    web_runtime: str | None = Field(
        None,
        description=(
            "Folder of an unpacked onnxruntime-web, for web devices. By default npm fetches it once, for the cache."
        ),
    )
    dims: dict[str, Count] = Field(
        {}, description="Sizes of dynamic axes beside the batch, by name, e.g. { length = 64 }; texts need none."
    )
    batch_axis: str | None = Field(
        None,
        description=(
            "Axis of the inputs that holds the samples, by its name or position. Left out: the dynamic "
            "one that is called batch, batch_size, N, ..., else the first."
        ),
    )
    power_command: str | None = Field(
        None, description="A command that prints watts, for energy per call. Left out: RAPL and NVML are asked."
    )
    timeout_s: float = Field(
        300.0,
        gt=0,
        le=DAY,
        description="Seconds of silence after which a process is ended and its model counts as failed.",
    )


class Require(Section):
    """[require]: what the model to ship must hold."""

    OLD_NAMES = {"max_accuracy_drop": "max_drop", "min_accuracy": "min_score"}

    max_drop: float | None = Field(
        None,
        ge=0,
        description=(
            "Largest loss of the task's score against the teacher, in the score's own unit: 0.01 is one "
            "point of accuracy. Left out: no limit."
        ),
    )
    min_score: float | None = Field(
        None, description="Least score of the task; where a lower score is better, the largest. Left out: no limit."
    )
    min_speedup: float | None = Field(
        None,
        gt=0,
        description="Least speed-up against the teacher: the ratio of the median latencies. Left out: no limit.",
    )
    max_size_mib: float | None = Field(None, gt=0, description="Largest size of the file, in MiB. Left out: no limit.")
    max_latency_ms: float | None = Field(
        None, gt=0, description="Largest latency of a call, in milliseconds, at latency_percentile. Left out: no limit."
    )
    latency_percentile: Literal[50, 90, 95, 99] = Field(
        50, description="Percentile of the latency that max_latency_ms limits; 50 is the median."
    )
    max_memory_mib: float | None = Field(
        None, gt=0, description="Largest peak memory of the whole process, in MiB. Left out: no limit."
    )
    parity: bool = Field(False, description="Whether the file must have been proved equal to the PyTorch model.")
    undecided: Literal["pass", "fail"] = Field(
        "pass", description="What a limit within the 95 % interval of a figure counts as."
    )
    prefer: Literal["latency", "size", "accuracy"] = Field(
        "latency",
        description=(
            "Which of several models that hold all requirements is picked: the fastest, the smallest or "
            "the most accurate."
        ),
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="Batch size at which speed and memory are judged. Left out: the smallest that was measured.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description=(
            "Number of threads at which speed and memory are judged. Left out: the smallest that was measured."
        ),
    )


class Budget(Section):
    """[search.budget]: what a student may cost and lose."""

    model_config = ConfigDict(allow_inf_nan=False)

    latency_ms: float | None = Field(
        None, gt=0, description="Largest median latency of a call, in milliseconds. Left out: no limit."
    )
    speedup: float | None = Field(
        None, gt=0, description="Least speed-up against the teacher: the ratio of the median latencies."
    )
    size_mib: float | None = Field(None, gt=0, description="Largest size of the file, in MiB. Left out: no limit.")
    memory_mib: float | None = Field(
        None, gt=0, description="Largest peak memory of the whole process, in MiB. Left out: no limit."
    )
    drop: float | None = Field(
        None,
        ge=0,
        description="Largest loss of the task's score against the teacher, in its own unit: 0.01 is one point.",
    )
    min_score: float | None = Field(
        None, description="Least score of the task; where a lower score is better, the largest. Left out: no limit."
    )

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if all(value is None for value in self.model_dump().values()):
            raise ValueError("limits nothing: set latency_ms, speedup, size_mib, memory_mib, drop or min_score")
        return self


class SearchSpace(Section):
    """[[search.space]]: a family of students, by its arguments."""

    @classmethod
    def from_python(cls, values: Any) -> Any:
        """Take a class or a factory for the reference."""
        if isinstance(values, dict) and "model" in values:
            return {**values, "model": objects.network_reference(values["model"])}
        return values

    model: str = Field(
        description=(
            "A network by reference as in student.model; a pattern of names, e.g. timm:mobilenetv3_small_*; or teacher "
            "with prune."
        )
    )
    args: dict[str, Any] = Field(
        {},
        description=(
            "Keyword arguments of the class or factory: a list is a set of choices, { low, high } a range (also step, "
            "log = true), anything else is fixed."
        ),
    )
    weights: str | None = Field(
        None,
        description='Weights to start from: a file, or "pretrained" for the library\'s own. Left out: new weights.',
    )
    prune: dict[str, Any] | None = Field(
        None,
        description=(
            "Keys of student.prune where model is teacher, each a value, a list of choices or a range: "
            "{ keep = { low = 0.1, high = 0.8 } }."
        ),
    )
    image_size: int | tuple[int, ...] | dict[str, Any] | None = Field(
        None,
        description=(
            "Height and width, in pixels, that the network takes: a number, a list of choices or a range. Left out: as "
            "student.preprocessing says."
        ),
    )
    precision: Annotated[tuple[str, ...], AfterValidator(checked_or_fp32)] = Field(
        ("fp32",),
        min_length=1,
        description="Precisions that each candidate is measured in: fp32, fp16, int8, int8-dynamic, int4.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.prune is not None and self.model != TEACHER:
            raise ValueError(f'prune takes parts out of the teacher, and model is {self.model}: set model = "teacher"')
        if self.model == TEACHER and not self.prune:
            raise ValueError('model = "teacher" says nothing of what is taken out: set prune = { keep = [0.3, 0.5] }')
        for key, value in (self.prune or {}).items():
            if key not in Prune.model_fields:
                near = did_you_mean(key, Prune.model_fields) or f"known here: {', '.join(Prune.model_fields)}"
                raise ValueError(f"prune.{key}: unknown key; {near.strip()}")
            for one in values_of(f"prune.{key}", value) if key == "keep" else ():
                try:
                    _checked_keep(one)
                except ValueError as error:
                    raise ValueError(f"prune.keep {error}") from None
        for key, value in self.args.items():
            values_of(f"args.{key}", value)
        for size in () if self.image_size is None else values_of("image_size", self.image_size):
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"image_size: a side is a whole number of pixels, not {size!r}")
        return self


class SearchFinalists(Section):
    """[search.finalists]: who trains in full, and what of the method is varied then."""

    count: int = Field(2, ge=1, description="Number of candidates that train in full and are scored on the test split.")
    temperature: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="Temperatures that the best finalist is also trained with. By default that of the recipe alone."
    )
    label_weight: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (), description="Weights of the labels' loss that the best finalist is also trained with. By default none."
    )
    method: tuple[str, ...] = Field(
        (),
        description="Methods that the best finalist is also trained with, in place of the first term. By default none.",
    )


class Search(Section):
    """[search]: a budget, and the students among which one is found that meets it."""

    @classmethod
    def from_python(cls, values: Any) -> Any:
        """Take classes and factories in its spaces."""
        if isinstance(values, dict) and isinstance(values.get("space"), list | tuple):
            return {**values, "space": [SearchSpace.from_python(space) for space in values["space"]]}
        return values

    budget: Budget = Field(description="What a student may cost and lose.")
    device: str = Field("cpu", description="Device to measure on, as in bench.devices: cpu, cuda, openvino, web, ...")
    remote: str | None = Field(
        None,
        description="Another machine to measure on, by ssh: USER@HOST, as bench --remote. Left out: this machine.",
    )
    batch_size: int = Field(1, ge=1, description="Samples per call that is measured.")
    threads: int = Field(1, ge=1, description="Threads within one operator.")
    trials: int = Field(
        20, ge=1, description="Number of candidates that are built and measured, before any is trained."
    )
    trained: int = Field(
        9, ge=1, description="Number of candidates within the budget that begin to train; the rest are left untrained."
    )
    reduction: int = Field(
        3, ge=2, description="Successive halving: one of so many goes on to train so many times as long."
    )
    min_epochs: int = Field(
        2, ge=1, description="Fewest epochs before candidates are compared; distill.epochs are the full training."
    )
    seed: int | None = Field(None, ge=0, description="Seed of what is drawn from the spaces. Left out: the recipe's.")
    storage: str | None = Field(
        None,
        description=(
            "Where Optuna keeps the study, as a URL that Optuna takes: sqlite:///FILE, postgresql://..., mysql://... "
            "Left out: study.db in the search's directory."
        ),
    )
    space: tuple[SearchSpace, ...] = Field(description="Families of students to choose from.")
    finalists: SearchFinalists = Field(
        SearchFinalists(), description="Who trains in full, and what of the method is varied then."
    )

    @model_validator(mode="after")
    def _has_a_space(self) -> Self:
        if not self.space:
            raise ValueError('space is empty: add a [[search.space]] table, e.g. model = "nets.py:Student" with args')
        return self


RANGE = {"low", "high", "step", "log"}


def is_range(value: Any) -> bool:
    """Whether a value of a space is a range: a table with low and high."""
    return isinstance(value, Mapping) and {"low", "high"} <= set(value)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def values_of(name: str, value: Any) -> tuple[Any, ...]:
    """Return a set of choices, the two ends of a range, or a fixed value alone.

    Raises:
        ValueError: An empty set, or a range that is none.
    """
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError(f"{name} is an empty list: give at least one choice, or leave it out")
        return tuple(value)
    if not isinstance(value, Mapping) or not set(value) & {"low", "high"}:
        return (value,)
    low, high, step = value.get("low"), value.get("high"), value.get("step")
    if set(value) - RANGE or not (_is_number(low) and _is_number(high)):
        raise ValueError(f"{name}: a range is {{ low = 1, high = 4 }}, with step or log = true where needed")
    if not low <= high:
        raise ValueError(f"{name}: low is {low} and high {high}: low must not be above high")
    if step is not None and (not _is_number(step) or step <= 0):
        raise ValueError(f"{name}: step must be a number above 0, not {step!r}")
    if value.get("log") and (low <= 0 or step is not None):
        raise ValueError(f"{name}: log = true needs low above 0 and no step")
    return (low, high)


class Recipe(Section):
    """All that one run is asked to do."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description=("Name of the run, and of its directory runs/NAME: letters, digits, dots, dashes and underscores."),
    )
    seed: int = Field(0, ge=0, description="Seed of every random choice.")
    task: str | None = Field(
        None,
        description=(
            "What the network is for: classification, multilabel, regression, segmentation or embedding. Left out: "
            "read off the data, where that leaves no doubt; identities look like classes, so embedding is to be named."
        ),
    )
    scores: tuple[str, ...] = Field(
        (),
        description=(
            "Scores of your own, told beside the task's: file.py:name of functions (outputs, targets) -> number."
        ),
    )
    data: Data = Field(description="Where the samples come from and how they are split.")
    teacher: Teacher = Field(description="The network to learn from.")
    student: Student = Field(description="The network to ship.")
    distill: Distill = Field(Distill(), description="How the student learns from the teacher.")
    export: Export = Field(Export(), description="The ONNX files to write.")
    bench: Bench = Field(Bench(), description="What to measure, and where.")
    require: Require = Field(Require(), description="What the model to ship must hold; exit code 3 where it does not.")
    search: Search | None = Field(
        None, description="For `kdexport search`: a budget and spaces of students. Left out: the student is given."
    )

    @classmethod
    def from_python(cls, values: Any) -> Any:
        """Take objects in every table; a path is relative to the working directory, and the name may be left out."""
        if not isinstance(values, dict):
            return values
        tables: dict[str, type[Section]] = {
            **{"data": Data, "teacher": Teacher, "student": Student, "distill": Distill, "search": Search}
        }
        given = {key: tables[key].from_python(value) if key in tables else value for key, value in values.items()}
        if isinstance(given.get("scores"), tuple | list):
            given["scores"] = [objects.refer(score) if callable(score) else score for score in given["scores"]]
        references = [value for table in given.values() if isinstance(table, dict) for value in table.values()]
        if any(isinstance(value, str) and value.startswith(f"{objects.SCHEME}:") for value in references):
            given.setdefault("name", "run")
        return with_absolute_paths(given, Path.cwd())

    @model_validator(mode="before")
    @classmethod
    def _student_of_the_search(cls, values: Any) -> Any:
        """Let a recipe that searches for its student leave it out, or say of it what all candidates have in common."""
        if not isinstance(values, dict) or values.get("search") is None:
            return values
        student = values.get("student", {})
        return {**values, "student": {"model": SEARCHED, **student}} if isinstance(student, dict) else values

    @model_validator(mode="before")
    @classmethod
    def _student_of_the_teacher(cls, values: Any) -> Any:
        """Let ``student.model = "teacher"`` stand for the teacher's own network, of which it is a part."""
        student: Any = values.get("student") if isinstance(values, dict) else None
        teacher: Any = values.get("teacher") if isinstance(values, dict) else None
        if not isinstance(student, dict) or not isinstance(teacher, dict) or student.get("model") != TEACHER:
            return values
        if all(student.get(key) is None for key in ("layers", "vocabulary", "prune")):
            raise ValueError(
                'student.model = "teacher" says nothing of what is kept of it: set student.prune.keep (e.g. 0.4), '
                "student.prune.layers, or student.layers of a transformer"
            )
        own = {key: teacher[key] for key in NetworkSpec.model_fields if key in teacher}
        return {**values, "student": {**own, **student, "model": teacher.get("model")}}

    @model_validator(mode="before")
    @classmethod
    def _terms_of_the_task(cls, values: Any) -> Any:
        """Let a recipe of embeddings that names no term compare their directions: they have no classes."""
        distill: Any = values.get("distill", {}) if isinstance(values, dict) else None
        if not isinstance(distill, dict) or values.get("task") != "embedding" or "terms" in distill:
            return values
        return {**values, "distill": {**distill, "terms": [{"method": "cosine"}]}}

    @model_validator(mode="after")
    def _the_teacher_can_be_pruned(self) -> Self:
        teacher, student = self.teacher, self.student
        if student.prune is None:
            return self
        if (student.model, student.args, student.weights) != (teacher.model, teacher.args, teacher.weights):
            raise ValueError(
                f"student.prune takes parts out of the teacher, and student.model is {student.model}: set "
                'student.model = "teacher", or take [student.prune] out'
            )
        if teacher.model.endswith((".onnx", ".pt2")):
            raise ValueError(
                f"{Path(teacher.model).name} cannot be pruned: a graph has no layers to take channels out of; "
                'give the teacher as its code and weights, e.g. model = "nets.py:Big" and weights'
            )
        if student.prune.importance == "taylor" and self.distill.data_free is not None:
            raise ValueError(
                'student.prune.importance = "taylor" looks at training data, and distill.data_free is to use none: '
                'set importance = "magnitude"'
            )
        return self

    @model_validator(mode="after")
    def _can_be_searched(self) -> Self:
        if self.search is None:
            return self
        prunes = any(space.model == TEACHER for space in self.search.space)
        if prunes and self.teacher.model.endswith((".onnx", ".pt2")):
            raise ValueError(
                f"{Path(self.teacher.model).name} cannot be pruned: a graph has no layers to take channels out of; "
                'give the teacher as its code and weights, or take the [[search.space]] with model = "teacher" out'
            )
        if self.distill.generations > 1 or self.distill.quantize_aware:
            raise ValueError(
                "search trains candidates once each: take distill.generations and distill.quantize_aware out, and set "
                "them in the picked recipe"
            )
        return self

    @model_validator(mode="after")
    def _quantize_aware_is_for_int8(self) -> Self:
        if self.distill.quantize_aware and "int8" not in self.export.quantize:
            raise ValueError(
                'distill.quantize_aware trains for int8, and export.quantize does not ask for it: add "int8" there'
            )
        return self

    @classmethod
    def load(cls, path: Path, overrides: Iterable[str] = ()) -> Self:
        """Read a TOML recipe and apply ``key=value`` overrides.

        Raises:
            RecipeError: Absent, not TOML, or not valid; every fault is listed.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RecipeError(
                f"there is no recipe at {path}",
                hint="check the path; `kdexport init --list` shows reference recipes to start from",
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"the recipe {path} cannot be read: {error}", hint="give a UTF-8 TOML file") from error
        return cls.parse(parsed_toml(text, str(path)), base=path.parent, overrides=overrides, origin=str(path))

    @classmethod
    def parse(
        cls,
        document: Mapping[str, Any],
        *,
        base: Path = Path(),
        overrides: Iterable[str] = (),
        origin: str = "the recipe",
    ) -> Self:
        """Validate a recipe given as nested dicts.

        Paths are relative to ``base``, those of overrides to the working directory.

        Raises:
            RecipeError: Not valid; every fault is listed.
        """
        return validated(cls, document, base, overrides, origin)

    def write(self, path: Path) -> None:
        """Write the resolved recipe, every default spelled out, with paths relative to its folder."""
        write_text(path, self.to_toml(relative_to=path.parent))

    def to_toml(self, *, relative_to: Path) -> str:
        """Return the resolved recipe, every default spelled out, with paths relative to a folder."""
        return tomli_w.dumps(self.to_dict(relative_to=relative_to))

    def to_dict(self, *, relative_to: Path) -> dict[str, Any]:
        """Return the recipe as TOML values with paths relative to a folder."""
        document = self.model_dump(mode="json", exclude_none=True)
        # A rate that was left out depends on the network, and still does when the recipe is run again.
        for table, training in (
            (document["distill"], self.distill),
            (document["teacher"].get("train"), self.teacher.train),
        ):
            if training is not None and "lr" not in training.model_fields_set:
                del table["lr"]
        base = relative_to.resolve()
        return map_references(
            document, lambda text: references.relative(text, base), lambda text: os.path.relpath(text, base)
        )


class StandaloneExport(Section):
    """What ``export`` is asked without a recipe: the form of the file, and the data where there are some."""

    data: Data | None = None
    preprocessing: PreprocessingSpec = PreprocessingSpec()
    export: Export = Export()

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Self:
        """Validate settings as ``Recipe.parse`` does.

        Raises:
            RecipeError: Not valid; every fault is listed.
        """
        return validated(cls, document, Path(), (), "what the flags say")


class EvaluationRequest(Section):
    """What ``evaluate`` is asked without a recipe: the data and the model."""

    seed: int = Field(default=0, ge=0)
    task: str | None = None
    scores: tuple[str, ...] = ()
    data: Data
    student: Student  # the model: under this name in a recipe too

    @classmethod
    def parse(cls, overrides: Iterable[str]) -> Self:
        """Validate ``key=value`` settings as ``Recipe.parse`` does.

        Raises:
            RecipeError: Not valid; every fault is listed.
        """
        return validated(cls, {}, Path(), overrides, "what the flags ask for")


def _with_function(term: Any) -> Any:
    """Return a term with a reference in place of a function: of its method, or of the whole."""
    if isinstance(term, dict) and callable(term.get("method")):
        return {**term, "method": objects.refer(term["method"])}
    return {"method": objects.refer(term)} if inspect.isfunction(term) else term
