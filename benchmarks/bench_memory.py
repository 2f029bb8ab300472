"""The worker's peak memory against that of a bare script that loads onnxruntime and the model. Target: within 5 MiB.

python benchmarks/bench_memory.py
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_common import SIZES, OtherLoad, keep, make_model

from kdexport.bench.process import Child

REPEATS = 5
BARE = """
import sys
import numpy as np
import onnxruntime as ort
path, side = sys.argv[1], int(sys.argv[2])
options = ort.SessionOptions(); options.intra_op_num_threads = 1; options.inter_op_num_threads = 1
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
x = np.linspace(-1, 1, side * side, dtype=np.float32).reshape(1, 1, side, side)
for _ in range(3):
    session.run(None, {"x": x})
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def bare(path: Path, side: int) -> float:
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(path), str(side)],
        capture_output=True,
        text=True,
        check=True,
        env={"OPENBLAS_NUM_THREADS": "1"},
    )
    return int(done.stdout) / 1024


def worker(path: Path, side: int) -> float:
    with Child(path.name, 60) as child:
        reply, _ = child.ask(
            do="memory",
            runs=3,
            path=str(path),
            provider="CPUExecutionProvider",
            provider_options={},
            threads=1,
            shapes={"x": [1, 1, side, side]},
            batch_size=1,
            below={},
            file=None,
        )
    return reply["peak_rss"]


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder, OtherLoad() as load:
        for size, (_, _, side) in SIZES.items():
            path = make_model(Path(folder), size)
            pairs = [(worker(path, side), bare(path, side)) for _ in range(REPEATS)]
            ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
            found[size] = {
                "worker_mib": round(ours, 2),
                "bare_mib": round(theirs, 2),
                "difference_mib": round(ours - theirs, 2),
            }
    keep("bench_memory", {"repeats": REPEATS, "target": "within 5 MiB", "models": found}, load)


if __name__ == "__main__":
    main()
