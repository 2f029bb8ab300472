"""Does a student learn the same from kept answers as from a teacher that runs in each step? Three seeds, real images.

    tar xf cifar10-jpg.tar.xz
    python benchmarks/engine_cached_vs_uncached.py --data cifar10-jpg           # about 10 minutes on 2 free cores
    python benchmarks/engine_cached_vs_uncached.py --data cifar10-jpg --smoke

A small ResNet learns from 4,000 of CIFAR-10's images (JPEG) for 15 epochs and is scored on all 10,000 test images.
Pairs of trainings have the same seed: the same first weights, order and views.

Compared, in points of test accuracy, kept minus live:
  plain        no augmentation: kept answers against the live teacher's.
  same views   flip and shift, new views in each epoch: kept (views = epochs) against live. The same samples on both
               sides: what differs is the rounding of kept answers to half precision, and what follows from it.
  four views   flip and shift: kept with 4 views per sample, which return every fourth epoch and cost the teacher
               nothing then, against the live teacher on new views in each epoch. The default, and the one that could
               lose.

The live teacher is kdexport's own, as it runs for methods that compare layers: a term of weight 1e-30 that needs a
layer makes it run in each step; beside the others' gradients its own is below the smallest number that float32 can add.

Must hold: the mean over seeds of each within 0.3 points.

The least change sends two trainings apart, as another seed would: single runs of this setting differ by half a point
for nothing. So each seed is trained three times on either side, with a weight of the labels changed in its seventh
digit, and a seed's difference is that of two means. ``chance_half_width95`` is how far from zero chance alone brings
such a mean over seeds, by the spread of runs that differ in that digit only. The students are averages of their weights
over the last steps (ema_decay), which makes the spread smaller for both sides alike.
"""

import multiprocessing
import shutil
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from engine_common import accuracy, arguments, in_fresh_process, keep, mean_interval, pictures, train, trained_teacher
from engine_nets import SMALL_RESNET

SEEDS = (0, 1, 2)
LABEL_WEIGHTS = (0.1, 0.1000001, 0.1000002)  # the same training, thrice
EPOCHS = 15
SOFT = {"method": "soft_targets", "weight": 0.9, "temperature": 4.0}
LIVE = [{"method": "similarity", "weight": 1e-30}]  # has no parameters of its own
ROWS = {  # name -> (augmentations, views of the kept side)
    "plain": ([], 1),
    "same views": (["flip", "shift"], EPOCHS),
    "four views": (["flip", "shift"], 4),
}


def recipe(data: Path, seed: int, teacher: dict[str, Any], **distill: Any) -> dict[str, Any]:
    return {
        "name": "cached",
        "seed": seed,
        "data": {"source": f"npz:{data.resolve()}"},
        "teacher": {"model": SMALL_RESNET, "args": {"width": 16, "blocks": 1}, **teacher},
        "student": {"model": SMALL_RESNET, "args": {"width": 8, "blocks": 1}},
        "distill": {
            "epochs": EPOCHS,
            "batch_size": 64,
            "lr": 0.004,
            "ema_decay": 0.98,
            "label_weight": 0.1,
            "terms": [SOFT],
            "keep": "last",
            "baseline": False,
            **distill,
        },
    }


def one(work: Path, data: Path, teacher: str, key: tuple[Any, ...], epochs: int) -> float:
    """Train one student and score it; ``views`` None: live teacher, new views in each epoch."""
    import torch

    torch.set_num_threads(1)
    augment, views, seed, label_weight = key
    terms = [SOFT, *(LIVE if views is None else [])]
    settings = {"augment": augment, "views": min(views or epochs, epochs), "terms": terms, "epochs": epochs}
    document = recipe(data, seed, {"weights": teacher}, label_weight=label_weight, **settings)
    place = work / "-".join(map(str, [*augment, views, seed, label_weight]))
    shutil.rmtree(place, ignore_errors=True)
    made = train(document, place)
    expected = "online" if views is None else "cache" if views < epochs else None
    if expected and made["epochs"][-1]["teacher_from"] != expected:
        raise RuntimeError(f"the last epoch's teacher was not {expected}")
    return accuracy(document, made["weights"]["student"])


def row(name: str, found: dict[tuple[Any, ...], float], seeds: tuple[int, ...], weights: tuple[float, ...]) -> Any:
    """Compare the two sides of a row, seed by seed."""
    augment, views = ROWS[name]
    sides = {
        side: [[found[tuple(augment), shown, seed, weight] for weight in weights] for seed in seeds]
        for side, shown in (("kept", views), ("live", None))
    }
    differences = [
        statistics.fmean(kept) - statistics.fmean(live) for kept, live in zip(sides["kept"], sides["live"], strict=True)
    ]
    mean, half = mean_interval(differences)
    chance = None
    if len(weights) > 1:  # the variance of one run within its seed and side, hence of the mean of differences
        variance = statistics.fmean(statistics.variance(runs) for runs in [*sides["kept"], *sides["live"]])
        chance = 1.96 * (2 * variance / len(weights) / len(seeds)) ** 0.5
    return {
        "row": name,
        "kept_accuracy": sides["kept"],
        "live_accuracy": sides["live"],
        "differences": differences,
        "mean_difference": mean,
        "half_width95": half,
        "chance_half_width95": chance,
        "holds": abs(mean) <= 0.3,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one core each")
    options = parser.parse_args()
    seeds, epochs = (SEEDS[:1], 2) if options.smoke else (SEEDS, EPOCHS)
    images, taught, test = (256, 256, 500) if options.smoke else (4000, 10_000, 10_000)
    work = options.work / "cached"
    data = pictures(options.data, work / f"student-{images}.npz", train=images, test=test)
    for_teacher = pictures(options.data, work / f"teacher-{taught}.npz", train=taught, test=test)
    training = {"epochs": 1 if options.smoke else 8, "lr": 0.003, "augment": ["flip", "shift"], "keep": "last"}
    document = recipe(for_teacher, 0, {"train": training})
    teacher = in_fresh_process(trained_teacher, document, work / f"teacher-{taught}", threads=2)

    weights = LABEL_WEIGHTS[:1] if options.smoke else LABEL_WEIGHTS
    sides = sorted({(tuple(augment), kept) for augment, views in ROWS.values() for kept in (views, None)}, key=str)
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        keys = [(*side, seed, weight) for seed in seeds for weight in weights for side in sides]
        running = {key: pool.submit(one, work, data, teacher["weights"], key, epochs) for key in keys}
        found = {}
        for key, future in running.items():
            found[key] = 100 * future.result()
            print(f"{key}: {found[key]:.2f}", flush=True)
    rows = [row(name, found, seeds, weights) for name in ROWS]
    lines = [
        "| | kept, % | live, % | kept − live, points, by seed | mean (95 %) | by chance |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for found_row in rows:
        means = [
            f"{statistics.fmean(value for runs in found_row[side] for value in runs):.2f}"
            for side in ("kept_accuracy", "live_accuracy")
        ]
        by_seed = ", ".join(f"{value:+.2f}" for value in found_row["differences"])
        spread = [found_row["half_width95"], found_row["chance_half_width95"]]
        shown = [f"{found_row['mean_difference']:+.2f}", *("" if half is None else f" ± {half:.2f}" for half in spread)]
        lines.append(f"| {found_row['row']} | {means[0]} | {means[1]} | {by_seed} | {shown[0]}{shown[1]} |{shown[2]} |")
    about = {"images": images, "test_images": test, "epochs": epochs, "seeds": list(seeds)}
    result = {**about, "teacher_accuracy": teacher["accuracy"], "must_hold": "|mean| <= 0.3 points", "rows": rows}
    keep(options.out, "engine_cached_vs_uncached", result, smoke=options.smoke, table="\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
