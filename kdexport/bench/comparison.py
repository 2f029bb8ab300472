"""Files of one network timed against each other, in short: what ``export`` asks to choose a precision by.

The same rounds of fresh processes in turns as a benchmark, on the recipe's first device, thread count and batch size,
without memory, energy and scores; and the profile of a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from kdexport.bench import devices, profile
from kdexport.bench.plan import Condition, Settings, Target
from kdexport.bench.runner import Runner, Series
from kdexport.bench.stage import plan_for
from kdexport.bench.web import devices as web
from kdexport.bench.worker_group import worker_task
from kdexport.machine import fingerprint
from kdexport.onnx.describe import describe_file
from kdexport.progress import SILENT
from kdexport.recipe import Bench
from kdexport.results import Profile, TimedOn

Turns = tuple[tuple[float, ...], ...]  # nanoseconds: medians of the turns, of each round


class Comparison:
    """Times files against each other.

    Args:
        settings: The recipe's [bench]; of several devices, thread counts and batch sizes the first counts.
        dims: Sizes of dynamic axes by name; the batch needs none.
        fixed_batch: The batch size where the file has but one.

    Raises:
        DeviceError: The device is not there.
    """

    def __init__(self, settings: Bench, dims: Mapping[str, int] | None = None, fixed_batch: int | None = None) -> None:
        first = {name: getattr(settings, name)[:1] for name in ("devices", "batch_sizes", "threads")}
        if fixed_batch is not None:
            first["batch_sizes"] = (fixed_batch,)
        self._bench = settings.model_copy(update={**first, "streams": (1,), "profile": False, "power_command": None})
        self._dims = {**(dims or {}), **settings.dims}
        (self._device,) = devices.find(first["devices"], devices.available(), settings.provider_options)
        web.check_there([self._device], self._bench)
        (threads,) = web.threads_on(self._device, first["threads"])
        self._condition = Condition(self._device, threads, first["batch_sizes"])
        machine = fingerprint()
        self.on = TimedOn(
            self._device.name, threads, first["batch_sizes"][0], machine.name, machine.cpu, machine.cpu_features
        )

    @property
    def profiles(self) -> bool:
        """Whether the device tells the time of operators."""
        return profile.tells(self._device)

    def turns(
        self, files: Mapping[str, Path], *, rounds: int, seconds: float
    ) -> tuple[dict[str, Turns], dict[str, str]]:
        """Time files in turns.

        Args:
            files: By name.
            rounds: Fresh processes of each.
            seconds: That each is measured in all.

        Returns:
            By name the medians of each round's turns; and why a file could not be measured.

        Raises:
            KDExportError: A shape is not known, or the device does not take a file whole.
        """
        plan = self._plan(files, rounds, seconds)
        runner = Runner(plan[0], plan[1], self.on.machine, SILENT)
        series = [Series(target, self.on.batch_size) for target in plan[0]]
        with SILENT.task("timing", total=rounds) as task:
            runner.rounds(self._condition, series, task)
        found = {
            one.target.name: tuple(tuple(turns) for turns in one.turns)
            for one in series
            if not one.failed and one.turns
        }
        return found, {failure.model: failure.reason for failure in runner.failures}

    def profile(self, file: Path, p50_ms: float, *, processes: int = 1) -> Profile | None:
        """Return the time of a file's operators; None where the device does not tell."""
        (target,), settings = self._plan({"file": file}, 1, 1.0)
        settings = dataclasses.replace(settings, profile=True)
        task = worker_task(target, self.on.batch_size, self._condition, settings)
        return profile.measure(target, task, self._condition, settings, p50_ms, processes=processes)[0]

    def _plan(self, files: Mapping[str, Path], rounds: int, seconds: float) -> tuple[tuple[Target, ...], Settings]:
        models = [describe_file(path, name) for name, path in files.items()]
        plan = plan_for(models, self._bench, dims=self._dims)
        plan = web.resolve(plan, [self._device])
        settings = dataclasses.replace(
            plan.settings, rounds=rounds, min_seconds=seconds, max_seconds=seconds * 2, min_runs=1, precision=1.0
        )
        return plan.targets, settings
