"""What else the machine is doing while something is measured (Linux)."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Busy:
    """CPU seconds of the whole machine so far: spent by anyone, and taken by the hypervisor."""

    used: float
    stolen: float


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
