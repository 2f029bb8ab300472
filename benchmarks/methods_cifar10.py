"""Every distillation method against the same student trained without a teacher, on real photographs.

    tar xf cifar10-jpg.tar.xz
    python benchmarks/methods_cifar10.py --data cifar10-jpg                 # about an hour on 2 free cores; resumes
    python benchmarks/methods_cifar10.py --data cifar10-jpg --smoke --out /tmp/smoke   # does it run? under 2 minutes

The setting is the one in which people distill: a teacher that has seen more than there is now. It learns from 16,000
images; every student gets the first 4,000 of them, the same 20 epochs, augmentations, order and first weights, and is
scored on all 10,000 test images (strongly JPEG-compressed: figures of the original CIFAR-10 do not carry over).

A row's gain is the mean over seeds of its accuracy minus the plain student's of the same seed, with Student's 95 %
interval of that mean. Three seeds make it wide; `soft_targets`, the default and `plain` have five. Weights are those
that each paper or its authors' code gives for CIFAR, untuned here, but for the last rows: what was tried as a default,
and `attention` with less weight (its loss is a mean over positions: the small maps of these networks make it large).
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
TEACHER_IMAGES, STUDENT_IMAGES, EPOCHS = 16_000, 4_000, 20
SEEDS, MORE_SEEDS = (0, 1, 2), (0, 1, 2, 3, 4)
WITH_MORE_SEEDS = ("plain", "soft_targets", "dist", "dist, labels 0.1")

SOFT_TARGETS = {"method": "soft_targets", "weight": 0.9, "temperature": 4.0}
DIST = {"method": "dist", "beta": 2.0, "gamma": 2.0, "temperature": 4.0}
# name -> (weight of the labels, terms)
ROWS = {
    "plain": (1.0, []),
    "soft_targets": (0.1, [SOFT_TARGETS]),
    "soft_targets, standardized": (
        0.1,
        [{"method": "soft_targets", "weight": 9.0, "temperature": 2.0, "standardize": True}],
    ),
    "hard_targets": (0.5, [{"method": "hard_targets", "weight": 0.5}]),
    "logit_mse": (0.0, [{"method": "logit_mse", "weight": 1.0}]),
    "dkd": (1.0, [{"method": "dkd", "weight": 1.0, "schedule": "warmup", "schedule_share": 0.083}]),
    "dist": (1.0, [DIST]),
    "binary_soft_targets": (0.1, [{"method": "binary_soft_targets", "weight": 0.9}]),
    "hint": (1.0, [{"method": "hint", "weight": 100.0}]),
    "attention": (1.0, [{"method": "attention", "weight": 1000.0}]),
    "similarity": (1.0, [{"method": "similarity", "weight": 3000.0}]),
    "relational": (1.0, [{"method": "relational", "weight": 1.0}]),
    "crd": (1.0, [{"method": "crd", "weight": 0.8, "negatives": 4000}]),
    "review": (1.0, [{"method": "review", "weight": 1.0, "schedule": "warmup", "schedule_share": 0.083}]),
    "cosine": (1.0, [{"method": "cosine", "weight": 1.0}]),
    # Not a paper's:
    "dist, labels 0.1": (0.1, [DIST]),
    "soft_targets, T = 2": (0.1, [{"method": "soft_targets", "weight": 0.9, "temperature": 2.0}]),
    "dist + soft_targets": (0.1, [SOFT_TARGETS, DIST]),
    "dist + soft_targets, labels 1": (1.0, [SOFT_TARGETS, DIST]),
    "hint + soft_targets": (0.1, [SOFT_TARGETS, {"method": "hint", "weight": 100.0}]),
    "attention, weight 10": (1.0, [{"method": "attention", "weight": 10.0}]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds train/CLASS/*.jpg and test/")
    parser.add_argument("--work", type=Path, default=Path("runs/methods_cifar10"), help="what lies here is not redone")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of methods_cifar10.json and .md")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one core each")
    parser.add_argument("--smoke", action="store_true", help="few images, one epoch, one seed")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the trainings; the teacher's is set within
    work = options.work / ("smoke" if options.smoke else "full")
    work.mkdir(parents=True, exist_ok=True)

    started = time.perf_counter()
    data = prepare_data(options.data, work, options.smoke)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:  # in a process of its own: threads are set once
        teacher = pool.submit(train_teacher, work, data["teacher"], options.smoke, options.jobs).result()
    print(f"teacher: {teacher['accuracy']:.4f}")

    jobs = [(name, seed) for seed in MORE_SEEDS for name in options.rows if seed in seeds_of(name, options.smoke)]
    results: list[dict] = []
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        running = [pool.submit(train_student, work, data["student"], teacher, *job, options.smoke) for job in jobs]
        for done in as_completed(running):
            results.append(done.result())
            last = results[-1]
            print(
                f"[{time.perf_counter() - started:6.0f}s] {len(results)}/{len(jobs)} "
                f"{last['row']} seed {last['seed']}: {last['accuracy']:.4f} in {last['seconds']:.0f} s",
                flush=True,
            )
    write(options.out, teacher, results)


def seeds_of(name: str, smoke: bool) -> tuple[int, ...]:
    if smoke:
        return SEEDS[:1]
    return MORE_SEEDS if name in WITH_MORE_SEEDS else SEEDS


def prepare_data(folder: Path, work: Path, smoke: bool) -> dict[str, Path]:
    """Decode once. The student's images are the first of the teacher's; which they are is drawn with a fixed seed."""
    from PIL import Image

    files = {name: work / f"{name}.npz" for name in ("teacher", "student")}
    if all(path.exists() for path in files.values()):
        return files
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())

    def read(split: str, count: int | None) -> tuple[np.ndarray, np.ndarray]:
        found = [
            (path, index) for index, name in enumerate(classes) for path in sorted((folder / split / name).glob("*"))
        ]
        chosen = np.random.default_rng(0).permutation(len(found))[:count]
        images = np.stack([np.asarray(Image.open(found[place][0]).convert("RGB")) for place in chosen])
        return images, np.array([found[place][1] for place in chosen])

    images, labels = read("train", 600 if smoke else TEACHER_IMAGES)
    test_images, test_labels = read("test", 500 if smoke else None)
    for name, count in (("teacher", len(images)), ("student", 300 if smoke else STUDENT_IMAGES)):
        test = {"x_test": test_images, "y_test": test_labels}
        np.savez(files[name], x_train=images[:count], y_train=labels[:count], class_names=np.array(classes), **test)
    return files


def recipe(data: Path, seed: int, distill: dict, teacher: dict) -> dict:
    return {
        "name": "methods",
        "seed": seed,
        "data": {"source": f"npz:{data.resolve()}", "val_fraction": 0.05},
        "teacher": {"model": f"{HERE / 'methods_nets.py'}:ResNet", "args": {"width": 24, "blocks": 2}, **teacher},
        "student": {"model": f"{HERE / 'methods_nets.py'}:ResNet", "args": {"width": 8, "blocks": 1}},
        "distill": distill,
    }


def train_teacher(work: Path, data: Path, smoke: bool, threads: int) -> dict:
    import torch

    torch.set_num_threads(threads)
    training = {"epochs": 1 if smoke else 12, "lr": 0.003, "augment": ["flip", "shift"], "keep": "last"}
    # The student of this run is not of interest; one epoch on labels is the least that a run can be asked for.
    distill = {"epochs": 1, "label_weight": 1.0, "terms": [], "baseline": False, "keep": "last"}
    return train(work / "teacher", recipe(data, 0, distill, {"train": training}), "teacher")


def train_student(work: Path, data: Path, teacher: dict, row: str, seed: int, smoke: bool) -> dict:
    import torch

    torch.set_num_threads(1)
    label_weight, terms = ROWS[row]
    distill = {
        "epochs": 1 if smoke else EPOCHS,
        "batch_size": 64,
        "lr": 0.004,
        "augment": ["flip", "shift"],
        "views": 4,
        "keep": "last",  # the validation split is too small to choose by
        "baseline": False,
        "label_weight": label_weight,
        "terms": terms,
    }
    place = work / f"{row.replace(', ', '-')}-{seed}"
    return train(place, recipe(data, seed, distill, {"weights": teacher["weights"]}), "student", row=row, seed=seed)


def train(place: Path, document: dict, role: str, **about: object) -> dict:
    """Run the distill stage, or take its earlier result, and score one network on the test split."""
    import torch

    from kdexport.artifacts import RunDirectory, key_of, read_json, write_json
    from kdexport.data.datasets import load_data
    from kdexport.distill.batches import predict_all
    from kdexport.distill.stage import distill
    from kdexport.models.loading import load_model
    from kdexport.recipe import Recipe

    key, record = key_of(document), place / "accuracy.json"
    earlier = read_json(record)
    if earlier and earlier["key"] == key:
        return earlier
    asked, directory = Recipe.parse(document), RunDirectory(place)
    network = next(network for network in distill(asked, directory).networks if network.name == role)
    dataset = load_data(asked.data, asked.seed, directory.cache)
    model = load_model(role, asked.teacher if role == "teacher" else asked.student, dataset, directory.weights(role))
    logits = predict_all(model.network, model.preprocessing, dataset.test, torch.device("cpu"))
    made = {
        "key": key,
        **about,
        "accuracy": float((logits.argmax(axis=1) == dataset.test.labels).mean()),
        "seconds": network.seconds,
        "parameters": network.parameters,
        "weights": str(directory.weights(role).resolve()),
    }
    write_json(record, made)
    return made


def is_default(label_weight: float, terms: list[dict]) -> bool:
    """Whether a row is what a recipe gets that says nothing."""
    from kdexport.recipe import Distill

    row = Distill.model_validate({"label_weight": label_weight, "terms": tuple(terms)})
    return (row.label_weight, row.terms) == (Distill().label_weight, Distill().terms)


def write(folder: Path, teacher: dict, results: list[dict]) -> None:
    """Write the table as JSON and Markdown."""
    from kdexport.statistics import student_t95

    plain = {result["seed"]: result["accuracy"] for result in results if result["row"] == "plain"}
    rows = []
    for name, (label_weight, terms) in ROWS.items():
        runs = sorted((result for result in results if result["row"] == name), key=lambda result: result["seed"])
        if not runs:
            continue
        accuracies = [run["accuracy"] for run in runs]
        gains = [run["accuracy"] - plain[run["seed"]] for run in runs if run["seed"] in plain]
        half = None
        if len(gains) > 1 and name != "plain":
            half = student_t95(len(gains) - 1) * statistics.stdev(gains) / len(gains) ** 0.5
        rows.append(
            {
                "row": name,
                "default": is_default(label_weight, terms),
                "label_weight": label_weight,
                "terms": terms,
                "seeds": [run["seed"] for run in runs],
                "accuracies": accuracies,
                "accuracy": statistics.fmean(accuracies),
                "gain": statistics.fmean(gains) if gains and name != "plain" else None,
                "gain_half_width95": half,
                "parameters": runs[0]["parameters"],
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    document = {"teacher": {key: teacher[key] for key in ("accuracy", "parameters")}, "rows": rows}
    (folder / "methods_cifar10.json").write_text(json.dumps(document, indent=2) + "\n")
    lines = [
        f"Teacher: {teacher['accuracy']:.1%}, {teacher['parameters']:,} parameters, {TEACHER_IMAGES:,} images. "
        f"Students: {rows[0]['parameters']:,} parameters, {STUDENT_IMAGES:,} of those images, {EPOCHS} epochs.",
        "",
        "| method | seeds | accuracy % | gain over plain, points (95 %) |",
        "|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        half = row["gain_half_width95"]
        gain = "" if row["gain"] is None else f"{100 * row['gain']:+.2f}" + (f" ± {100 * half:.2f}" if half else "")
        accuracy = f"{100 * row['accuracy']:.2f}"
        name = f"**{row['row']}** (the default)" if row["default"] else row["row"]
        lines.append(f"| {name} | {len(row['seeds'])} | {accuracy} | {gain} |")
    (folder / "methods_cifar10.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
