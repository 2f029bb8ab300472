"""The parent's side of measuring: who runs when, and when it is enough.

A *round* gives every model a fresh process. The processes of one round are alive together and take turns of some
20 ms: what the machine does meanwhile (clocks, heat, other load) happens to all of them alike, so that ratios hold. The
order turns round with each turn, which cancels a steady drift. While one runs, the others and the parent sleep.
Rounds are repeated until the intervals are narrow enough: one process is never believed alone.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdexport import figures, statistics
from kdexport.bench import devices, energy, host, profile
from kdexport.bench.host import Surroundings, Watch
from kdexport.bench.plan import Condition, Plan, Settings, Target
from kdexport.bench.process import ChildError
from kdexport.bench.session import check_placement, shares
from kdexport.bench.warnings import in_words, measurement_warnings
from kdexport.bench.web.devices import is_web, threads_on
from kdexport.bench.worker_group import WorkerGroup, child_for, worker_task
from kdexport.errors import DeviceError, KDExportError
from kdexport.progress import Progress, Task
from kdexport.results import Browser, Failure, Measurement, Memory
from kdexport.statistics import LEAST_ROUNDS

SPEEDUP_PRECISION = 1.5  # times `precision`: two medians are in a ratio, at worst 1.41 times as uncertain as one
MEMORY_RUNS = 3  # the arena has its final size after the first run or two


@dataclass
class Series:
    """The growing record of one model at one batch size."""

    target: Target
    batch_size: int
    rounds: list[np.ndarray] = field(default_factory=list)
    turns: list[list[float]] = field(default_factory=list)  # median nanoseconds of each turn
    load_ms: list[float] = field(default_factory=list)
    first_run_ms: list[float] = field(default_factory=list)
    placement: dict[str, dict[str, int]] = field(default_factory=dict)
    settled: list[bool] = field(default_factory=list)
    bound_in: str | None = None
    not_a_number: tuple[str, ...] = ()  # outputs that held nothing but NaN
    surroundings: list[Surroundings] = field(default_factory=list)  # one a round
    memory: Memory = field(default_factory=lambda: Memory(None, None, None))
    precision: float | None = None
    left_out: host.LeftOut = field(default_factory=host.LeftOut)
    calls_per_sample: int = 1  # in a browser, whose clock is too coarse for one
    browser: dict[str, Any] | None = None
    failed: bool = False

    @property
    def seconds(self) -> float:
        """Time measured so far, of the calls that count."""
        return float(sum(int(samples.sum()) for samples in self.rounds)) / 1e9 * self.calls_per_sample

    @property
    def runs(self) -> int:
        """Samples taken so far, of those that count."""
        return sum(samples.size for samples in self.rounds)

    def measured(self, machine: str, condition: Condition) -> Measurement:
        """Return the figures of what was taken; what was looked at beside it is for the caller to add."""
        latency = statistics.latency(self.rounds, self.turns, left_out=self.left_out.calls)
        if self.calls_per_sample > 1:  # quantiles of means are none of calls
            latency = dataclasses.replace(
                latency, p90=None, p95=None, p99=None, p90_ci95=None, p95_ci95=None, p99_ci95=None
            )
        browser = self.browser and Browser(**{**self.browser, "calls_per_sample": self.calls_per_sample})
        return Measurement(
            model=self.target.name,
            machine=machine,
            device=condition.device.name,
            provider=condition.device.provider,
            placement=shares(self.placement),
            batch_size=self.batch_size,
            threads=condition.threads,
            latency_ms=latency,
            throughput_per_s=self.batch_size * self.runs * self.calls_per_sample / self.seconds,
            load_ms=float(np.median(self.load_ms)),
            first_run_ms=float(np.median(self.first_run_ms)),
            memory_mib=self.memory,
            memory_of_inputs=self.bound_in,
            browser=browser or None,
        )


@dataclass(frozen=True)
class Outcome:
    """All that was measured, and all that could not be."""

    measurements: tuple[Measurement, ...]
    failures: tuple[Failure, ...]
    samples: dict[str, list[np.ndarray]]  # "model|device|batch|threads" -> nanoseconds, one array a round


def run_plan(plan: Plan, machine: str, progress: Progress) -> Outcome:
    """Measure all of a plan on this machine.

    Args:
        plan: What to measure.
        machine: What this machine is called in the results.
        progress: Where to say how it goes.

    Raises:
        DeviceError: A device isn't there, or did not take a model, or not whole.
        KDExportError: An input is not what a model needs, or the power command does not work.
    """
    found = devices.find(plan.devices, devices.available(), plan.provider_options)
    if any(map(is_web, found)) and plan.settings.web.runtime_version is None:
        raise DeviceError(
            "a packed benchmark drives no browser", hint="measure it where kdexport is: kdexport bench --device web"
        )
    for device in found:
        if is_web(device) and max(plan.threads) > max(threads_on(device, plan.threads)):
            progress.warn(f"{device.name} has one thread; web:wasm-threads has as many as --threads says")
    conditions = [
        Condition(device, threads, plan.batch_sizes) for device in found for threads in threads_on(device, plan.threads)
    ]
    return Runner(plan.targets, plan.settings, machine, progress).run(conditions)


class Runner:
    """Measures a set of models, condition by condition."""

    def __init__(self, targets: Sequence[Target], settings: Settings, machine: str, progress: Progress) -> None:
        self._targets = targets
        self._settings = settings
        self._machine = machine
        self._progress = progress
        self._measurements: list[Measurement] = []
        self._failures: list[Failure] = []
        self._samples: dict[str, list[np.ndarray]] = {}

    def run(self, conditions: Sequence[Condition]) -> Outcome:
        """Measure every model in every condition; raises as ``run_plan``, before anything is timed."""
        if self._settings.power_command is not None:
            energy.power_command(self._settings.power_command).watts()
        rounds = sum(self._settings.rounds * len(condition.batch_sizes) for condition in conditions)
        # Drawn between rounds only: a bar that moves wakes this process while a model is timed.
        with self._progress.task("measuring", total=rounds, still=True) as task:
            # Reading the memory also proves that the device takes the model: no figure is lost to a later refusal.
            proved = [self._prove(condition, task) for condition in conditions]
            for condition, series in zip(conditions, proved):
                self._measure(condition, series, task)
        return Outcome(tuple(self._measurements), tuple(self._failures), self._samples)

    def _prove(self, condition: Condition, task: Task) -> list[Series]:
        """Return the records with their memory; a model that fails is marked, one that is refused raises."""
        series = [Series(target, batch) for batch in condition.batch_sizes for target in self._targets]
        for one in series:
            task.advance(0, note=f"memory of {one.target.name}, batch {one.batch_size}")
            one.memory = self._memory(one, condition)
        return series

    def _measure(self, condition: Condition, series: list[Series], task: Task) -> None:
        self.rounds(condition, series, task)
        for one in series:
            if not one.failed:
                self._record(one, condition)
                task.advance(0, note=f"{one.target.name}, batch {one.batch_size}")

    def rounds(self, condition: Condition, series: list[Series], task: Task) -> None:
        """Give the models rounds until it is enough; one that fails is marked, with its reason among the failures."""
        waiting = set(condition.batch_sizes)
        started = time.monotonic()
        turn = 0
        while waiting:
            with ExitStack() as stack:
                group = WorkerGroup(stack, condition, self._settings, turn)
                group.start([one.target for one in series if one.batch_size in waiting and not one.failed], turn % 2)
                for batch in sorted(waiting):
                    self._round([one for one in series if one.batch_size == batch], group, task)
            turn += 1
            late = time.monotonic() - started >= self._settings.max_seconds * len(series)
            for batch in sorted(waiting):
                if self._enough([one for one in series if one.batch_size == batch and not one.failed], late):
                    waiting.remove(batch)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What could not be measured so far."""
        return tuple(self._failures)

    def _round(self, series: list[Series], group: WorkerGroup, task: Task) -> None:
        """Give each model its share of one round at one batch size, in turns."""
        budget_ns = max(1, int(self._settings.min_seconds * 1e9 / self._settings.rounds))  # one turn at least
        parts: dict[str, list[np.ndarray]] = {}
        for one in series:
            if not one.failed and self._attempt(one, group, self._prepare):
                parts[one.target.name] = []
        spent = dict.fromkeys(parts, 0)
        watch = Watch(lambda: time.process_time() + group.cpu_s())
        turn = 0
        while active := [one for one in series if spent.get(one.target.name, budget_ns) < budget_ns]:
            for one in active if turn % 2 == 0 else reversed(active):
                name = one.target.name
                if self._attempt(one, group, lambda one, group, name=name: parts[name].append(self._turn(one, group))):
                    spent[name] += int(np.abs(parts[name][-1]).sum()) * one.calls_per_sample
                else:
                    spent[name] = budget_ns
            turn += 1
        surroundings = watch.result()
        done = [one for one in series if not one.failed]
        counted = host.undisturbed({one.target.name: parts[one.target.name] for one in done})
        for one in done:
            own = counted[one.target.name]
            one.rounds.append(np.concatenate(own))
            one.turns.append([float(np.median(calls)) for calls in own])
            one.left_out = one.left_out.more(parts[one.target.name], own)
            one.surroundings.append(surroundings)
        count = len(done[0].rounds) if done else self._settings.rounds
        # Rounds beyond the fewest are not in the total: how many it takes shows only then.
        added = count > self._settings.rounds
        note = f"batch {series[0].batch_size}, round {count}{self._why_more(done) if added else ''}"
        task.advance(0 if added else 1, note=note)

    def _why_more(self, series: Sequence[Series]) -> str:
        """Say what a round beyond the fewest is for."""
        left_out = max((one.left_out.share for one in series), default=0.0)
        worst = max((one.precision or 0.0 for one in series), default=0.0)
        known = f", added: medians are known to ±{figures.percent(worst)}"
        return known + (f", {figures.percent(left_out, 0)} of the time beside other work" if left_out > 0.01 else "")

    def _prepare(self, one: Series, group: WorkerGroup) -> None:
        task = worker_task(one.target, one.batch_size, group.condition, self._settings)
        child, loaded = group.child(one.target, task)
        one.placement = loaded["placement"] or one.placement
        one.load_ms.append(loaded["load_ms"])
        reply, _ = child.ask(do="prepare", **task)
        one.first_run_ms.append(reply["first_run_ms"])
        one.settled.append(reply["stable"])
        one.not_a_number = tuple(reply["nan"])
        one.bound_in = reply["memory"]
        one.calls_per_sample = max(one.calls_per_sample, reply.get("calls_per_sample", 1))
        one.browser = reply.get("browser", one.browser)

    def _turn(self, one: Series, group: WorkerGroup) -> np.ndarray:
        samples, calls = group.turn(one.target)
        one.calls_per_sample = max(one.calls_per_sample, calls)
        return samples

    def _attempt(self, one: Series, group: WorkerGroup, work: Any) -> bool:
        """Do one step with a model's child; where it fails the model is out, and the others go on."""
        try:
            work(one, group)
        except (ChildError, KDExportError) as error:  # what is refused only now costs this model, not the others
            group.drop(one.target)
            self._fail(one, group.condition, error)
        return not one.failed

    def _memory(self, one: Series, condition: Condition) -> Memory:
        """Read the memory in another, short-lived process; what fails here is not tried again."""
        task = worker_task(one.target, one.batch_size, condition, self._settings)
        with child_for(one.target.name, condition.device, self._settings) as child:
            try:
                reply, _ = child.ask(do="memory", runs=MEMORY_RUNS, **task)
            except ChildError as error:
                self._fail(one, condition, error)
                return Memory(None, None, None)
            except KDExportError as error:
                raise KDExportError(f"{one.target.name}: {error.message}", hint=error.hint) from None
        check_placement(one.target.name, condition.device, reply, self._settings.allow_fallback)
        one.placement = reply["placement"]
        figures_read = (reply["peak_rss"], reply["model"], reply["device_peak"])
        return Memory(*figures_read, wasm_heap=reply.get("wasm_heap"), page=reply.get("page"))

    def _fail(self, one: Series, condition: Condition, error: Exception) -> None:
        one.failed = True
        reason = in_words(str(error), one.batch_size)
        self._failures.append(
            Failure(one.target.name, condition.device.name, one.batch_size, condition.threads, reason)
        )
        self._progress.warn(f"{one.target.name} at batch {one.batch_size} on {condition.device.name}: {reason}")

    def _enough(self, series: Sequence[Series], late: bool) -> bool:
        """Stop when each has its least rounds, time and runs and narrow enough intervals, or no time left after them.

        Two intervals: of the median, and of the speed-up over the first model, which is what people decide by. A model
        that has enough goes on while another needs more: round i of every model then saw the same machine.
        """
        settings = self._settings
        for one in series:
            one.precision = statistics.precision(one.rounds)
        if any(len(one.rounds) < settings.rounds for one in series):
            return False
        if late:
            return True
        if any(one.seconds < settings.min_seconds or one.runs < settings.min_runs for one in series):
            return False
        if settings.rounds < LEAST_ROUNDS:  # then nobody asked for an interval
            return True
        widths = [(one.precision, settings.precision) for one in series]
        for one in series[1:]:
            ratio = statistics.speedup_precision(series[0].turns, one.turns)
            widths.append((ratio, SPEEDUP_PRECISION * settings.precision))
        return all(width is not None and width <= target for width, target in widths)

    def _record(self, one: Series, condition: Condition) -> None:
        measured = one.measured(self._machine, condition)
        task = worker_task(one.target, one.batch_size, condition, self._settings)
        extra = energy.Extras()
        if not is_web(condition.device):
            meter, count = self._meter(condition), len(one.placement)
            extra = energy.measure(one.target.name, task, condition, self._settings, meter, count, self._progress)
        operators, told = profile.measure(one.target, task, condition, self._settings, measured.latency_ms.p50)
        self._measurements.append(
            dataclasses.replace(
                measured,
                energy_mj=extra.energy_mj,
                warnings=(
                    *one.target.warnings,
                    *measurement_warnings(one, measured.latency_ms, self._settings, condition, extra.compute_share),
                    *extra.warnings,
                    *told,
                ),
                compute_share=extra.compute_share,
                throughput_by_streams=extra.throughput_by_streams,
                transfer_ms=extra.transfer_ms,
                disturbed=host.disturbance(one.left_out, one.surroundings, condition),
                profile=operators,
            )
        )
        self._samples[f"{one.target.name}|{condition.device.name}|{one.batch_size}|{condition.threads}"] = one.rounds

    def _meter(self, condition: Condition) -> energy.Meter | None:
        index = int(condition.device.options.get("device_id", 0))
        return energy.find_meter(condition.device.provider, index, self._settings.power_command)
