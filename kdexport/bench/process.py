"""The parent's side of one worker: start it, ask it, and know how it ended.

The parent sleeps in ``select`` until the answer is there or the time is up; it never polls while a child is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kdexport.errors import KDExportError

if TYPE_CHECKING:
    from typing import Self

package_root = Path(__file__).resolve().parents[2]  # workers import from here; a pack points it elsewhere
# What ``-P -m MODULE`` does from Python 3.11 on: a numpy.py in the working directory is not the numpy that is meant.
START = (
    "import sys; sys.path[:] = [folder for folder in sys.path if folder]; import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__')"
)
STDERR_LINES = 3  # that a dead worker last printed
QUIT_SECONDS = 2.0


class ChildError(Exception):
    """A worker died, hung or reported a fault; the text is the reason in words."""


class Child:
    """One worker process.

    Args:
        label: What it measures, for messages.
        timeout_s: Longest wait for one answer.
        module: What runs in it.
        arguments: What it is given beside this process's id.
    """

    def __init__(
        self, label: str, timeout_s: float, module: str = "kdexport.bench.worker", arguments: Sequence[str] = ()
    ) -> None:
        self.label = label
        self._timeout_s = timeout_s
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, module, str(os.getpid()), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_environment(),
            start_new_session=True,  # Ctrl-C reaches the parent, which ends its children itself
        )
        self._buffer = b""
        self._ready = False
        self.cpu_s = 0.0  # spent by the worker, as of its last answer

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def ask(self, **task: Any) -> tuple[dict[str, Any], bytes]:
        """Send a command and sleep until it is answered.

        Raises:
            ChildError: It died or did not answer in time (it is killed then), or the model failed.
            KDExportError: The user can fix it.
        """
        self.send(**task)
        return self.answer()

    def send(self, **task: Any) -> None:
        """Send a command without waiting, so that several children can load at once."""
        pipe = self._process.stdin
        if pipe is None:  # pragma: no cover - Popen was asked for one
            raise ChildError("the worker has no pipe")
        try:
            pipe.write(json.dumps(task).encode() + b"\n")
            pipe.flush()
        except OSError:
            raise ChildError(self._how_it_ended()) from None

    def answer(self) -> tuple[dict[str, Any], bytes]:
        """Sleep until the command that was sent is answered; raises as ``ask``."""
        deadline = time.monotonic() + self._timeout_s
        while b"\n" not in self._buffer:
            self._read(deadline)
        line, _, self._buffer = self._buffer.partition(b"\n")
        reply = json.loads(line)
        while len(self._buffer) < reply["bytes"]:
            self._read(deadline)
        payload, self._buffer = self._buffer[: reply["bytes"]], self._buffer[reply["bytes"] :]
        self.cpu_s = reply["cpu_s"]
        if "hint" in reply:
            raise KDExportError(reply["error"], hint=reply["hint"])
        if "error" in reply:
            raise ChildError(reply["error"])
        return reply, payload

    def ready(self) -> None:
        """Sleep until the worker has imported what it needs and listens."""
        if not self._ready:
            self.ask(do="ready")
            self._ready = True

    def kill(self) -> None:
        """End the worker at once."""
        self._process.kill()

    def close(self) -> None:
        """End the worker, gently first."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # it has died with a command unread
                    pipe.close()
        try:
            self._process.wait(QUIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        self.close()

    def _read(self, deadline: float) -> None:
        pipe = self._process.stdout
        if pipe is None:  # pragma: no cover - Popen was asked for one
            raise ChildError("the worker has no pipe")
        ready, _, _ = select.select([pipe], [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            self._process.kill()
            self._process.wait()
            raise ChildError(f"no answer within {self._timeout_s:g} s (--timeout); it was killed")
        block = os.read(pipe.fileno(), 1 << 20)
        if not block:
            raise ChildError(self._how_it_ended())
        self._buffer += block

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(QUIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            why = f"the worker was killed by {name}"
            if name == "SIGKILL":
                why += " (the system does that when memory runs out)"
        else:
            why = f"the worker ended with code {code}"
        last = self._last_lines()
        return f"{why}: {last}" if last else why

    def _last_lines(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return " | ".join(line.strip() for line in lines[-STDERR_LINES:])


def _environment() -> dict[str, str]:
    """Return the parent's environment, with this package found first and numpy's own threads off."""
    path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": f"{package_root}{os.pathsep}{path}" if path else str(package_root),
        "OPENBLAS_NUM_THREADS": "1",  # each would hold memory that no bare script of one thread holds
    }
