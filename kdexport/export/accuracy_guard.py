"""The accuracy guard: what a variant loses against fp32, by its task's score or by its outputs.

A network whose outputs are a task's is judged by the task's score on the validation split; any other, or one without
labels, by its output error: the root mean square of the difference over that of fp32's output, of the worst output
channel (1 over it, in dB, is the signal-to-quantization-noise ratio). What is done about
a loss: ``restored_operators``.

Variants run in a child process: what the runtime cannot run must not end this one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from kdexport import figures
from kdexport.errors import KDExportError
from kdexport.export import parity
from kdexport.onnx.isolated import IsolatedRunner
from kdexport.onnx.sessions import Arrays, OnnxSession
from kdexport.results import MeasuredPrecision
from kdexport.scoring import VALUES_AT_ONCE
from kdexport.tasks import task_of
from kdexport.tasks.base import Task

BATCH = 64
RANKING_SAMPLES = 128
SMALLEST_CHANNEL = 1e-7  # of the largest channel's root mean square: below, a channel counts as zero
HIDDEN = 3.0  # times the output error: the middle sample's is told
LOST_RECALL, FEWEST_OF_CLASS = 0.2, 5  # of a class that has so many samples: what is told
CHANNELS = 4096  # an axis that is longer holds no channels

Feed = Callable[[Arrays], Arrays]


class Score(NamedTuple):
    """Better is greater: the task's score first, its sign turned where lower is better, then nearness to fp32."""

    value: float | None  # None for what no task can score
    nearness: float  # minus the output error
    middle: float = 0.0  # output error of the middle sample, which a few large ones may hide
    lost: str = ""  # the class whose recall falls the most, in words, where it falls far: a rare one hardly counts


class Limits(NamedTuple):
    """What a variant may lose; None: whatever it does."""

    max_drop: float | None = None  # of the task's score, against fp32
    max_output_error: float | None = None


@dataclass(frozen=True)
class VariantBuilder:
    """How a precision's graph is made, whole or with some operators left in fp32."""

    precision: str
    layers: tuple[str, ...]  # names of the nodes that can return to fp32, in order
    without: Callable[[tuple[str, ...]], onnx.ModelProto]  # these in fp32
    only: Callable[[tuple[str, ...]], onnx.ModelProto]  # all but these in fp32
    notes: tuple[str, ...] = ()  # what to say of it
    describe: Callable[[onnx.ModelProto], str] = lambda _: ""  # what to say of the finished graph
    changed: Callable[[onnx.ModelProto], set[str]] | None = None  # nodes that are in fewer bits; None: all of layers
    judged: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None  # what is run in its place to judge it, as it is
    judged_as: str = ""  # what to say of that
    measured: MeasuredPrecision | None = None  # how measured time has chosen it

    def runner(self, model: onnx.ModelProto) -> IsolatedRunner:
        """Return the graph at work, as the device that it is for computes it."""
        if self.judged is not None:
            return IsolatedRunner(self.judged(model).SerializeToString(), optimize=False)
        return IsolatedRunner(model.SerializeToString())


class AccuracyGuard:
    """Judges graphs by samples.

    Args:
        source: The fp32 file.
        inputs: Raw samples, one array per input, first axis samples.
        targets: Of the samples; None where nothing is labelled. They count where the first output is the task's.
        feed: Turns a batch of samples into what the file takes.
        samples_are: What the samples are, in words.
        task: What the targets are of; None: read off them.
        classes: That they are of; None: as many as the network gives.
    """

    def __init__(
        self,
        source: Path,
        inputs: Arrays,
        targets: NDArray[Any] | None,
        feed: Feed = lambda batch: batch,
        samples_are: str = "validation",
        task: Task | None = None,
        classes: int | None = None,
    ) -> None:
        self.source, self.inputs, self.feed = source, inputs, feed
        self.samples_are = samples_are
        runner = OnnxSession(source)
        self.fixed_batch = runner.fixed_batch
        self.batch = self.fixed_batch or BATCH
        task = task_of(targets) if task is None and targets is not None else task
        few = tuple(array[: self.fixed_batch or 2] for array in inputs)
        fits = task is not None and targets is not None and _fits(runner(feed(few)), few, targets, task, classes)
        self.task, self.targets = (task, targets) if fits else (None, None)
        if self.task is not None and targets is not None and self.fixed_batch is None:
            values = self.task.values_per_sample(targets, [""] * (classes or 1))
            self.batch = max(1, min(BATCH, VALUES_AT_ONCE // max(values, 1)))
        self.outputs = self._outputs(runner, inputs)
        self.fp32 = self._value(self.outputs)

    def score(self, model: onnx.ModelProto, builder: VariantBuilder | None = None) -> Score:
        """Return what a graph scores."""
        runner = IsolatedRunner(model.SerializeToString()) if builder is None else builder.runner(model)
        outputs = self._outputs(runner, self.inputs)
        expected, actual = self._numbers(self.outputs), self._numbers(outputs)
        error, middle = output_error(expected, actual), middle_error(expected, actual)
        return Score(self._value(outputs), -error, middle, self._lost_class(outputs))

    def score_or_worst(self, make: Callable[[], onnx.ModelProto]) -> Score:
        """Return what a graph scores, or the worst score where it cannot be made or run."""
        try:
            return self.score(make())
        except KDExportError:
            return Score(None if self.fp32 is None else -math.inf, -math.inf)

    def holds(self, score: Score, limits: Limits) -> bool:
        """Whether a score is within the limits."""
        if self.fp32 is not None and score.value is not None and limits.max_drop is not None:
            return score.value >= self.fp32 - limits.max_drop
        if limits.max_output_error is not None:
            return -score.nearness <= limits.max_output_error
        return True

    def sentence(self, score: Score) -> str:
        """Return a score in words, against fp32's."""
        count = len(self.inputs[0])
        if self.task is not None and score.value is not None and self.fp32 is not None:
            value, fp32 = self.write(score.value), self.write(self.fp32)
            lost = f"; {score.lost}" if score.lost else ""
            return f"{self.task.label} {value} on {count} {self.samples_are} samples, fp32 {fp32}{lost}"
        error = -score.nearness
        ratio = f"signal to noise {-20 * math.log10(error):.1f} dB" if 0 < error < math.inf else "signal to noise none"
        hidden = f"; {score.middle:.2g} of the middle sample's own" if score.middle > HIDDEN * error else ""
        return f"output error {error:.2g} of fp32's over {count} {self.samples_are} samples ({ratio}){hidden}"

    def _lost_class(self, outputs: Arrays) -> str:
        """Return which class is found far less often than by fp32, in words; empty where none is."""
        if self.task is None or self.task.name != "classification" or self.targets is None:
            return ""
        right = [item[0].argmax(axis=-1) == self.targets for item in (self.outputs, outputs)]
        lost, words = LOST_RECALL, ""
        for label in np.unique(self.targets):
            of_it = self.targets == label
            before, after = (float(found[of_it].mean()) for found in right)
            if of_it.sum() >= FEWEST_OF_CLASS and before - after > lost:
                lost = before - after
                words = f"of class {label} {figures.percent(after)} are found, by fp32 {figures.percent(before)}"
        return words

    def write(self, score: float) -> str:
        """Return a score as people read it, finely enough to compare."""
        if self.task is not None and self.task.unit == "share":
            return figures.percent(abs(score), 2)
        return f"{abs(score):.4g}"

    def sensitivity(self, model: onnx.ModelProto, builder: VariantBuilder) -> float:
        """Return how much a graph changes the outputs over some samples; infinite where it cannot be run."""
        some = parity.spread(len(self.inputs[0]), RANKING_SAMPLES)
        some = some[: len(some) - len(some) % (self.fixed_batch or 1)]
        try:
            outputs = self._outputs(builder.runner(model), tuple(array[some] for array in self.inputs))
        except KDExportError:
            return math.inf
        expected, actual = self._numbers(self.outputs), self._numbers(outputs)
        first, changed = (np.asarray(item[0], np.float64) for item in (expected, actual))
        first = first[some] if len(first) == len(self.inputs[0]) else first
        if self.fp32 is not None and first.shape == changed.shape:
            return _finite_or_worst(float(((changed - first) ** 2).mean()))
        return output_error(tuple(item[some] if len(item) > len(some) else item for item in expected), actual)

    def _outputs(self, runner: Callable[[Arrays], Arrays], inputs: Arrays) -> Arrays:
        """Return every output over all samples; one whose first axis is not the batch, batch after batch. Of the task's
        output what it keeps.
        """
        parts = []
        for start in range(0, len(inputs[0]), self.batch):
            outputs = runner(self.feed(tuple(array[start : start + self.batch] for array in inputs)))
            parts.append(outputs if self.task is None else (self.task.kept(outputs[0]), *outputs[1:]))
        return tuple(np.concatenate([np.atleast_1d(part) for part in output]) for output in zip(*parts, strict=True))

    def _numbers(self, outputs: Arrays) -> Arrays:
        """Return outputs as numbers to compare."""
        return outputs if self.task is None else (self.task.compared(outputs[0])[0], *outputs[1:])

    def _value(self, outputs: Arrays) -> float | None:
        if self.task is None or self.targets is None:
            return None
        score = self.task.score(outputs[0], self.targets)
        return score if score is None or self.task.higher_is_better else -score


def _fits(outputs: Arrays, inputs: Arrays, targets: NDArray[Any], task: Task, classes: int | None) -> bool:
    """Whether the first output of a few samples can be a task's, with a class for every target."""
    output = outputs[0]
    if output.dtype.kind != "f" or output.ndim < 2:
        return False
    names = [str(index) for index in range(classes or output.shape[1])]
    try:
        task.check_outputs(output.shape, len(inputs[0]), names, "the file")
        task.check_targets(targets, names, "validation")
    except KDExportError:
        return False
    return True


def output_error(expected: Arrays, actual: Arrays) -> float:
    """Return the root mean square of the difference over that of what is expected, of the worst channel of any output.

    A channel is the second axis of an output; where that is long or there is none, the output counts as a whole.
    """
    worst = 0.0
    for e, a in zip(expected, actual, strict=True):
        if e.dtype.kind != "f":
            continue
        if e.shape != a.shape:
            return math.inf
        axes = tuple(k for k in range(e.ndim) if k != 1) if e.ndim > 1 and e.shape[1] <= CHANNELS else None
        e, a = e.astype(np.float64), a.astype(np.float64)
        finite = np.isfinite(e)
        if not np.isfinite(a[finite]).all():
            return math.inf
        difference, e = np.where(finite, a - np.where(finite, e, 0), 0), np.where(finite, e, 0)
        signal = np.sqrt(np.atleast_1d((e**2).mean(axis=axes)))
        noise = np.sqrt(np.atleast_1d((difference**2).mean(axis=axes)))
        counted = signal > SMALLEST_CHANNEL * signal.max(initial=0.0)
        worst = max(worst, float((noise[counted] / signal[counted]).max(initial=0.0)))
    return worst


def middle_error(expected: Arrays, actual: Arrays) -> float:
    """Return the median over the samples of the root mean square of the difference over that of what is expected.

    A sample that is a thousand times as large as the others decides ``output_error`` alone; of this it decides nothing.
    """
    worst = 0.0
    for e, a in zip(expected, actual, strict=True):
        if e.dtype.kind != "f" or e.shape != a.shape or not len(e):
            continue
        wide, other = (np.nan_to_num(item.astype(np.float64)).reshape(len(e), -1) for item in (e, a))
        signal, noise = np.sqrt((wide**2).mean(axis=1)), np.sqrt(((other - wide) ** 2).mean(axis=1))
        if (counted := signal > 0).any():
            worst = max(worst, float(np.median(noise[counted] / signal[counted])))
    return worst


def _finite_or_worst(value: float) -> float:
    return value if math.isfinite(value) else math.inf
