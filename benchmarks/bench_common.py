"""What the benchmarks of `kdexport bench` share: convolutional models of three sizes, and how results are kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from kdexport.bench.host import busy
from kdexport.machine import cpu_model, usable_cores

RESULTS = Path(__file__).with_name("results")
# name -> (channels, convolutions, height and width): about 10 µs, 1 ms and 10 ms on one core of a server of 2021
SIZES = {"tiny": (8, 2, 8), "small": (32, 7, 28), "medium": (64, 4, 64)}


def make_model(folder: Path, size: str) -> Path:
    """Write a plain convolutional classifier with seeded weights: [batch, 1, side, side] -> [batch, 10]."""
    width, depth, side = SIZES[size]
    rng = np.random.default_rng(0)
    weights, nodes, channels, last = {}, [], 1, "x"
    for layer in range(depth):
        weights[f"w{layer}"] = rng.normal(0, (9 * channels) ** -0.5, (width, channels, 3, 3)).astype(np.float32)
        nodes.append(helper.make_node("Conv", [last, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        channels, last = width, f"r{layer}"
    weights["head"] = rng.normal(0, width**-0.5, (width, 10)).astype(np.float32)
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        size,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = folder / f"{size}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


class OtherLoad:
    """How many cores the whole machine kept busy while the benchmark ran, its own work included."""

    def __enter__(self) -> "OtherLoad":
        import time

        self._clock, self._before, self._start = time.perf_counter, busy(), time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        after, seconds = busy(), self._clock() - self._start
        self.cores = None if after is None or self._before is None else (after.used - self._before.used) / seconds
        self.seconds = seconds


def keep(name: str, document: dict[str, Any], load: OtherLoad) -> None:
    """Write a result with the machine named by its CPU alone, and print it."""
    whole = {
        "benchmark": name,
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "onnxruntime": onnxruntime.__version__,
        "seconds": round(load.seconds, 1),
        "cores_busy_with_all_work": None if load.cores is None else round(load.cores, 2),
        **document,
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(whole, indent=2) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    print(text)


def finish(name: str, document: dict[str, Any], load: OtherLoad, *, smoke: bool) -> int:
    """Show the result, keep it unless it is a smoke test, and return the exit status: 1 where it does not hold."""
    if smoke:
        print(json.dumps(document, indent=2))
        return 0
    keep(name, document, load)
    holds = document["holds"]
    return 0 if (all(holds.values()) if isinstance(holds, dict) else holds) else 1
