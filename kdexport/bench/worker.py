"""The measured process: ``python -m kdexport.bench.worker``. It holds one model and nothing else.

It reads one JSON command per line from stdin and answers on what was stdout with one JSON line, followed by raw
bytes where the line says so. Between commands it sleeps in ``read``. It ends when its parent closes stdin or dies.
Imported here: the standard library, numpy, onnxruntime and the light siblings; never torch, typer or pydantic.
"""

import gc
import json
import os
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

from kdexport.bench import memory

Reply = tuple[dict[str, Any], bytes]


class Worker:
    """One model, loaded once, run on command."""

    def __init__(self) -> None:
        self._session: Any = None
        self._bound: Any = None
        self._inputs: dict[str, str] = {}

    def ready(self, task: Mapping[str, Any]) -> Reply:  # noqa: ARG002 - every command takes its task
        """Import what a measurement needs, so that loading measures loading."""
        from kdexport.bench import inputs, session, timing  # noqa: F401

        return {}, b""

    def load(self, task: Mapping[str, Any]) -> Reply:
        """Load the model: how long it took and where its nodes went."""
        from kdexport.bench import session

        self._session, load_ms = session.open_session(
            task["path"], task["provider"], task["provider_options"], task["threads"]
        )
        self._inputs = {value.name: value.type for value in self._session.get_inputs()}
        return {
            "load_ms": load_ms,
            "providers": self._session.get_providers(),
            "placement": session.placement(self._session),
            "inputs": {value.name: value.shape for value in self._session.get_inputs()},
        }, b""

    def prepare(self, task: Mapping[str, Any]) -> Reply:
        """Make and bind the inputs, time the first run, then run until the time per call is stable."""
        import time

        from kdexport.bench import session, timing

        self._bound = session.Bound(self._session, self._feeds(task))
        before = time.perf_counter_ns()
        self._bound.run()
        first_ms = (time.perf_counter_ns() - before) / 1e6
        self._bound.keep_outputs()
        warm = timing.warm_up(self._bound.run)
        return {"first_run_ms": first_ms, "warm_runs": warm.runs, "stable": warm.stable, "call_ns": warm.call_ns}, b""

    def turn(self, task: Mapping[str, Any]) -> Reply:
        """Time single calls for one turn; the samples follow as int64 nanoseconds."""
        from kdexport.bench import timing

        return {}, timing.measure_turn(self._bound.run, task["budget_ns"]).tobytes()

    def memory(self, task: Mapping[str, Any]) -> Reply:
        """Load and run the model in a process that has done nothing else, and read what the kernel says."""
        from kdexport.bench import session

        empty, _ = session.open_session(
            session.EMPTY_MODEL, task["provider"], task["provider_options"], task["threads"]
        )
        del empty
        gc.collect()
        before = memory.resident_mib()
        self.load(task)
        after = memory.resident_mib()
        bound = session.Bound(self._session, self._feeds(task))
        for _ in range(task["runs"]):
            bound.run()
        model = None if before is None or after is None else max(after - before, 0.0)
        return {"peak_rss": memory.peak_mib(), "model": model}, b""

    def _feeds(self, task: Mapping[str, Any]) -> dict[str, Any]:
        from kdexport.bench import inputs

        if task["file"]:
            return inputs.from_file(task["file"], self._inputs, task["batch_size"])
        return {
            name: inputs.values(task["shapes"][name], kind, task["below"].get(name))
            for name, kind in self._inputs.items()
        }


def serve(commands: BinaryIO, answers: BinaryIO) -> None:
    """Answer commands until there are no more."""
    from kdexport.errors import KDExportError

    worker = Worker()
    known = {
        "ready": worker.ready,
        "load": worker.load,
        "prepare": worker.prepare,
        "turn": worker.turn,
        "memory": worker.memory,
    }
    for line in iter(commands.readline, b""):
        task = json.loads(line)
        try:
            reply, payload = known[task["do"]](task)
        except KDExportError as error:
            reply, payload = {"error": error.message, "hint": error.hint}, b""
        except Exception as error:  # noqa: BLE001 - whatever the runtime raises is this model's failure, told in words
            reply, payload = {"error": f"{type(error).__name__}: {error}"}, b""
        reply["bytes"] = len(payload)
        answers.write(json.dumps(reply).encode() + b"\n" + payload)
        answers.flush()


def main() -> None:
    """Keep the pipe for answers alone: whatever a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
