"""What a network is for: the one object that every stage asks what its targets, outputs and score are.

A stage never says "class", "logits" or "accuracy" of its own: it asks the ``Task``. numpy alone is imported here, for a
packed benchmark scores with the same code; what needs torch imports it inside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from kdexport import figures
from kdexport.errors import KDExportError, RecipeError, SourceError, did_you_mean
from kdexport.results import Agreement, Evaluation, Interval, Score
from kdexport.tasks.postprocessing import Postprocessing

if TYPE_CHECKING:
    from torch import Tensor

    from kdexport.terms import BaseTerm

Array = NDArray[Any]
Activation = Literal["none", "softmax", "sigmoid"]


class Task(ABC):
    """A kind of network: what it learns from, what it puts out, how good it is.

    A subclass fills in the class variables and the abstract methods, and gets one line in ``kdexport.tasks.TASKS``.
    """

    name: ClassVar[str]
    metric: ClassVar[str]  # the score's name in JSON: "accuracy", "mean_iou"
    label: ClassVar[str]  # the same for people: "accuracy", "mean IoU"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[Literal["share", "value"]] = "share"  # a share of 1 is shown in percent, a value as it is
    bounds: ClassVar[Interval] = (0.0, 1.0)  # of the score
    output_name: ClassVar[str] = "logits"  # of a file's output
    of_classes: ClassVar[bool] = True  # whether outputs are scores of classes: smoothing and mixing make sense
    relative_outputs: ClassVar[bool] = False  # whether a constant added to all of a sample's outputs changes nothing
    exact_outputs: ClassVar[bool] = False  # whether outputs are values whose 8 bits would show: they are not rounded
    activation: ClassVar[Activation] = "none"  # what a file's user applies to an output, outside of the network
    other_metrics: ClassVar[Mapping[str, str]] = {}  # what is told beside the score: name in JSON -> name for people
    plain_metrics: ClassVar[tuple[str, ...]] = ()  # of other_metrics, those that are no shares
    charts: ClassVar[tuple[str, ...]] = ()  # that the report shows of this task alone
    label_losses: ClassVar[tuple[str, ...]] = ()  # by the names that a recipe gives them, the usual one first
    output_ndim: ClassVar[int] = 2  # axes of an output: [batch, d], or [batch, channels, h, w] of a map
    label_head: ClassVar[bool] = False  # whether the labels' loss has parameters of its own: ``distill.heads``
    mixes: ClassVar[bool] = False  # whether samples can be mixed: mixup, cutmix
    samples_together: ClassVar[int] = 1  # samples that stand one behind the other and are learned from together
    calibrated_on_validation: ClassVar[bool] = False  # whether a score needs something fitted on the validation split
    embeds: ClassVar[bool] = False  # whether an output is a vector of any width that others are compared with
    cacheable: ClassVar[bool] = True  # whether a teacher's outputs [samples, width] are kept between epochs

    def write(self, score: float, metric: str = "") -> str:
        """Return a score as people read it, or one of ``other_metrics``: ``97.9 %``, or ``0.312``."""
        share = self.unit == "share" and metric not in self.plain_metrics
        return figures.percent(score) if share else figures.plain(score)

    @property
    def map_size(self) -> tuple[int, int] | None:
        """Height and width of an output that is a map; None: it is none."""
        return None

    def fitted(self, targets: Array, names: Sequence[str]) -> Task:  # noqa: ARG002
        """Return the task as the training split's targets make it: where losses go by their spread, for one.

        A score does not depend on it.
        """
        return self

    def calibrated(self, outputs: Array, targets: Array) -> Task:  # noqa: ARG002
        """Return the task with what its score needs, fitted on a model's outputs on the validation split."""
        return self

    @property
    def file_entries(self) -> Mapping[str, float]:
        """What a file's metadata say of how its outputs are used, by name: what ``calibrated`` has fitted."""
        return {}

    def num_outputs(self, names: Sequence[str]) -> int | None:
        """Return what a network's factory is given as ``num_classes``; None: nothing."""
        return len(names)

    def postprocessing(self, shape: Sequence[int], *, fresh: bool) -> Postprocessing | None:  # noqa: ARG002
        """Return what is done to a network's output, in every stage and in its file; None: nothing.

        Args:
            shape: Of one sample as the data give it, of the first input.
            fresh: Whether the network's last layer starts here; one that comes with its weights speaks in the data's
                units already.
        """
        return None

    def comparable(self, outputs: Tensor) -> Tensor:
        """Return outputs as distillation methods compare them: in units that make all of them count alike."""
        return outputs

    def centred(self, outputs: Tensor) -> Tensor:
        """Return outputs around what says nothing, for a correlation: around each sample's mean."""
        return outputs - outputs.mean(1, keepdim=True)

    def check_label_loss(self, name: str | None) -> None:
        """Hold that a recipe's ``label_loss`` is one of the task's; None stands for the usual one.

        Raises:
            RecipeError: It is not.
        """
        if name is not None and name not in self.label_losses:
            near = did_you_mean(name, self.label_losses) or f"there are: {', '.join(self.label_losses) or 'none'}"
            raise RecipeError(f"{self.name} has no label_loss '{name}'", hint=near.strip())

    @abstractmethod
    def fits(self, targets: Array) -> bool:
        """Whether targets have the form of this task's: how a task that the recipe leaves out is read off the data."""

    @abstractmethod
    def check_targets(self, targets: Array, names: Sequence[str], where: str) -> None:
        """Hold that targets are legal.

        Args:
            targets: Of one split, first axis the samples.
            names: Of the classes, or of what is estimated.
            where: What a message calls the split.

        Raises:
            SourceError: They are not, with what to change.
        """

    def check_inputs(self, inputs: Sequence[Array], targets: Array, where: str) -> None:  # noqa: B027 - most take any
        """Hold that inputs and targets belong together, beyond their number.

        Raises:
            SourceError: They do not, with what to change.
        """

    @abstractmethod
    def check_training(self, targets: Array, name: str) -> None:
        """Hold that a network can learn something from the training split's targets, all of them legal.

        Raises:
            SourceError: It cannot: one class only, one value only.
        """

    def check_splits(self, splits: Mapping[str, Array], names: Sequence[str], where: str) -> None:  # noqa: B027
        """Hold that splits fit each other: those that a source gives, then all three; arguments as ``check_targets``.

        Raises:
            SourceError: They do not.
        """

    def check_outputs(self, shape: Sequence[int], samples: int, names: Sequence[str], who: str) -> None:
        """Hold that a network's output has the shape that the targets ask for: ``[batch, len(names)]``.

        Raises:
            SourceError: It has not.
        """
        if tuple(shape) != (samples, len(names)):
            raise SourceError(
                f"{who} gives {list(shape)} for {samples} samples; the data have {len(names)} {self.noun}",
                hint=f"it must give [batch, {len(names)}]: set its args, e.g. args = {{ num_classes = {len(names)} }}",
            )

    noun: ClassVar[str] = "classes"  # what ``names`` are

    @abstractmethod
    def label_loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        *,
        kind: str | None = None,
        smoothing: float = 0.0,
        labelled: Tensor | None = None,
        mixed: bool = False,
    ) -> Tensor:
        """Return the labels' own loss, a scalar.

        Args:
            outputs: The student's, fp32, ``[batch, ...]``.
            targets: As the data give them, or ``mixed``.
            kind: One of ``label_losses``; None: the first.
            smoothing: ``label_smoothing``.
            labelled: What a sum over the labelled samples is divided by, where these are part of a larger batch.
            mixed: Whether targets are shares ``[batch, classes]`` that sum to 1, as mixup makes them.

        Raises:
            KDExportError: Targets of another form.
        """

    def count_labelled(self, targets: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return what the labels' loss of a batch is divided by; None: the number of samples."""
        return None

    @abstractmethod
    def right_in_batch(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many decisions the targets tell of and how many are right: the share of a training epoch."""

    def batch_agreement(
        self,
        outputs: Tensor,  # noqa: ARG002
        teacher: Tensor,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return how many decisions are compared, in how many the teacher is followed, and the sum of KL(teacher ||
        outputs); None where outputs are no decisions.
        """
        return None

    def objection(self, method: BaseTerm | type[BaseTerm]) -> str | None:
        """Return why a distillation method makes no sense here, or None where it does."""
        if "maps" in method.needs:
            return None if self.output_ndim == 4 else "compares maps of logits, and here an output is a row a sample"
        return None if method.classes else f"compares numbers, and these targets are {self.noun}"

    # The terms that a recipe gets which names none, where the usual ones make no sense here; as its tables.
    usual_terms: ClassVar[tuple[Mapping[str, Any], ...]] = ()

    def no_targets(self, count: int, like: Array) -> Array | None:  # noqa: ARG002
        """Return targets, of the same form as others, that say of so many samples that they have none; None where a
        loss cannot leave samples out.
        """
        return None

    def kept(self, outputs: Array, targets: Array | None = None) -> Array:  # noqa: ARG002
        """Return what is kept of a batch's outputs until all are there: what ``score``, ``evaluate`` and ``agreement``
        need, first axis the samples; batches of it are concatenated. These three take outputs, too.
        """
        return outputs

    def compared(self, kept: Array, targets: Array | None = None) -> tuple[Array, Array | None]:
        """Return outputs as numbers from what was kept, with their targets: what terms are told by in validation."""
        return kept, targets

    def values_per_sample(self, targets: Array, names: Sequence[str]) -> int:  # noqa: ARG002
        """Return how many numbers an output has, of samples with such targets."""
        return len(names)

    @abstractmethod
    def evaluate(self, outputs: Array, targets: Array, names: Sequence[str], split: str) -> Evaluation:
        """Score outputs.

        Args:
            outputs: float32 ``[samples, ...]``: logits where there are classes.
            targets: Of the same samples in the same order.
            names: Of the classes, or of what is estimated.
            split: What the result calls the split.
        """

    @abstractmethod
    def score(self, outputs: Array, targets: Array) -> float | None:
        """Return the score's value alone, fast, as after each epoch; None where nothing is labelled."""

    def illustrated(
        self,
        evaluation: Evaluation,
        outputs: Array,  # noqa: ARG002
        targets: Array,  # noqa: ARG002
        inputs: Sequence[Array],  # noqa: ARG002
    ) -> Evaluation:
        """Return an evaluation with what a report shows of some samples; outputs are as they were kept."""
        return evaluation

    def predictions(self, outputs: Array) -> Array:
        """Return what a score of the user's own is given, from what was kept of outputs."""
        return outputs

    def doubt(self, outputs: Array, targets: Array, names: Sequence[str]) -> str | None:  # noqa: ARG002
        """Return what is wrong with a model's outputs as a whole, in words: it guesses, its classes are permuted."""
        return None

    @abstractmethod
    def agreement(self, teacher: Array, outputs: Array) -> Agreement:
        """Return how near outputs are to the teacher's over the same samples."""

    def groups(self, targets: Array) -> NDArray[np.int64]:
        """Return a group id per sample, by which a split is stratified."""
        return np.zeros(len(targets), dtype=np.int64)

    def kept_together(self, targets: Array) -> NDArray[np.int64] | None:  # noqa: ARG002
        """Return an id per sample: those with the same are put into the same split; None where each is by itself."""
        return None

    def spread(self, targets: Array, count: int) -> NDArray[np.int64]:
        """Return the places of so many samples, at most, evenly spread over a split in whatever order."""
        return np.linspace(0, len(targets) - 1, min(len(targets), count)).astype(np.int64)

    def better(self, one: float, other: float) -> bool:
        """Whether one score is better than another."""
        return one > other if self.higher_is_better else one < other

    def made_score(self, value: float, ci95: Interval | None) -> Score:
        """Return a score of this task."""
        return Score(self.metric, float(value), ci95, self.higher_is_better)


def checked_outputs(outputs: Any, samples: int, task: Task, names: Sequence[str]) -> NDArray[np.float32]:
    """Return a batch's outputs as float32.

    Raises:
        SourceError: They have another shape than the task asks for, or are not finite.
    """
    found = np.asarray(outputs, dtype=np.float32)
    task.check_outputs(found.shape, samples, names, "the model")
    if not np.isfinite(found).all():
        raise SourceError(
            "the model gives values that are not finite",
            hint="check its weights and its preprocessing; a half-precision file may overflow",
        )
    return found


def check_same_shape(targets: Tensor, outputs: Tensor, kind: str) -> None:
    """Hold that targets are one row per sample and one column per class.

    Raises:
        KDExportError: They are not.
    """
    if targets.shape != outputs.shape:
        raise KDExportError(
            f"{kind} labels are {list(targets.shape)}, the student's logits {list(outputs.shape)}",
            hint="give one row per sample and one column per class",
        )
