"""In a container of half a CPU and 1 GiB: threads follow the quota, and memory that ends is told as that.

    sudo python benchmarks/limits.py             # ten minutes

Each row is a command in a control group of its own (cgroup v1 or v2) of 0.5 CPUs and 1,024 MiB, which the kernel
enforces. One counts the threads; the others need more memory than there is: in training (a batch that fits in halves,
and one that does not), in data, in export, in a quantizer, in a worker of bench, in evaluate, in search.

Must hold: one thread; "out of memory" or "not enough memory", with what to set, exit code 0 or 1, no traceback; of
bench and search all else is measured.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
CPUS, MIB = 0.5, 1024
NETS = """
from pathlib import Path

import numpy as np
import torch
from torch import nn

Path("threads").write_text(str(torch.get_num_threads()))


class Net(nn.Module):
    \"\"\"Takes `samples x 64 x times` floats in its forward.\"\"\"

    def __init__(self, width=8, times=1, num_classes=10):
        super().__init__()
        self.times = times
        self.hidden, self.head = nn.Linear(64, width), nn.Linear(width, num_classes)

    def forward(self, image):
        flat = image.flatten(1)
        if self.times > 1:
            flat = flat + 0 * flat.repeat(1, self.times).mean(1, keepdim=True)
        return self.head(torch.relu(self.hidden(flat)))


def data():
    return {"x_train": np.ones((20000, 256, 256), np.float32)}
"""
RECIPE = """name = "tiny"
[data]
source = "digits"
[teacher]
model = "nets.py:Net"
[teacher.train]
epochs = 1
[student]
model = "nets.py:Net"
[distill]
epochs = 1
baseline = false
[bench]
min_seconds = 0.05
max_seconds = 0.1
rounds = 1
[search]
budget = { size_mib = 0.05 }
min_epochs = 1
finalists = { count = 1 }
[[search.space]]
model = "nets.py:Net"
args = { width = [4], times = [1, 400000] }
"""
SHORT = ("--min-seconds", "0.05", "--max-seconds", "0.1", "--rounds", "1")
TRAIN = (
    "distill", "--data", "digits", "--teacher", "nets.py:Net", "--student", "nets.py:Net", "--teacher-epochs", "1",
    "--epochs", "1", "--no-baseline", "--batch-size", "64", "--out", "run",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A command, and what its end must say."""

    command: tuple[str, ...]
    exit_code: int
    says: str  # a regular expression, in stderr and stdout


MEMORY = "(?:out of memory|not enough memory|does not fit in memory)"
ROWS = {
    "threads": Row(TRAIN, 0, ""),
    "training, a batch that fits in halves": Row((*TRAIN, "--student-arg", "times=60000"), 0, "going on with"),
    "training, a batch that does not fit": Row(
        (*TRAIN, "--student-arg", "times=600000"), 1, f"{MEMORY}.*hint: .*micro_batch_size"
    ),
    "teacher's answers": Row((*TRAIN[:-2], "--teacher-arg", "times=600000", "--out", "run2"), 1, f"{MEMORY}.*hint: "),
    "data, a function of one's own": Row(("evaluate", "nets.py:Net", "--data", "nets.py:data"), 1, f"{MEMORY}.*hint: "),
    "data, large pictures": Row(("evaluate", "nets.py:Net", "--data", "imagefolder:pictures"), 1, f"{MEMORY}.*hint: "),
    "export": Row(
        ("export", "nets.py:Net", "--arg", "width=1500000", "--onnx", "--input-shape", "64", "--out", "out.onnx"),
        1,
        f"{MEMORY}.*hint: ",
    ),
    "quantizer": Row(
        ("export", "wide.onnx", "--quantize", "int8-dynamic", "--out", "quantized.onnx"), 1, f"{MEMORY}.*hint: "
    ),
    "worker of bench": Row(
        ("bench", "small.onnx", "wide.onnx", "--batch-size", "1", "--batch-size", "4096", *SHORT),
        1,
        "batch size 4096 does not fit in memory",
    ),
    "evaluate": Row(("evaluate", "nets.py:Net", "--arg", "times=60000000", "--data", "digits"), 1, f"{MEMORY}.*hint: "),
    "search": Row(("search", "recipe.toml", "--out", "search"), 0, MEMORY),
}


@contextlib.contextmanager
def group() -> Iterator[list[Path]]:
    """Make a control group inside this process's own and return the files that take process ids."""
    root, made = Path("/sys/fs/cgroup"), []
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
    name = f"kdexport-limits-{os.getpid()}"
    try:
        if (root / "memory").is_dir():  # v1
            for controller, limits in (
                ("cpu", {"cpu.cfs_quota_us": str(int(CPUS * 100000))}),
                ("memory", {"memory.limit_in_bytes": str(MIB << 20)}),
            ):
                made.append(root / controller / own[controller] / name)
                made[-1].mkdir()
                for file, value in limits.items():
                    (made[-1] / file).write_text(value)
        else:
            made.append(root / own[""] / name)
            made[-1].mkdir()
            for file, value in (("cpu.max", f"{int(CPUS * 100000)} 100000"), ("memory.max", str(MIB << 20))):
                (made[-1] / file).write_text(value)
        yield [place / "cgroup.procs" for place in made]
    finally:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()


def prepare(work: Path) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from PIL import Image

    (work / "nets.py").write_text(NETS)
    (work / "recipe.toml").write_text(RECIPE)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (work / "pictures" / split / name).mkdir(parents=True)
            Image.new("RGB", (13000, 13000)).save(work / "pictures" / split / name / "1.png")
    for name, width in (("small", 8), ("wide", 800_000)):
        rng = np.random.default_rng(0)
        weights = {"w": rng.normal(0, 0.1, (64, width)).astype(np.float32)}
        nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
                 helper.make_node("ReduceMean", ["r"], ["y"], axes=[1])]  # fmt: skip
        graph = helper.make_graph(
            nodes, name, [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
            [numpy_helper.from_array(value, key) for key, value in weights.items()],
        )  # fmt: skip
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), work / f"{name}.onnx"
        )


def carried_out(row: Row, work: Path) -> dict[str, Any]:
    with group() as lists:
        script = "".join(f"echo $$ > {place} && " for place in lists) + 'exec "$@"'
        began = time.monotonic()
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        done = subprocess.run(
            ["bash", "-c", script, "bash", sys.executable, "-m", "kdexport", *row.command],
            cwd=work, capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip
        seconds = time.monotonic() - began
        time.sleep(0.5)  # its workers end
    said = done.stderr + done.stdout
    found = re.search(row.says, said, re.IGNORECASE | re.DOTALL)
    lines = [line for line in done.stderr.splitlines() if re.search(f"^error: |^hint: |{MEMORY}", line)]
    fault = ""
    if "Traceback" in said:
        fault = "traceback"
    elif done.returncode != row.exit_code:
        fault = f"exit {done.returncode}, not {row.exit_code}"
    elif found is None:
        fault = f"does not say {row.says}"
    if fault:
        print(said[-3000:])
    lines = [line.replace(f"{work}/", "") for line in lines]
    return {
        "exit": done.returncode,
        "seconds": round(seconds, 1),
        "said": lines[:6],
        "fault": fault,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORD")
    parser.add_argument("--smoke", action="store_true", help="Does it run? Nothing is kept.")
    asked = parser.parse_args()
    kept = RESULTS / "limits.json"
    found = json.loads(kept.read_text())["rows"] if kept.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(work)
        for name, row in ROWS.items():
            if asked.only is not None and not any(word in name for word in asked.only):
                continue
            found[name] = carried_out(row, work)
            if name == "threads":
                found[name]["threads"] = int((work / "threads").read_text())
                found[name]["fault"] += "" if found[name]["threads"] == 1 else "threads"
            print(name, found[name], flush=True)
            document = {
                "benchmark": "limits",
                "cpus": CPUS,
                "mib": MIB,
                "rows": {one: found[one] for one in ROWS if one in found},
            }
            if not asked.smoke:
                kept.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(work / "run", ignore_errors=True)
    return 1 if any(row["fault"] for row in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
