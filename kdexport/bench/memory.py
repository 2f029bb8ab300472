"""What the kernel says a process holds. Nothing is imported that a bare script would not import.

``ru_maxrss`` is not used: a child's starts at its parent's peak. ``VmHWM`` belongs to the process alone.
"""

MIB = 1024.0  # KiB in one


def resident_mib() -> float | None:
    """Return this process's resident memory now, MiB, or None where the system has no /proc."""
    return _status("VmRSS:")


def peak_mib() -> float | None:
    """Return this process's largest resident memory so far, MiB, or None where the system has no /proc."""
    return _status("VmHWM:")


def _status(key: str) -> float | None:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as lines:  # noqa: PTH123 - pathlib is not loaded here
            for line in lines:
                if line.startswith(key):
                    return int(line.split()[1]) / MIB
    except OSError:
        pass
    return None
