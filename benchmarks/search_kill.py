"""A search killed at random moments, and one that two processes share: is it the undisturbed search's result?

    python benchmarks/search_kill.py             # about 10 minutes on 2 cores
    python benchmarks/search_kill.py --smoke     # 2 kills

Six fully connected students of digits, a budget of file size (so that no decision hangs on a timing), one finalist. The
search is done once undisturbed. Then, in a new directory, the same command gets SIGKILL at a random moment and is given
again, until it comes to its end; that in as many directories as it takes for the kills asked for. Then two processes
are started at once on one more directory.

Must hold, for both: the picked student is the undisturbed one's, byte for byte; no trial is lost; each epoch of each
trial stands once in its log; and of the two processes both have trained.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tomli_w
from bench_common import OtherLoad, keep
from tiny_net import NETS

KILLS = 12


def recipe(folder: Path) -> Path:
    (folder / "nets.py").write_text(NETS)
    document = {
        "name": "kill",
        "data": {"source": "digits"},
        "teacher": {"model": "nets.py:Net", "args": {"width": 64}, "train": {"epochs": 4, "lr": 0.01}},
        "distill": {"epochs": 60, "batch_size": 32, "lr": 0.005, "augment": ["shift"], "baseline": False},
        "bench": {"max_seconds": 0.2, "min_seconds": 0.05, "rounds": 1},
        "search": {
            "budget": {"size_mib": 0.02},
            "min_epochs": 4,
            "finalists": {"count": 1},
            "space": [{"model": "nets.py:Net", "args": {"width": [4, 8, 12, 16, 24, 32, 512]}}],
        },
    }
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps(document))
    return path


def start(path: Path, place: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "kdexport", "search", str(path), "--out", str(place)]
    with (place.parent / f"{place.name}.log").open("ab") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def finished(*processes: subprocess.Popen) -> None:
    for process in processes:
        if process.wait():
            raise SystemExit(f"a search ended with {process.returncode}: see its log")


def trained(place: Path) -> dict[str, list[int]]:
    """Return the epochs of each trial's student in the order of its log."""
    found = {}
    for log in sorted((place / "trials").glob("*/metrics.jsonl")):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        found[log.parent.name] = [line["epoch"] for line in lines if line["phase"] == "student" and "loss" in line]
    return found


def workers(place: Path) -> list[str]:
    """Return which processes trained to a rung or to the end, one entry a training."""
    with sqlite3.connect(place / "study.db") as connection:
        rows = connection.execute("select key, value_json from trial_user_attributes").fetchall()
    found = []
    for key, value in rows:
        document = json.loads(value)
        found += [rung["worker"] for rung in document.values()] if key == "rungs" else []
        found += [document["worker"]] if key == "trained" else []
    return found


def killed(path: Path, place: Path, seconds: float, rng: random.Random) -> list[float]:
    """Kill a search at random moments until one sitting comes to its end; return the moments."""
    moments = []
    while True:
        process = start(path, place)
        # Each sitting repeats the seconds of starting up: a moment is drawn from what a sitting can reach.
        moment = rng.uniform(0.1, 0.5) * seconds
        try:
            finished_in_time = process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            moments.append(round(moment, 2))
            continue
        if finished_in_time:
            raise SystemExit(f"a search ended with {finished_in_time}: see its log")
        return moments


def checked(place: Path, whole: Path) -> dict[str, Any]:
    def digest(root: Path) -> str:
        return hashlib.sha256((root / "picked" / "student.safetensors").read_bytes()).hexdigest()

    epochs, expected = trained(place), trained(whole)
    result, other = (json.loads((root / "search.json").read_text()) for root in (place, whole))
    return {
        "picked_student_identical": digest(place) == digest(whole),
        "trials_lost": len(other["trials"]) - len(result["trials"]),
        "trials_twice": len(result["trials"]) - len({trial["name"] for trial in result["trials"]}),
        "an_epoch_lost_or_twice": sum(run != list(range(len(run))) for run in epochs.values()),
        "epochs_as_undisturbed": epochs == expected,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    kills, rng, moments = 2 if options.smoke else KILLS, random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as name, OtherLoad() as load:
        folder = Path(name)
        path = recipe(folder)
        began = time.monotonic()
        finished(start(path, folder / "whole"))
        seconds = time.monotonic() - began
        print(f"undisturbed: {seconds:.0f} s", flush=True)
        places: list[Path] = []
        while len(moments) < kills:
            places.append(folder / f"killed-{len(places)}")
            moments += killed(path, places[-1], seconds, rng)
            print(f"killed at {moments}", flush=True)
        finished(start(path, folder / "two"), start(path, folder / "two"))
        by = workers(folder / "two")
        runs = [checked(place, folder / "whole") for place in places]
        shared = checked(folder / "two", folder / "whole")
    good = {"picked_student_identical": True, "trials_lost": 0, "trials_twice": 0, "an_epoch_lost_or_twice": 0}
    good |= {"epochs_as_undisturbed": True}
    document = {
        "undisturbed_seconds": round(seconds, 1),
        "kills": len(moments),
        "killed": runs,
        "two_processes": {**shared, "trainings_of_each": sorted((by.count(one) for one in set(by)), reverse=True)},
        "holds": all(run == good for run in (*runs, shared)) and len(set(by)) == 2,
    }
    if options.smoke:
        print(json.dumps(document, indent=2))
    else:
        keep("search_kill", document, load)
    return 0 if document["holds"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
