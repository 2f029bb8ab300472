"""A packed benchmark in a virtual environment with only numpy and onnxruntime, against `kdexport bench` itself.

    python benchmarks/bench_pack.py [--pairs 6]

Both measure the same two models, in turns. Target: the ratio of their medians holds 1.00, and the speed-up of the one
model over the other is the same.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import venv
from importlib import metadata
from pathlib import Path

from bench_common import OtherLoad, keep, make_model

from kdexport.bench.pack import pack
from kdexport.bench.stage import BenchRequest, bench
from kdexport.onnx.describe import describe_file
from kdexport.progress import Silent
from kdexport.recipe import Bench
from kdexport.statistics import ratio_interval

ONLY = ("numpy", "onnxruntime")


def bare_environment(folder: Path) -> Path:
    """Make a virtual environment that holds numpy and onnxruntime and nothing else, without a download."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    for name in ONLY:
        distribution = metadata.distribution(name)
        tops = {Path(str(file)).parts[0] for file in distribution.files or () if not str(file).startswith("..")}
        for top in tops:
            (site / top).symlink_to(distribution.locate_file(top))
    return folder / "bin" / "python"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=6)
    flags = parser.parse_args()
    settings = Bench(min_seconds=0.5, max_seconds=2)
    here: dict[str, list[float]] = {}
    there: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, OtherLoad() as load:
        folder = Path(name)
        models = [describe_file(make_model(folder, size)) for size in ("small", "tiny")]
        pack(BenchRequest(models, settings, "pack"), folder / "bench.pyz", progress=Silent())
        python = bare_environment(folder / "venv")
        code = "import importlib.metadata as m; print(sorted({d.metadata['Name'] for d in m.distributions()}))"
        holds = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(flags.pairs):
            for one in bench(models, settings, name="here").measurements:
                here.setdefault(one.model, []).append(one.latency_ms.p50)
            command = [str(python), str(folder / "bench.pyz"), "--out", "-", "--quiet"]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True)
            for one in json.loads(done.stdout)["measurements"]:
                there.setdefault(one["model"], []).append(one["latency_ms"]["p50"])
    found = {}
    for model in here:
        ratio, interval = ratio_interval(there[model], here[model])
        found[model] = {
            "bench_p50_ms": round(statistics.median(here[model]), 5),
            "pack_p50_ms": round(statistics.median(there[model]), 5),
            "pack_over_bench": round(ratio, 4),
            "ci95": [round(end, 4) for end in interval],
            "holds_1.00": interval[0] <= 1 <= interval[1],
        }
    keep("bench_pack", {"environment": holds, "pairs": flags.pairs, "models": found}, load)


if __name__ == "__main__":
    sys.exit(main())
