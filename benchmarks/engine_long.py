"""A training of 2,000 epochs: does its memory grow, do its files pile up?

    python benchmarks/engine_long.py             # some ten minutes on one core
    python benchmarks/engine_long.py --smoke     # 200 epochs

A fully connected pair of digits, distilled with augmentation, validation and a checkpoint each epoch, in a process of
its own on one thread. From outside, its resident memory (VmRSS) and its files are read as each epoch ends.

Another process trains 50 epochs: what its end takes (scores, imports, the interpreter's own) is the same for both.

Must hold: after the last epoch the memory is within 20 MiB of that after the 50th, and so is the peak of the whole
process of that of the short one; there are no more files than after the 50th epoch but one that is being replaced; the
log has grown by one line an epoch.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine_common import arguments, keep
from tiny_net import NETS

EPOCHS, AT, ALLOWED_MIB = 2000, 50, 20


def status_mib(pid: int, key: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def files_in(place: Path) -> dict[str, int]:
    """Return how many files there are beside the log, and their bytes."""
    sizes = []
    for path in place.rglob("*"):
        if path.is_file() and path.name != "metrics.jsonl":
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:  # replaced just now
                continue
    return {"files": len(sizes), "bytes": sum(sizes)}


def student_epochs(log: Path) -> int:
    if not log.exists():
        return 0
    return sum(1 for line in log.read_text().splitlines() if '"phase": "student"' in line)


def train(work: Path, epochs: int) -> dict[str, Any]:
    """Distill for some epochs in a process of its own and return what was read from outside."""
    command = [
        *(sys.executable, "-m", "kdexport", "distill", "--quiet", "--data", "digits", "--out", f"run {epochs}"),
        *("--teacher", "nets.py:Net", "--teacher-arg", "width=32", "--teacher-epochs", "2", "--no-baseline"),
        *("--student", "nets.py:Net", "--epochs", str(epochs), "--batch-size", "256", "--augment", "shift"),
    ]
    place, began = work / f"run {epochs}", time.monotonic()
    process = subprocess.Popen(command, cwd=work, env={**os.environ, "OMP_NUM_THREADS": "1"})
    read: dict[int, dict[str, Any]] = {}
    peak, wanted = 0.0, [AT, *range(100, epochs, 100), epochs]
    while process.poll() is None:
        try:
            peak = max(peak, status_mib(process.pid, "VmHWM"))
            if wanted and student_epochs(place / "metrics.jsonl") >= wanted[0]:
                read[wanted.pop(0)] = {"memory_mib": status_mib(process.pid, "VmRSS"), **files_in(place)}
        except (FileNotFoundError, StopIteration, ProcessLookupError):  # it has ended just now
            break
        time.sleep(0.05)
    if process.wait():
        raise SystemExit(f"kdexport distill ended with {process.returncode}")
    log = place / "metrics.jsonl"
    return {
        "seconds": time.monotonic() - began,
        "peak_mib": peak,
        "after_epoch": read,
        "log_lines": student_epochs(log),
        "log_bytes": log.stat().st_size,
    }


def main() -> int:
    options = arguments(__doc__, data=False).parse_args()
    epochs = 200 if options.smoke else EPOCHS
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "nets.py").write_text(NETS)
        short, long = train(Path(folder), AT), train(Path(folder), epochs)
    read = long["after_epoch"]
    growth = read[epochs]["memory_mib"] - read[AT]["memory_mib"]
    over = long["peak_mib"] - short["peak_mib"]
    document = {
        "epochs": epochs,
        "short": short,
        "long": long,
        "memory_growth_mib": growth,
        "peak_over_short_mib": over,
        "must_hold": f"from epoch {AT} to the end, and over its peak: {ALLOWED_MIB} MiB at most; files bounded",
        "holds": {
            "memory": abs(growth) <= ALLOWED_MIB,
            "peak": over <= ALLOWED_MIB,
            "files": max(one["files"] for one in read.values()) <= read[AT]["files"] + 1,
            "log": long["log_lines"] == epochs,
        },
    }
    keep(options.out, "engine_long", document, smoke=options.smoke)
    return 0 if all(document["holds"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
