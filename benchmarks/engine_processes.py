"""One process against two with gloo: the same recipe, the same total batch, the same accuracy within noise.

    tar xf cifar10-jpg.tar.xz
    python benchmarks/engine_processes.py --data cifar10-jpg            # about 5 minutes on 2 free cores
    python benchmarks/engine_processes.py --data cifar10-jpg --smoke

`kdexport distill recipe.toml` against `torchrun --nproc_per_node 2 -m kdexport distill recipe.toml`: a small ResNet
learns from 4,000 of CIFAR-10's images (JPEG), 10 epochs, three seeds, and is scored on all 10,000 test images. The
recipe's batch of 64 is over all processes: each of two takes 32 of it, in as many steps. What differs is that batch
normalization sees 32 samples at a time, and the order in which gradients are added.

Must hold: |mean difference| within the noise, that is within its own 95 % interval over seeds; and the number of steps
is the same. Seconds are told, not compared: one process has two threads here, each of two has one.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from engine_cached_vs_uncached import recipe
from engine_common import accuracy, arguments, in_fresh_process, keep, mean_interval, pictures, trained_teacher

SEEDS = (0, 1, 2)


def run(document: dict[str, Any], place: Path, processes: int) -> dict[str, Any]:
    """Train by the command line and return accuracy, steps and seconds."""
    from kdexport import Recipe

    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    written = place / "asked.toml"
    Recipe.parse(document).write(written)
    head = [sys.executable, "-m", "kdexport"]
    if processes > 1:
        head = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        head += ["-m", "kdexport"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(2 // processes)}
    start = time.perf_counter()
    done = subprocess.run(
        [*head, "distill", str(written), "--out", str(place / "run")], capture_output=True, text=True, env=environment
    )
    if done.returncode != 0:
        raise SystemExit(f"{processes} processes ended with {done.returncode}:\n{done.stderr[-3000:]}")
    seconds = time.perf_counter() - start
    epochs = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in epochs if line["phase"] == "student"]
    scored = in_fresh_process(accuracy, document, str(place / "run" / "student.safetensors"), threads=2)
    samples = [line["samples_per_s"] * line["seconds"] for line in epochs]
    return {"accuracy": scored, "seconds": seconds, "epochs": len(epochs), "samples_per_epoch": round(max(samples))}


def main() -> None:
    parser = arguments(__doc__)
    options = parser.parse_args()
    seeds, epochs = (SEEDS[:1], 2) if options.smoke else (SEEDS, 10)
    images, taught, test = (256, 256, 500) if options.smoke else (4000, 10_000, 10_000)
    work = options.work / "cached"  # the same images and teacher as engine_cached_vs_uncached.py
    data = pictures(options.data, work / f"student-{images}.npz", train=images, test=test)
    for_teacher = pictures(options.data, work / f"teacher-{taught}.npz", train=taught, test=test)
    training = {"epochs": 1 if options.smoke else 8, "lr": 0.003, "augment": ["flip", "shift"], "keep": "last"}
    document = recipe(for_teacher, 0, {"train": training})
    teacher = in_fresh_process(trained_teacher, document, work / f"teacher-{taught}", threads=2)
    runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for seed in seeds:
        for processes, found in runs.items():
            settings = {"epochs": epochs, "augment": ["flip", "shift"], "views": 4}
            asked = recipe(data, seed, {"weights": teacher["weights"]}, **settings)
            found.append(run(asked, options.work / "processes" / f"{processes}-{seed}", processes))
            print(f"seed {seed}, {processes} processes: {found[-1]}", flush=True)
    differences = [100 * (two["accuracy"] - one["accuracy"]) for one, two in zip(runs[1], runs[2], strict=True)]
    mean, half = mean_interval(differences)
    pairs = zip(runs[1], runs[2], strict=True)  # from a rate: good to a sample or two
    alike = all(abs(one["samples_per_epoch"] - two["samples_per_epoch"]) <= 4 for one, two in pairs)
    document = {
        "images": images,
        "test_images": test,
        "batch_size_over_all_processes": 64,
        "one_process": runs[1],
        "two_processes": runs[2],
        "differences_points": differences,
        "mean_difference_points": mean,
        "half_width95": half,
        "same_samples_per_epoch": alike,
        "must_hold": "|mean difference| within its 95 % interval",
        "holds": alike and half is not None and abs(mean) <= half,
    }
    keep(options.out, "engine_processes", document, smoke=options.smoke)


if __name__ == "__main__":
    main()
