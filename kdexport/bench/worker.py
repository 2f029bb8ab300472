"""The measured process: ``python -m kdexport.bench.worker``. It holds one model and nothing else.

It reads one JSON command per line from stdin and answers on what was stdout with one JSON line, followed by raw
bytes where the line says so. Between commands it sleeps in ``read``. It ends when its parent closes stdin or dies.
Imported here: the standard library, numpy, onnxruntime and the light siblings; never torch, typer or pydantic.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, ClassVar, Protocol, TypeVar

from kdexport.bench import host
from kdexport.onnx.orphans import end_with_parent

T = TypeVar("T")
Reply = tuple[dict[str, Any], bytes]


class Worker:
    """One model, loaded once, run on command."""

    def __init__(self) -> None:
        self._session: Any = None
        self._bound: Any = None
        self._run: Any = None
        self._inputs: dict[str, str] = {}  # name -> type
        self._shapes: dict[str, Any] = {}  # name -> shape, as the graph has it
        self._device: tuple[str, int] = ("", 0)
        self._waited_ns: Any = None  # how long this process has waited for a core
        self._watched_threads = 1

    commands: ClassVar[tuple[str, ...]] = (
        "ready",
        "pin",
        "load",
        "prepare",
        "turn",
        "memory",
        "streams",
        "sustain",
        "transfers",
        "profile",
        "operators",
    )

    def cpu_s(self) -> float:
        """Return the CPU seconds of this process."""
        return time.process_time()

    def close(self) -> None:
        """Nothing outlives this process."""

    def ready(self, task: Mapping[str, Any]) -> Reply:  # noqa: ARG002 - every command takes its task
        """Import what a measurement needs, so that loading measures loading."""
        from kdexport.bench import inputs, session, timing  # noqa: F401

        return {}, b""

    def pin(self, task: Mapping[str, Any]) -> Reply:
        """Stay on some cores, counted among those that this process may use; all of them where the system cannot."""
        if hasattr(os, "sched_setaffinity"):
            mine = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {mine[position % len(mine)] for position in task["cores"]})
        return {}, b""

    def load(self, task: Mapping[str, Any]) -> Reply:
        """Load the model: how long it took and where its nodes went. Without a path: the empty model."""
        from kdexport.bench import session

        options = task["provider_options"]
        self._register(task)
        model = task["path"] or session.EMPTY_MODEL
        self._session, load_ms = session.open_session(model, task["provider"], options, task["threads"])
        self._inputs = {value.name: value.type for value in self._session.get_inputs()}
        self._shapes = {value.name: value.shape for value in self._session.get_inputs()}
        self._device = (task["provider"], int(options.get("device_id", 0)))
        return {
            "load_ms": load_ms,
            "providers": self._session.get_providers(),
            "placement": session.placement(self._session),
        }, b""

    def prepare(self, task: Mapping[str, Any]) -> Reply:
        """Make and bind the inputs, time the first run, then run until the time per call is stable."""
        from kdexport.bench import timing

        self._bound = self._bind(task)
        before = time.perf_counter_ns()
        self._bound.run()
        first_ms = (time.perf_counter_ns() - before) / 1e6
        not_a_number = self._bound.not_a_number()
        self._bound.keep_outputs()
        self._run = self._bound.run
        warm = self._steady(lambda: timing.warm_up(self._run))
        self._waited_ns, self._watched_threads = host.wait_clock()  # the session's threads are there now
        return {
            "first_run_ms": first_ms,
            "stable": warm.stable,
            "memory": self._bound.memory[0],
            "nan": not_a_number,
        }, b""

    def turn(self, task: Mapping[str, Any]) -> Reply:
        """Time single calls for one turn; int64 nanoseconds follow, negative where other work had the core."""
        from kdexport.bench import timing

        block_ns = timing.BLOCK_NS * self._watched_threads
        budget_ns = task["budget_ns"]
        samples = self._steady(lambda: timing.measure_turn(self._run, budget_ns, self._waited_ns, block_ns))
        return {}, samples.tobytes()

    def memory(self, task: Mapping[str, Any]) -> Reply:
        """Load and run the model in a process that has done nothing else, and read what the kernel says."""
        from kdexport.bench import session

        self._register(task)
        empty, _ = session.open_session(
            session.EMPTY_MODEL, task["provider"], task["provider_options"], task["threads"]
        )
        del empty
        gc.collect()
        before = host.resident_mib()
        loaded, _ = self.load(task)
        after = host.resident_mib()
        self._bound = self._bind(task)
        self._run = self._bound.run
        self._steady(lambda: [self._run() for _ in range(task["runs"])])
        model = None if before is None or after is None else max(after - before, 0.0)
        peak = host.peak_mib()  # before NVML is imported
        device = host.device_mib(self._device[1]) if self._bound.memory[0] == "cuda" else None
        return {**loaded, "peak_rss": peak, "model": model, "device_peak": device}, b""

    def streams(self, task: Mapping[str, Any]) -> Reply:
        """Run the one session from several threads at once for some seconds: throughput, not latency."""
        from kdexport.bench import timing

        callers = [self._bind(task) for _ in range(task["count"])]
        for caller in callers:
            caller.run()
            caller.keep_outputs()
        runs, seconds = timing.together([caller.run for caller in callers], task["seconds"])
        return {"runs": runs, "seconds": seconds}, b""

    def sustain(self, task: Mapping[str, Any]) -> Reply:
        """Run without a pause for some seconds and count: for a power meter."""
        from kdexport.bench import timing

        return {"runs": self._steady(lambda: timing.together([self._run], task["seconds"]))[0]}, b""

    def transfers(self, task: Mapping[str, Any]) -> Reply:
        """Time the copies between host and device apart from the computing; medians in ms."""
        from kdexport.bench import timing

        return {
            "host_to_device": timing.median_ms(self._bound.to_device, task["runs"]),
            "device_to_host": timing.median_ms(self._bound.to_host, task["runs"]),
        }, b""

    def profile(self, task: Mapping[str, Any]) -> Reply:
        """Return provider -> share of the time that the nodes take, from the runtime's own profile of a few runs."""
        import tempfile

        from kdexport.bench import session, timing

        with tempfile.TemporaryDirectory() as folder:
            profiled, _ = session.open_session(
                task["path"], task["provider"], task["provider_options"], task["threads"], f"{folder}/p"
            )
            bound = session.BoundSession(profiled, self._feeds(task), *self._device)
            for _ in range(task["runs"]):
                bound.run()
            return {"shares": timing.shares_of_profile(profiled.end_profiling())}, b""

    def operators(self, task: Mapping[str, Any]) -> Reply:
        """Measure the time of each operator of the prepared model, and what the profiler costs; see ``profile``."""
        from kdexport.bench import profile, profiled

        found = profiled.model_and_chain(task, self._feeds(task), self._device[1], self._waited_ns)
        return {key: profile.to_reply(calls) for key, calls in zip(("model", "chain"), found)}, b""

    def _steady(self, work: Callable[[], T]) -> T:
        """Run the model; once more without buffers for its outputs where their sizes turn out to change (NonZero)."""
        try:
            return work()
        except Exception as error:
            from kdexport.bench import session

            if not session.sizes_change(error):
                raise
            self._run = self._bound.run_allocating
            return work()

    def _register(self, task: Mapping[str, Any]) -> None:
        if task.get("libraries"):
            from kdexport.bench import devices

            devices.register(task["libraries"])

    def _bind(self, task: Mapping[str, Any]) -> Any:
        from kdexport.bench import session

        return session.BoundSession(self._session, self._feeds(task), *self._device)

    def _feeds(self, task: Mapping[str, Any]) -> dict[str, Any]:
        from kdexport.bench import inputs

        return inputs.feeds(task, self._inputs, self._shapes)


class Commanded(Protocol):
    """What answers commands: each a method that takes the task and returns the answer and the bytes behind it."""

    commands: ClassVar[tuple[str, ...]]

    def cpu_s(self) -> float:
        """Return the CPU seconds that the measuring has cost so far."""

    def close(self) -> None:
        """End whatever it has started."""


def serve(commands: BinaryIO, answers: BinaryIO, worker: Commanded | None = None) -> None:
    """Answer commands until there are no more."""
    from kdexport.errors import KDExportError

    worker = worker or Worker()
    for line in iter(commands.readline, b""):
        task = json.loads(line)
        try:
            if task["do"] not in worker.commands:
                raise ValueError(f"no command is called {task['do']}")
            reply, payload = getattr(worker, task["do"])(task)
        except KDExportError as error:
            reply, payload = {"error": error.message, "hint": error.hint}, b""
        except Exception as error:  # noqa: BLE001 - whatever the runtime raises is this model's failure, told in words
            reply, payload = {"error": f"{type(error).__name__}: {error}"}, b""
        reply["bytes"] = len(payload)
        reply["cpu_s"] = worker.cpu_s()
        answers.write(json.dumps(reply).encode() + b"\n" + payload)
        answers.flush()


def run_worker(worker: Commanded) -> None:
    """Answer the parent's commands. The pipe is kept for answers alone: whatever a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:  # noqa: PTH123
        score.write("1000")  # where memory runs out, it is this process that ends, not its parent
    end_with_parent()
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):  # the parent is gone
        serve(sys.stdin.buffer, answers, worker)
    with contextlib.suppress(KeyboardInterrupt):
        worker.close()


if __name__ == "__main__":
    run_worker(Worker())
