"""int8 of a network above 1 MiB on real pictures: accuracy inside ONNX Runtime on the whole test split, and size.

    python benchmarks/export_int8_cifar.py imagefolder:DIR

The network is trained here for a few minutes, on a part of the data: enough to have something to lose. int8 is made
three ways: as kdexport does, with full 8-bit weights, and with the guard at 0.01. What must hold: within 0.01 of fp32
with the guard, at most 0.32 of its size.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdexport import references
from kdexport.data.datasets import load_data
from kdexport.data.samples import Split
from kdexport.export import network_export, parity, variants
from kdexport.export.target import ExportTarget, Form
from kdexport.export.variant_inputs import CalibrationData, VariantSpec
from kdexport.onnx.sessions import OnnxSession
from kdexport.progress import PlainLines
from kdexport.recipe import Data

RESULTS = Path(__file__).with_name("results") / "export_int8_cifar.json"
TRAINING_SAMPLES, EPOCHS, BATCH = 6_000, 2, 64


class Net(nn.Module):
    """Five convolutions with residual sums; 390,000 parameters, 1.5 MiB."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 32, 1), (32, 64, 2), (64, 128, 2), (128, 128, 1), (128, 128, 2))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, stride=s, padding=1, bias=False) for i, o, s in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _ in sizes)
        self.head = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = F.relu(norm(conv(image)))
            image = hidden + image if hidden.shape == image.shape else hidden
        return self.head(image.mean((2, 3)))


def accuracy(path: Path, split: Split) -> float:
    session = OnnxSession(path)
    right = [(session(part.inputs)[0].argmax(1) == part.labels).sum() for part in split.batches(256)]
    return float(sum(right)) / len(split)


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset = load_data(Data(source=references.absolute(sys.argv[1], Path.cwd())), 0, folder / "cache")
        network, preprocessing = Net(), dataset.preprocessing
        chosen = np.random.default_rng(0).choice(len(dataset.train), TRAINING_SAMPLES, replace=False)
        train = dataset.train.take(np.sort(chosen))
        steps = EPOCHS * -(-TRAINING_SAMPLES // BATCH)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        start = time.perf_counter()
        for _ in range(EPOCHS):
            order = torch.randperm(TRAINING_SAMPLES).numpy()
            for first in range(0, TRAINING_SAMPLES, BATCH):
                part = train.take(order[first : first + BATCH])
                loss = F.cross_entropy(network(*preprocessing.apply(part.inputs)), torch.from_numpy(part.labels))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            print(f"{time.perf_counter() - start:.0f} s, loss {loss.item():.3f}", flush=True)
        samples = parity.samples_of(dataset.val.inputs, dataset.train.inputs)
        subject = ExportTarget("net", network.eval(), preprocessing, dataset.input_names, samples)
        plain = network_export.write(subject, Form(18, 8, 1e-4, bake=True), folder / "net.onnx")
        val = dataset.val.take(parity.spread(len(dataset.val), variants.VALIDATION_SAMPLES))
        calibration = train.take(parity.spread(len(train), 256)).inputs
        material = CalibrationData(lambda: samples, lambda: calibration, lambda: (val.inputs, val.labels))
        rows = [
            {"form": "fp32", "test_accuracy": accuracy(folder / "net.onnx", dataset.test), "bytes": plain.size_bytes}
        ]
        for form, wanted in (
            ("int8", VariantSpec("int8")),
            ("int8, full 8-bit weights", VariantSpec("int8", weight_bits=8)),
            ("int8, guard 0.01", VariantSpec("int8", max_drop=0.01)),
            (
                "int8, full 8-bit weights, guard 0.01",
                VariantSpec("int8", weight_bits=8, max_drop=0.01),
            ),
        ):
            path = folder / "small.onnx"
            made = variants.write(folder / "net.onnx", plain, wanted, path, material, PlainLines(), key=None)
            rows.append(
                {
                    "form": form,
                    "test_accuracy": accuracy(path, dataset.test),
                    "bytes": made.size_bytes,
                    "notes": made.notes,
                }
            )
        for row in rows:
            row["size_ratio"] = round(row["bytes"] / rows[0]["bytes"], 4)
            row["accuracy_delta"] = round(row["test_accuracy"] - rows[0]["test_accuracy"], 4)
            print(row, flush=True)
        RESULTS.write_text(json.dumps({"test_samples": len(dataset.test), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
