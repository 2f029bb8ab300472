"""What the browser's processes did: CPU seconds of all of them, and how long the page waited for a core (Linux)."""

import os
from collections.abc import Sequence
from pathlib import Path

PROC = Path("/proc")


def descendants(pid: int, proc: Path = PROC) -> list[int]:
    """Return the processes that one has started, and those that these have started; none without /proc."""
    parents: dict[int, list[int]] = {}
    for folder in proc.glob("[0-9]*"):
        fields = _stat(folder)
        if fields:
            parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def cpu_seconds(pids: Sequence[int], proc: Path = PROC) -> float:
    """Return the CPU seconds of some processes and of their children that have ended."""
    ticks = 0
    for pid in pids:
        fields = _stat(proc / str(pid))
        if fields:
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else 0.0


def renderer(pids: Sequence[int], proc: Path = PROC) -> int | None:
    """Return the process that holds the page: of the browser's renderers the one that has worked most."""
    pages = [pid for pid in pids if b"--type=renderer" in _command(proc / str(pid))]
    return max(pages, key=lambda pid: cpu_seconds([pid], proc), default=None)


def waited_ns(pid: int, *, all_threads: bool, proc: Path = PROC) -> int:
    """Return how long a process's main thread, or all together, was ready to run and had no core; 0 where unknown."""
    tasks = proc / str(pid) / "task"
    total = 0
    for task in tasks.glob("*") if all_threads else [tasks / str(pid)]:
        try:
            total += int((task / "schedstat").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            continue
    return total


def _stat(folder: Path) -> list[str]:
    """Return the fields of a process's stat behind its name; empty where it has ended."""
    try:
        return (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _command(folder: Path) -> bytes:
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:
        return b""
