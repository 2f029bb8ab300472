"""Which ONNX Runtime reads what: measured, release by release, from the oldest that this Python can install.

    python benchmarks/export_runtimes.py [--cache DIR] [VERSION...]

Each release is installed into a folder of its own. It is given one-node models of every opset and IR version (the
table in ``kdexport/onnx/files.py``), then what kdexport writes: a network with its preprocessing, resizing,
softmax and top-k inside, as ``--for-runtime`` asks for that release, and every smaller variant of it, answers compared
with those of the runtime that is installed here.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from kdexport.export import network_export, variants
from kdexport.export.target import ExportTarget, Form
from kdexport.export.variant_inputs import CalibrationData, VariantSpec
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx.runtimes import RUNTIMES, for_runtime
from kdexport.onnx.sessions import OnnxSession
from kdexport.progress import Silent

RESULTS = Path(__file__).with_name("results") / "export_runtimes.json"
VERSIONS = (
    "1.15.0", "1.16.0", "1.17.0", "1.18.0", "1.19.0", "1.20.0", "1.21.0", "1.22.0", "1.23.0", "1.24.1", "1.25.0",
    "1.26.0", "1.27.0", "1.28.0", "1.29.0", "1.30.0", "1.31.1",
)  # fmt: skip
OPSETS, IRS = range(17, 29), range(8, 15)
PROBE = """
import json, sys
from pathlib import Path
import numpy as np
import onnxruntime
onnxruntime.set_default_logger_severity(4)
folder, images = Path(sys.argv[1]), np.load(sys.argv[2])
def runs(path, feed):
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: feed})[0]
    except Exception as error:
        return str(error).splitlines()[0][:160]
zeros = np.zeros(2, np.float32)
ok = lambda path: not isinstance(runs(path, zeros), str)
answers = {path.name: runs(path, images) for path in sorted((folder / "files").glob("*.onnx"))}
print(json.dumps({
    "opset": max(n for n in range(17, 29) if ok(folder / "probe" / f"{n}_8.onnx")),
    "ir": max(n for n in range(8, 15) if ok(folder / "probe" / f"17_{n}.onnx")),
    "answers": {name: value if isinstance(value, str) else value.tolist() for name, value in answers.items()},
}))
"""


class Net(nn.Module):
    """A convolution with batch normalization and two matrix products, large enough for 4 bits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 64, 3, stride=2), nn.BatchNorm2d(64)
        self.hidden, self.head = nn.Linear(64, 128), nn.Linear(128, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pooled = torch.relu(self.norm(self.conv(image))).mean((2, 3))
        return self.head(torch.relu(self.hidden(pooled)))


def probes(folder: Path) -> None:
    folder.mkdir()
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    for opset in OPSETS:
        for ir in IRS:
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
            onnx.save(model, folder / f"{opset}_{ir}.onnx")


def export(folder: Path, version: str, images: np.ndarray) -> dict[str, str | None]:
    """Write what kdexport writes for a release; returns each file with the oldest runtime that it is said to need."""
    folder.mkdir(exist_ok=True)
    wanted = for_runtime(version)
    preprocessing = Preprocessing("image", (32, 32), "crop", 0.875, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    labels = tuple(f"class {number}" for number in range(10))
    subject = ExportTarget("net", Net().eval(), preprocessing, ("image",), (images,), class_names=labels)
    form = Form(wanted.opset, wanted.ir, 1e-4, bake=True, any_image_size=True, softmax=True, top_k=3)
    path = folder / "net.onnx"
    made = [network_export.write(subject, form, path)]
    material = CalibrationData(lambda: (images,), lambda: (images,), lambda: None)
    for precision in variants.TOLERANCE:
        target = folder / f"net.{precision}.onnx"
        made.append(variants.write(path, made[0], VariantSpec(precision), target, material, Silent(), key=None))
    return {model.file: model.oldest_runtime for model in made}


def install(version: str, cache: Path) -> Path:
    target = cache / version
    if not (target / "onnxruntime").is_dir():
        packages = [f"onnxruntime=={version}", "numpy<2" if version < "1.19" else "numpy"]
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", target, *packages], check=True)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="keeps the installed releases")
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        probes(root / "probe")
        images = np.random.default_rng(0).integers(0, 256, (16, 40, 48, 3), dtype=np.uint8)
        np.save(root / "images.npy", images)
        written: tuple[int, int] | None = None
        for version in given.versions:
            target = install(version, given.cache or root / "installed")
            if for_runtime(version) != written:
                written = for_runtime(version)
                needs = export(root / "files", version, images)
                expected = {name: OnnxSession(root / "files" / name)((images,))[0] for name in needs}
            done = subprocess.run(
                [sys.executable, "-S", "-c", PROBE, root, root / "images.npy"],
                env={**os.environ, "PYTHONPATH": str(target)},
                capture_output=True,
                text=True,
                check=True,
            )
            found = json.loads(done.stdout)
            release = tuple(int(part) for part in version.split(".")[:2])
            files = {}
            for name, answer in found["answers"].items():
                loads = not isinstance(answer, str)
                said = needs[name] is not None and tuple(map(int, needs[name].split("."))) <= release
                files[name] = {
                    "loads": loads,
                    "said_to": said,
                    "difference": float(np.abs(np.array(answer) - expected[name]).max()) if loads else None,
                    "error": None if loads else answer.replace(f"{root}/", ""),
                }
            table = RUNTIMES[max(known for known in RUNTIMES if known <= release)]
            row = {"version": version, "opset": found["opset"], "ir": found["ir"], "files": files}
            row["as_in_table"] = (found["opset"], found["ir"]) == tuple(table)
            rows.append(row)
            loaded = ", ".join(f"{name} {'yes' if file['loads'] else 'NO'}" for name, file in files.items())
            print(f"{version}: opset {row['opset']}, IR {row['ir']}, table {row['as_in_table']}; {loaded}", flush=True)
    RESULTS.write_text(json.dumps({"python": sys.version.split()[0], "releases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
