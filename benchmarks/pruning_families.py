"""Families of networks through prune -> distill -> parity -> int8, and the same cut by torch-pruning used by hand.

    python benchmarks/pruning_families.py CIFAR10_JPG_FOLDER

Each teacher is built with new weights and fitted for a few epochs on a few photographs (BERT: on made tokens), its
student is what is left at keep = 0.4 and distilled for one epoch. "by hand" builds the cut again with torch-pruning
alone, from the teacher's weights and the share of channels that kdexport tells: the same shapes and values, or not.
What the networks score says nothing after so short a training and is not told. A row that is there is not made again.
"""

import argparse
import copy
import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from pruning_nets import FAMILIES

from kdexport.artifacts import RunDirectory
from kdexport.distill.stage import distill
from kdexport.errors import KDExportError
from kdexport.export.stage import export
from kdexport.models.fitted_data import load_run_data
from kdexport.models.loading import load_model
from kdexport.models.pruned import plan_of
from kdexport.models.sizes import projections
from kdexport.recipe import Recipe

RESULTS = Path(__file__).parent / "results" / "pruning_families"
NETS = Path(__file__).parent / "pruning_nets.py"
KEEP = 0.4
EPOCHS = {"mobilenet_v3_small": (60, 20)}  # its batch normalization takes a hundredth of each step


def photographs(folder: Path, out: Path, size: int) -> str:
    """Write a few photographs of each class as .npz."""
    from PIL import Image

    arrays = {}
    for split, count in (("train", 20), ("test", 8)):
        images, labels = [], []
        for label, name in enumerate(sorted(item.name for item in (folder / split).iterdir() if item.is_dir())):
            for path in sorted((folder / split / name).iterdir())[:count]:
                images.append(np.asarray(Image.open(path).convert("RGB").resize((size, size))))
                labels.append(label)
        arrays[f"x_{split}"], arrays[f"y_{split}"] = np.stack(images), np.array(labels)
    np.savez(out, **arrays)
    return f"npz:{out}"


def tokens(out: Path) -> str:
    """Write made tokens as .npz: the class is which of four tokens there is most of."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 200), ("test", 80)):
        ids = rng.integers(1, 60, (count, 16))
        arrays[f"x_{split}"] = ids
        arrays[f"y_{split}"] = np.stack([(ids % 4 == rest).sum(axis=1) for rest in range(4)], axis=1).argmax(axis=1)
    np.savez(out, **arrays)
    return f"npz:{out}"


def one(name: str, source: str, folder: Path) -> dict[str, object]:
    """Prune, distill, export and quantize one family."""
    teacher, student = EPOCHS.get(name, (12, 1))
    recipe = Recipe.parse(
        {
            "name": name,
            "data": {"source": source, "val_fraction": 0.3},
            "teacher": {"model": f"{NETS}:{name}", "train": {"epochs": teacher, "batch_size": 16}},
            "student": {"model": "teacher", "prune": {"keep": KEEP}},
            "distill": {"epochs": student, "batch_size": 32, "baseline": False, "views": 1},
            "export": {"quantize": ["int8"], "calibration": "minmax", "calibration_samples": 64},
        }
    )
    directory = RunDirectory(folder / name)
    distilled = distill(recipe, directory)
    exported = export(recipe, distilled, directory)
    pruned = distilled.networks[1].pruned
    models = {model.name: model for model in exported.models}
    student, int8 = models["student"], models.get("student.int8")
    return {
        "parameters": [pruned.parameters_before, pruned.parameters],
        "kept": pruned.kept,
        "macs": [pruned.macs_before, pruned.macs],
        "parity": student.parity.max_rel,
        "passed": student.parity.passed,
        "size_bytes": [models["teacher"].size_bytes, student.size_bytes, int8.size_bytes if int8 else None],
        "int8": int8.quantized if int8 else [failure.reason for failure in exported.failures],
        "by_hand": by_hand(recipe, directory, pruned.channels_out),
        "program": (directory.root / "student.pt2").is_file(),
    }


def by_hand(recipe: Recipe, directory: RunDirectory, channels_out: float) -> bool:
    """Whether torch-pruning alone cuts the same: the same names, shapes and values."""
    import torch_pruning as tp

    dataset = load_run_data(recipe, directory.cache)
    teacher = load_model("teacher", recipe.teacher, dataset, directory.weights("teacher"))
    ours = load_model("student", recipe.student, dataset, start=directory.weights("teacher"))
    assert plan_of(ours.network).summary.channels_out == channels_out
    network = copy.deepcopy(teacher.network)
    inputs = teacher.preprocessing.apply(dataset.train.take(slice(0, 2)).inputs)
    classes = len(dataset.class_names)
    heads = [item for item in network.modules() if isinstance(item, torch.nn.Linear) and item.out_features == classes]
    groups = {item: item.num_heads for item in network.modules() if isinstance(item, torch.nn.MultiheadAttention)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tp.pruner.BasePruner(
            network,
            inputs,
            importance=tp.importance.GroupMagnitudeImportance(),
            pruning_ratio=channels_out,
            round_to=8,
            ignored_layers=heads[-1:],
            num_heads=projections(network),
            in_channel_groups={},
            out_channel_groups=groups,
        ).step()
    theirs, state = network.state_dict(), ours.network.state_dict()
    return theirs.keys() == state.keys() and all(torch.equal(theirs[name], state[name]) for name in theirs)


def table(rows: dict[str, dict[str, object]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "# Families of networks through prune, distill, parity and int8",
        "",
        f"`python benchmarks/pruning_families.py`: keep = {KEEP}, round_to = 8, magnitude, new weights, few epochs.",
        "",
        "| network | parameters before | after | kept | MACs kept | parity, max rel | int8 operators | same by hand |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, row in rows.items():
        if "error" in row:
            lines.append(f"| {name} | {row['error']} | | | | | | |")
            continue
        before, after = row["parameters"]
        macs = row["macs"][1] / row["macs"][0]
        int8 = " of ".join(map(str, row["int8"])) if all(isinstance(item, int) for item in row["int8"]) else row["int8"]
        passed = f"{row['parity']:.1e}" + ("" if row["passed"] else " FAILED")
        hand = "yes" if row["by_hand"] else "no"
        lines.append(
            f"| {name} | {before:,} | {after:,} | {row['kept']:.3f} | {macs:.3f} | {passed} | {int8} | {hand} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Fill in the rows that are not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*")
    asked = parser.parse_args()
    kept = RESULTS.with_suffix(".json")
    rows = json.loads(kept.read_text()) if kept.is_file() else {}
    for name, size in FAMILIES.items():
        if name in rows or (asked.only and name not in asked.only):
            continue
        with tempfile.TemporaryDirectory() as place:
            data = Path(place) / "data.npz"
            source = photographs(asked.folder, data, size) if size else tokens(data)
            try:
                rows[name] = one(name, source, Path(place))
            except KDExportError as error:
                rows[name] = {"error": f"{error.message} ({error.hint})"}
        kept.write_text(json.dumps(rows, indent=2) + "\n")
        RESULTS.with_suffix(".md").write_text(table(rows))
        print(name, rows[name], flush=True)


if __name__ == "__main__":
    main()
