"""How good any ``predict(inputs) -> logits`` is, and how near two of them are.

numpy only, so that PyTorch and ONNX Runtime both fit.
"""

import base64
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdexport.errors import SourceError
from kdexport.results import Agreement, ClassScore, Evaluation
from kdexport.stage_module import make_callable
from kdexport.statistics import wilson

if TYPE_CHECKING:
    from kdexport.data.samples import Split

Predict = Callable[[tuple[NDArray[Any], ...]], NDArray[Any]]

MAX_CONFUSION_CLASSES = 100  # beyond that the matrix is larger than all else in report.json


def evaluate(
    predict: Predict, split: "Split", class_names: Sequence[str], batch_size: int = 128, *, name: str = "test"
) -> tuple[Evaluation, NDArray[np.float32]]:
    """Score ``predict`` on a labelled split.

    Args:
        predict: From raw inputs (one array per network input, first axis the batch) to logits ``[batch, classes]``.
        split: The samples; with several labels a sample, each class whose logit is above 0 counts as predicted, and
            accuracy is the share of (sample, class) decisions that are right.
        class_names: One per logit.
        batch_size: Samples per call.
        name: What the result calls the split.

    Returns:
        The scores, and the logits as float32 ``[samples, classes]``.

    Raises:
        SourceError: The split is empty or unlabelled, or the logits have the wrong shape or aren't finite.
    """
    if split.labels is None or len(split) == 0:
        raise SourceError(
            f"the {name} split has no labelled samples", hint="accuracy needs labels: give a labelled split"
        )
    logits = np.concatenate(
        [_checked(predict(batch.inputs), batch, class_names) for batch in split.batches(batch_size)]
    )
    if split.multi_label:
        return _multi_label(logits, np.asarray(split.labels) > 0.5, class_names, name), logits
    return _single_label(logits, np.asarray(split.labels), class_names, name), logits


def agreement(teacher_logits: NDArray[Any], logits: NDArray[Any]) -> Agreement:
    """Return how near ``logits`` are to the teacher's, both ``[samples, classes]`` over the same samples in order."""
    teacher, other = teacher_logits.astype(np.float64), logits.astype(np.float64)
    teacher_log, other_log = _log_softmax(teacher), _log_softmax(other)
    kl = float(np.mean(np.sum(np.exp(teacher_log) * (teacher_log - other_log), axis=1)))
    teacher_centred = teacher - teacher.mean(axis=1, keepdims=True)
    other_centred = other - other.mean(axis=1, keepdims=True)
    scale = math.sqrt(float((teacher_centred**2).sum()) * float((other_centred**2).sum()))
    return Agreement(
        top1=float(np.mean(teacher.argmax(axis=1) == other.argmax(axis=1))),
        kl=max(kl, 0.0),  # rounding can put two equal distributions a hair below 0
        logit_correlation=float((teacher_centred * other_centred).sum()) / scale if scale > 0 else None,
    )


def worst_confusions(evaluation: Evaluation, count: int = 5) -> list[tuple[str, str, int]]:
    """Return the commonest mistakes as (true class, predicted class, samples), most first."""
    names = [score.name for score in evaluation.per_class]
    pairs = [
        (names[true], names[predicted], samples)
        for true, row in enumerate(evaluation.confusion)
        for predicted, samples in enumerate(row)
        if true != predicted and samples
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:count]


def _checked(logits: NDArray[Any], batch: "Split", class_names: Sequence[str]) -> NDArray[np.float32]:
    logits = np.asarray(logits, dtype=np.float32)
    if logits.shape != (len(batch), len(class_names)):
        raise SourceError(
            f"the model gives {list(logits.shape)} for {len(batch)} samples; the data have {len(class_names)} classes",
            hint=f"the output must be logits of shape [batch, {len(class_names)}]",
        )
    if not np.isfinite(logits).all():
        raise SourceError(
            "the model gives values that are not finite",
            hint="check its weights and its preprocessing; a half-precision file may overflow",
        )
    return logits


def _single_label(
    logits: NDArray[np.float32], labels: NDArray[Any], class_names: Sequence[str], name: str
) -> Evaluation:
    classes = len(class_names)
    predicted = logits.argmax(axis=1)
    right = predicted == labels
    confusion = np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    hits, actual, said = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    shown = tuple(tuple(int(cell) for cell in row) for row in confusion) if classes <= MAX_CONFUSION_CLASSES else ()
    return _evaluation(name, right, hits, actual, said, class_names, shown)


def _multi_label(
    logits: NDArray[np.float32], labels: NDArray[np.bool_], class_names: Sequence[str], name: str
) -> Evaluation:
    predicted = logits > 0
    right = (predicted == labels).reshape(-1)
    hits = (predicted & labels).sum(axis=0)
    return _evaluation(name, right, hits, labels.sum(axis=0), predicted.sum(axis=0), class_names, (), len(labels))


def _evaluation(
    name: str,
    right: NDArray[np.bool_],
    hits: NDArray[Any],
    actual: NDArray[Any],
    said: NDArray[Any],
    class_names: Sequence[str],
    confusion: tuple[tuple[int, ...], ...],
    samples: int | None = None,
) -> Evaluation:
    scores = tuple(
        ClassScore(
            name=class_name,
            samples=int(actual[index]),
            accuracy=float(hits[index] / actual[index]) if actual[index] else 0.0,
            precision=float(hits[index] / said[index]) if said[index] else None,
            f1=float(2 * hits[index] / (actual[index] + said[index])) if actual[index] + said[index] else 0.0,
        )
        for index, class_name in enumerate(class_names)
    )
    present = [score.f1 for score in scores if score.samples]
    return Evaluation(
        split=name,
        samples=samples if samples is not None else len(right),
        accuracy=float(right.mean()),
        accuracy_ci95=wilson(int(right.sum()), len(right)),
        macro_f1=float(np.mean(present)) if present else 0.0,
        per_class=scores,
        confusion=confusion,
        correct=base64.b64encode(np.packbits(right).tobytes()).decode(),
    )


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted: NDArray[np.float64] = logits - logits.max(axis=1, keepdims=True)
    normalizer: NDArray[np.float64] = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted - normalizer


make_callable(__name__, function_of=__name__)
