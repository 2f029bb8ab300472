"""A model at work in a child process: what ends the process there is an error here.

ONNX Runtime ends some graphs with a segmentation fault (1.31: MatmulTransposeFusion on a transformer in fp16), and some
never end. Whatever has not been loaded before is therefore loaded here first, and what comes from strangers stays here.
"""

import atexit
import contextlib
import itertools
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from kdexport import memory
from kdexport.errors import KDExportError
from kdexport.onnx.sessions import threads_wanted

TIMEOUT_S = 300.0  # for a load and a batch

_tokens = itertools.count(1)


class IsolatedRunner:
    """Called like ``Runner``: inputs of one batch, in order, give every output.

    Args:
        model: A file, or a serialized graph.
        optimize: Whether ONNX Runtime may change the graph before it runs it.
        timeout_s: For a load and one batch; None waits until Ctrl-C.
        threads: Of one operator; None takes ``OMP_NUM_THREADS``, else ONNX Runtime chooses.

    Raises:
        KDExportError: ONNX Runtime cannot load or run it, is silent for too long, or its process ends.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        optimize: bool = True,
        timeout_s: float | None = TIMEOUT_S,
        threads: int | None = None,
    ) -> None:
        self._model = str(model.absolute()) if isinstance(model, Path) else model
        self._optimize, self._timeout_s, self._token = optimize, timeout_s, next(_tokens)
        self._threads = threads
        self.said = self(())

    def __call__(self, inputs: Sequence[np.ndarray]) -> tuple[Any, ...]:
        """Return every output for one batch; with no inputs, only load it, and return what it says of itself."""
        verdict, answer = self.ask(inputs)
        if verdict == "error":
            first = str(answer).splitlines()[0]
            if memory.EXHAUSTED.search(first):
                raise KDExportError(f"{memory.message()} ({first})", hint=memory.HINT)
            raise KDExportError(
                f"ONNX Runtime {onnxruntime.__version__} cannot {'run' if inputs else 'load'} the file: {first}",
                hint="give a whole .onnx file with its weights beside it; a newer opset needs a newer onnxruntime",
            )
        return tuple(answer)

    def ask(self, inputs: Sequence[np.ndarray]) -> tuple[str, Any]:
        """Return ``done`` with the outputs, or ``error`` with ONNX Runtime's message."""
        worker = _Worker.running()
        model = None if worker.token == self._token else self._model
        threads = threads_wanted() if self._threads is None else self._threads
        request = (self._token, model, self._optimize, threads, tuple(np.ascontiguousarray(item) for item in inputs))
        verdict, answer = worker.ask(request, self._timeout_s)
        worker.token = self._token if verdict == "done" else 0
        return verdict, answer


class IsolatedSession(IsolatedRunner):
    """What ``OnnxSession`` needs of an ``onnxruntime.InferenceSession``; it lives in the child process.

    Args:
        model: The file, of whoever.
        threads: As ``IsolatedRunner``.

    Raises:
        RuntimeError: ONNX Runtime cannot load it; the message is its own.
        KDExportError: Loading it ends the process.
    """

    def __init__(self, model: Path, threads: int | None = None) -> None:
        super().__init__(model, timeout_s=None, threads=threads)
        self._metadata, *parts = self.said
        self._inputs, self._outputs = ([Value(*item) for item in part] for part in parts)

    def __call__(self, inputs: Sequence[np.ndarray]) -> tuple[Any, ...]:
        """Return every output for one batch; what ONNX Runtime raises is raised as it is."""
        verdict, answer = self.ask(inputs)
        if verdict == "error":
            raise RuntimeError(answer)
        return tuple(answer)

    def run(self, names: None, feed: Mapping[str, np.ndarray]) -> list[Any]:  # noqa: ARG002 all outputs are given
        """Return every output of one batch."""
        return list(self([feed[item.name] for item in self._inputs]))

    def get_inputs(self) -> list["Value"]:
        """Return what it takes."""
        return self._inputs

    def get_outputs(self) -> list["Value"]:
        """Return what it gives."""
        return self._outputs

    def get_modelmeta(self) -> SimpleNamespace:
        """Return what it says of itself."""
        return SimpleNamespace(custom_metadata_map=self._metadata)


@dataclass(frozen=True)
class Value:
    """An input or output, as ONNX Runtime tells of it."""

    name: str
    type: str
    shape: list[int | str | None]


class _Worker:
    """The child; one serves all runners, and another takes its place when it ends."""

    _current: "_Worker | None" = None

    def __init__(self) -> None:
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(
            filter(None, [package, os.environ.get("PYTHONPATH")])
        )  # an empty part is the folder here
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kdexport.onnx.isolated_worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C reaches the parent, which ends its child itself
        )
        self.token = 0  # of the model that it holds

    @classmethod
    def running(cls) -> "_Worker":
        """Return the one that runs; one that something ended meanwhile is cleared away first."""
        if cls._current is not None and cls._current._process.poll() is not None:
            cls._current.end()
        if cls._current is None:
            cls._current = cls()
        return cls._current

    def ask(self, request: Any, timeout_s: float | None) -> tuple[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: PT018 both are pipes
        try:
            pickle.dump(request, self._process.stdin, protocol=5)
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], timeout_s)[0]:
                self.end()
                raise KDExportError(
                    f"ONNX Runtime was silent for {timeout_s:g} s on the file", hint="try a smaller network or batch"
                )
            verdict, answer = pickle.load(self._process.stdout)  # noqa: S301 our own child's
            return str(verdict), answer
        except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            code = self._process.wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            self.end()
            if code == -signal.SIGKILL:  # not its own fault: the kernel does that where memory ends
                raise KDExportError(memory.message(), hint=memory.HINT) from error
            raise KDExportError(
                f"ONNX Runtime {onnxruntime.__version__} crashes on the file ({how})",
                hint="that is a fault of ONNX Runtime; another version may read it",
            ) from error
        except BaseException:  # an interrupt between question and answer: the next answer would be the wrong one
            self.end()
            raise

    def end(self) -> None:
        """End the child."""
        type(self)._current = None
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


@atexit.register
def _end() -> None:
    if _Worker._current is not None:
        _Worker._current.end()
