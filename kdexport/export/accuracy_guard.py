"""The accuracy guard: what a variant scores on the validation split, and which layers go back to fp32 until it holds.

Layers are ranked by what each does alone: the change of the logits when it is the only one in fewer bits.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from kdexport.errors import KDExportError
from kdexport.export import parity
from kdexport.onnx.sessions import Arrays, OnnxSession

BATCH = 64
RANKING_SAMPLES = 128
TIMED_RUNS = 60
MORE = {"int8": ", give more calibration_samples or set distill.quantize_aware"}  # that may help


class Score(NamedTuple):
    """Better is greater: accuracy first, then nearness to fp32's logits."""

    accuracy: float
    nearness: float  # minus the mean squared difference of the logits


class AccuracyGuard:
    """Scores graphs on validation samples.

    Args:
        source: The fp32 file.
        inputs: As the file takes them.
        labels: int64 [samples].
    """

    def __init__(self, source: Path, inputs: Arrays, labels: NDArray[np.int64]) -> None:
        self.source, self.inputs, self.labels = source, inputs, labels
        self.logits = _logits(OnnxSession(source), inputs)
        self.fp32 = self._accuracy(self.logits)

    def score(self, model: onnx.ModelProto) -> Score:
        """Return what a graph scores."""
        logits = _logits(OnnxSession(model.SerializeToString()), self.inputs)
        return Score(self._accuracy(logits), -float(((logits - self.logits) ** 2).mean()))

    def accuracy(self, model: onnx.ModelProto) -> float:
        """Return a graph's accuracy."""
        return self.score(model).accuracy

    def said(self, accuracy: float) -> str:
        """Return an accuracy in words, against fp32's."""
        return f"{accuracy:.4f} correct of {len(self.labels)} validation samples, fp32 {self.fp32:.4f}"

    def harm(self, model: onnx.ModelProto) -> float:
        """Return the mean squared change of the logits over some samples."""
        some = parity.spread(len(self.labels), RANKING_SAMPLES)
        logits = _logits(OnnxSession(model.SerializeToString()), tuple(array[some] for array in self.inputs))
        return float(((logits - self.logits[some]) ** 2).mean())

    def _accuracy(self, logits: NDArray[np.float64]) -> float:
        return float((logits.argmax(axis=-1) == self.labels).mean())


@dataclass(frozen=True)
class VariantBuilder:
    """How a precision's graph is made, whole or with some layers left in fp32."""

    precision: str
    layers: tuple[str, ...]  # names of the nodes that can return to fp32, in order
    without: Callable[[tuple[str, ...]], onnx.ModelProto]  # these in fp32
    only: Callable[[str], onnx.ModelProto]  # all but this one in fp32


def restore(
    maker: VariantBuilder, judge: AccuracyGuard, max_accuracy_drop: float
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return layers to fp32, the most harmful first, until the accuracy holds.

    Args:
        maker: Makes the graphs.
        judge: Scores on the validation split.
        max_accuracy_drop: In shares of 1, against fp32.

    Returns:
        The graph, and in words which layers, and what it cost in size and speed.

    Raises:
        KDExportError: Not even the last layer in fewer bits holds.
    """
    ranking = sensitivity(maker, judge)
    whole = maker.without(())
    for count in range(1, len(ranking)):
        kept = tuple(ranking[:count])
        model = maker.without(kept)
        accuracy = judge.accuracy(model)
        if accuracy >= judge.fp32 - max_accuracy_drop:
            return model, (
                judge.said(accuracy),
                f"returned to fp32, {count} of {len(ranking)} layers: {', '.join(kept)}",
                _cost(whole, model, judge),
            )
    raise KDExportError(
        f"{maker.precision} loses more than max_accuracy_drop = {max_accuracy_drop:g} with any layer in fewer bits "
        f"(fp32 is {judge.fp32:.4f} on validation)",
        hint=f"allow a larger max_accuracy_drop{MORE.get(maker.precision, '')}, or take {maker.precision} out of "
        "export.quantize",
    )


def sensitivity(maker: VariantBuilder, judge: AccuracyGuard) -> list[str]:
    """Return the layers, that first which does the most harm when it alone is in fewer bits."""
    harm = {name: judge.harm(maker.only(name)) for name in maker.layers}
    return sorted(maker.layers, key=lambda name: harm[name], reverse=True)


def _cost(before: onnx.ModelProto, after: onnx.ModelProto, judge: AccuracyGuard) -> str:
    """Say what the guard cost; both graphs are timed in turn, so that the machine is the same for both."""
    sizes = [len(model.SerializeToString()) / 1024 for model in (before, after)]
    sessions = [OnnxSession(model.SerializeToString()) for model in (before, after)]
    one = tuple(array[:1] for array in judge.inputs)
    spent: list[list[float]] = [[], []]
    for _ in range(TIMED_RUNS):
        for session, times in zip(sessions, spent, strict=True):
            start = time.perf_counter_ns()
            session(one)
            times.append((time.perf_counter_ns() - start) / 1e6)
    medians = [statistics.median(times) for times in spent]
    return (
        f"the guard cost {sizes[1] - sizes[0]:+.1f} KiB ({sizes[0]:.1f} to {sizes[1]:.1f}) and "
        f"{medians[1] - medians[0]:+.3f} ms a sample ({medians[0]:.3f} to {medians[1]:.3f}, median, in this process)"
    )


def _logits(session: OnnxSession, inputs: Arrays) -> NDArray[np.float64]:
    size = session.fixed_batch or BATCH
    parts = [
        session(tuple(array[start : start + size] for array in inputs))[0] for start in range(0, len(inputs[0]), size)
    ]
    return np.concatenate(parts).astype(np.float64)
