"""[teacher] and [student]: networks by reference, their weights, and what is cut out of them."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from kdexport import objects
from kdexport.recipe.data import PreprocessingSpec
from kdexport.recipe.section import Section
from kdexport.recipe.training import Training


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
