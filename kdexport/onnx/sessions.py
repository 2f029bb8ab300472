"""An ONNX file at work in this process, on the CPU: every output, for parity and for the choice of a variant.

Not for timing: that is ``bench``'s, in a process that holds nothing else.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from kdexport.errors import KDExportError, SourceError
from kdexport.models.preprocessing import Preprocessing

onnxruntime.set_default_logger_severity(3)  # errors: what it says of initializers and placement is not for the user

Arrays = tuple[np.ndarray, ...]


class Runner:
    """A session over an ONNX file.

    Raises:
        KDExportError: ONNX Runtime cannot load the file.
    """

    def __init__(self, model: Path | bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        source = str(model) if isinstance(model, Path) else model
        try:
            self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common class
            raise KDExportError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load the exported file: {first_line(error)}",
                hint="try another --opset, or a newer onnxruntime",
            ) from error
        self.input_names = tuple(item.name for item in self.session.get_inputs())
        self.static = isinstance(self.session.get_inputs()[0].shape[0], int)  # its batch size is fixed
        self.output_names = tuple(item.name for item in self.session.get_outputs())

    def __call__(self, inputs: Sequence[np.ndarray]) -> Arrays:
        """Return every output for one batch."""
        feed = dict(zip(self.input_names, inputs, strict=True))
        return tuple(self.session.run(None, feed))


def first_line(error: BaseException) -> str:
    """Return an error's first line, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


class OnnxModel:
    """An ONNX classifier.

    Args:
        path: The file.
        preprocessing: For a file that carries none (``kdexport.preprocessing`` in its metadata).
        threads: Of one operator; 0 lets ONNX Runtime choose.

    Raises:
        SourceError: No such file, or no ONNX file.
    """

    def __init__(self, path: Path, preprocessing: Preprocessing | None = None, threads: int = 0) -> None:
        if not path.is_file():
            raise SourceError(f"there is no ONNX file {path}", hint="check the path")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 ONNX Runtime has a class of its own for each of a dozen faults
            raise SourceError(
                f"{path} cannot be loaded by ONNX Runtime: {str(error).splitlines()[0]}",
                hint="give a whole .onnx file, with its external data beside it",
            ) from None
        self.path = path
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.input_names = tuple(item.name for item in self._session.get_inputs())
        self.gives: str | None = None  # "logits" or "probabilities", known after the first batch
        said = self.metadata.get("kdexport.preprocessing")
        self.preprocessing = Preprocessing.from_json(json.loads(said)) if said else preprocessing

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The labels that the file carries, or None."""
        said = self.metadata.get("kdexport.labels")
        return tuple(json.loads(said)) if said else None

    @property
    def takes_raw_images(self) -> bool:
        """Whether the preprocessing is in the file: it takes uint8 NHWC."""
        return bool(self._session.get_inputs()[0].type == "tensor(uint8)")

    def predict(self, inputs: tuple[NDArray[Any], ...]) -> NDArray[np.float32]:
        """Return logits ``[batch, classes]`` of raw inputs, one array per network input.

        A file that gives probabilities is recognised by its values, and their logarithm is returned: softmax of it
        gives them back. A file with a fixed batch size is run as often as it takes.
        """
        fed = self._fed(inputs)
        limit = self._session.get_inputs()[0].shape[0]
        batch = len(fed[0])
        if not isinstance(limit, int) or limit == batch:
            return self._logits(self._run(fed))
        parts = []
        for start in range(0, batch, limit):
            part = [array[start : start + limit] for array in fed]
            filled = [np.concatenate([array, np.repeat(array[-1:], limit - len(array), axis=0)]) for array in part]
            parts.append(self._run(filled)[: len(part[0])])
        return self._logits(np.concatenate(parts))

    def feeds(self, inputs: tuple[NDArray[Any], ...]) -> dict[str, NDArray[Any]]:
        """Return what is fed for raw inputs, by the names of the model's inputs: preprocessed, in the right types."""
        return dict(zip(self.input_names, self._fed(inputs), strict=True))

    def _fed(self, inputs: tuple[NDArray[Any], ...]) -> list[NDArray[Any]]:
        specifications = self._session.get_inputs()
        if len(specifications) != len(inputs):
            raise SourceError(
                f"{self.path.name} takes {len(specifications)} inputs ({', '.join(self.input_names)}); "
                f"the data have {len(inputs)}",
                hint="give data with the inputs that the model takes",
            )
        raw = inputs[0].dtype == np.uint8 and inputs[0].ndim == 4
        if raw and not self.takes_raw_images:
            if self.preprocessing is None or self.preprocessing.kind != "image":
                raise SourceError(
                    f"{self.path.name} takes {specifications[0].type} and doesn't say how an image becomes that",
                    hint="export it with kdexport, which writes the preprocessing into the file",
                )
            inputs = tuple(item.numpy() for item in self.preprocessing.apply(inputs))
        return [
            np.ascontiguousarray(array, dtype=_TYPES.get(item.type, array.dtype))
            for array, item in zip(inputs, specifications, strict=True)
        ]

    def _run(self, fed: list[NDArray[Any]]) -> NDArray[np.float32]:
        try:
            outputs = self._session.run(None, dict(zip(self.input_names, fed, strict=True)))
        except Exception as error:  # noqa: BLE001 ONNX Runtime has a class of its own for each of a dozen faults
            shapes = ", ".join(f"{list(array.shape)} {array.dtype}" for array in fed)
            raise SourceError(
                f"{self.path.name} does not take the data ({shapes}): {str(error).splitlines()[0]}",
                hint="the data must have the shape and type that the model was exported for",
            ) from None
        for output in outputs:
            if isinstance(output, list) and output and isinstance(output[0], dict):  # scikit-learn's ZipMap
                output = np.array([[row[key] for key in sorted(row)] for row in output])
            if isinstance(output, np.ndarray) and output.ndim == 2 and output.dtype.kind == "f":
                return output.astype(np.float32)
        kinds = ", ".join(f"{item.name} {item.type} {item.shape}" for item in self._session.get_outputs())
        raise SourceError(
            f"{self.path.name} gives no scores of shape [batch, classes]; it gives {kinds}",
            hint="export it with logits or probabilities as an output",
        )

    def _logits(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.gives is None and len(scores):
            sums_to_one = np.abs(scores.sum(axis=1) - 1) < 1e-3
            self.gives = "probabilities" if bool((scores.min() >= 0) and sums_to_one.all()) else "logits"
        return np.log(np.maximum(scores, 1e-8)) if self.gives == "probabilities" else scores
