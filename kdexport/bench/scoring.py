"""The score of what was measured, on the device that it was measured on. Needs numpy and ONNX Runtime alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from kdexport.bench.plan import Device
from kdexport.bench.session import open_session
from kdexport.bench.warnings import in_words
from kdexport.errors import DeviceError, KDExportError
from kdexport.progress import Progress
from kdexport.results import ModelFile
from kdexport.tasks.base import Task

CPU = "CPUExecutionProvider"


class Measured(Protocol):
    """What came out of measuring."""

    @property
    def measurements(self) -> Sequence[Any]:
        """What was measured."""

    @property
    def failures(self) -> Sequence[Any]:
        """What could not be."""


def scoring_device(outcome: Measured, model: str, devices: Sequence[Device]) -> Device | None:
    """Return the device to score a model on: the first, in the order asked for, that it was measured on.

    None where it failed wherever it was tried: what ended a worker would end this process, and the result with it.
    """
    measured = {one.device for one in outcome.measurements if one.model == model}
    for device in devices:
        if device.name in measured:
            return device
    return None if any(one.model == model for one in outcome.failures) else devices[0]


def session_for(
    model: Path, device: Device, task: Task, preprocessing: Any = None, *, raw: bool = True, session: Any = None
) -> Any:
    """Open a file for scoring by a task on a device; returns an ``OnnxSession``, which says what ``raw`` is.

    ``session`` is one that is open on the device already (a browser's page).

    Raises:
        DeviceError: ONNX Runtime dropped the device's provider.
    """
    from kdexport.onnx.sessions import OnnxSession

    if session is None and device.provider != CPU:
        session, _ = open_session(str(model), device.provider, device.options, 1)
        if device.provider not in session.get_providers():
            raise DeviceError(
                f"ONNX Runtime dropped {device.provider}", hint="run `kdexport doctor`: it shows what is missing"
            )
    return OnnxSession(
        model, preprocessing, expects=task.activation, output_ndim=task.output_ndim, session=session, raw=raw
    )


def score_models(
    models: Sequence[ModelFile],
    evaluated: Callable[[ModelFile, Device], tuple[Any, Any]],
    outcome: Measured,
    devices: Sequence[Device],
    progress: Progress,
) -> Iterator[ModelFile]:
    """Yield the models with their score, its interval and the agreement with the first of them.

    Args:
        models: The first is the baseline.
        evaluated: Scores one model on a device: its ``Evaluation`` and its outputs.
        outcome: What was measured: tells where each model runs.
        devices: In the order asked for.
        progress: Where a model that cannot be scored is told; it stays unscored.
    """
    from kdexport.tasks import TASKS

    baseline: Any = None
    pictured = False
    with progress.task("score", total=len(models)) as task:
        for position, model in enumerate(models):
            try:
                device = scoring_device(outcome, model.name, devices)
                if device is None:
                    raise KDExportError("it failed when it was measured", hint="fix that first")
                evaluation, outputs = evaluated(model, device)
            except Exception as error:  # noqa: BLE001 - ONNX Runtime has a class of its own for each of a dozen faults
                reason = "it does not fit in memory" if isinstance(error, MemoryError) else str(error) or repr(error)
                progress.warn(f"{model.name} could not be scored: {in_words(reason, None)}")
                yield model
                task.advance(note=f"{model.name} not scored")
                continue
            if position == 0:
                baseline = outputs
            if pictured:  # the images are the same: once is enough
                bare = tuple(dataclasses.replace(one, image="", truth="") for one in evaluation.pictures)
                evaluation = dataclasses.replace(evaluation, pictures=bare)
            pictured = pictured or bool(evaluation.pictures)
            where = "" if device.provider == CPU else f" on {device.name}"
            task.advance(note=f"{model.name} {TASKS[evaluation.task].write(evaluation.score.value)}{where}")
            yield dataclasses.replace(
                model,
                score=evaluation.score,
                teacher_agreement=TASKS[evaluation.task].agreement(baseline, outputs) if baseline is not None else None,
                evaluation=evaluation,
            )
