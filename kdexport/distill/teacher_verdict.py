"""What the teacher itself scores, told before its student is trained: a student of a poor teacher is hours lost."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdexport.distill.context import DistillContext
from kdexport.distill.evaluation import Validation
from kdexport.errors import KDExportError


def tell(context: DistillContext, name: str, *splits: Validation) -> None:
    """Say how good the teacher is, and warn where it guesses.

    Args:
        context: What the phases share.
        name: Of the network that teaches.
        splits: Validation and test, with the teacher's logits.

    Raises:
        KDExportError: Some of the logits are not finite: nothing can be learned from them.
    """
    told = []
    for split in splits:
        logits = split.teacher_logits
        if logits is None:
            continue
        bad = int((~np.isfinite(logits)).reshape(len(logits), -1).any(axis=1).sum())
        if bad:
            raise KDExportError(
                f"the {name} gives NaN or infinity for {bad} of {len(logits)} {split.name} samples",
                hint="look at its weights and its preprocessing (a std of 0?); kdexport evaluate shows more",
            )
        score = split.value(logits)
        if score is not None:
            told.append(f"{context.dataset.task.label} {score:.3f} on {len(logits)} {split.name} samples")
    if told:
        context.progress.message(f"{name}: {', '.join(told)}")
    scored = [(split.teacher_logits, split.split.labels) for split in splits if split.split.labels is not None]
    outputs = [logits for logits, _ in scored if logits is not None]
    if outputs:
        warn_of_doubt(
            context, name, np.concatenate(outputs), np.concatenate([np.asarray(labels) for _, labels in scored])
        )


def warn_of_doubt(context: DistillContext, name: str, outputs: NDArray[np.float32], targets: NDArray[Any]) -> None:
    """Warn where a network's outputs say that it guesses, or that its classes come in another order."""
    doubt = context.dataset.task.doubt(outputs, targets, context.dataset.class_names)
    if doubt:
        context.progress.warn(f"{name}: {doubt}; look at this before a student is trained by it")
