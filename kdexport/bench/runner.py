"""The parent's side of measuring: who runs when, and when it is enough.

All models of one (device, threads) group are alive together, each in a process of its own, and take turns in short
rounds: what the machine does in the meantime (clocks, heat, other load) happens to all of them alike, so that ratios
hold. The order turns round each time, which cancels a steady drift. While one runs, the others and the parent sleep.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdexport.bench import statistics
from kdexport.bench.child import Child, ChildError
from kdexport.bench.inputs import resolve_shapes
from kdexport.bench.plan import Device, Settings, Target
from kdexport.errors import DeviceError
from kdexport.progress import Progress, Task
from kdexport.results import Failure, Measurement, Memory

ROUND_MS = 50  # long enough that waking up is nothing, short enough that drift within one is nothing
CHECK_EVERY = 5  # rounds between two looks at the interval: the look costs milliseconds
MEMORY_RUNS = 3  # the arena has its final size after the first run or two


@dataclass
class Series:
    """One model's growing record at one batch size."""

    target: Target
    child: Child
    batch_size: int
    loaded: dict[str, Any]
    prepared: dict[str, Any]
    memory: Memory
    rounds: list[np.ndarray] = field(default_factory=list)
    precision: float | None = None

    @property
    def seconds(self) -> float:
        """Time measured so far."""
        return float(sum(int(samples.sum()) for samples in self.rounds)) / 1e9

    @property
    def runs(self) -> int:
        """Calls measured so far."""
        return sum(samples.size for samples in self.rounds)


@dataclass(frozen=True)
class Outcome:
    """All that was measured, and all that could not be."""

    measurements: tuple[Measurement, ...]
    failures: tuple[Failure, ...]
    samples: dict[str, list[np.ndarray]]  # "model|device|batch|threads" -> nanoseconds, one array a round


class Runner:
    """Measures a set of models under one plan."""

    def __init__(self, targets: Sequence[Target], settings: Settings, machine: str, progress: Progress) -> None:
        self._targets = targets
        self._settings = settings
        self._machine = machine
        self._progress = progress
        self._measurements: list[Measurement] = []
        self._failures: list[Failure] = []
        self._samples: dict[str, list[np.ndarray]] = {}

    def run(self, devices: Sequence[Device], batch_sizes: Sequence[int], threads: Sequence[int]) -> Outcome:
        """Measure every model on every device, batch size and thread count."""
        groups = [(device, count) for device in devices for count in threads]
        total = len(groups) * len(batch_sizes) * len(self._targets)
        with self._progress.task("measuring", total=total) as task:
            for device, count in groups:
                self._group(device, count, batch_sizes, task)
        return Outcome(tuple(self._measurements), tuple(self._failures), self._samples)

    def _group(self, device: Device, threads: int, batch_sizes: Sequence[int], task: Task) -> None:
        memories = {
            (target.name, batch): self._memory(target, device, threads, batch)
            for target in self._targets
            for batch in batch_sizes
        }
        with ExitStack() as stack:
            loaded = list(self._load(stack, device, threads))
            for batch in batch_sizes:
                series = []
                for target, child, reply in loaded:
                    prepared = self._prepare(target, child, device, threads, batch)
                    if prepared is not None:
                        memory = memories[target.name, batch]
                        series.append(Series(target, child, batch, reply, prepared, memory))
                failed = self._rounds(series, device, threads, task)
                loaded = [entry for entry in loaded if entry[1] not in failed]
                for one in series:
                    if one.child not in failed:
                        self._record(one, device, threads)

    def _load(self, stack: ExitStack, device: Device, threads: int) -> Iterator[tuple[Target, Child, dict[str, Any]]]:
        """Start one child per model, one after the other: a load time is measured while nothing else loads."""
        for target in self._targets:
            child = stack.enter_context(Child(target.name, self._settings.timeout_s))
            try:
                reply, _ = child.ask(do="load", **_task(target, device, threads))
            except ChildError as error:
                self._failures.append(Failure(target.name, device.name, None, threads, str(error)))
                continue
            check_placement(target, device, reply, self._settings.allow_fallback)
            yield target, child, reply

    def _prepare(self, target: Target, child: Child, device: Device, threads: int, batch: int) -> dict[str, Any] | None:
        try:
            reply, _ = child.ask(do="prepare", **_task(target, device, threads), **self._shapes(target, batch))
        except ChildError as error:
            self._failures.append(Failure(target.name, device.name, batch, threads, str(error)))
            return None
        return reply

    def _memory(self, target: Target, device: Device, threads: int, batch: int) -> Memory:
        """Read the memory in another, short-lived child; a failure shows again, with its reason, when it is timed."""
        with Child(target.name, self._settings.timeout_s) as child:
            try:
                task = {**_task(target, device, threads), **self._shapes(target, batch)}
                reply, _ = child.ask(do="memory", runs=MEMORY_RUNS, **task)
            except ChildError:
                return Memory(None, None, None)
        return Memory(reply["peak_rss"], reply["model"], None)

    def _rounds(self, series: list[Series], device: Device, threads: int, task: Task) -> set[Child]:
        """Let the children take turns until each has enough; return those that failed.

        A model that has enough goes on taking its turn while another needs more: round i of every model then saw the
        same state of the machine, which is what a ratio is made of.
        """
        failed: set[Child] = set()
        turn = 0
        while alive := [one for one in series if one.child not in failed]:
            for one in alive if turn % 2 == 0 else reversed(alive):
                try:
                    one.rounds.append(self._one_round(one))
                except ChildError as error:
                    failed.add(one.child)
                    reason = str(error)
                    self._failures.append(Failure(one.target.name, device.name, one.batch_size, threads, reason))
            turn += 1
            alive = [one for one in alive if one.child not in failed]
            if self._enough(alive):
                break
            task.advance(0, note=" ".join(f"{one.target.name} {one.seconds:.1f}s" for one in alive[:3]))
        task.advance(len(series))
        return failed

    def _one_round(self, one: Series) -> np.ndarray:
        # A slow model's round is one call, so that every model sees many short rounds.
        budget_ms = min(self._settings.min_seconds * 1e3 / self._settings.min_rounds, ROUND_MS)
        _, payload = one.child.ask(do="round", budget_ns=int(budget_ms * 1e6), min_runs=1)
        return np.frombuffer(payload, np.int64)

    def _enough(self, series: Sequence[Series]) -> bool:
        """Stop when each has the least time, rounds and runs and a narrow enough interval, or when one's time is up."""
        settings = self._settings
        late = any(one.seconds >= settings.max_seconds for one in series)
        for one in series:
            short = one.seconds < settings.min_seconds or one.runs < settings.min_runs
            if (short or len(one.rounds) < settings.min_rounds) and not late:
                return False
        if not late and series and len(series[0].rounds) % CHECK_EVERY:
            return False
        for one in series:
            one.precision = statistics.precision(one.rounds)
            if not late and (one.precision is None or one.precision > settings.precision):
                return False
        return True

    def _record(self, one: Series, device: Device, threads: int) -> None:
        latency = statistics.latency(one.rounds)
        warnings = []
        if one.precision is None or one.precision > self._settings.precision:
            reached = "unknown" if one.precision is None else f"{one.precision:.1%}"
            warnings.append(
                f"the median's interval is ±{reached}, wider than the ±{self._settings.precision:.1%} asked for, "
                f"after {one.seconds:.1f} s"
            )
        shares = _shares(one.loaded["placement"])
        self._measurements.append(
            Measurement(
                model=one.target.name,
                machine=self._machine,
                device=device.name,
                provider=device.provider,
                placement=shares,
                batch_size=one.batch_size,
                threads=threads,
                latency_ms=latency,
                throughput_per_s=one.batch_size * one.runs / one.seconds,
                load_ms=one.loaded["load_ms"],
                first_run_ms=one.prepared["first_run_ms"],
                memory_mib=one.memory,
                energy_mj=None,
                warnings=tuple(warnings),
            )
        )
        self._samples[f"{one.target.name}|{device.name}|{one.batch_size}|{threads}"] = one.rounds

    def _shapes(self, target: Target, batch: int) -> dict[str, Any]:
        shapes = {} if target.file else resolve_shapes(target.inputs, batch, self._settings.dims, model=target.name)
        return {"shapes": shapes, "batch_size": batch, "below": dict(target.below), "file": target.file}


def check_placement(target: Target, device: Device, loaded: dict[str, Any], allow_fallback: bool) -> None:
    """Refuse a session that does not run where it was asked to.

    Raises:
        DeviceError: The provider was dropped, or left nodes to others and ``allow_fallback`` is not given.
    """
    if device.provider not in loaded["providers"]:
        raise DeviceError(
            f"device '{device.name}' could not be used: "
            f"ONNX Runtime dropped {device.provider} when it loaded {target.name}",
            hint="run `kdexport doctor`: it shows what is missing and the command that mends it",
        )
    elsewhere = {
        provider: operators for provider, operators in loaded["placement"].items() if provider != device.provider
    }
    if elsewhere and not allow_fallback:
        nodes = sum(sum(operators.values()) for operators in elsewhere.values())
        names = sorted({operator for operators in elsewhere.values() for operator in operators})
        raise DeviceError(
            f"{target.name} does not run whole on '{device.name}': {nodes} nodes fell back to "
            f"{', '.join(sorted(elsewhere))} ({', '.join(names)})",
            hint="give --allow-fallback to measure it as it is",
        )


def _shares(placement: dict[str, dict[str, int]]) -> dict[str, float]:
    nodes = {provider: sum(operators.values()) for provider, operators in placement.items()}
    total = sum(nodes.values())
    return {provider: count / total for provider, count in nodes.items()} if total else {}


def _task(target: Target, device: Device, threads: int) -> dict[str, Any]:
    return {
        "path": target.path,
        "provider": device.provider,
        "provider_options": dict(device.options),
        "threads": threads,
    }
