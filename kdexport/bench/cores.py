"""Which CPU cores a measured model stays on (Linux's sysfs tells what the cores are like).

The cores of one machine can be of several kinds, and two CPU numbers can be one physical core. A figure means
something only where it comes from cores of one kind, each thread on a core of its own.
"""

import os
from collections.abc import Sequence
from pathlib import Path

SYSFS = Path("/sys/devices/system/cpu")
# The best cores of one kind differ by up to 5 % in what their clock may reach (favoured cores); kinds differ by more.
ALIKE = 0.95


def usable() -> list[int]:
    """Return the CPU numbers that this process may use; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def choose(threads: int, turn: int, cpus: Sequence[int], sysfs: Path = SYSFS) -> list[int] | None:
    """Return the CPU numbers to stay on: as many physical cores of the fastest kind as there are threads.

    Args:
        threads: How many are needed; one CPU at least is left to everything else.
        turn: Whose turn it is: each turn takes the next cores of the kind, round and round.
        cpus: Those that may be used.
        sysfs: Where the system describes them. A machine that does not is taken to have cores that are all alike.

    Returns:
        None where there are fewer such cores than threads, or no CPU would be left.
    """
    if threads >= len(cpus):
        return None
    cores = _fastest(_physical(sorted(cpus), sysfs), sysfs)
    if threads > len(cores):
        return None
    return [cores[(turn * threads + position) % len(cores)] for position in range(threads)]


def _physical(cpus: list[int], sysfs: Path) -> list[int]:
    """Return one CPU number per physical core, those of one package side by side."""
    first: dict[str, int] = {}
    package = {}
    for cpu in cpus:
        topology = sysfs / f"cpu{cpu}" / "topology"
        package[cpu] = _number(topology / "physical_package_id") or 0
        siblings, core = _text(topology / "thread_siblings_list"), _text(topology / "core_id")
        first.setdefault(siblings or f"{package[cpu]}:{core or f'cpu {cpu}'}", cpu)
    return sorted(first.values(), key=lambda cpu: (package[cpu], cpu))


def _fastest(cores: list[int], sysfs: Path) -> list[int]:
    """Return the cores of the highest capacity, or else of the highest clock; all where the system tells neither."""
    for source in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        speeds = {core: _number(sysfs / f"cpu{core}" / source) for core in cores}
        known = [speed for speed in speeds.values() if speed is not None]
        if len(known) == len(cores):
            return [core for core in cores if (speeds[core] or 0) >= ALIKE * max(known)]
    return cores


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None
