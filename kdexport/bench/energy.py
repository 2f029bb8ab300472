"""Millijoules per inference, where the machine tells: RAPL, NVML, or a command that prints watts. Idle is subtracted.

A pass of its own: one model runs without a pause while the meter is read at both ends. What the machine draws while
everything sleeps is measured just before and taken off, so that the figure is what the inferences cost.
"""

import shlex
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kdexport.errors import KDExportError

POWERCAP = Path("/sys/class/powercap")
IDLE_SECONDS = 1.0
COMMAND_SECONDS = 10.0
COMMAND_PAUSE_SECONDS = 0.1


class Meter(Protocol):
    """Something that can say how much energy was used while a function ran."""

    @property
    def name(self) -> str:
        """Where the figure comes from."""

    def joules(self, work: Callable[[], object]) -> tuple[float, float]:
        """Run ``work``; return the joules used and the seconds taken."""


@dataclass(frozen=True)
class Counter:
    """A meter whose energy counter only grows, and may wrap.

    Args:
        name: Where the figure comes from.
        read: The counter in joules.
        wraps_at: Joules at which it starts again from 0; None where it doesn't.
    """

    name: str
    read: Callable[[], float]
    wraps_at: float | None = None

    def joules(self, work: Callable[[], object]) -> tuple[float, float]:
        """Run ``work``; return the joules used and the seconds taken."""
        before, start = self.read(), time.perf_counter()
        work()
        seconds, used = time.perf_counter() - start, self.read() - before
        if used < 0 and self.wraps_at is not None:
            used += self.wraps_at
        return used, seconds


@dataclass(frozen=True)
class PowerCommand:
    """A meter that asks a command for watts again and again; the mean over the time is the power.

    Args:
        name: Where the figure comes from.
        command: Prints one number, watts.
    """

    name: str
    command: tuple[str, ...]

    def joules(self, work: Callable[[], object]) -> tuple[float, float]:
        """Run ``work``; return the joules used and the seconds taken.

        Raises:
            KDExportError: The command failed or printed no number.
        """
        watts: list[float] = [self.watts()]  # one reading at least, and a broken command is told before the work
        ended = threading.Event()

        def sample() -> None:
            while not ended.wait(COMMAND_PAUSE_SECONDS):
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
        return sum(watts) / len(watts) * seconds, seconds

    def watts(self) -> float:
        """Ask once."""
        shown = shlex.join(self.command)
        try:
            done = subprocess.run(self.command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KDExportError(f"--power-command {shown!r} failed: {error}", hint=_POWER_HINT) from None
        try:
            return float(done.stdout.split()[0])
        except (IndexError, ValueError):
            said = (done.stdout or done.stderr).strip() or "nothing"
            raise KDExportError(
                f"--power-command {shown!r} printed no number but: {said[:80]}", hint=_POWER_HINT
            ) from None


_POWER_HINT = "it must print one number, the watts that are drawn now"


def find_meter(provider: str, device_index: int, power_command: str | None, powercap: Path = POWERCAP) -> Meter | None:
    """Return the meter for a device, or None where the machine offers none.

    A command that the user gives comes first. NVML counts a GPU alone; RAPL counts the CPU packages.
    """
    if power_command is not None:
        return PowerCommand("command", tuple(shlex.split(power_command)))
    if provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        return _nvml(device_index)
    return _rapl(powercap) if provider == "CPUExecutionProvider" else None


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
    """Return the sum of the CPU packages' counters; they need root on most systems since 2020 (CVE-2020-8694)."""
    packages = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    try:
        wraps = sum(int((zone / "max_energy_range_uj").read_text()) for zone in packages) / 1e6

        def read() -> float:
            return sum(int((zone / "energy_uj").read_text()) for zone in packages) / 1e6

        if not packages or read() < 0:
            return None
    except (OSError, ValueError):
        return None
    return Counter("RAPL", read, wraps)


def _nvml(index: int) -> Meter | None:
    try:
        import pynvml

        nvml: Any = pynvml
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # noqa: BLE001 - absent, no driver, or a GPU older than Volta: no figure
        return None
    return Counter("NVML", lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3)
