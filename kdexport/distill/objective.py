"""What the student minimizes: the labels' loss plus every term of the recipe, weighted.

``METHODS`` is the one table that says which function serves which recipe term and what it is fed. No state and no
parameters here: an ``Objective`` may be called from anywhere, in any order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch.nn.functional as F
from torch import Tensor

from kdexport.distill import losses
from kdexport.distill.losses.checks import at_least_fp32, class_labels
from kdexport.errors import KDExportError
from kdexport.tasks.classification import UNLABELLED
from kdexport.terms import BaseTerm

T = TypeVar("T")
LabelKind = Literal["class", "soft", "multi_label"]
Need = Literal["logits", "labels", "features"]
Features = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Method:
    """One distillation method.

    ``needs`` is what the function takes, in its order: ``logits`` (student's and teacher's), ``labels``, ``features``
    (what ``kdexport.distill.features`` makes of the networks' layers for this term).
    ``multi_label`` says whether it makes sense where a sample has any number of classes, ``elsewhere`` whether it can
    be told of samples that are not trained on.
    """

    function: Callable[..., Tensor]
    needs: tuple[Need, ...]
    multi_label: bool = True
    elsewhere: bool = True


METHODS: dict[str, Method] = {
    "soft_targets": Method(losses.soft_targets, ("logits",), multi_label=False),
    "hard_targets": Method(losses.hard_targets, ("logits",), multi_label=False),
    "logit_mse": Method(losses.logit_mse, ("logits",)),
    "dkd": Method(losses.dkd, ("logits", "labels"), multi_label=False),
    "dist": Method(losses.dist, ("logits",), multi_label=False),
    "binary_soft_targets": Method(losses.binary_soft_targets, ("logits",)),
    "hint": Method(losses.hint, ("features",)),
    "attention": Method(losses.attention, ("features",)),
    "similarity": Method(losses.similarity, ("features",)),
    "relational": Method(losses.relational, ("features",)),
    "cosine": Method(losses.cosine, ("features",)),
    "crd": Method(losses.crd, ("features",), elsewhere=False),
    "review": Method(losses.review, ("features",)),
}


@dataclass(frozen=True)
class _Part:
    """One term, ready to be called."""

    name: str  # unique within the objective
    term: BaseTerm
    method: Method
    options: dict[str, Any]


class Objective:
    """The sum that the student minimizes.

    Args:
        label_weight: Weight of the labels' own loss. At 0 no labels are looked at.
        terms: The recipe's terms. Those whose weight is 0 are left out.
        label_smoothing: Share of each label that is spread over all classes.
        label_kind: What labels are handed over. ``"class"``: int64 [batch], cross-entropy. ``"soft"``: probabilities
            [batch, classes] that sum to 1, as mixup makes them, cross-entropy. ``"multi_label"``: any number of classes
            per sample, float [batch, classes] of 0 and 1, binary cross-entropy, mean over samples and classes. The
            last two look the same, so they are told apart here and never guessed.

    Raises:
        KDExportError: Every weight is 0, or a term cannot work with labels of this kind.
    """

    def __init__(
        self,
        label_weight: float,
        terms: Sequence[BaseTerm] = (),
        *,
        label_smoothing: float = 0.0,
        label_kind: LabelKind = "class",
    ) -> None:
        self.label_weight = label_weight
        self.label_smoothing = label_smoothing
        self.label_kind = label_kind
        self._parts = _parts([term for term in terms if term.weight > 0])
        if label_weight == 0 and not self._parts:
            raise KDExportError(
                "label_weight and every term's weight are 0: the student would learn nothing",
                hint="set distill.label_weight or the weight of a term above 0",
            )
        for part in self._parts:
            _check_label_kind(part, label_kind)

    def elsewhere(self, label_kind: LabelKind, *, features: bool) -> "Objective | None":
        """Return what of it can be told of samples that are not trained on; None where nothing can.

        Args:
            label_kind: Of their labels.
            features: Whether there are features of them.
        """
        terms = [
            part.term
            for part in self._parts
            if "features" not in part.method.needs or (features and part.method.elsewhere)
        ]
        if not terms and self.label_weight == 0:
            return None
        return Objective(self.label_weight, terms, label_smoothing=self.label_smoothing, label_kind=label_kind)

    @property
    def names(self) -> tuple[str, ...]:
        """The keys of the parts that a call returns, in order."""
        return (*(("labels",) if self.label_weight else ()), *(part.name for part in self._parts))

    @property
    def needs_labels(self) -> bool:
        """Whether a call needs labels."""
        return self.label_weight > 0 or any("labels" in part.method.needs for part in self._parts)

    @property
    def needs_teacher(self) -> bool:
        """Whether a call needs anything of a teacher."""
        return any({"logits", "features"} & set(part.method.needs) for part in self._parts)

    @property
    def uses_logits(self) -> bool:
        """Whether the student's own logits enter the sum, so that every layer before them has a gradient."""
        return self.label_weight > 0 or any("logits" in part.method.needs for part in self._parts)

    @property
    def feature_terms(self) -> dict[str, BaseTerm]:
        """The terms that need features, by the names under which a call expects them."""
        return {part.name: part.term for part in self._parts if "features" in part.method.needs}

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
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum to minimize and what it is made of.

        Args:
            student_logits: [batch, classes].
            labels: As ``label_kind`` says (class -1: unknown), or None where ``needs_labels`` is False.
            teacher_logits: [batch, classes], or None where no term compares logits.
            progress_of_training: Share of the training that is done, 0 to 1: the terms' schedules go by it.
            features: For each of ``feature_terms``, the first arguments of its function.
            labelled: What the labels' loss is divided by, where these samples are part of a batch that holds unlabelled
                ones; None: by the number of labelled samples among them. With labels of class alone.

        Returns:
            The weighted sum, a scalar, and each part before its weight, detached, on the same device: ``"labels"`` and
            the methods' names; a method's second term is ``"soft_targets.2"``.

        Raises:
            KDExportError: Something that a term needs is missing or has the wrong form.
        """
        parts: dict[str, Tensor] = {}
        total: Tensor | None = None
        if self.label_weight:
            value = self._label_loss(student_logits, _given(labels, "the labels' loss", "labels"), labelled)
            parts["labels"] = value.detach()
            total = self.label_weight * value
        for part in self._parts:
            arguments: list[Any] = []
            for need in part.method.needs:
                if need == "logits":
                    arguments += [student_logits, _given(teacher_logits, part.name, "the teacher's logits")]
                elif need == "labels":
                    arguments.append(_given(labels, part.name, "labels"))
                else:
                    arguments += _given((features or {}).get(part.name), part.name, "features")
            value = part.method.function(*arguments, **part.options)
            parts[part.name] = value.detach()
            weighted = part.term.weight_at(progress_of_training) * value
            total = weighted if total is None else total + weighted
        if total is None:
            raise ValueError("an objective has at least one part")
        return total, parts

    def _label_loss(self, logits: Tensor, labels: Tensor, labelled: Tensor | None) -> Tensor:
        logits = at_least_fp32(logits)
        if self.label_kind == "class":
            class_labels(labels, logits, "the labels' loss")
            # The mean over the labelled samples; a batch may hold none of them.
            if labelled is None:
                labelled = (labels != UNLABELLED).sum().clamp(min=1)
            smoothing = self.label_smoothing
            total = F.cross_entropy(logits, labels, label_smoothing=smoothing, ignore_index=UNLABELLED, reduction="sum")
            return total / labelled
        if labels.shape != logits.shape:
            raise KDExportError(
                f"{self.label_kind} labels are {list(labels.shape)}, the student's logits {list(logits.shape)}",
                hint="give one row per sample and one column per class",
            )
        labels = labels.to(logits.dtype)
        if self.label_kind == "soft":
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        smoothed = labels * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        return F.binary_cross_entropy_with_logits(logits, smoothed)


def _parts(terms: Sequence[BaseTerm]) -> tuple[_Part, ...]:
    """Match each term with its function; a method's second term gets ``.2`` to its name."""
    parts: list[_Part] = []
    for term in terms:
        name = term.method
        count = 1 + sum(part.name.partition(".")[0] == name for part in parts)
        parts.append(_Part(f"{name}.{count}" if count > 1 else name, term, METHODS[name], term.options()))
    return tuple(parts)


def _check_label_kind(part: _Part, label_kind: LabelKind) -> None:
    if label_kind == "multi_label" and not part.method.multi_label:
        fitting = ", ".join(name for name, method in METHODS.items() if method.multi_label)
        raise KDExportError(
            f"{part.name} expects one class per sample, and these targets are multi-label",
            hint=f"use one of {fitting}",
        )
    if label_kind == "soft" and "labels" in part.method.needs:
        raise KDExportError(
            f"{part.name} needs one class per sample, and mixing samples leaves none",
            hint="take mixup and cutmix out of distill.augment, or use soft_targets or dist",
        )


def _given(value: T | None, part: str, what: str) -> T:
    if value is None:
        raise KDExportError(f"{part}: {what} are missing", hint=f"hand over {what}, or set this part's weight to 0")
    return value
