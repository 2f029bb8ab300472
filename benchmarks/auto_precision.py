"""Whether precision by measured time is ever slower than fp32 and int8, and how often it is faster than both.

    python benchmarks/auto_precision.py [--only NAME ...] [--again]
    python benchmarks/auto_precision.py --data cifar10-jpg --recordings recordings

Twenty networks of torchvision and timm with seeded weights, at 96 pixels: each is given to ``--quantize auto`` and
``int8`` without a limit (untrained weights have no score), and then the files fp32, int8 and auto are measured anew,
in turns, in processes that the choice has not seen. Must hold: the new interval of auto's speed against the better of
the two is nowhere below 1. With ``--data``, three networks are trained for a minute on real data (scikit-learn's
digits, pictures, spoken digits), with max_drop = 0.01 on the validation split: what auto's file scores stands beside
fp32's. A row is kept as soon as it is there, and not made again without ``--again``.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torchvision
from bench_common import RESULTS, OtherLoad

from kdexport import statistics
from kdexport.bench.comparison import Comparison
from kdexport.export import given
from kdexport.export.variant_inputs import VariantSpec
from kdexport.machine import fingerprint
from kdexport.pipeline import run
from kdexport.progress import Silent
from kdexport.recipe import Bench, Recipe

SIDE, SAMPLES, ROUNDS, SECONDS = 96, 16, 6, 1.2
TORCHVISION = (
    "resnet18", "resnet34", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "squeezenet1_1",
    "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "mnasnet0_5", "efficientnet_b0", "regnet_y_400mf", "densenet121",
)  # fmt: skip
TIMM = (
    "repvgg_a0", "ghostnet_050", "lcnet_050", "convnext_atto", "mobilevit_xxs", "resnet10t", "levit_128s",
    "vit_tiny_patch16_224",
)  # fmt: skip
FILE = RESULTS / "auto_precision.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=(*TORCHVISION, *TIMM), default=(*TORCHVISION, *TIMM))
    parser.add_argument("--again", action="store_true", help="Measure what is known already, too.")
    parser.add_argument(
        "--data", type=Path, help="CIFAR-10 as JPEG files: three trained networks in place of the twenty."
    )
    parser.add_argument("--recordings", type=Path, help="Spoken digits, for --data.")
    parser.add_argument("--trained", nargs="+", metavar="NAME", help="Which of the trained ones, for --data.")
    asked = parser.parse_args()
    known = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"networks": {}, "trained": {}}
    if asked.data is not None:
        recipes = trained_recipes(asked.data, asked.recordings)
        chosen = asked.trained or recipes
        rows, kept = {name: (lambda name=name: scored(recipes[name])) for name in chosen}, known["trained"]
    else:
        rows, kept = {name: (lambda name=name: timed(name)) for name in asked.only}, known["networks"]
    for name, make in rows.items():
        if name not in kept or asked.again:
            started = time.monotonic()
            with OtherLoad() as load:
                row = make()
            row["seconds"] = round(time.monotonic() - started)
            row["cores_busy_with_all_work"] = None if load.cores is None else round(load.cores, 2)
            if name in kept:  # a figure that was not liked stays beside the one that took its place
                row["at_first"] = kept[name]["against_better"]
            kept[name] = row
            write(known)
            print(name, json.dumps(row), flush=True)


def write(known: dict[str, Any]) -> None:
    """Keep all rows, and the page that shows them."""
    machine = fingerprint()
    rows = known["networks"].values()
    known["machine"] = {
        "cpu": machine.cpu,
        "cpu_features": machine.cpu_features,
        "vnni": any("vnni" in name for name in machine.cpu_features),
        "onnxruntime": machine.versions.get("onnxruntime"),
        "threads": 1,
        "batch_size": 1,
    }
    known["networks_measured"] = len(rows)
    known["slower_beyond_the_interval"] = sum(row["against_better"][2] < 1 for row in rows)
    known["faster_than_both_beyond_the_interval"] = sum(row["against_better"][1] > 1 for row in rows)
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(known, indent=1, default=list) + "\n", encoding="utf-8")
    FILE.with_suffix(".md").write_text(page(known), encoding="utf-8")


def page(known: dict[str, Any]) -> str:
    """Return the rows as tables."""
    machine = known["machine"]
    vnni = "with VNNI" if machine["vnni"] else "without VNNI"
    lines = [
        "# Precision by measured time",
        "",
        f"{machine['cpu']} {vnni}, onnxruntime {machine['onnxruntime']}, one thread, batch 1, {SIDE} pixels, seeded "
        "weights. Speeds are those of fresh processes in turns, after the choice was made, with 95 % intervals.",
        "",
        f"{known['networks_measured']} networks: {known['slower_beyond_the_interval']} slower than the better of fp32 "
        f"and int8 beyond the interval, {known['faster_than_both_beyond_the_interval']} faster than both.",
        "",
        "| network | fp32, ms | int8 against fp32 | auto against fp32 | auto against the better | taken | in int8 |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    for name, row in known["networks"].items():
        int8, auto, better = (written(row[key]) for key in ("int8", "auto", "against_better"))
        count = "{} of {}".format(*row["quantized"])
        if row.get("at_first"):
            better += f"; at first {written(row['at_first'])}"
        if row.get("same_graph_as"):
            better += "; the same graph"
        lines.append(f"| {name} | {row['fp32_ms']:.2f} | {int8} | {auto} | {better} | {row['chosen']} | {count} |")
    if known["trained"]:
        lines += [
            "",
            "Trained for a minute on real data, max_drop = 0.01 on the validation split:",
            "",
            "| network | taken | in int8 | validation, fp32 | auto | lost | test, fp32 | int8 | auto | auto's speed |",
            "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
    for name, row in known["trained"].items():
        count = "{} of {}".format(*row["quantized"])
        val, test = row["validation"], row["test"]
        lines.append(
            f"| {name} | {row['chosen']} | {count} | {val['fp32']:.4f} | {val['auto']:.4f} | "
            f"{val['fp32'] - val['auto']:.4f} | {test['fp32']:.4f} | {test['int8']:.4f} | {test['auto']:.4f} | "
            f"{written(row['auto'])} |"
        )
    return "\n".join(lines) + "\n"


def written(ratio: list[float]) -> str:
    """Return a ratio with its interval."""
    return f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})"


def network_of(name: str) -> torch.nn.Module:
    """Return a network with seeded weights whose outputs vary: normalized by a batch, nothing zero or scaled away."""
    torch.manual_seed(0)
    if name in TORCHVISION:
        network = torchvision.models.get_model(name, weights=None)
    else:
        import timm

        sized = {"img_size": SIDE} if name.startswith(("vit", "levit")) else {}
        network = timm.create_model(name, **sized)
    for part in network.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.momentum = 1.0
    with torch.no_grad():
        for of, weight in network.named_parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(0, 0.02)
            elif of.endswith(("gamma", "layer_scale")):
                weight.fill_(1.0)
        network.train()(torch.randn(8, 3, SIDE, SIDE))
    return network.eval()


def timed(name: str) -> dict[str, Any]:
    """Let auto choose, then measure what it has chosen anew."""
    with tempfile.TemporaryDirectory() as folder:
        source, samples = Path(folder) / "net.onnx", Path(folder) / "samples.npz"
        batch = {0: torch.export.Dim("batch")}
        sample = (torch.randn(2, 3, SIDE, SIDE),)
        network = network_of(name)
        torch.onnx.export(network, sample, dynamo=True, verbose=False, dynamic_shapes=(batch,)).save(str(source))
        np.savez(samples, x=np.random.default_rng(0).standard_normal((SAMPLES, 3, SIDE, SIDE)).astype(np.float32))
        specs = tuple(VariantSpec(kind, "minmax", max_output_error=1e9) for kind in ("int8", "auto"))
        request = given.Request(source, specs, inputs=samples, timer=lambda *of: Comparison(Bench(), *of))
        exported = given.export(request, Silent())
        if exported.failures:
            raise SystemExit(f"{name}: {exported.failures}")
        made = {model.precision: model for model in exported.models}
        chosen = made["auto"].measured_precision
        files = {"fp32": source} | {kind: source.with_suffix(f".{kind}.onnx") for kind in ("int8", "auto")}
        found = fresh(files)
        if found["against_better"][2] < 1:  # of twenty intervals one lies beside the truth: it is measured once more
            found["at_first"] = found["against_better"]
            found.update(fresh(files, 2 * ROUNDS))
        graphs = {kind: onnx.load(file).graph for kind, file in files.items()}
        return {
            **found,
            "same_graph_as": [kind for kind in ("fp32", "int8") if same(graphs[kind], graphs["auto"])],
            "chosen": chosen.chosen,
            "quantized": made["auto"].quantized,
            "tried": [
                [one.name, one.made, one.quantized, one.speedup, one.speedup_ci95, one.told] for one in chosen.tried
            ],
            "operators_of_the_file": len(onnx.load(source).graph.node),
        }


def same(one: onnx.GraphProto, other: onnx.GraphProto) -> bool:
    """Whether two graphs compute the same, operator by operator and weight by weight."""
    return all(
        [item.SerializeToString() for item in getattr(one, part)]
        == [item.SerializeToString() for item in getattr(other, part)]
        for part in ("node", "initializer")
    )


def fresh(files: dict[str, Path], rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure fp32, int8 and auto in turns; each ratio with its interval's ends."""
    comparison = Comparison(Bench())
    turns, failures = comparison.turns(files, rounds=rounds, seconds=SECONDS * rounds / ROUNDS)
    if failures:
        raise SystemExit(f"not measured: {failures}")

    def against(base: str, name: str) -> list[float]:
        ratio, interval = statistics.speedup_of_rounds(statistics.ratios_of_rounds(turns[base], turns[name]))
        return [round(value, 4) for value in (ratio, *(interval or (ratio, ratio)))]

    better = max(("fp32", "int8"), key=lambda name: against("fp32", name)[0])
    return {
        "fp32_ms": round(float(np.median(np.concatenate([np.asarray(one) for one in turns["fp32"]]))) / 1e6, 3),
        "int8": against("fp32", "int8"),
        "auto": against("fp32", "auto"),
        "better": better,
        "against_better": against(better, "auto"),
    }


NETS = '''"""Small networks of plain convolutions, with depthwise ones and a hard activation between."""

from torch import nn


def block(inputs, outputs, stride):
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs), nn.Hardswish(),
        nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )


class Net(nn.Module):
    def __init__(self, channels=3, width=24, classes=10):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            block(width, 2 * width, 2), block(2 * width, 2 * width, 1), nn.Conv2d(2 * width, 2 * width, 3, 1, 1),
            nn.ReLU(), block(2 * width, 4 * width, 2),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
'''


def trained_recipes(pictures: Path, recordings: Path | None) -> dict[str, dict[str, Any]]:
    """Return what is trained on real data, each for a minute."""
    spoken = Path(__file__).parents[1] / "models" / "spoken_digits" / "data.py"
    sources: dict[str, tuple[dict[str, Any], int, int]] = {
        "digits": ({"source": "digits"}, 1, 12),
        "pictures": ({"source": f"imagefolder:{some_of(pictures)}"}, 3, 4),
    }
    if recordings is not None:
        args = {"folder": str(recordings)}
        sources["spoken digits"] = ({"source": f"{spoken}:load", "args": args}, 1, 6)
    return {
        name: {
            "name": name.replace(" ", "_"),
            "data": data,
            "teacher": {
                "model": "nets.py:Net",
                "args": {"channels": channels, "width": 16},
                "train": {"epochs": 6, "lr": 0.003},
            },
            "student": {"model": "nets.py:Net", "args": {"channels": channels}},
            "distill": {"epochs": epochs, "label_weight": 0.9, "lr": 0.003},
            "export": {"quantize": ["int8", "auto"], "max_drop": 0.01, "calibration": "minmax"},
            "bench": {"min_seconds": 0.3, "max_seconds": 4.0, "rounds": 3},
        }
        for name, (data, channels, epochs) in sources.items()
    }


def some_of(pictures: Path) -> Path:
    """Copy 400 training and 100 test pictures of each class."""
    folder = Path(tempfile.gettempdir()) / "auto_precision" / "some"
    for split, count in (("train", 400), ("test", 100)):
        for of_class in sorted((pictures / split).iterdir()):
            there = folder / split / of_class.name
            there.mkdir(parents=True, exist_ok=True)
            for file in sorted(of_class.iterdir())[:count]:
                shutil.copy(file, there)
    return folder


def scored(document: dict[str, Any]) -> dict[str, Any]:
    """Train, export with auto, and tell what the files score."""
    root = Path(tempfile.gettempdir()) / "auto_precision" / document["name"]
    root.mkdir(parents=True, exist_ok=True)
    (root / "nets.py").write_text(NETS, encoding="utf-8")
    recipe = Recipe.parse(document, base=root)
    report = run(recipe, root / "run", Silent())
    models = {model.name: model for model in report.models}
    auto = models["student.auto"]
    chosen = auto.measured_precision
    files = {"fp32": "student.onnx", "int8": "student.int8.onnx", "auto": "student.auto.onnx"}
    row = {
        **fresh({kind: root / "run" / file for kind, file in files.items()}),
        "chosen": chosen.chosen,
        "quantized": auto.quantized,
        "validation": validation(recipe, root / "run", files),
        "test": {kind: models[file.removesuffix(".onnx")].score.value for kind, file in files.items()},
        "tried": [[one.name, one.made, one.quantized, one.speedup, one.speedup_ci95, one.told] for one in chosen.tried],
    }
    shutil.rmtree(root)
    return row


def validation(recipe: Recipe, root: Path, files: dict[str, str]) -> dict[str, float]:
    """Return each file's accuracy on the whole validation split, computed by hand."""
    import onnxruntime

    from kdexport.models.fitted_data import load_run_data

    val = load_run_data(recipe, root / "cache").val
    found = {}
    for kind, file in files.items():
        session = onnxruntime.InferenceSession(str(root / file), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        right = [
            session.run(None, {name: np.asarray(image)[None]})[0].argmax() == label
            for image, label in zip(val.inputs[0], val.labels, strict=True)
        ]
        found[kind] = float(np.mean(right))
    return found


if __name__ == "__main__":
    main()
