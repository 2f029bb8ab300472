"""An ONNX file at work in this process: every output as it comes, or logits of raw samples.

The one wrapper: the proof of an export, ``evaluate``, an ONNX teacher and the scoring of ``bench`` all use it. It needs
numpy and onnxruntime alone, so that a packed benchmark carries this very file. Not for timing: that is ``bench``'s, in
a process that holds nothing else.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from kdexport.errors import KDExportError, SourceError, check_readable
from kdexport.onnx.activation import Activation, activation_of, class_labels, last_operator, metadata_of, to_logits

if TYPE_CHECKING:
    from kdexport.models.preprocessing import Preprocessing

onnxruntime.set_default_logger_severity(4)  # fatal: its errors are raised too, and told in the user's terms

Arrays = tuple[np.ndarray, ...]
ENDED_S = 5.0  # what ONNX Runtime has to end a run that was interrupted

TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


class OnnxSession:
    """A session over an ONNX file, on the CPU unless another is given.

    Args:
        model: The file, or a serialized model.
        preprocessing: For a file that carries none (``kdexport.preprocessing`` in its metadata).
        expects: What the task applies to a network's output (``Task.activation``): it is taken back where the file has.
        output_ndim: Axes of the output that ``predict`` gives: 2 for a row a sample, 4 for a map.
        threads: Of one operator; None takes ``OMP_NUM_THREADS``, else ONNX Runtime chooses.
        session: An ``onnxruntime.InferenceSession`` over ``model`` that is open already, on whatever device.
        raw: Whether samples come as the data give them; else they are preprocessed already and fed as they are.
        open_with: What opens the file (and is given the threads) in place of ONNX Runtime in this process:
            ``isolated.IsolatedSession`` for a file of whoever, which may crash ONNX Runtime or never end.

    Attributes:
        expects: As given.
        metadata: The file's own entries, ``kdexport.*`` and others.
        width: Classes or targets of a sample, where known: of several outputs the one with as many is scored.
        activation: What the scores have been through: ``none`` (logits), ``softmax`` or ``sigmoid``; None before the
            first batch.

    Raises:
        SourceError: There is no such file, or ONNX Runtime cannot load it.
    """

    def __init__(
        self,
        model: Path | bytes,
        preprocessing: Preprocessing | None = None,
        *,
        expects: Activation = "softmax",
        output_ndim: int = 2,
        threads: int | None = None,
        session: Any = None,
        raw: bool = True,
        open_with: Callable[[Path, int], Any] | None = None,
    ) -> None:
        self.name = model.name if isinstance(model, Path) else "the model"
        self.session = _open(model, threads, open_with) if session is None else session
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        self.input_names = tuple(item.name for item in self.session.get_inputs())
        self.output_names = tuple(item.name for item in self.session.get_outputs())
        self.activation: Activation | None = None
        self._model = model
        self.expects = expects
        self.output_ndim = output_ndim
        self.width: int | None = None
        self._preprocessing = preprocessing
        self._raw = raw

    def __call__(self, inputs: Sequence[np.ndarray]) -> Arrays:
        """Return every output for one batch, fed as it is."""
        if len(inputs) != len(self.input_names):
            raise ValueError(f"{self.name} takes {len(self.input_names)} inputs, and {len(inputs)} were given")
        feed = dict(zip(self.input_names, inputs))
        own = isinstance(self.session, onnxruntime.InferenceSession)
        return tuple(_interruptible(self.session, feed) if own else self.session.run(None, feed))

    @property
    def fixed_batch(self) -> int | None:
        """The batch size where the graph fixes it: the first axis of its first input."""
        inputs = self.session.get_inputs()
        size = inputs[0].shape[0] if inputs and inputs[0].shape else None
        return size if isinstance(size, int) and size > 0 else None

    @cached_property
    def preprocessing(self) -> Preprocessing | None:
        """What turns raw samples into the file's inputs: its own, else what was given."""
        written = self.metadata.get("kdexport.preprocessing")
        if not written:
            return self._preprocessing
        from kdexport.models.preprocessing import Preprocessing

        return Preprocessing.from_json(self._json("kdexport.preprocessing", dict))

    @cached_property
    def class_names(self) -> tuple[str, ...] | None:
        """The labels that the file carries in its metadata or in a classifier's operator (scikit-learn's), or None."""
        if not self.metadata.get("kdexport.labels"):
            return class_labels(self._model)
        return tuple(map(str, self._json("kdexport.labels", list)))

    @property
    def _bakes(self) -> bool:
        """Whether the file says that its preprocessing is in its graph."""
        return self.metadata.get("kdexport.baked") == "true"

    @property
    def takes_raw_images(self) -> bool:
        """Whether the preprocessing is in the file: it takes uint8 NHWC."""
        return bool(self.session.get_inputs()[0].type == "tensor(uint8)")

    def predict(self, inputs: tuple[NDArray[Any], ...]) -> NDArray[np.float32]:
        """Return logits ``[batch, classes]`` of raw inputs, one array per network input; maps have two axes more.

        Probabilities become logits again, of a sigmoid class by class. A file with a fixed batch size is run as often
        as it takes, the last batch filled up.

        Raises:
            SourceError: The file does not take the data, gives no scores, or gives a softmax over the classes where a
                sample has several labels: which of them apply cannot be told from that.
        """
        feed = self._fed(inputs)
        batch, size = len(feed[0]), self.fixed_batch or len(feed[0])
        parts = []
        for start in range(0, batch, size):
            taken = np.minimum(np.arange(start, start + size), batch - 1)
            whole = start == 0 and size == batch
            parts.append(self._scores(feed if whole else [array[taken] for array in feed])[: batch - start])
        return self._logits(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def feeds(self, inputs: tuple[NDArray[Any], ...]) -> dict[str, NDArray[Any]]:
        """Return what is fed for raw inputs, by the names of the model's inputs: preprocessed, in the right types."""
        return dict(zip(self.input_names, self._fed(inputs)))

    def _fed(self, inputs: tuple[NDArray[Any], ...]) -> list[NDArray[Any]]:
        specifications = self.session.get_inputs()
        own, given = (self.preprocessing, self._preprocessing) if self._raw else (None, None)
        if own is not None and len(inputs) > len(specifications):
            inputs = own.own(inputs)
        elif own is not None and own.first_input and given is not None and given.kind == "tokens":
            raise SourceError(
                f"{self.name} takes ids of a vocabulary of its own, and the data hold another tokenizer's",
                hint=f"give the texts, and {own.tokenizer_file or 'tokenizer.json'} beside the file",
            )
        if len(specifications) != len(inputs):
            raise SourceError(
                f"{self.name} takes {len(specifications)} inputs ({', '.join(self.input_names)}); "
                f"the data have {len(inputs)}",
                hint="give data with the inputs that the model takes",
            )
        if self._raw and inputs[0].dtype == np.uint8 and inputs[0].ndim == 4 and not self.takes_raw_images:
            if own is None or own.kind != "image":
                raise SourceError(
                    f"{self.name} takes {specifications[0].type} and doesn't say how an image becomes that",
                    hint="export it with kdexport, which writes the preprocessing into the file",
                )
            inputs = own.apply_numpy(inputs)
        elif own is not None and own.kind == "features" and not self._bakes and not own.assumed:
            inputs = own.apply_numpy(inputs)
        return [
            np.ascontiguousarray(array, dtype=TYPES.get(item.type, array.dtype))
            for array, item in zip(inputs, specifications)
        ]

    def _scores(self, feed: list[NDArray[Any]]) -> NDArray[np.float32]:
        """Return the output that is scored: a table of floats, not the labels that stand before it in some files.

        Of several the first one of the width that is known, else the first.
        """
        try:
            outputs = self(feed)
        except KDExportError:  # its process has ended
            raise
        except Exception as error:  # noqa: BLE001 ONNX Runtime has a class of its own for each of a dozen faults
            zero = [item.name for item in self.session.get_inputs() if 0 in (item.shape or ())]
            if zero:
                raise SourceError(
                    f"{self.name}: its input {zero[0]} states a size of 0, which ONNX Runtime takes as it stands",
                    hint="export it with a dynamic axis, or name that axis: onnx.tools.update_model_dims",
                ) from None
            shapes = ", ".join(f"{list(array.shape)} {array.dtype}" for array in feed)
            raise SourceError(
                f"{self.name} does not take the data ({shapes}): {first_line(error)}",
                hint="the data must have the shape and type that the model was exported for",
            ) from None
        tables: dict[str, NDArray[Any]] = {}
        for name, output in zip(self.output_names, outputs):
            table: Any = output
            if isinstance(output, list) and output and isinstance(output[0], dict):  # scikit-learn's ZipMap
                table = np.array([[row[key] for key in sorted(row)] for row in output])
            if isinstance(table, np.ndarray) and table.shape == (len(feed[0]),) and self.expects == "none":
                table = table[:, None]  # one number a sample
            if isinstance(table, np.ndarray) and table.ndim == self.output_ndim and table.dtype.kind == "f":
                tables[name] = table
        if tables:
            fitting = [name for name, table in tables.items() if table.shape[1] == self.width]
            chosen = next(iter(fitting or tables))
            scores: NDArray[np.float32] = tables[chosen].astype(np.float32)
            if self.activation is None:
                self.activation = activation_of(last_operator(self._model, chosen), scores)
            return scores
        kinds = ", ".join(f"{item.name} {item.type} {item.shape}" for item in self.session.get_outputs())
        raise SourceError(
            f"{self.name} gives no scores of shape [batch, classes{', h, w' if self.output_ndim == 4 else ''}]; "
            f"it gives {kinds}",
            hint="export it with logits or probabilities as an output",
        )

    def _logits(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.expects == "none":
            return scores
        if self.expects == "sigmoid" and self.activation == "softmax":
            raise SourceError(
                f"{self.name} gives a softmax over its classes, and the samples here have several labels each",
                hint="export it without the softmax, or with a sigmoid per class",
            )
        return to_logits(scores, self.activation or "none")

    def _json(self, key: str, kind: type) -> Any:
        """Return an entry of the metadata that kdexport writes as JSON."""
        try:
            document = json.loads(self.metadata[key])
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, kind):
            raise SourceError(
                f"{self.name}: the metadata's {key} is not what kdexport writes", hint="export the model again"
            )
        return document


class Unloaded:
    """What ``OnnxSession`` needs of a session to tell what a file says of itself: nothing of its graph is loaded."""

    def __init__(self, path: Path) -> None:
        self._metadata = metadata_of(path)

    def get_modelmeta(self) -> SimpleNamespace:
        """Return the file's metadata."""
        return SimpleNamespace(custom_metadata_map=self._metadata)

    def get_inputs(self) -> list[Any]:
        """Return none: they are not looked at."""
        return []

    get_outputs = get_inputs


def _open(model: Path | bytes, threads: int | None, open_with: Callable[[Path, int], Any] | None) -> Any:
    if isinstance(model, Path) and not model.is_file():
        raise SourceError(f"there is no ONNX file {model}", hint="check the path")
    if isinstance(model, Path):
        check_readable(model)
    threads = threads_wanted() if threads is None else threads
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    source = str(model) if isinstance(model, Path) else model
    try:
        if open_with is not None and isinstance(model, Path):
            return open_with(model, threads)
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except KDExportError:  # loading it ends the process
        raise
    except Exception as error:  # noqa: BLE001 ONNX Runtime has a class of its own for each of a dozen faults
        what = "the exported graph"
        if isinstance(model, Path):
            what = str(model)
            _check_external(model)
        raise SourceError(
            f"{what} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {first_line(error)}",
            hint="give a whole .onnx file with its external data beside it; a newer opset needs a newer onnxruntime",
        ) from None


def _interruptible(session: Any, feed: dict[str, np.ndarray]) -> list[Any]:
    """Return every output; Ctrl-C ends a run, also of a graph that loops without end.

    Python looks at a signal between two of its instructions, and a run is one: another thread does it.
    """
    if threading.current_thread() is not threading.main_thread():
        return list(session.run(None, feed))
    options = onnxruntime.RunOptions()
    results: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.extend(session.run(None, feed, options))
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        options.terminate = True
        thread.join(ENDED_S)
        raise
    if errors:
        raise errors[0]
    return results


def threads_wanted() -> int:
    """Return what ``OMP_NUM_THREADS`` says, and 0, which lets ONNX Runtime choose, where that is no number."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and len(wanted) < 5 else 0


def _check_external(path: Path) -> None:
    """Say which file of weights beside a model is missing or cut off, where that is what keeps it from being loaded."""
    try:
        from kdexport.onnx.describe import external_files, load_graph
    except ImportError:  # in a packed benchmark, which has no onnx to read the file with
        return
    try:
        graph = load_graph(path)
    except KDExportError:  # no ONNX at all: ONNX Runtime's own message stands
        return
    external_files(graph, path)


def first_line(error: BaseException) -> str:
    """Return an error's first line, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
