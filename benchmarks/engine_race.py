"""Two sides train one pair in turns: kdexport, and a rival that trains as ``engine_pairs.plain_loop`` does."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_common import accuracy, in_fresh_process, mean_interval, pictures, train, trained_teacher
from engine_pairs import Pair, loader
from torch import nn

from kdexport.statistics import ratio_interval

KEPT = (
    "filling_epoch_seconds",
    "steady_epoch_seconds",
    "seconds",
    "call_seconds",
    "memory_format",
    "compile",
)  # of kdexport's runs


def kdexport_run(pair: Pair, data: Path, teacher_weights: str, seed: int, place: Path) -> dict[str, Any]:
    """Train by the public stage and return seconds per epoch, with the filling of the cache told apart."""
    made = train(pair.recipe(data, seed, {"weights": teacher_weights}), place)
    of = {"cache": [], "online": []}
    for epoch in made["epochs"]:
        of[epoch["teacher_from"]].append(epoch["seconds"])
    return {
        "epoch_seconds": [epoch["seconds"] for epoch in made["epochs"]],
        "steady_epoch_seconds": of["cache"],
        "filling_epoch_seconds": of["online"],
        "seconds": sum(epoch["seconds"] for epoch in made["epochs"]),
        "call_seconds": made["seconds"],  # with loading, hashing, and each epoch's scoring and checkpoint
        "memory_format": made["memory_format"],
        "compile": made["compile"],
        "weights": made["weights"]["student"],
    }


def parts_ms(pair: Pair, data: Path, teacher_weights: str, steps: int) -> dict[str, Any]:
    """Return where the time of a step goes on both sides, median ms, and what arithmetic alone allows."""
    from torch.utils.flop_counter import FlopCounterMode

    from kdexport import Recipe
    from kdexport.data.augment import Augmentation
    from kdexport.data.datasets import load_data
    from kdexport.distill.batches import Batches

    teacher, student = pair.networks(teacher_weights, 0)
    optimizer, cross_entropy = pair.make_optimizer(student), nn.CrossEntropyLoss()
    student.train()
    times: dict[str, list[float]] = {"plain_data": [], "teacher": [], "student": [], "kdexport_data": []}
    batches = iter(loader(data, pair, 0))

    def timed(part: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = function()
        times[part].append((time.perf_counter() - start) * 1e3)
        return result

    @torch.no_grad()
    def teach(inputs: torch.Tensor) -> torch.Tensor:
        return teacher(inputs)

    def learn(inputs: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        cross_entropy(student(inputs), labels).backward()
        optimizer.step()

    for _ in range(min(steps, pair.steps)):
        inputs, labels = timed("plain_data", lambda: next(batches))
        timed("teacher", lambda: teach(inputs))  # noqa: B023 - called at once
        timed("student", lambda: learn(inputs, labels))  # noqa: B023 - called at once

    recipe = Recipe.parse(pair.recipe(data, 0, {"weights": teacher_weights}))
    split = load_data(recipe.data, 0, Path(teacher_weights).parent / "cache").train
    augmentation = Augmentation(recipe.distill.augment, 0) if recipe.distill.augment else None
    ours = Batches(
        split, batch_size=pair.batch_size, seed=0, augmentation=augmentation, views=2, device=torch.device("cpu")
    ).epoch(0)
    for _ in range(min(steps, pair.steps)):
        timed("kdexport_data", lambda: next(ours))

    with FlopCounterMode(display=False) as of_teacher:
        teach(inputs)
    with FlopCounterMode(display=False) as of_student:
        cross_entropy(student(inputs), labels).backward()
    taught, learned = of_teacher.get_total_flops(), of_student.get_total_flops()
    return {
        **{f"{part}_ms": float(np.median(values[2:] or values)) for part, values in times.items()},
        "teacher_gflop_per_step": taught / 1e9,
        "student_gflop_per_step": learned / 1e9,
        "speedup_by_arithmetic_alone": (taught + learned) / learned,
    }


def prepared(pair: Pair, folder: Path, work: Path, smoke: bool) -> tuple[Pair, Path, dict[str, Any]]:
    """Return the pair (smaller for a smoke run), its images and its teacher; what is there is not made again."""
    if smoke:
        pair = replace(pair, images=4 * pair.batch_size, epochs=4, teacher_images=4 * pair.batch_size)
        pair = replace(pair, teacher_training={**pair.teacher_training, "epochs": 1})
    work.mkdir(parents=True, exist_ok=True)
    test = 500 if smoke else 10_000
    place = work / f"{pair.name}-{pair.images}"
    data = pictures(folder, place / "student.npz", train=pair.images, test=test, grey28=pair.grey28)
    for_teacher = pictures(folder, place / "teacher.npz", train=pair.teacher_images, test=test, grey28=pair.grey28)
    document = pair.recipe(for_teacher, 0, {"train": pair.teacher_training})
    return pair, data, in_fresh_process(trained_teacher, document, place / "teacher", threads=2)


def race(
    pair: Pair, rival: Callable[..., Any], data: Path, teacher: dict[str, Any], work: Path, rounds: int
) -> dict[str, Any]:
    """Let both sides train in turns, each time in a fresh process and with a seed of the round.

    Args:
        pair: What is trained.
        rival: A function with ``plain_loop``'s arguments and result.
        data: The images.
        teacher: ``weights`` and ``accuracy``.
        work: Where the runs go.
        rounds: How often each side trains.
    """
    weights = teacher["weights"]
    tried = {  # the second of two epochs: workers have started, memory is warm
        workers: in_fresh_process(rival, pair, data, weights, 0, workers, work / "tried", 2, threads=2)[
            "epoch_seconds"
        ][1]
        for workers in (0, 2)
    }
    workers = min(tried, key=lambda count: tried[count])
    theirs, ours = [], []
    for number in range(rounds):
        sides = ["rival", "kdexport"] if number % 2 == 0 else ["kdexport", "rival"]
        for side in sides:
            place = work / f"{side}-{number}"
            shutil.rmtree(place, ignore_errors=True)
            if side == "rival":
                found = in_fresh_process(rival, pair, data, weights, number, workers, place, threads=2)
                theirs.append(found)
            else:
                found = in_fresh_process(kdexport_run, pair, data, weights, number, place, threads=2)
                ours.append(found)
            document = pair.recipe(data, number, {"weights": weights})
            found["accuracy"] = in_fresh_process(accuracy, document, found["weights"], threads=2)
            print(f"round {number}: {side} {found['seconds']:.1f} s, accuracy {found['accuracy']:.4f}", flush=True)

    def ratio(of_rival: list[float], of_ours: list[float]) -> dict[str, Any]:
        middle, interval = ratio_interval(of_rival, of_ours)
        return {"times_faster": middle, "ci95": interval}

    def seconds(runs: list[dict[str, Any]], key: str) -> list[float]:
        return [float(np.median(run[key])) for run in runs]

    rival_epoch, our_epoch = seconds(theirs, "epoch_seconds"), seconds(ours, "steady_epoch_seconds")

    gaps = [one["accuracy"] - other["accuracy"] for one, other in zip(ours, theirs, strict=True)]
    gap, half = mean_interval(gaps)
    return {
        "pair": pair.name,
        "batch_size": pair.batch_size,
        "images": pair.images,
        "epochs": pair.epochs,
        "views": pair.views,
        "rounds": rounds,
        "teacher_accuracy": teacher["accuracy"],
        "rival_workers": workers,
        "rival_epoch_seconds_by_workers": tried,
        "steady": ratio(rival_epoch, our_epoch),
        "whole_training": ratio(seconds(theirs, "seconds"), seconds(ours, "seconds")),
        "whole_call": ratio(seconds(theirs, "seconds"), seconds(ours, "call_seconds")),
        "rival_images_per_s": pair.images / float(np.median(rival_epoch)),
        "kdexport_images_per_s": pair.images / float(np.median(our_epoch)),
        "rival_step_ms": 1e3 * float(np.median(rival_epoch)) / pair.steps,
        "kdexport_step_ms": 1e3 * float(np.median(our_epoch)) / pair.steps,
        "accuracy": {
            "rival": [one["accuracy"] for one in theirs],
            "kdexport": [one["accuracy"] for one in ours],
            "kdexport_minus_rival": gap,
            "half_width95": half,
        },
        "rival_runs": [{key: one[key] for key in ("epoch_seconds", "seconds")} for one in theirs],
        "kdexport_runs": [{key: one[key] for key in KEPT} for one in ours],
    }


def row(found: dict[str, Any], must_hold: float) -> str:
    """Return a line of the table."""

    def shown(ratio: dict[str, Any]) -> str:
        if ratio["ci95"] is None:
            return f"{ratio['times_faster']:.2f}×"
        return f"{ratio['times_faster']:.2f}× ({ratio['ci95'][0]:.2f}–{ratio['ci95'][1]:.2f})"

    accuracies = [f"{100 * float(np.mean(found['accuracy'][side])):.1f}" for side in ("rival", "kdexport")]
    cells = [
        found["pair"],
        f"{found['rival_step_ms']:.1f}",
        f"{found['kdexport_step_ms']:.1f}",
        *(shown(found[part]) for part in ("steady", "whole_training", "whole_call")),
        f"{must_hold}×",
        *accuracies,
    ]
    return f"| {' | '.join(cells)} |"


COLUMNS = (
    "pair", "theirs, ms per step", "kdexport, ms per step", "steady (95 %)", "whole training", "whole call",
    "must hold", "accuracy theirs, %", "kdexport, %",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n|---|{'---:|' * (len(COLUMNS) - 1)}"
