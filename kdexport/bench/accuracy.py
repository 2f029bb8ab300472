"""What the measured files are worth: accuracy inside ONNX Runtime, and agreement with the first of them."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from kdexport.errors import KDExportError
from kdexport.progress import Progress
from kdexport.results import ModelFile


def score(
    models: Sequence[ModelFile], folder: Path, dataset: Any, progress: Progress, skip: Collection[str] = ()
) -> tuple[ModelFile, ...]:
    """Fill in accuracy, its interval and the agreement with the first model, on the test split.

    Args:
        models: The first is the baseline.
        folder: What the models' paths are relative to.
        dataset: A ``kdexport.sources.samples.Dataset``.
        progress: Where to say how it goes. A model that cannot be scored is reported there and stays unscored.
        skip: Names of models that failed while they were measured: they are not loaded into this process.
    """
    from kdexport.evaluate import agreement, evaluate
    from kdexport.sources.onnx_model import OnnxModel

    scored: list[ModelFile] = []
    baseline: Any = None
    with progress.task("accuracy", total=len(models)) as task:
        for position, model in enumerate(models):
            try:
                if model.name in skip:
                    raise KDExportError("it failed when it was measured", hint="mend that first")
                evaluation, logits = evaluate(
                    OnnxModel(folder / model.file, dataset.preprocessing).predict,
                    dataset.test,
                    dataset.class_names,
                )
            except (KDExportError, MemoryError) as error:
                progress.warn(f"{model.name} could not be scored: {error or 'it does not fit in memory'}")
                scored.append(model)
                task.advance(note=f"{model.name} not scored")
                continue
            if position == 0:
                baseline = logits
            near = agreement(baseline, logits) if baseline is not None else None
            scored.append(
                dataclasses.replace(
                    model,
                    accuracy=evaluation.accuracy,
                    accuracy_ci95=evaluation.accuracy_ci95,
                    teacher_agreement=near,
                    evaluation=evaluation,
                )
            )
            task.advance(note=f"{model.name} {evaluation.accuracy:.4f}")
    return tuple(scored)
