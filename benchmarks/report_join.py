"""How long `kdexport report` takes to join many bench files, and how large its page is.

    python benchmarks/report_join.py            # writes results/report_join.json

Two cases: 100 files of 20 models (one condition each, from 100 machines), which must take less than 10 s; and
10 models on 3 machines under 4 conditions each, whose page must be made in 5 s and be at most 3 MiB. The time is that
of the command from start to end in a process of its own: reading, checking, joining, deciding, drawing, writing.
"""

import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "report"))

import builder  # noqa: E402

from kdexport import results  # noqa: E402

REPEATS = 3


def write_files(folder: Path, machines: int, models: int, conditions: tuple[tuple[str, int, int], ...]) -> list[Path]:
    made = {"teacher": builder.DIGITS["teacher"]}
    made |= {
        f"student-{index}": (0.95 + index / 1000, 20.0 + index, 0.02 + index / 500, 9000) for index in range(models - 1)
    }
    first = builder.bench(models=made, conditions=conditions)
    paths = []
    for index in range(machines):
        name = f"machine-{index}"
        bench = dataclasses.replace(
            first,
            machine=builder.machine(name),
            measurements=tuple(dataclasses.replace(item, machine=name) for item in first.measurements),
        )
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(results.dumps(bench), encoding="utf-8")
    return paths


def processor_seconds() -> float:
    """Of all children so far: holds also while other work keeps the machine busy."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(machines: int, models: int, conditions: tuple[tuple[str, int, int], ...]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = write_files(folder, machines, models, conditions)
        command = [
            sys.executable,
            "-m",
            "kdexport",
            "report",
            *map(str, paths),
            "--out",
            str(folder / "out"),
            "--quiet",
        ]
        seconds, of_the_processor = [], []
        for _ in range(REPEATS):
            start, before = time.perf_counter(), processor_seconds()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - start)
            of_the_processor.append(processor_seconds() - before)
        return {
            "files": machines,
            "models": models,
            "measurements": machines * models * len(conditions),
            "read_mib": round(sum(path.stat().st_size for path in paths) / 2**20, 2),
            "seconds": round(min(seconds), 2),
            "processor_seconds": round(min(of_the_processor), 2),
            "page_mib": round((folder / "out" / "report.html").stat().st_size / 2**20, 2),
        }


def main() -> None:
    found = {
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "repeats": REPEATS,
        "seconds_are": "the least of the repeats",
        "100 files of 20 models": measure(100, 20, (("cpu", 1, 1),)),
        "10 models on 3 machines": measure(3, 10, (("cpu", 1, 1), ("cpu", 8, 1), ("cpu", 1, 2), ("cuda", 1, 1))),
    }
    text = json.dumps(found, indent=2)
    (HERE / "results" / "report_join.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
