"""What a page's outputs are held against: ONNX Runtime's own on this machine's CPU, of the same inputs.

With data these are samples of the test split, and what the page gives back is scored too. The labels stay here: a page
is handed inputs alone.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdexport.bench.plan import Device
from kdexport.bench.scoring import CPU, session_for
from kdexport.bench.warnings import in_words
from kdexport.bench.web.recording_form import Output
from kdexport.errors import KDExportError
from kdexport.results import ModelFile, Parity, Score

MOST_SAMPLES = 100
MOST_OUTPUT_BYTES = 2**18  # of one model: a page sends them with every upload
MOST_INPUT_BYTES = 2**24  # of one model: a page loads them before it starts
MOST_MACS = 10**11  # of a model's samples together: some 10 to 20 s of a phone
AT_ONCE = 10  # samples per call
TOLERANCE = 1e-3  # on max_rel, of fp32: kernels sum in another order
ROUNDED = 5e-2  # of fewer bits: one step of a value's rounding moves what follows

MISNAMED = 0.01  # share of samples whose largest output may be another, and one always: ties that rounding decides
HERE = Device("cpu", CPU, {})

Arrays = tuple[NDArray[Any], ...]
Feed = dict[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Check:
    """What a page runs beside what is timed, and what should come out."""

    feeds: tuple[Feed, ...]
    outputs: tuple[Arrays, ...]  # one for each feed, in the model's order
    names: tuple[str, ...]
    samples: int
    score: Score | None = None  # of ``outputs``, with data
    scored: Callable[[Sequence[Arrays]], Score] | None = None  # of a device's
    write: Callable[[float], str] = str  # a score, as people read it
    chooses: bool = True  # whether the largest output is the answer, as far as is known

    def packed(self) -> list[list[dict[str, Any]]]:
        """Return the outputs in the form that a page gives them back in."""
        return [[Output.of(*pair).model_dump() for pair in zip(self.names, call, strict=True)] for call in self.outputs]


class _Session:
    """A session that keeps what it is fed and gives, or that gives what was kept: see ``Check``."""

    def __init__(self, path: Path, given: Sequence[Arrays] | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(str(path), options, providers=[CPU])
        self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs
        self.get_modelmeta = self._session.get_modelmeta
        self._given = None if given is None else iter(given)
        self.feeds: list[Feed] = []
        self.outputs: list[Arrays] = []

    def run(self, names: Sequence[str] | None, feed: Feed, run_options: Any = None) -> Arrays:
        if self._given is not None:
            return next(self._given)
        self.feeds.append(dict(feed))
        self.outputs.append(tuple(self._session.run(names, feed, run_options)))
        return self.outputs[-1]


def checks(
    targets: Sequence[tuple[ModelFile, Path, Feed]], dataset: Any | None
) -> dict[str, tuple[Check | None, str | None]]:
    """Return for each model what a page is to run and what should come out.

    Args:
        targets: Each model, its file, and what it is timed with.
        dataset: A ``kdexport.data.samples.Dataset``, of which all models get the same samples. None, or a model that
            does not take it: what is timed serves.

    Returns:
        By name: the check, None where the outputs are too large to send; and what is to be said of that, None where
        all is in order.
    """
    most: dict[str, int] = {}
    told: dict[str, str] = {}

    def tried(name: str, what: str, work: Callable[..., Any], *given: Any) -> Any:
        try:
            return work(*given)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has a class of its own for each of a dozen faults
            told[name] = f"its outputs on a device are not {what}: {_reason(error)}"
            return None

    if dataset is not None and dataset.test.labels is not None:
        for model, path, _ in targets:
            count = tried(model.name, "scored", _most_samples, path, dataset)
            if count:
                most[model.name] = count
    macs = max((model.macs or 0 for model, _, _ in targets), default=0)
    samples = min([MOST_SAMPLES, max(MOST_MACS // max(macs, 1), 1), *most.values()])
    found: dict[str, tuple[Check | None, str | None]] = {}
    for model, path, fed in targets:
        made = None
        if model.name in most:
            made = tried(model.name, "scored", _of_data, model, path, dataset, samples)
        if made is None:
            made = tried(model.name, "compared", _of_feed, path, fed)
        found[model.name] = made, told.get(model.name)
    return found


def _of_feed(path: Path, fed: Feed) -> Check:
    session = _Session(path)
    outputs = session.run(None, fed)
    _check_sendable(outputs)
    names = tuple(item.name for item in session.get_outputs())
    return Check((fed,), (outputs,), names, len(next(iter(fed.values()), [1])))


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, KDExportError) else in_words(str(error) or repr(error), None)


def _check_sendable(outputs: Arrays, samples: int = 1) -> int:
    """Return how many times as many samples could be sent; raises where these cannot."""
    if not all(isinstance(one, np.ndarray) and one.dtype.kind in "fiub" for one in outputs):
        raise KDExportError("they are no tensors of numbers", hint="export the model without such outputs")
    most = MOST_OUTPUT_BYTES * samples // max(_bytes(outputs), 1)
    if most < samples:
        raise KDExportError("they are too large to send", hint="measure it with --device web")
    return most


def _most_samples(path: Path, dataset: Any) -> int:
    """Return how many samples of a data set can be sent of one model, found by running the first."""
    session = _Session(path)
    opened = session_for(path, HERE, dataset.task, dataset.preprocessing, session=session)
    fed = opened.feeds(dataset.test.take(slice(0, 1)).inputs)
    size = opened.fixed_batch or 1
    given = session.run(None, {name: np.repeat(array, size, 0) for name, array in fed.items()})
    most = min(_check_sendable(given, size), MOST_INPUT_BYTES // max(_bytes(fed.values()), 1))
    if most < 1:
        raise KDExportError("a sample is too large to send", hint="measure it with --device web")
    return most


def _of_data(model: ModelFile, path: Path, dataset: Any, count: int) -> Check:
    from kdexport.models.class_names import by_name
    from kdexport.scoring import evaluate

    def score(session: _Session) -> Score:
        opened = session_for(path, HERE, dataset.task, dataset.preprocessing, session=session)
        predict = by_name(opened.predict, opened.class_names, dataset.class_names, model.name)
        return evaluate(predict, split, dataset.class_names, opened.fixed_batch or AT_ONCE)[0].score

    split = dataset.test.spread(count)
    if split.calibration is not None:
        split = dataclasses.replace(split, calibration=split.calibration.spread(count))
    session = _Session(path)
    own = score(session)
    return Check(
        tuple(session.feeds),
        tuple(session.outputs),
        tuple(item.name for item in session.get_outputs()),
        sum(len(next(iter(feed.values()))) for feed in session.feeds),
        own,
        lambda outputs: score(_Session(path, outputs)),
        dataset.task.write,
        dataset.task.name == "classification",
    )


def _bytes(arrays: Any) -> int:
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def held_against(
    expected: Sequence[Arrays], found: Sequence[Arrays], precision: str, samples: int, *, chooses: bool = True
) -> tuple[Parity | None, str | None]:
    """Compare a device's outputs with ONNX Runtime's.

    Args:
        expected: ONNX Runtime's, for each call.
        found: The device's.
        precision: The file's: how far apart they may be.
        samples: In all calls together.
        chooses: Whether the largest output is the answer.

    Returns:
        The comparison, None where there is nothing to compare; and in words what is wrong, None where nothing is.
    """
    shapes = [[(one.shape, one.dtype) for one in call] for call in expected]
    theirs = [[(one.shape, one.dtype) for one in call] for call in found]
    if shapes != theirs:
        return None, "its outputs on this device have other shapes or types than ONNX Runtime's"
    largest, worst = np.zeros(len(shapes[0])), np.zeros(len(shapes[0]))
    equal, rows = 0, 0
    for here, there in zip(expected, found, strict=True):
        for position, (one, other) in enumerate(zip(here, there, strict=True)):
            a, b = one.astype(np.float64), other.astype(np.float64)
            finite = np.isfinite(a)
            if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
                return None, "its outputs on this device are NaN or infinite elsewhere than ONNX Runtime's"
            worst[position] = max(worst[position], np.abs(a - b)[finite].max(initial=0.0))
            largest[position] = max(largest[position], np.abs(a[finite]).max(initial=0.0))
        table = next((pair for pair in zip(here, there, strict=True) if _is_table(pair[0])), None)
        if chooses and table is not None:
            equal += int((table[0].argmax(1) == table[1].argmax(1)).sum())
            rows += len(table[0])
    relative = float((worst / np.where(largest > 0, largest, 1.0)).max(initial=0.0))
    tolerance = TOLERANCE if precision == "fp32" else ROUNDED
    parity = Parity(
        float(worst.max(initial=0.0)), relative, samples, tolerance, relative <= tolerance,
        argmax_agreement=equal / rows if rows else None, reference="onnxruntime-cpu",
    )  # fmt: skip
    if parity.passed and rows - equal <= max(1, MISNAMED * rows):
        return parity, None
    return parity, f"its outputs on this device are not ONNX Runtime's on a CPU: {difference(parity)}"


def _is_table(output: NDArray[Any]) -> bool:
    return output.ndim == 2 and output.shape[1] > 1 and output.dtype.kind == "f"


def difference(parity: Parity) -> str:
    """Return a comparison in words."""
    equal = "" if parity.argmax_agreement is None else (
        f", argmax equal in {round(parity.argmax_agreement * parity.samples)} of {parity.samples}"
    )  # fmt: skip
    return f"worst difference {parity.max_rel:.2g} of the largest value{equal}"


def compared(
    given: Sequence[Sequence[Output]], check: Check | None, packed: Any, precision: str, *, chooses: bool
) -> tuple[Parity | None, Score | None, str | None]:
    """Return parity and score of what a page gave back, and what is to be said of it.

    Args:
        given: The page's outputs, call by call.
        check: What they are held against, where it is here.
        packed: The same as a packed page carries it; None where it carries none.
        precision: Of the file.
        chooses: Whether the largest output is the answer.
    """
    found = [tuple(one.array() for one in call) for call in given]
    if check is None:
        expected = [tuple(Output.model_validate(one).array() for one in call) for call in packed or ()]
        samples = sum(len(call[0]) if call and call[0].ndim else 1 for call in expected)
    else:
        expected, samples = list(check.outputs), check.samples
    if not expected or not found:
        return None, None, None
    parity, wrong = held_against(expected, found, precision, samples, chooses=chooses)
    score = None
    if check is not None and check.scored is not None and parity is not None:
        with contextlib.suppress(KDExportError):  # what no score can be made of is wrong already
            score = check.scored(found)
    return parity, score, wrong


def summary(name: str, device: str, parity: Parity, score: Score | None, check: Check) -> str:
    """Return a line for the terminal: whether a device computes what this machine does."""
    line = f"{name} on {device}: {difference(parity)}, against ONNX Runtime here"
    if score is None or check.score is None:
        return line
    both = f"{check.write(score.value)} there, {check.write(check.score.value)} here"
    return f"{line}; {score.metric} of these samples {both}"
