"""Numbers, one or several a sample: mean absolute error, RMSE and R², each target by its own.

Targets and outputs are in the data's units everywhere. Only losses and terms that compare outputs see them scaled, by
the standard deviation that the training targets have, so that a weight or a learning rate means the same whether a
price is in dollars or in millions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from kdexport.errors import KDExportError, SourceError
from kdexport.results import Agreement, Evaluation, Interval, TargetScore
from kdexport.statistics import mean_interval
from kdexport.tasks.base import Array, Task
from kdexport.tasks.postprocessing import Postprocessing

if TYPE_CHECKING:
    from torch import Tensor

    from kdexport.terms import BaseTerm

HUBER_DELTA = 1.0  # where the loss turns from squared to absolute, in standard deviations of the target
MOST_GROUPS, FEWEST_IN_GROUP = 10, 50  # of a split that is stratified: a tenth of 50 is a share that can be kept
FEWEST = 20  # samples; fewer say nothing of a model as a whole
EXPLAINS = 0.6  # of the variance, once scaled and shifted: the model is good, and its units are others
POINTS = 2000  # pairs of true and predicted value that are kept for pictures, over all targets
MOST_CLASSES = 20  # whole numbers of more values than that are no class ids
RESOLUTION = 2.0**-24  # of float32, relative


@dataclass(frozen=True)
class Regression(Task):
    """Targets are numbers float32 ``[samples, d]``, outputs ``[batch, d]`` in the same units; of one target also
    ``[batch]``.

    Attributes:
        mean: Of each target over the training samples; empty before ``fitted``.
        std: The standard deviation, above 0.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    name: ClassVar[str] = "regression"
    metric: ClassVar[str] = "mean_absolute_error"
    label: ClassVar[str] = "MAE"
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[Literal["share", "value"]] = "value"
    bounds: ClassVar[Interval] = (0.0, float("inf"))
    output_name: ClassVar[str] = "predictions"
    of_classes: ClassVar[bool] = False
    exact_outputs: ClassVar[bool] = True
    other_metrics: ClassVar[dict[str, str]] = {"rmse": "RMSE", "r2": "R²"}
    charts: ClassVar[tuple[str, ...]] = ("predictions", "residuals")
    noun: ClassVar[str] = "targets"
    usual_terms: ClassVar[tuple[dict[str, Any], ...]] = ({"method": "output_mse"},)
    label_losses: ClassVar[tuple[str, ...]] = ("mse", "mae", "huber")

    def fits(self, targets: Array) -> bool:
        """Whether targets are floats, one or several a sample."""
        return targets.ndim in (1, 2) and targets.dtype.kind == "f"

    def check_targets(self, targets: Array, names: Sequence[str], where: str) -> None:
        """Hold that every target is a finite number, and that there is one for every name."""
        columns = as_columns(targets)
        if columns.shape[1] != len(names):
            raise SourceError(
                f"{where}: targets of shape {list(targets.shape)} for {len(names)} names ({', '.join(names[:8])})",
                hint="give a name for each column of the targets in target_names, or leave target_names out",
            )
        wrong = ~np.isfinite(columns)
        if wrong.any():
            rows = np.flatnonzero(wrong.any(axis=1))
            target = names[int(np.flatnonzero(wrong[rows[0]])[0])]
            raise SourceError(
                f"{where}: {len(rows)} samples have NaN or infinity as target, "
                f"the first is number {rows[0]} ('{target}')",
                hint="leave these samples out, or fill the target in",
            )

    def check_training(self, targets: Array, name: str) -> None:
        """Hold that every target varies, by more than float32 tells apart."""
        for number, column in enumerate(as_columns(targets).T.astype(np.float64)):
            which = "the target" if targets.ndim == 1 or targets.shape[1] == 1 else f"target {number}"
            if len(column) == 0 or (column == column[0]).all():
                raise SourceError(
                    f"{name}: {which} is {column[0] if len(column) else 0:g} in every training sample",
                    hint="there is nothing to learn from it: take it out of the targets",
                )
            if column.std() < 16 * RESOLUTION * np.abs(column).max():
                raise _too_near(f"{name}: {which}", column)

    def check_outputs(self, shape: Sequence[int], samples: int, names: Sequence[str], who: str) -> None:
        """Hold that a network gives a number for each target."""
        if len(names) == 1 and tuple(shape) == (samples,):
            return
        if tuple(shape) != (samples, len(names)):
            known = f"data have {len(names)} target{'s' if len(names) > 1 else ''} ({', '.join(names[:8])})"
            raise SourceError(
                f"{who} gives {list(shape)} for {samples} samples; the {known}",
                hint=f"it must give [batch, {len(names)}]: set its args, e.g. args = {{ num_classes = {len(names)} }}",
            )

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
        """Return the loss of the differences in standard deviations of the target, mean over samples and targets.

        ``mse`` is e², ``mae`` is |e|, ``huber`` is e²/2 up to |e| = 1 and |e| - 1/2 beyond it (Huber 1964, "Robust
        Estimation of a Location Parameter"), as ``torch.nn.HuberLoss()``. A sample whose targets are NaN has none.

        Raises:
            KDExportError: Targets of another shape, or a setting that is for classes.
        """
        import torch

        if smoothing or mixed:
            what = "label_smoothing is" if smoothing else "mixup and cutmix are"
            raise KDExportError(f"{what} for classes, and these targets are numbers", hint="take it out of the recipe")
        outputs = self._tensor(outputs)
        targets = self._tensor(targets).to(outputs.dtype)
        if targets.shape != outputs.shape:
            raise KDExportError(
                f"the targets are {list(targets.shape)}, the student's outputs {list(outputs.shape)}",
                hint="give one row per sample and one column per target",
            )
        known = targets.isfinite()
        errors = torch.where(known, self.comparable(outputs - torch.where(known, targets, 0)), 0)
        if kind == "mae":
            losses = errors.abs()
        elif kind == "huber":
            size = errors.abs()
            losses = torch.where(size <= HUBER_DELTA, errors.square() / 2, HUBER_DELTA * (size - HUBER_DELTA / 2))
        else:
            losses = errors.square()
        if labelled is None:
            labelled = self.count_labelled(targets)
        return losses.sum() / (labelled * outputs.shape[1])

    def count_labelled(self, targets: Tensor) -> Tensor:
        """Return how many samples have targets, at least 1."""
        return self._tensor(targets).isfinite().all(dim=1).sum().clamp(min=1)

    def right_in_batch(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return zeros: a number is not right or wrong."""
        none = outputs.new_zeros(())
        return none, none

    def fitted(self, targets: Array, names: Sequence[str]) -> Regression:  # noqa: ARG002
        """Return the task with mean and standard deviation of the training targets, float64."""
        columns = as_columns(targets).astype(np.float64)
        mean, std = columns.mean(axis=0), columns.std(axis=0)
        return dataclasses.replace(self, mean=tuple(map(float, mean)), std=tuple(map(float, std)))

    def postprocessing(self, shape: Sequence[int], *, fresh: bool) -> Postprocessing | None:  # noqa: ARG002
        """Return the targets' scale, for a network that starts here: it learns mean 0 and standard deviation 1."""
        if fresh and self.std:
            return Postprocessing("scale", mean=self.mean, std=self.std)
        return Postprocessing("column") if len(self.std) == 1 else None

    def centred(self, outputs: Tensor) -> Tensor:
        """Return outputs in standard deviations from the mean of the training targets."""
        compared = self.comparable(outputs)
        return compared - compared.new_tensor(self.mean) / compared.new_tensor(self.std) if self.std else compared

    def comparable(self, outputs: Tensor) -> Tensor:
        """Return outputs, targets or differences of them in standard deviations of the training targets."""
        outputs = self._tensor(outputs)
        return outputs / outputs.new_tensor(self.std) if self.std else outputs

    def objection(self, method: BaseTerm | type[BaseTerm]) -> str | None:
        """Object to methods of classes."""
        return None if method.numbers else "compares classes, and these targets are numbers"

    def score(self, outputs: Array, targets: Array) -> float | None:
        """Return the mean absolute error over the samples with targets, mean over the targets."""
        errors = _errors(outputs, targets)
        known = np.isfinite(errors).all(axis=1)
        return float(np.abs(errors[known]).mean()) if known.any() else None

    def evaluate(self, outputs: Array, targets: Array, names: Sequence[str], split: str) -> Evaluation:
        """Score outputs: the interval is Student's t over the samples' absolute errors (mean over targets).

        RMSE and R² are means over the targets, as scikit-learn's ``root_mean_squared_error`` and ``r2_score`` have
        them; R² leaves out a target that does not vary over these samples.
        """
        errors = _errors(outputs, targets)
        true, predicted = as_columns(targets).astype(np.float64), as_columns(outputs).astype(np.float64)
        per_sample = np.abs(errors).mean(axis=1)
        constant = np.abs(true - np.median(true, axis=0)).mean()
        shown = np.unique(np.linspace(0, len(true) - 1, min(len(true), max(1, POINTS // len(names)))).astype(np.int64))
        per_target = tuple(
            TargetScore(
                name=name,
                mae=float(np.abs(errors[:, column]).mean()),
                rmse=float(np.sqrt(np.square(errors[:, column]).mean())),
                r2=_r2(true[:, column], errors[:, column]),
                bias=float(errors[:, column].mean()),
                true=tuple(float(value) for value in true[shown, column]),
                predicted=tuple(float(value) for value in predicted[shown, column]),
            )
            for column, name in enumerate(names)
        )
        told = [score.r2 for score in per_target if score.r2 is not None]
        return Evaluation(
            split=split,
            samples=len(true),
            task=self.name,
            score=self.made_score(per_sample.mean(), mean_interval(per_sample)),
            metrics={
                "rmse": float(np.mean([score.rmse for score in per_target])),
                "r2": float(np.mean(told)) if told else None,
            },
            per_target=per_target,
            per_sample=tuple(float(value) for value in per_sample),
            chance=float(constant),
        )

    def doubt(self, outputs: Array, targets: Array, names: Sequence[str]) -> str | None:
        """Say where a model is no better than a constant, and where its units or its order of targets are others."""
        true, found = as_columns(targets).astype(np.float64), as_columns(outputs).astype(np.float64)
        known = np.isfinite(true).all(axis=1)
        true, found = true[known], found[known]
        if len(true) < FEWEST:
            return None
        own, constant = np.abs(found - true).mean(axis=1), np.abs(true - np.median(true, axis=0)).mean(axis=1)
        interval = mean_interval(own - constant)
        if interval is None or interval[1] < 0:
            return None
        told = (
            f"it is not shown to be better than a constant: MAE {own.mean():.4g} on {len(true)} samples, "
            f"and always giving the median gives {constant.mean():.4g}"
        )
        explained = _explained(true, found)
        order = explained.argmax(axis=1)
        if len(names) > 1 and (order != np.arange(len(names))).any() and explained.max(axis=1).min() >= EXPLAINS:
            pairs = [f"{names[one]} is its output {other}" for one, other in enumerate(order) if one != other]
            return f"{told}; its outputs are in another order than the targets: {', '.join(pairs)}; reorder the targets"
        own_explained = np.diag(explained)
        if own_explained.min() >= EXPLAINS:
            slope, offset = np.polyfit(found[:, 0], true[:, 0], 1)
            return (
                f"{told}; scaled and shifted it would explain {100 * own_explained.min():.0f} % of the variance "
                f"('{names[0]}' is about {slope:.4g} times its output {offset:+.4g}): it gives other units, "
                "as a network does whose targets were standardized; scale its output back, or give the targets in its "
                "units"
            )
        return f"{told}; check its weights, what is done to its features (data.standardize) and their order"

    def agreement(self, teacher: Array, outputs: Array) -> Agreement:
        """Return Pearson's correlation of the outputs over the samples, mean over the targets."""
        theirs, ours = as_columns(teacher).astype(np.float64), as_columns(outputs).astype(np.float64)
        theirs, ours = theirs - theirs.mean(axis=0), ours - ours.mean(axis=0)
        scale = np.sqrt(np.square(theirs).sum(axis=0) * np.square(ours).sum(axis=0))
        vary = scale > 0
        found = (theirs * ours).sum(axis=0)[vary] / scale[vary]
        return Agreement(top1=None, kl=None, logit_correlation=float(found.mean()) if vary.any() else None)

    def no_targets(self, count: int, like: Array) -> Array:
        """Return NaN so many times."""
        return np.full((count, as_columns(like).shape[1]), np.nan, dtype=np.float32)

    def groups(self, targets: Array) -> NDArray[np.int64]:
        """Return a group per range of the targets: quantiles, by the sum of their ranks where there are several.

        Equal targets are of one group. Ranks are whole numbers, so that every machine finds the same groups.
        """
        columns = as_columns(targets)
        ranks = sum(np.unique(column, return_inverse=True)[1].reshape(-1) for column in columns.T)
        ranks = np.asarray(ranks)
        count = int(np.clip(len(ranks) // FEWEST_IN_GROUP, 1, MOST_GROUPS))
        edges = np.sort(ranks)[(np.arange(1, count) * len(ranks)) // count] if len(ranks) else np.zeros(0)
        return np.searchsorted(np.unique(edges), ranks, side="right").astype(np.int64)

    def _tensor(self, values: Tensor) -> Tensor:
        return values[:, None] if values.ndim == 1 else values


def as_columns(values: Array) -> Array:
    """Return ``[samples, d]`` of ``[samples]`` or ``[samples, d]``."""
    return values[:, None] if values.ndim == 1 else values


def as_targets(values: Any, where: str) -> NDArray[np.float32]:
    """Return targets as float32 ``[samples, d]``, whatever numbers they came as.

    Raises:
        SourceError: They are no numbers, or of another shape.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" or array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] == 0):
        raise SourceError(
            f"{where}: targets are {array.dtype} of shape {list(array.shape)}",
            hint="give numbers [samples], or [samples, targets] where there are several",
        )
    found = as_columns(array)
    with np.errstate(over="ignore"):
        narrowed = found.astype(np.float32)
    if np.isinf(narrowed).any() and not np.isinf(found.astype(np.float64)).any():
        raise SourceError(
            f"{where}: targets reach {np.abs(found).max():.3g}, beyond what float32 holds",
            hint="scale them, e.g. by their logarithm",
        )
    for column, narrow in zip(found.T, narrowed.T):
        if len(column) and (narrow == narrow[0]).all() and not (column == column[0]).all():
            raise _too_near(f"{where}: a target", column)
    return np.ascontiguousarray(narrowed)


def _too_near(which: str, values: Array) -> SourceError:
    return SourceError(
        f"{which} lies within {values.min():.10g} to {values.max():.10g}, which float32 hardly tells apart",
        hint="subtract a constant from it, e.g. its smallest value, and add that to what the model gives",
    )


def _errors(outputs: Array, targets: Array) -> NDArray[np.float64]:
    errors: NDArray[np.float64] = as_columns(outputs).astype(np.float64) - as_columns(targets).astype(np.float64)
    return errors


def _r2(true: NDArray[np.float64], errors: NDArray[np.float64]) -> float | None:
    total = float(np.square(true - true.mean()).sum())
    return 1.0 - float(np.square(errors).sum()) / total if total > 0 and len(true) > 1 else None


def _explained(true: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of each target's variance that each output explains once scaled and shifted, ``[d, d]``."""
    true, found = true - true.mean(axis=0), found - found.mean(axis=0)
    scale = np.sqrt(np.outer(np.square(true).sum(axis=0), np.square(found).sum(axis=0)))
    shares: NDArray[np.float64] = np.square(np.divide(true.T @ found, scale, out=np.zeros_like(scale), where=scale > 0))
    return shares
