"""Millijoules per inference, where the machine tells: RAPL, NVML, a Jetson's rails, or a command that prints watts.

A pass of its own: one model runs without a pause while the meter is read. What the machine draws while everything
sleeps is measured just before and taken off, so that the figure is what the inferences cost.

With it stands all that is measured apart from latency, after all timing is over: energy, throughput, copies, shares of
the compute. It has a process of its own: nothing here touches a latency figure.
"""

from __future__ import annotations

import abc
import contextlib
import math
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kdexport.bench import board
from kdexport.bench.devices import by_name
from kdexport.bench.host import nvml_handle
from kdexport.bench.plan import Condition, Settings
from kdexport.bench.process import Child, ChildError
from kdexport.errors import KDExportError
from kdexport.progress import Progress

POWERCAP = Path("/sys/class/powercap")
IDLE_SECONDS = 1.0
COMMAND_SECONDS = 10.0
SAMPLE_SECONDS = 0.1
_POWER_HINT = "it must print one number, the watts that are drawn now"


class Meter(Protocol):
    """Something that can say how much energy was used while a function ran."""

    @property
    def name(self) -> str:
        """Where the figure comes from."""

    def joules(self, work: Callable[[], object]) -> tuple[float, float]:
        """Run ``work``; return the joules used and the seconds taken."""


@dataclass(frozen=True)
class Counter:
    """A meter of energy counters that only grow, and may wrap.

    Args:
        name: Where the figure comes from.
        read: The counters in joules, one per part that is counted apart.
        wraps_at: Joules at which each starts again from 0; empty where they don't.
    """

    name: str
    read: Callable[[], Sequence[float]]
    wraps_at: tuple[float, ...] = ()

    def joules(self, work: Callable[[], object]) -> tuple[float, float]:
        """Run ``work``; return the joules used and the seconds taken."""
        before, start = self.read(), time.perf_counter()
        work()
        seconds, after = time.perf_counter() - start, self.read()
        used = [last - first for first, last in zip(before, after)]
        if self.wraps_at:
            used = [one + wrap if one < 0 else one for one, wrap in zip(used, self.wraps_at)]
        return sum(used), seconds


class Sampled(abc.ABC):
    """A meter that is asked for watts again and again; the mean over the time is the power."""

    @abc.abstractmethod
    def watts(self) -> float:
        """Ask once.

        Raises:
            KDExportError: There is no answer.
        """

    def joules(self, work: Callable[[], object]) -> tuple[float, float]:
        """Run ``work``; return the joules used and the seconds taken.

        Raises:
            KDExportError: There was no answer before it began.
        """
        before = self.watts()  # stands in where the work is over before the meter has answered once
        watts: list[float] = []
        ended = threading.Event()

        def sample() -> None:
            while not ended.wait(SAMPLE_SECONDS):
                try:
                    watts.append(self.watts())
                except KDExportError:  # it worked a moment ago; the other readings stand
                    continue

        thread = threading.Thread(target=sample, daemon=True)
        start = time.perf_counter()
        thread.start()
        try:
            work()
        finally:
            seconds = time.perf_counter() - start
            ended.set()
            thread.join()
        drawn = sum(watts) / len(watts) if watts else before
        return drawn * seconds, seconds


@dataclass(frozen=True)
class Rails(Sampled):
    """A meter of a board's supplies, which its kernel shows as files."""

    name: str
    rails: tuple[board.Rail, ...]

    def watts(self) -> float:
        """Read each once; raises KDExportError."""
        try:
            return sum(rail.read() for rail in self.rails)
        except (OSError, ValueError) as error:
            raise KDExportError(
                f"the power of this board cannot be read: {error}", hint="name a command with --power-command"
            ) from None


@dataclass(frozen=True)
class PowerCommand(Sampled):
    """A meter that is a command of the user's.

    Args:
        name: Where the figure comes from.
        command: Prints one number, watts.
    """

    name: str
    command: tuple[str, ...]

    def watts(self) -> float:
        """Ask once.

        Raises:
            KDExportError: The command failed or printed no number.
        """
        shown = shlex.join(self.command)
        try:
            done = subprocess.run(self.command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:  # ValueError: not text, or a null byte
            raise KDExportError(f"--power-command {shown!r} failed: {error}", hint=_POWER_HINT) from None
        with contextlib.suppress(IndexError, ValueError):
            number = float(done.stdout.split()[0])
            if math.isfinite(number):
                return number
        output = (done.stdout or done.stderr).strip() or "nothing"
        raise KDExportError(f"--power-command {shown!r} printed no number but: {output[:80]}", hint=_POWER_HINT)


def power_command(text: str) -> PowerCommand:
    """Return the meter behind ``--power-command``.

    Raises:
        KDExportError: It is empty, or its quotes do not match.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise KDExportError(f"--power-command {text!r} cannot be read: {error}", hint=_POWER_HINT) from None
    if not words:
        raise KDExportError("--power-command is empty", hint=f"name a command, or leave it out; {_POWER_HINT}")
    return PowerCommand("command", words)


def find_meter(
    provider: str, device_index: int, command: str | None, powercap: Path = POWERCAP, sys: Path = board.SYS
) -> Meter | None:
    """Return the meter for a device, or None where the machine offers none.

    A command that the user gives comes first. NVML counts a GPU alone; RAPL counts the CPU packages; a Jetson's rails
    are its whole module, CPU and GPU.
    """
    if command is not None:
        return power_command(command)
    if provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        return _nvml(device_index) or _rails(sys)
    return _rapl(powercap) or _rails(sys) if provider == "CPUExecutionProvider" else None


def per_run_mj(meter: Meter, run: Callable[[], int], idle: Callable[[], object] | None = None) -> float | None:
    """Return millijoules per inference above idle; None where the difference is not above 0.

    Args:
        meter: What to read.
        run: Does inferences for a few seconds and returns how many.
        idle: Leaves the machine alone for a moment.
    """
    used, seconds = meter.joules(idle or (lambda: time.sleep(IDLE_SECONDS)))
    idle_watts = used / seconds
    counts: list[int] = []
    used, seconds = meter.joules(lambda: counts.append(run()))
    above = used - idle_watts * seconds
    return above / counts[0] * 1e3 if counts[0] and above > 0 else None


def _rapl(powercap: Path) -> Meter | None:
    """Return the CPU packages' counters; they need root on most systems since 2020 (CVE-2020-8694).

    The zones of one level hold each other: ``psys`` is the whole platform, with the packages in it.
    """

    def read(name: str) -> tuple[float, ...]:
        return tuple(int((zone / name).read_text()) / 1e6 for zone in packages)

    try:
        packages = [
            zone
            for zone in sorted(powercap.glob("intel-rapl:*"))
            if zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package")
        ]
        wraps = read("max_energy_range_uj")
        read("energy_uj")
    except (OSError, ValueError):
        return None
    return Counter("RAPL", lambda: read("energy_uj"), wraps) if packages else None


def _rails(sys: Path) -> Meter | None:
    rails = board.module_rails(sys)
    return Rails("INA3221", rails) if rails else None


def _nvml(cuda_index: int) -> Meter | None:
    try:
        nvml, handle = nvml_handle(cuda_index)
        with contextlib.suppress(nvml.NVMLError):  # a GPU that cannot be split says so by an error
            if nvml.nvmlDeviceGetMigMode(handle)[0]:
                return None  # the counter is the whole GPU's, and others may use the rest of it
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # noqa: BLE001 - absent, no driver, or a GPU older than Volta: no figure
        return None
    return Counter("NVML", lambda: (float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3,))


ENERGY_SECONDS = 2.0  # RAPL counts every millisecond, NVML every 100
STREAM_SECONDS = 0.3
STREAM_REPEATS = 3
TRANSFER_RUNS = 50
PROFILE_RUNS = 20


@dataclass(frozen=True)
class Extras:
    """None where nothing was asked for, or the machine does not tell."""

    energy_mj: float | None = None
    compute_share: dict[str, float] | None = None
    throughput_by_streams: dict[str, float] | None = None
    transfer_ms: dict[str, float] | None = None
    warnings: tuple[str, ...] = ()  # what was to be measured and could not be


def measure(
    label: str,
    task: Mapping[str, Any],
    condition: Condition,
    settings: Settings,
    meter: Meter | None,
    providers: int,
    progress: Progress,
) -> Extras:
    """Measure what the settings ask for beyond latency.

    Args:
        label: The model's name.
        task: What the worker needs to load and feed the model.
        condition: Device and threads.
        settings: What is asked for.
        meter: What reads the energy; None leaves it out.
        providers: How many providers the model's nodes lie on; from two on, their shares of the time are found out.
        progress: Where a failure is told: it costs the extra, not the latency that is known already.

    Returns:
        What was measured; where the meter fails it is all but the energy, where the worker fails it is nothing.
    """
    on_gpu = by_name(condition.device.provider).memory != "cpu"
    streams = tuple(count for count in settings.streams if count > 1)
    if not (meter or streams or on_gpu or providers > 1):
        return Extras()
    try:
        with Child(label, settings.timeout_s) as child:
            child.ask(do="load", **task)
            child.ask(do="prepare", **task)
            share = child.ask(do="profile", runs=PROFILE_RUNS, **task)[0]["shares"] if providers > 1 else None
            transfers = child.ask(do="transfers", runs=TRANSFER_RUNS)[0] if on_gpu else None
            energy_mj, warnings = _energy(child, meter)
            for warning in warnings:
                progress.warn(f"{label}: {warning}")
            return Extras(
                energy_mj=energy_mj,
                compute_share=share,
                throughput_by_streams=_streams(child, task, streams) or None,
                transfer_ms={key: transfers[key] for key in ("host_to_device", "device_to_host")}
                if transfers
                else None,
                warnings=warnings,
            )
    except (ChildError, KDExportError) as error:
        warning = f"energy, throughput and copies could not be measured: {error}"
        progress.warn(f"{label}: {warning}")
        return Extras(warnings=(warning,))


def _energy(child: Child, meter: Meter | None) -> tuple[float | None, tuple[str, ...]]:
    """Return the millijoules per inference and what went wrong; a worker that fails raises ChildError."""
    if meter is None:
        return None, ()

    def run() -> int:
        return int(child.ask(do="sustain", seconds=ENERGY_SECONDS)[0]["runs"])

    try:
        return per_run_mj(meter, run), ()
    except ChildError:
        raise
    except Exception as error:  # noqa: BLE001 - a command or a driver that fails now costs the energy alone
        return None, (f"the energy could not be measured: {error}",)


def _streams(child: Child, task: Mapping[str, Any], streams: tuple[int, ...]) -> dict[str, float]:
    found = {}
    for count in streams:
        rates = []
        for _ in range(STREAM_REPEATS):
            reply, _ = child.ask(do="streams", count=count, seconds=STREAM_SECONDS, **task)
            rates.append(reply["runs"] * task["batch_size"] / reply["seconds"])
        found[str(count)] = sorted(rates)[len(rates) // 2]
    return found
