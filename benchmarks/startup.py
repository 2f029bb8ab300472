"""`kdexport --help` against `--help` of a bare Typer app with one command: the price of the house at its door.

    python benchmarks/startup.py

Both run in alternation, each in a fresh process; the result is the ratio of the medians and of each pair.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARE = """
import typer

app = typer.Typer()


@app.command()
def hello(name: str) -> None:
    \"\"\"Say hello.\"\"\"


app()
"""


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main(rounds: int = 30) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE)
        commands = {
            "bare": [sys.executable, str(bare), "--help"],
            "kdexport": [sys.executable, "-m", "kdexport", "--help"],
        }
        for command in commands.values():  # byte code and file cache
            seconds(command)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                times[name].append(seconds(command))
    ratios = sorted(own / bare for own, bare in zip(times["kdexport"], times["bare"], strict=True))
    result = {
        "bare_ms": round(1000 * statistics.median(times["bare"]), 1),
        "kdexport_ms": round(1000 * statistics.median(times["kdexport"]), 1),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(ratios[rounds // 4], 3), round(ratios[3 * rounds // 4], 3)],
        "rounds": rounds,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
    }
    text = json.dumps(result, indent=2)
    (Path(__file__).parent / "results" / "startup.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
