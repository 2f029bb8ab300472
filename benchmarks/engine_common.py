"""What the engine_* benchmarks share: data decoded once, fresh processes, a kdexport run, and how results are kept."""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).with_name("results")
# As kdexport's command line sets it, here for both sides: waiting threads that spin for long would slow down whoever
# shares the cores with them, the worker processes of a DataLoader first.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def arguments(description: str | None, *, data: bool = True) -> argparse.ArgumentParser:
    """Return a parser of the options that every script has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if data:
        parser.add_argument(
            "--data", type=Path, required=True, help="the folder that holds train/CLASS/*.jpg and test/"
        )
    parser.add_argument("--work", type=Path, default=Path("runs/engine"), help="for what is made on the way")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    parser.add_argument("--smoke", action="store_true", help="does it run? little data, one round")
    return parser


def pictures(folder: Path, target: Path, *, train: int, test: int, val: int = 500, grey28: bool = False) -> Path:
    """Decode the first pictures of a seeded order into an npz file of uint8 images, once.

    Args:
        folder: Holds ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg``.
        target: The npz file to write.
        train: How many to learn from.
        test: How many to be scored on.
        val: How many more of ``train/`` are kept out: kdexport watches the training by them.
        grey28: Whether they become 28x28 and grey, the form of MNIST.
    """
    from PIL import Image

    if target.exists():
        return target
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())

    def read(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        found = [
            (path, label) for label, name in enumerate(classes) for path in sorted((folder / split / name).glob("*"))
        ]
        if len(found) < count:
            raise SystemExit(f"{folder / split} holds {len(found)} pictures, {count} are wanted")
        chosen = [found[place] for place in np.random.default_rng(0).permutation(len(found))[:count]]
        images = []
        for path, _ in chosen:
            picture = Image.open(path)
            picture = (
                picture.convert("L").resize((28, 28), Image.Resampling.BILINEAR) if grey28 else picture.convert("RGB")
            )
            images.append(np.asarray(picture))
        stacked = np.stack(images)
        return stacked[..., None] if grey28 else stacked, np.array([label for _, label in chosen])

    images, labels = read("train", train + val)
    test_images, test_labels = read("test", test)
    target.parent.mkdir(parents=True, exist_ok=True)
    made = {
        "x_train": images[:train], "y_train": labels[:train], "x_val": images[train:], "y_val": labels[train:],
        "x_test": test_images, "y_test": test_labels, "class_names": np.array(classes),
    }  # fmt: skip
    temporary = target.with_suffix(".tmp.npz")
    np.savez(temporary, **made)
    temporary.replace(target)
    return target


def in_fresh_process(function: Callable[..., Any], *args: Any, threads: int) -> Any:
    """Call a function in a process that has done nothing before: threads are set once, memory is its own."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *args).result()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def train(document: dict[str, Any], place: Path) -> dict[str, Any]:
    """Run kdexport's distill stage and return how it went: seconds, epochs as logged, weights' files, layout."""
    from kdexport import Recipe, RunDirectory
    from kdexport.distill.stage import distill  # what ``kdexport.distill`` calls; its imports are not part of the time

    recipe, directory = Recipe.parse(document), RunDirectory(place)
    start = time.perf_counter()
    result = distill(recipe, directory)
    seconds = time.perf_counter() - start
    lines = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    return {
        "seconds": seconds,
        "epochs": [line for line in lines if line["phase"] == "student"],
        "memory_format": recipe.distill.channels_last,
        "compile": recipe.distill.compile,
        "weights": {network.name: str((place / network.weights).resolve()) for network in result.networks},
    }


def accuracy(document: dict[str, Any], weights: str, role: str = "student") -> float:
    """Score weights of a recipe's network on the recipe's test samples."""
    import torch

    from kdexport import Recipe
    from kdexport.data.datasets import load_data
    from kdexport.distill.batches import predict_all
    from kdexport.models.loading import load_model

    recipe = Recipe.parse(document)
    dataset = load_data(recipe.data, recipe.seed, Path(weights).parent / "cache")
    model = load_model(role, getattr(recipe, role), dataset, Path(weights))
    logits = predict_all(model.network, model.preprocessing, dataset.test, torch.device("cpu"))
    return float((logits.argmax(axis=1) == dataset.test.labels).mean())


def trained_teacher(document: dict[str, Any], place: Path) -> dict[str, Any]:
    """Fit a recipe's teacher on the labels, once; its student is none of this run's business and gets one epoch."""
    record = place / "teacher.json"
    if record.exists():
        return json.loads(record.read_text())
    made = train({**document, "distill": {"epochs": 1, "label_weight": 1.0, "terms": [], "baseline": False}}, place)
    found = {
        "weights": made["weights"]["teacher"],
        "accuracy": accuracy(document, made["weights"]["teacher"], "teacher"),
    }
    record.write_text(json.dumps(found))
    return found


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the half-width of its 95 % interval (Student's t); None below three values."""
    from kdexport.statistics import student_t95

    mean = float(np.mean(values))
    if len(values) < 3:
        return mean, None
    return mean, float(student_t95(len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def rounded(value: Any, digits: int = 4) -> Any:
    """Round every float of a document: more digits than were measured only look like more."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    return value


def keep(folder: Path, name: str, document: dict[str, Any], *, smoke: bool, table: str | None = None) -> None:
    """Write a result, the machine named by its CPU alone, and print it; a smoke run's never looks like a result."""
    import torch

    from kdexport.machine import cpu_model, usable_cores

    about = {"benchmark": name, "cpu": cpu_model(), "cores": usable_cores(), "torch": torch.__version__}
    whole = {**about, **({"smoke": True} if smoke else {}), **rounded(document)}
    stem = f"{name}.smoke" if smoke else name
    target = folder if not smoke or folder != RESULTS else Path("runs/engine")
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{stem}.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    if table is not None:
        (target / f"{stem}.md").write_text(table, encoding="utf-8")
    print(json.dumps(whole, indent=2))
    if table is not None:
        print(table)
