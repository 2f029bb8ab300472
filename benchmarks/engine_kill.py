"""kill -9 at 30 moments of a digits run, each followed by the same command: is the student the same, byte for byte?

    python benchmarks/engine_kill.py                # about 12 minutes on 2 cores, two runs at a time
    python benchmarks/engine_kill.py --smoke        # 2 moments

The run is `kdexport run models/digits/recipe.toml`, all four stages, with fewer epochs and a short measurement. It is
done once undisturbed, beside a second one as all later ones are. Then the undisturbed run's duration is cut into as
many slices as there are kills; in each slice one moment is drawn with a fixed seed. The run's process gets SIGKILL
then, without warning and without its children being told; the same command follows and has to end well. A run that ends
before its moment came (the machine had more time for it than for the undisturbed one) is begun anew with a moment drawn
from its own duration.

Must hold: in all 30, the final student.safetensors is byte-identical to the undisturbed run's.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from engine_common import arguments, keep

RECIPE = Path(__file__).resolve().parents[1] / "models" / "digits" / "recipe.toml"
SHORTER = (
    "teacher.train.epochs=5", "distill.epochs=16", "distill.views=4", "export.quantize=[]",
    "bench.min_seconds=0.05", "bench.max_seconds=0.1", "bench.rounds=1",
    "require.max_drop=1.0", "require.min_speedup=0.01",
)  # fmt: skip
WEIGHTS = ("teacher", "student", "student-plain")
KILLS = 30


def start(place: Path, log: Path) -> subprocess.Popen:
    """Start the run in a process group of its own, on one thread."""
    command = [sys.executable, "-m", "kdexport", "run", str(RECIPE), "--out", str(place), "--verbose"]
    for override in SHORTER:
        command += ["--set", override]
    with log.open("ab") as handle:
        return subprocess.Popen(
            command, stdout=handle, stderr=handle, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True
        )


def finished(place: Path, log: Path) -> float:
    """Run to the end and return its seconds."""
    began = time.perf_counter()
    code = start(place, log).wait()
    if code != 0:
        raise SystemExit(f"a run ended with {code}:\n{log.read_text()[-3000:]}")
    return time.perf_counter() - began


def digests(place: Path) -> dict[str, str]:
    return {name: hashlib.sha256((place / f"{name}.safetensors").read_bytes()).hexdigest() for name in WEIGHTS}


def stage(place: Path) -> str:
    """Say how far a killed run had come, by what it had written."""
    for name in ("report", "bench", "export", "distill"):
        if (place / f"{name}.json").exists():
            return f"after {name}"
    metrics = place / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    if not lines:
        return "before the first epoch"
    last = json.loads(lines[-1])
    return f"{last['phase']}, after epoch {last['epoch'] + 1}"


def killed(work: Path, number: int, moment: float, draw: random.Random) -> dict[str, Any]:
    """Kill a run at a moment, give the same command again and return what came out."""
    place, log = work / f"killed-{number}", work / f"killed-{number}.log"
    drawn_anew = 0
    while True:
        began = time.perf_counter()
        process = start(place, log)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            break
        moment = draw.random() * (time.perf_counter() - began)
        drawn_anew += 1
        shutil.rmtree(place)
    where = stage(place)
    before = len(log.read_text())
    seconds = finished(place, log)
    found = {"moment_s": moment, "drawn_anew": drawn_anew, "where": where, "seconds_to_finish": seconds}
    found |= {"resumed": "going on from epoch" in log.read_text()[before:], "sha256": digests(place)}
    shutil.rmtree(place)
    print(f"{number}: killed at {moment:.1f} s ({where}), done {seconds:.1f} s later", flush=True)
    return found


def main() -> None:
    parser = arguments(__doc__, data=False)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    count = 2 if options.smoke else KILLS
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        work = Path(folder)
        whole = list(pool.map(lambda name: finished(work / name, work / f"{name}.log"), ("whole", "beside")))
        expected = digests(work / "whole")
        same_twice = digests(work / "beside") == expected
        draws = [random.Random(f"{options.seed}/{number}") for number in range(count)]
        moments = [min(whole) * (number + draw.random()) / count for number, draw in enumerate(draws)]
        runs = list(pool.map(lambda number: killed(work, number, moments[number], draws[number]), range(count)))
    for run in runs:
        found = run.pop("sha256")
        run["identical"] = {name: found[name] == expected[name] for name in WEIGHTS}
    document = {
        "kills": count,
        "undisturbed_seconds": whole,
        "two_undisturbed_runs_identical": same_twice,
        "resumed_within_a_training": sum(run["resumed"] for run in runs),
        "identical": {name: sum(run["identical"][name] for run in runs) for name in WEIGHTS},
        "must_hold": f"student identical in all {count}",
        "holds": all(run["identical"]["student"] for run in runs),
        "runs": runs,
    }
    keep(options.out, "engine_kill", document, smoke=options.smoke)


if __name__ == "__main__":
    main()
