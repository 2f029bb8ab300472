"""What the student minimizes: the labels' loss plus every term of the recipe, weighted.

Which function serves a term and what it is fed stands in the term's class, ``kdexport.terms``. No state and no
parameters here: an ``Objective`` may be called from anywhere, in any order.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from kdexport.distill.heads import Heads
from kdexport.distill.losses.checks import at_least_fp32
from kdexport.distill.losses.maps import on_grid
from kdexport.errors import KDExportError, did_you_mean
from kdexport.recipe import Distill
from kdexport.references import load_object, parse
from kdexport.tasks import TASKS
from kdexport.tasks.base import Task, check_same_shape
from kdexport.tasks.masks import VOID
from kdexport.terms import METHODS, BaseTerm, FeatureTerm, Need, OwnLoss

T = TypeVar("T")
Features = Mapping[str, tuple[Any, ...]]

# What a loss of the user's own is fed, by the names of its positional parameters.
FED: dict[tuple[str, ...], Need] = {
    ("student_logits", "teacher_logits"): "logits",
    ("labels",): "labels",
    ("student_feature", "teacher_feature"): "features",
}


@dataclass(frozen=True)
class Loss:
    """A term's function, what it is fed, in its order, and its keyword arguments."""

    function: Callable[..., Tensor]
    needs: tuple[Need, ...]
    options: dict[str, Any]


def with_usual_terms(settings: Distill, task: Task) -> Distill:
    """Return settings whose terms make sense for a task, where the recipe leaves them out."""
    usual = Distill.model_fields["terms"].default
    if settings.terms != usual or not task.usual_terms or all(task.objection(term) is None for term in usual):
        return settings
    terms = tuple(METHODS[str(table["method"])].model_validate(table) for table in task.usual_terms)
    return settings.model_copy(update={"terms": terms})


def loss_of(term: BaseTerm) -> Loss:
    """Return what computes a term.

    Raises:
        KDExportError: A loss of the user's own that is not there, cannot be fed, or does not take the term's keys.
    """
    if not isinstance(term, OwnLoss):
        return Loss(load_object(parse(term.function)), term.needs, term.options())
    function = load_object(parse(term.method))
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise KDExportError(f"{term.method} is no function", hint="name a function of tensors that gives one") from None
    options = term.options()
    names = [name for name in parameters if name not in options and parameters[name].default is inspect.Parameter.empty]
    names = [name for name in names if parameters[name].kind is not inspect.Parameter.VAR_KEYWORD]
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        for unknown in [name for name in options if name not in parameters]:
            known = [name for name in parameters if not any(name in fed for fed in FED)]
            near = did_you_mean(unknown, known) or f"it takes: {', '.join(known) or 'none'}"
            raise KDExportError(f"{term.method} takes no '{unknown}'", hint=near.strip())
    needs: list[Need] = []
    while names:
        fed = next((fed for fed in FED if tuple(names[: len(fed)]) == fed), None)
        if fed is None:
            unknown = next((name for name in names if not any(name in group for group in FED)), names[0])
            raise KDExportError(
                f"{term.method} takes '{unknown}', and nothing gives it that",
                hint="set it as a key of the term, or call the parameters student_logits, teacher_logits; labels;"
                " student_feature, teacher_feature",
            )
        needs.append(FED[fed])
        names = names[len(fed) :]
    return Loss(function, tuple(needs), options)


@dataclass(frozen=True)
class Maps:
    """Logits of maps at the pixels that both networks are known at, and which of these count."""

    student: Tensor  # [batch, classes, rows, columns]
    teacher: Tensor | None
    labels: Tensor | None  # class ids [batch, rows, columns]
    counted: Tensor | None  # bool [batch, rows, columns]: not void; None: all

    @classmethod
    def of(cls, student: Tensor, teacher: Tensor | None, labels: Tensor | None) -> "Maps":
        """Return the student's maps and the masks at the teacher's grid, where the teacher was kept at one alone."""
        if teacher is not None:
            rows, columns = teacher.shape[2:]
            student = on_grid(student, rows, columns)
            labels = None if labels is None else on_grid(labels, rows, columns)
        return cls(student, teacher, labels, None if labels is None else labels != VOID)

    @property
    def whole(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Both networks' maps, and the masks."""
        return self.student, self.teacher, self.labels

    @cached_property
    def pixels(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Both networks' logits of the pixels that count ``[pixels, classes]``, and these pixels' classes."""
        counted = self.counted if self.counted is not None else torch.ones_like(self.student[:, 0], dtype=torch.bool)
        student, teacher = (
            None if maps is None else maps.permute(0, 2, 3, 1)[counted] for maps in (self.student, self.teacher)
        )
        assert student is not None
        return student, teacher, None if self.labels is None else self.labels[counted].long()


@dataclass(frozen=True)
class _Part:
    """One term, ready to be called."""

    name: str  # unique within the objective
    term: BaseTerm
    loss: Loss


class Objective:
    """The sum that the student minimizes.

    Args:
        label_weight: Weight of the labels' own loss. At 0 no labels are looked at.
        terms: The recipe's terms. Those whose weight is 0 are left out.
        label_smoothing: Share of each label that is spread over all classes.
        label_loss: One of the task's; None: its usual one.
        task: What the targets are and what their loss is.
        mixed: Whether samples are mixed, so that targets come as shares ``[batch, classes]`` that sum to 1. They look
            like multi-hot ones, so they are told apart here and never guessed.

    Raises:
        KDExportError: Every weight is 0, or a term cannot work with labels of this kind.
    """

    def __init__(
        self,
        label_weight: float,
        terms: Sequence[BaseTerm] = (),
        *,
        label_smoothing: float = 0.0,
        label_loss: str | None = None,
        task: Task = TASKS["classification"],
        mixed: bool = False,
    ) -> None:
        task.check_label_loss(label_loss)
        self.label_loss = label_loss
        self.label_weight = label_weight
        self.label_smoothing = label_smoothing
        self.task, self.mixed = task, mixed
        if mixed and not task.mixes:
            raise KDExportError(
                f"mixup and cutmix mix the targets of two samples, and those of {task.name} cannot be mixed",
                hint="take mixup and cutmix out of augment",
            )
        self._parts = _parts([term for term in terms if term.weight > 0], task)
        if label_weight == 0 and not self._parts:
            raise KDExportError(
                "label_weight and every term's weight are 0: the student would learn nothing",
                hint="set distill.label_weight or the weight of a term above 0",
            )
        for part in self._parts:
            _check_task(part, task, mixed=mixed)

    def for_validation(self, *, samples: int, features: bool) -> "Objective | None":
        """Return what of it can be told of samples that are not trained on; None where nothing can.

        Args:
            samples: How many there are; a method that compares samples needs two.
            features: Whether there are features of them.
        """
        terms = [
            part.term
            for part in self._parts
            if ("features" not in part.loss.needs or (features and part.term.any_samples))
            and (samples > 1 or not part.term.compares_samples)
        ]
        label_weight = 0.0 if self.task.label_head else self.label_weight  # a head knows its training identities alone
        if not terms and label_weight == 0:
            return None
        return Objective(
            label_weight,
            terms,
            label_smoothing=self.label_smoothing,
            label_loss=self.label_loss,
            task=self.task,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The keys of the parts that a call returns, in order."""
        return (*(("labels",) if self.label_weight else ()), *(part.name for part in self._parts))

    @property
    def needs_labels(self) -> bool:
        """Whether a call needs labels."""
        return self.label_weight > 0 or any("labels" in part.loss.needs for part in self._parts)

    @property
    def needs_teacher(self) -> bool:
        """Whether a call needs anything of a teacher."""
        return any({"logits", "maps", "features"} & set(part.loss.needs) for part in self._parts)

    @property
    def uses_logits(self) -> bool:
        """Whether the student's own logits enter the sum, so that every layer before them has a gradient."""
        return self.label_weight > 0 or any({"logits", "maps"} & set(part.loss.needs) for part in self._parts)

    @property
    def projected(self) -> tuple[str, ...]:
        """The terms whose student side has to be as wide as the teacher's output."""
        return tuple(part.name for part in self._parts if "logits" in part.loss.needs and part.term.projected)

    @property
    def feature_terms(self) -> dict[str, FeatureTerm]:
        """The terms that need features, by the names under which a call expects them."""
        return {
            part.name: part.term
            for part in self._parts
            if "features" in part.loss.needs and isinstance(part.term, FeatureTerm)
        }

    @property
    def cache_temperature(self) -> float:
        """The temperature that compressed logits are kept right for: that of the weightiest term on logits."""
        on_logits = [part.term for part in self._parts if {"logits", "maps"} & set(part.loss.needs)]
        return max(on_logits, key=lambda term: term.weight).cache_temperature if on_logits else 1.0

    @property
    def needs_features(self) -> bool:
        """Whether a call needs features."""
        return bool(self.feature_terms)

    def __call__(
        self,
        student_logits: Tensor,
        labels: Tensor | None,
        teacher_logits: Tensor | None,
        *,
        progress_of_training: float,
        features: Features | None = None,
        labelled: Tensor | None = None,
        heads: Heads | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum to minimize and what it is made of.

        Args:
            student_logits: [batch, classes], or maps [batch, classes, h, w].
            labels: The task's targets (class -1: unknown), or None where ``needs_labels`` is False.
            teacher_logits: [batch, classes], or maps, those of an even grid of pixels for one; or None where no term
                compares logits. Of maps each pixel with a class is a sample for the methods on logits; a loss of the
                user's own is given maps.
            progress_of_training: Share of the training that is done, 0 to 1: the terms' schedules go by it.
            features: For each of ``feature_terms``, the first arguments of its function.
            labelled: What the labels' loss is divided by, where these samples are part of a batch that holds unlabelled
                ones; None: by the number of labelled samples among them. With labels of class alone.
            heads: What learns beside the network on its output; None where nothing does.

        Returns:
            The weighted sum, a scalar, and each part before its weight, detached, on the same device: ``"labels"`` and
            the methods' names; a method's second term is ``"soft_targets.2"``.

        Raises:
            KDExportError: Something that a term needs is missing or has the wrong form.
        """
        parts: dict[str, Tensor] = {}
        total: Tensor | None = None
        if self.label_weight:
            value = self._label_loss(student_logits, _given(labels, "the labels' loss", "labels"), labelled, heads)
            parts["labels"] = value.detach()
            total = self.label_weight * value
        student, teacher = self.task.comparable(student_logits), None
        if teacher_logits is not None:
            teacher = self.task.comparable(teacher_logits)
        maps = Maps.of(student, teacher, labels) if self.task.output_ndim == 4 else None
        for part in self._parts:
            fed = (student, teacher, labels)
            if maps is not None:
                fed = maps.whole if isinstance(part.term, OwnLoss) else maps.pixels
            arguments: list[Any] = []
            for need in part.loss.needs:
                if need == "logits":
                    ours = fed[0] if heads is None else heads.project(part.name, fed[0])
                    arguments += [ours, _given(fed[1], part.name, "the teacher's logits")]
                    if self.task.embeds and isinstance(part.term, OwnLoss):
                        _check_widths(part.name, *arguments[-2:])
                elif need == "labels":
                    arguments.append(self.task.comparable(_given(fed[2], part.name, "labels")))
                elif need == "maps":
                    whole = _given(maps, part.name, "maps of logits")
                    arguments += [
                        whole.student,
                        _given(whole.teacher, part.name, "the teacher's logits"),
                        whole.counted,
                    ]
                else:
                    arguments += _given((features or {}).get(part.name), part.name, "features")
            if maps is not None and "logits" in part.loss.needs and not len(maps.pixels[0]):
                value = 0.0 * student_logits.sum()  # nothing but void: no pixel to compare
            else:
                value = _called(part, arguments)
            parts[part.name] = value.detach()
            weighted = part.term.weight_at(progress_of_training) * value
            total = weighted if total is None else total + weighted
        if total is None:
            raise ValueError("an objective has at least one part")
        return total, parts

    def _label_loss(self, outputs: Tensor, targets: Tensor, labelled: Tensor | None, heads: Heads | None) -> Tensor:
        if self.task.label_head:
            head = _given(heads, "the labels' loss", "a head's parameters")
            return head.label_loss(outputs, targets, smoothing=self.label_smoothing, labelled=labelled)
        if self.mixed:
            check_same_shape(targets, outputs, "mixed")
        return self.task.label_loss(
            at_least_fp32(outputs),
            targets,
            kind=self.label_loss,
            smoothing=self.label_smoothing,
            labelled=labelled,
            mixed=self.mixed,
        )


def _parts(terms: Sequence[BaseTerm], task: Task) -> tuple[_Part, ...]:
    """Match each term with its function; a method's second term gets ``.2`` to its name.

    Where an output is an embedding, terms on embeddings compare the outputs themselves unless they name layers: the
    teacher's are kept, so that it does not run at every step.
    """
    parts: list[_Part] = []
    for term in terms:
        name = term.method
        count = 1 + sum(part.name.partition(".")[0] == name for part in parts)
        loss = loss_of(term)
        if task.embeds and isinstance(term, FeatureTerm) and term.of_embeddings:
            named = term.layers("student") or term.layers("teacher")
            loss = loss if named else replace(loss, needs=("logits",))
        parts.append(_Part(f"{name}.{count}" if count > 1 else name, term, loss))
    return tuple(parts)


def _called(part: _Part, arguments: list[Any]) -> Tensor:
    """Return a loss, held to be one number; built-in ones are tested for that."""
    value = part.loss.function(*arguments, **part.loss.options)
    if isinstance(part.term, OwnLoss) and not (isinstance(value, Tensor) and value.ndim == 0):
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise KDExportError(f"{part.name} gives {shape}, not one number", hint="let it return the mean over the batch")
    return value


def _check_widths(name: str, student: Tensor, teacher: Tensor) -> None:
    """Hold that a loss of the user's own can compare two embeddings: nothing projects the one for it."""
    if student.shape[1] != teacher.shape[1]:
        raise KDExportError(
            f"{name} is given embeddings of {student.shape[1]} numbers of the student and {teacher.shape[1]} of the "
            "teacher",
            hint=f"set student.embedding_dim = {teacher.shape[1]}, or use cosine, output_mse or relational",
        )


def _check_task(part: _Part, task: Task, *, mixed: bool) -> None:
    objection = task.objection(part.term)
    if objection is not None:
        fitting = [name for name, method in METHODS.items() if task.objection(method) is None]
        usual = ("cosine",) if task.embeds else ("soft_targets", "binary_soft_targets")
        first = next((name for name in fitting if name in usual), fitting[0])
        raise KDExportError(
            f"{part.name} {objection}",
            hint=f'give the recipe [[distill.terms]] with method = "{first}" (distill: --method {first}); '
            f"those that fit: {', '.join(fitting)}",
        )
    if mixed and "labels" in part.loss.needs:
        raise KDExportError(
            f"{part.name} needs one class per sample, and mixing samples leaves none",
            hint="take mixup and cutmix out of distill.augment, or use soft_targets or dist",
        )


def _given(value: T | None, part: str, what: str) -> T:
    if value is None:
        raise KDExportError(f"{part}: {what} are missing", hint=f"hand over {what}, or set this part's weight to 0")
    return value
