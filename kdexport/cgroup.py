"""What a container may take: the limits of the control groups (cgroup v2, then v1) that this process is in.

The least of a group's and of all groups' around it holds; what lies above a container's own root cannot be seen from
inside. Needs the standard library alone.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
NO_LIMIT = 1 << 60  # bytes; v1 writes a number beyond it where there is none


def cpu_quota() -> float | None:
    """Return the limit in CPUs, or None where there is none."""
    quotas = []
    for (text,) in _values("", "cpu.max"):
        quota, _, period = text.partition(" ")
        quotas += [] if quota == "max" else [int(quota) / int(period or 100000)]
    for quota, period in _values("cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us"):
        quotas += [int(quota) / int(period)] if int(quota) > 0 else []
    return min(quotas, default=None)


def memory_limit() -> int | None:
    """Return the limit of memory in bytes, or None where there is none."""
    return min((limit for limit, _ in _memory()), default=None)


def memory_left() -> int | None:
    """Return the bytes still given, the limit less what is used and cannot be dropped; None without a limit."""
    return min((max(limit - used, 0) for limit, used in _memory()), default=None)


def _memory() -> list[tuple[int, int]]:
    """Return limit and use of each group that has a limit, in bytes."""
    found = [
        (int(limit), int(used) - _files(statistics, prefix))
        for prefix, read in (
            ("", _values("", "memory.max", "memory.current", "memory.stat")),
            ("total_", _values("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")),
        )
        for limit, used, statistics in read
        if limit != "max"
    ]
    return [(limit, used) for limit, used in found if limit < NO_LIMIT]


def _files(statistics: str, prefix: str) -> int:
    """Return the bytes of files that the kernel keeps in memory and drops where it needs room."""
    values = dict(line.split(" ", 1) for line in statistics.splitlines())
    return sum(int(values.get(f"{prefix}{which}_file", 0)) for which in ("active", "inactive"))


def _values(controller: str, *names: str) -> list[tuple[str, ...]]:
    """Return what some files say in each group from this process's own to the outermost, where all are there.

    Args:
        controller: Of v1; empty for v2.
        names: Of the files.
    """
    path = PurePosixPath("/")
    for line in (_text(OWN) or "").splitlines():
        _, controllers, inside = line.split(":", 2)
        if controller in controllers.split(","):
            path = PurePosixPath(inside)
    # A container sees its own group as the root, often with the path that only its host knows.
    places = [ROOT / controller / str(place).lstrip("/") for place in (path, *path.parents)]
    read = [[_text(place / name) for name in names] for place in dict.fromkeys(places)]
    return [tuple(text for text in texts if text is not None) for texts in read if None not in texts]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None
