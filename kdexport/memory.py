"""The end of memory becomes an error that is told.

Where the memory of a container or a machine ends, the kernel ends a process without a word: SIGKILL, exit code 137. An
allocation that fails is an error instead: a training goes on in smaller parts, all else says what to set. ``hold``
therefore lets allocations fail there. Needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from kdexport.cgroup import memory_left, memory_limit

HINT = "give a smaller batch (--batch-size, batch_size), fewer or smaller inputs (data.image_size), or more memory"
# As Python, numpy, torch, oneDNN, ONNX Runtime and C++ say it.
EXHAUSTED = re.compile(
    r"MemoryError|bad_alloc|allocate memory|unable to allocate|out of memory|not enough memory|BFCArena"
    r"|Available memory of",
    re.IGNORECASE,
)
TOLD = re.compile("out of memory|not enough memory|not fit in memory")  # in a message of ours
MEMINFO = ("MemTotal:", "MemAvailable:", "SwapTotal:", "SwapFree:")
STACKS = 24 << 20  # bytes that each core's threads reserve in the libraries' pools and never touch


def exhausted(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, says that memory has run out: by its type or its words."""
    while error is not None:
        if isinstance(error, MemoryError) or EXHAUSTED.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def message() -> str:
    """Say that memory has run out, and whose."""
    limit = memory_limit()
    whose = "this machine" if limit is None else f"this container ({limit >> 20} MiB)"
    return f"out of memory: that of {whose}, or the limit that is set here (ulimit -v), is used up"


def hold() -> None:
    """Let allocations fail where the memory of container or machine ends, in this process and those that it starts.

    Call it once the large libraries are loaded. Beside an NVIDIA GPU it does nothing: the driver reserves far more than
    it uses.
    """
    import resource

    left, own = _left(), _data_bytes()
    if left is None or own is None or Path("/dev/nvidiactl").exists():
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = own + left + STACKS * _threads()
    if soft == resource.RLIM_INFINITY or wanted < soft:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def _left() -> int | None:
    """Return the bytes that the container and the machine can still give; None where neither tells.

    Of the machine at least half: what other work holds now it may give back.
    """
    total, available, swap, free = (_kib("/proc/meminfo", name) for name in MEMINFO)
    machine = None if total is None else max((available or 0) + (free or 0), (total + (swap or 0)) // 2) << 10
    return min((left for left in (memory_left(), machine) if left is not None), default=None)


def _threads() -> int:
    """Return how many threads a library starts for one piece of work."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")  # the command line sets it to a container's quota
    return int(wanted) if wanted.isdecimal() and len(wanted) < 10 else os.cpu_count() or 1


def _data_bytes() -> int | None:
    """Return what counts for RLIMIT_DATA now."""
    data = _kib("/proc/self/status", "VmData:")
    return None if data is None else data << 10


def _kib(file: str, name: str) -> int | None:
    try:
        text = Path(file).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(name)), None)
