"""What the teacher itself scores, told before its student is trained: a student of a poor teacher is hours lost."""

import numpy as np
from numpy.typing import NDArray

from kdexport.distill.context import DistillContext
from kdexport.distill.evaluation import Validation
from kdexport.errors import KDExportError
from kdexport.statistics import wilson


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
    labels: list[NDArray[np.int64]] = []
    predicted: list[NDArray[np.int64]] = []
    for split in splits:
        logits = split.teacher_logits
        if logits is None:
            continue
        bad = int((~np.isfinite(logits)).any(axis=1).sum())
        if bad:
            raise KDExportError(
                f"the {name} gives NaN or infinity for {bad} of {len(logits)} {split.name} samples",
                hint="look at its weights and its preprocessing (a std of 0?); kdexport evaluate shows more",
            )
        accuracy = split.accuracy(logits)
        if accuracy is not None:
            told.append(f"accuracy {accuracy:.3f} on {len(logits)} {split.name} samples")
        if split.split.labels is not None and split.split.labels.ndim == 1:
            labels.append(np.asarray(split.split.labels))
            predicted.append(logits.argmax(axis=1))
    if told:
        context.progress.say(f"{name}: {', '.join(told)}")
    if labels:
        warn_where_it_guesses(context, name, np.concatenate(labels), np.concatenate(predicted))


def warn_where_it_guesses(
    context: DistillContext, name: str, labels: NDArray[np.int64], predicted: NDArray[np.int64]
) -> None:
    """Warn where a network is not shown to score above the largest class's share."""
    right, most = int((labels == predicted).sum()), int(np.bincount(labels).max())
    if wilson(right, len(labels))[0] <= most / len(labels):
        context.progress.warn(
            f"{name}: right for {right / len(labels):.1%} of {len(labels)} samples, and naming the largest class alone"
            f" is right for {most / len(labels):.1%}: it guesses. Look at its weights, its preprocessing and the order"
            " of the classes before a student is trained by it"
        )
