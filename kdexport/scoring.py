"""The one way to score: any ``predict(inputs) -> outputs`` on a labelled split, by the split's task.

numpy only, so that PyTorch and ONNX Runtime both fit, here and in a packed benchmark.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdexport.errors import SourceError
from kdexport.results import Evaluation
from kdexport.tasks.base import Task, checked_outputs

VALUES_AT_ONCE = 2**23  # numbers of a batch's outputs: 32 MiB

Predict = Callable[[tuple[NDArray[Any], ...]], NDArray[Any]]
OwnScore = Callable[[NDArray[Any], NDArray[Any]], float]


class Samples(Protocol):
    """What is scored: inputs in batches, targets as a whole."""

    @property
    def task(self) -> Task:
        """What they are for."""

    @property
    def inputs(self) -> tuple[NDArray[Any], ...]:
        """One array per network input, first axis the samples."""

    @property
    def labels(self) -> NDArray[Any] | None:
        """The targets, first axis the samples."""

    @property
    def calibration(self) -> Samples | None:
        """Those on which the task fits what its score needs; None where it needs nothing."""

    def __len__(self) -> int: ...

    def batches(self, size: int) -> Iterator[Any]:
        """Yield parts that have ``inputs``, in order."""


def evaluate(
    predict: Predict,
    split: Samples,
    class_names: Sequence[str],
    batch_size: int = 128,
    *,
    name: str = "test",
    further: Mapping[str, OwnScore] | None = None,
) -> tuple[Evaluation, NDArray[np.float32]]:
    """Score ``predict`` on a labelled split.

    Args:
        predict: From raw inputs (one array per network input, first axis the batch) to outputs ``[batch, ...]``.
        split: The samples with their targets.
        class_names: One per output: the classes, or what is estimated.
        batch_size: Samples per call.
        name: What the result calls the split.
        further: Scores of the user's own, told beside the task's under these names: ``own_scores``.

    Returns:
        The scores, and the outputs as float32 ``[samples, ...]``, or what the task keeps of them.

    Raises:
        SourceError: The split is empty or unlabelled, or the outputs have the wrong shape or aren't finite.
    """
    if split.labels is None or len(split) == 0:
        raise SourceError(
            f"the {name} split has no labelled samples", hint="a score needs labels: give a labelled split"
        )
    targets = np.asarray(split.labels)
    outputs = predicted(predict, split, class_names, batch_size)
    task = calibrated_task(predict, split, class_names, batch_size)
    evaluation = task.illustrated(task.evaluate(outputs, targets, class_names, name), outputs, targets, split.inputs)
    given = task.predictions(outputs)
    told = {label: _number(score, label, given, targets) for label, score in (further or {}).items()}
    return dataclasses.replace(evaluation, metrics={**evaluation.metrics, **told}), outputs


def predicted(predict: Predict, split: Samples, class_names: Sequence[str], batch_size: int = 128) -> NDArray[Any]:
    """Return what the task keeps of a model's outputs on a split: float32 ``[samples, ...]``, of maps counts.

    Arguments and faults as ``evaluate``.
    """
    task = split.task
    at_once = max(1, VALUES_AT_ONCE // max(task.values_per_sample(np.asarray(split.labels), class_names), 1))
    return np.concatenate(
        [
            task.kept(checked_outputs(predict(batch.inputs), len(batch.inputs[0]), task, class_names), batch.labels)
            for batch in split.batches(min(batch_size, at_once))
        ]
    )


def calibrated_task(predict: Predict, split: Samples, class_names: Sequence[str], batch_size: int = 128) -> Task:
    """Return a split's task with what its score needs, fitted on the validation samples that come with the split.

    Arguments and faults as ``evaluate``.
    """
    calibration = split.calibration
    if calibration is None:
        return split.task
    outputs = predicted(predict, calibration, class_names, batch_size)
    return split.task.calibrated(outputs, np.asarray(calibration.labels))


def own_scores(references: Sequence[str]) -> dict[str, OwnScore]:
    """Return the functions that a recipe's ``scores`` names, by their names: ``f(outputs, targets) -> number``.

    Args:
        references: ``file.py:name``; outputs are float32 ``[samples, ...]``, of maps each pixel's class, targets as the
            data give them.

    Raises:
        SourceError: There is no such function.
    """
    from kdexport.references import load_object, parse

    found: dict[str, OwnScore] = {}
    for reference in references:
        function = load_object(parse(reference))
        if not callable(function):
            raise SourceError(f"{reference} is no function", hint="name a function of outputs and targets")
        found[getattr(function, "__name__", reference)] = function
    return found


def _number(score: OwnScore, name: str, outputs: NDArray[Any], targets: NDArray[Any]) -> float:
    from kdexport.references import place

    try:
        return float(score(outputs, targets))
    except Exception as error:
        shapes = f"outputs {list(outputs.shape)}, targets {list(targets.shape)}"
        raise SourceError(
            f"the score {name} raises {type(error).__name__}: {error}{place(error)}",
            hint=f"let it take ({shapes}) and return one number",
        ) from error
