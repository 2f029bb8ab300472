"""A model in a browser's page with the face of an ONNX Runtime session: for its outputs, not for its time."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnxruntime  # noqa: TID253 - only what scores a model imports this module

from kdexport.bench.plan import Device, Settings
from kdexport.bench.process import Child
from kdexport.bench.worker_group import child_for


class WebSession:
    """What ``OnnxSession`` needs of a session; the outputs are the page's.

    Args:
        model: The file. Its inputs, outputs and metadata are read here, which a page does not tell in full.
        device: A web device.
        settings: The resolved ones, with browser and runtime.

    Raises:
        ChildError: The page does not take the model.
    """

    def __init__(self, model: Path, device: Device, settings: Settings) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        described = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.get_inputs, self.get_outputs = described.get_inputs, described.get_outputs
        self.get_modelmeta = described.get_modelmeta
        self._names = [item.name for item in described.get_outputs()]
        self._folder = tempfile.TemporaryDirectory()
        self._child: Child = child_for(model.name, device, settings)
        try:
            self._child.ask(do="load", path=str(model.absolute()), provider=device.provider, threads=1)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def run(
        self, names: Sequence[str] | None, feed: Mapping[str, np.ndarray], run_options: object = None
    ) -> list[np.ndarray]:
        """Return the outputs of one inference, all of them or those that are named; no page takes run options."""
        del run_options
        file = Path(self._folder.name) / "feed.npz"
        np.savez(file, **feed)  # type: ignore[arg-type]  # numpy's own flags have other types
        reply, payload = self._child.ask(do="run", feed=str(file))
        found: dict[str, np.ndarray] = {}
        start = 0
        for item in reply["outputs"]:
            dtype, dims = np.dtype(item["type"]), tuple(item["dims"])
            size = int(np.prod(dims, dtype=np.int64)) * dtype.itemsize
            found[item["name"]] = np.frombuffer(payload[start : start + size], dtype).reshape(dims)
            start += size
        return [found[name] for name in names or self._names]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close()
        self._folder.cleanup()
