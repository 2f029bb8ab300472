"""OpenVINO beside the CPU provider: where the nodes go, what a call takes, and whether the outputs are the same.

    python -m venv ov && ov/bin/pip install onnxruntime-openvino onnx onnx-ir numpy typer rich pydantic tomli_w jinja2
    PYTHONPATH=. ov/bin/python benchmarks/bench_openvino.py MODEL.onnx ... [--inputs 16]

onnxruntime-openvino brings an onnxruntime of its own, so that it needs an environment of its own. The measuring is
that of `kdexport bench --device cpu --device openvino`. Parity: the same random inputs through both providers in the
same process, the largest difference over the largest magnitude of the CPU provider's output, and how often the largest
output is at the same place. Must hold: every node on OpenVINO, fp32 within 1e-4, every decision the same.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime as ort
from bench_common import OtherLoad, keep

from kdexport.bench.inputs import resolve_shapes
from kdexport.bench.session import open_session
from kdexport.bench.stage import bench
from kdexport.onnx.describe import describe_file
from kdexport.recipe import Bench

PROVIDERS = {"cpu": "CPUExecutionProvider", "openvino": "OpenVINOExecutionProvider"}


def parity(path: Path, count: int) -> dict[str, float]:
    model = describe_file(path)
    shapes = resolve_shapes(model.inputs, 1, {}, model=model.name)
    sessions = {name: open_session(str(path), provider, {}, 1)[0] for name, provider in PROVIDERS.items()}
    rng = np.random.default_rng(0)
    worst, same = 0.0, 0
    for _ in range(count):
        feeds = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        cpu, other = (session.run(None, feeds)[0] for session in sessions.values())
        worst = max(worst, float(np.abs(cpu - other).max() / np.abs(cpu).max()))
        same += int(cpu.argmax() == other.argmax())
    return {"inputs": count, "max_rel": worst, "argmax_agreement": same / count}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--inputs", type=int, default=16)
    parser.add_argument("--max-seconds", type=float, default=10.0)
    flags = parser.parse_args()
    with OtherLoad() as load:
        settings = Bench(devices=tuple(PROVIDERS), min_seconds=0.3, max_seconds=flags.max_seconds)
        result = bench([describe_file(path) for path in flags.models], settings, name="openvino")
        proofs = {path.stem: parity(path, flags.inputs) for path in flags.models}
    rows = [
        {
            "model": one.model,
            "precision": next(model.precision for model in result.models if model.name == one.model),
            "device": one.device,
            "placement": one.placement,
            "p50_ms": round(one.latency_ms.p50, 3),
            "p50_ci95": one.latency_ms.p50_ci95,
            "load_ms": round(one.load_ms, 1),
            "first_run_ms": round(one.first_run_ms, 2),
            "peak_rss_mib": one.memory_mib.peak_rss,
            "disturbed": one.disturbed,
        }
        for one in result.measurements
    ]
    failures = [vars(failure) for failure in result.failures]
    keep(
        "bench_openvino",
        {"providers": ort.get_available_providers(), "rows": rows, "parity": proofs, "failures": failures},
        load,
    )


if __name__ == "__main__":
    main()
