"""One pack under many Pythons, onnxruntimes and processors: does it run, and does it answer the same?

    python benchmarks/bench_boards.py --row NAME ROOT PYTHON PACKAGES [--row ...]

ROOT is a folder to chroot into (as root; an arm64 one runs by qemu-user through binfmt_misc), or - for none. PYTHON and
PACKAGES are seen from there: an interpreter (`env QEMU_CPU=cortex-a72 python3` has a Raspberry Pi 4's instructions),
and a folder that holds numpy and onnxruntime (`pip install --target PACKAGES --python-version 39 --only-binary=:all:
--platform manylinux2014_aarch64 numpy onnxruntime`). Roots: `debootstrap --arch=arm64 --foreign --include=python3 SUITE
ROOT`, each .deb of it unpacked by `dpkg-deb -x`.

The pack holds a convolutional network on the test half of scikit-learn's digits, in fp32 and int8. Each row runs it as
a user would, and again to keep what the models answer; that is held against this machine's own answers. A row is
written when it is done; one that is there already is not run again. No time is kept: emulated ones mean nothing.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from bench_common import RESULTS
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from kdexport.api import report
from kdexport.bench.pack import pack
from kdexport.bench.stage import BenchRequest
from kdexport.data.samples import Dataset, Split
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx.describe import describe_file
from kdexport.progress import Silent
from kdexport.recipe import Bench
from kdexport.results import BenchResult, from_json, to_json

OUT = RESULTS / "bench_boards.json"
THIS = "this machine"
TOLERANCE = 1e-4  # of fp32, of the largest answer: the export's own
# Runs inside the row's Python: the packed samples through the packed session, all answers into one file.
ANSWER = """
import json, sys, zipfile, numpy as np
packed, folder, out = sys.argv[1:]
sys.path.insert(0, folder)
zipfile.ZipFile(packed).extractall(folder)
from pathlib import Path
from kdexport.bench.packed import samples_in
from kdexport.onnx.sessions import OnnxSession
manifest = json.loads((Path(folder) / "manifest.json").read_text())
answers = {}
for target in manifest["plan"]["targets"]:
    with np.load(Path(folder) / "data" / (manifest["feeds"][target["name"]] + ".npz")) as archive:
        split = samples_in(archive, manifest["task"])
    session = OnnxSession(Path(folder) / target["path"], raw=False, threads=1)
    answers[target["name"]] = np.concatenate([session.predict(part.inputs) for part in split.batches(64)])
np.savez(out, **answers)
"""


def digits() -> tuple[Split, Split]:
    """Return the halves of scikit-learn's digits: pixels from 0 to 1, [n, 1, 8, 8]."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return Split((images[:900],), labels[:900]), Split((images[900:],), labels[900:])


def make_models(folder: Path, train: Split) -> list[Path]:
    """Write a network of seeded convolutions with a head fitted by least squares, and its int8 form."""
    rng = np.random.default_rng(0)
    weights, nodes, channels, last = {}, [], 1, "x"
    for layer, width in enumerate((16, 32)):
        weights[f"w{layer}"] = rng.normal(0, (2 / (9 * channels)) ** 0.5, (width, channels, 3, 3)).astype(np.float32)
        nodes += [
            helper.make_node("Conv", [last, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]),
        ]
        channels, last = width, f"r{layer}"
    nodes += [
        helper.make_node("MaxPool", [last], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head", "bias"], ["logits"]),
    ]

    def saved(head: np.ndarray, bias: np.ndarray, output: str, width: int) -> onnx.ModelProto:
        tensors = {**weights, "head": head, "bias": bias} if output == "logits" else weights
        graph = helper.make_graph(
            nodes if output == "logits" else nodes[:-1],
            "digits",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", width])],
            [numpy_helper.from_array(tensors[name], name) for name in tensors],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    from onnxruntime import InferenceSession

    size = 32 * 4 * 4
    empty = np.zeros((size, 10), np.float32), np.zeros(10, np.float32)
    body = InferenceSession(saved(*empty, "flat", size).SerializeToString(), providers=["CPUExecutionProvider"])
    flat = body.run(None, {"x": train.inputs[0]})[0].astype(np.float64)
    rows = np.c_[flat, np.ones(len(flat))]
    fitted = np.linalg.solve(rows.T @ rows + 10 * np.eye(size + 1), rows.T @ (10 * np.eye(10)[train.labels] - 1))
    fp32, int8 = folder / "digits.onnx", folder / "digits.int8.onnx"
    onnx.save(saved(fitted[:-1].astype(np.float32), fitted[-1].astype(np.float32), "logits", 10), str(fp32))

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter({"x": train.inputs[0][start : start + 50]} for start in range(0, 200, 50))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._left, None)

    quantize_static(
        str(fp32),
        str(int8),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=True,  # as `kdexport export` does: of 8 bits, sums saturate on x86 without VNNI, and not on ARM
    )
    return [fp32, int8]


def run(root: str, python: str, packages: str, packed: Path, folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Run the pack in a row's Python; return its bench.json and what its models answered."""
    inside = Path(tempfile.mkdtemp(prefix="boards-", dir=Path(root, "tmp") if root != "-" else folder))
    seen = inside if root == "-" else Path("/tmp", inside.name)
    (inside / "p.pyz").write_bytes(packed.read_bytes())
    (inside / "answer.py").write_text(ANSWER)
    (inside / "there").mkdir()
    prefix = ["chroot", root] if root != "-" else []
    environment = {
        **os.environ,
        "PYTHONPATH": packages,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }

    def call(*arguments: object) -> str:
        command = [*prefix, *shlex.split(python), *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"code {done.returncode}: {done.stderr[-1000:]}")
        return done.stderr

    call(seen / "p.pyz", "--quiet", "--out", seen / "bench.json")
    call(seen / "answer.py", seen / "p.pyz", seen / "there", seen / "answers.npz")
    with np.load(inside / "answers.npz") as archive:
        answers = {name: archive[name] for name in archive.files}
    return json.loads((inside / "bench.json").read_text(encoding="utf-8")), answers


def compared(own: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, dict]:
    """Return for each model how far its answers are from this machine's."""
    found = {}
    for name, expected in reference.items():
        difference = float(np.abs(own[name] - expected).max())
        found[name] = {
            "same_bits": bool((own[name] == expected).all()),
            "max_abs": difference,
            "max_rel_to_largest": difference / float(np.abs(expected).max()),
            "argmax_equal": float((own[name].argmax(1) == expected.argmax(1)).mean()),
        }
    return found


def row(document: dict, answers: dict[str, np.ndarray], reference: dict[str, np.ndarray], here: BenchResult) -> dict:
    """Return what is kept of one row; the report must take its bench.json beside this machine's."""
    document["machine"]["name"] = "board"  # as `kdexport report board=FILE` calls it
    for measured in document["measurements"]:
        measured["machine"] = "board"
    result = from_json(BenchResult, document)
    joined = report([here, result])
    first = document["measurements"][0]
    answered = compared(answers, reference)
    return {
        "system": result.machine.system.split()[-1],
        "python": result.machine.python,
        "onnxruntime": result.machine.versions.get("onnxruntime"),
        "numpy": result.machine.versions.get("numpy"),
        "placement": first["placement"],
        "null": sorted(name for name in ("placement", "energy_mj") if first[name] is None)
        + sorted(f"memory_mib.{name}" for name, value in first["memory_mib"].items() if value is None),
        "joined_machines": len(joined.machines),
        "score": {model.name: model.accuracy for model in result.models},
        "answers": answered,
        "passed": all(one["argmax_equal"] == 1 for one in answered.values())
        and answered["digits"]["max_rel_to_largest"] <= TOLERANCE,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", nargs=4, action="append", default=[], metavar=("NAME", "ROOT", "PYTHON", "PACKAGES"))
    parser.add_argument("--out", type=Path, default=OUT, help="where the rows are")
    flags = parser.parse_args()
    kept = json.loads(flags.out.read_text(encoding="utf-8")) if flags.out.is_file() else {}
    train, test = digits()
    settings = Bench(min_seconds=0.02, max_seconds=0.1, rounds=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [describe_file(path) for path in make_models(folder, train)]
        data = Dataset("digits", ("x",), tuple("0123456789"), train, train, test, Preprocessing("none"), {})
        pack(BenchRequest(files, settings, "boards", dataset=data), folder / "p.pyz", progress=Silent())
        document, reference = run("-", sys.executable, os.environ.get("PYTHONPATH", ""), folder / "p.pyz", folder)
        here = from_json(BenchResult, document)
        kept[THIS] = row(document, reference, reference, here) | {"cpu_features": here.machine.cpu_features}
        for title, root, python, packages in flags.row:
            if title in kept and "failed" not in kept[title]:
                continue
            try:
                kept[title] = row(*run(root, python, packages, folder / "p.pyz", folder), reference, here)
            except RuntimeError as error:
                kept[title] = {"failed": str(error)}
            flags.out.write_text(json.dumps(to_json_like(kept), indent=1) + "\n", encoding="utf-8")
            print(title, kept[title].get("passed", kept[title].get("failed")))
    return 0 if all(one.get("passed") for one in kept.values()) else 1


def to_json_like(kept: dict) -> dict:
    return json.loads(json.dumps(kept, default=to_json))


if __name__ == "__main__":
    sys.exit(main())
