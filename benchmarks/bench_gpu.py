"""CUDA against the CPU for a teacher of ResNet-50's size and a small student; bound memory against none.

    python benchmarks/bench_gpu.py        (needs an NVIDIA GPU and onnxruntime-gpu)

Batches of 1 to 64 on the GPU, of 1 on one core beside it; placement proved, copies to and from the device apart
from the computing. Without a GPU it says so and ends with 1; nothing is written.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torchvision
from bench_common import OtherLoad, keep

from kdexport.bench.session import open_session
from kdexport.bench.stage import bench
from kdexport.machine import nvidia_gpus
from kdexport.onnx.describe import describe_file
from kdexport.recipe import Bench
from kdexport.statistics import speedup

BESIDE_THE_CPU, ALONE = (1,), (4, 16, 64)  # batches: a core takes seconds for one of 64
MAX_SECONDS = 2.0
UNBOUND_RUNS = 50


def export(folder: Path) -> list[Path]:
    """Write both networks with random weights: a latency does not depend on what they are."""
    paths = []
    for name in ("resnet50", "mobilenet_v3_small"):
        network = torchvision.models.get_model(name, weights=None).eval()
        path = folder / f"{name}.onnx"
        batch = torch.export.Dim("batch")
        torch.onnx.export(
            network,
            (torch.randn(2, 3, 224, 224),),
            path,
            dynamo=True,
            dynamic_shapes=({0: batch},),
            external_data=False,
            verbose=False,
        )
        paths.append(path)
    return paths


def unbound_ms(path: Path, batch: int) -> float:
    """Return the median of `session.run` with numpy in and numpy out: what is measured without bound memory."""
    session, _ = open_session(str(path), "CUDAExecutionProvider", {}, 1)
    feed = {session.get_inputs()[0].name: np.zeros((batch, 3, 224, 224), np.float32)}
    for _ in range(5):
        session.run(None, feed)
    samples = []
    for _ in range(UNBOUND_RUNS):
        before = time.perf_counter_ns()
        session.run(None, feed)
        samples.append(time.perf_counter_ns() - before)
    return statistics.median(samples) / 1e6


def main() -> int:
    gpus, driver = nvidia_gpus()
    if not gpus or "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        print("no NVIDIA GPU, or no CUDA in this onnxruntime: nothing measured", file=sys.stderr)
        return 1
    rows = []
    with tempfile.TemporaryDirectory() as folder, OtherLoad() as load:
        paths = export(Path(folder))
        measured = []
        for path in reversed(paths):  # the small one first: a machine that is lent may be gone before the other
            for devices, batches in ((("cpu", "cuda"), BESIDE_THE_CPU), (("cuda",), ALONE)):
                settings = Bench(devices=devices, batch_sizes=batches, max_seconds=MAX_SECONDS)
                measured += bench([describe_file(path)], settings, name="gpu").measurements
                print(measured[-1], file=sys.stderr, flush=True)
        cpu = {(one.model, one.batch_size): one for one in measured if one.device == "cpu"}
        for one in measured:
            if one.device != "cuda":
                continue
            other = cpu.get((one.model, one.batch_size))
            ratio, interval = speedup(other.latency_ms, one.latency_ms) if other else (None, None)
            rows.append(
                {
                    "model": one.model,
                    "batch": one.batch_size,
                    "cpu_p50_ms": other and round(other.latency_ms.p50, 3),
                    "cuda_p50_ms": round(one.latency_ms.p50, 3),
                    "speedup": ratio and round(ratio, 2),
                    "ci95": interval,
                    "placement": one.placement,
                    "transfer_ms": one.transfer_ms,
                    "unbound_p50_ms": round(unbound_ms(Path(folder) / f"{one.model}.onnx", one.batch_size), 3),
                    "device_peak_mib": one.memory_mib.device_peak,
                }
            )
    keep("bench_gpu", {"gpu": gpus[0], "driver": driver, "rows": rows}, load)
    return 0


if __name__ == "__main__":
    sys.exit(main())
