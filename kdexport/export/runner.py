"""An ONNX file at work in this process, on the CPU: every output, for parity and for the choice of a variant.

Not for timing: that is ``bench``'s, in a process that holds nothing else.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from kdexport.errors import KDExportError

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
