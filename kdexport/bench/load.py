"""What else the machine is doing while something is measured (Linux)."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Busy:
    """CPU seconds of the whole machine so far: spent by anyone, and taken by the hypervisor."""

    used: float
    stolen: float


@dataclass(frozen=True)
class Surroundings:
    """What the rest of the machine did during one round."""

    other_cores: float = 0.0  # kept busy by other work, on average
    stolen: float = 0.0  # cores that the hypervisor took
    throttled: bool = False  # the CPU says that it slowed down for heat


class Watch:
    """Looks at the machine now and when the round is over; sleeps in between.

    Args:
        own_cpu_s: The CPU seconds that the measuring itself has spent so far.
    """

    def __init__(self, own_cpu_s: Callable[[], float]) -> None:
        self._own_cpu_s = own_cpu_s
        self._throttles = throttle_events()
        self._start = time.perf_counter()
        self._own = own_cpu_s()
        self._busy = busy()

    def result(self) -> Surroundings:
        """Return what happened since the start; zeros where the machine does not tell."""
        seconds, now, own = time.perf_counter() - self._start, busy(), self._own_cpu_s() - self._own
        throttles = throttle_events()
        throttled = self._throttles is not None and throttles is not None and throttles > self._throttles
        if now is None or self._busy is None or seconds <= 0:
            return Surroundings(throttled=throttled)
        other = max(now.used - self._busy.used - own, 0.0)
        return Surroundings(other / seconds, (now.stolen - self._busy.stolen) / seconds, throttled)


def busy(stat: Path = Path("/proc/stat")) -> Busy | None:
    """Read the machine's CPU time, or None where it does not tell."""
    try:
        # user nice system idle iowait irq softirq steal, in ticks; guest time is part of user
        fields = [int(text) for text in stat.read_text().split("\n", 1)[0].split()[1:9]]
        tick = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
    if len(fields) < 8:
        return None
    return Busy((sum(fields[:3]) + fields[5] + fields[6]) / tick, fields[7] / tick)


def throttle_events(cpus: Path = CPUS) -> int | None:
    """Return how often the CPU has slowed down for heat, or None where it does not count (Intel's do).

    A package's count stands under each of its cores: the sum tells whether it grew, not by how much.
    """
    files = list(cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))
    try:
        return sum(int(file.read_text()) for file in files) if files else None
    except (OSError, ValueError):
        return None
