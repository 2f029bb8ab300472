"""Tiny ONNX files, made node by node: no torch, a few hundred bytes each."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdexport.recipe import Bench

QUICK = Bench(min_seconds=0.03, max_seconds=0.05, rounds=3, precision=0.5)


@pytest.fixture(scope="session")
def quick() -> Bench:
    """Settings that measure a model in a moment: for what is reported, not for how well."""
    return QUICK


@pytest.fixture(scope="session")
def once(quick: Bench) -> Bench:
    """The same with one fresh process a model: for what does not come from several."""
    return quick.model_copy(update={"rounds": 1})


def save(path: Path, nodes, inputs, outputs, weights=None, opset=17, **kwargs) -> Path:
    graph = helper.make_graph(
        nodes, "g", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, str(path), **kwargs)
    return path


def value(name: str, kind: int, shape: list) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def linear(path: Path, features: int = 64, classes: int = 10, seed: int = 0, **kwargs) -> Path:
    """[batch, features] -> logits [batch, classes], seeded."""
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.standard_normal((features, classes)).astype(np.float32),
        "b": rng.standard_normal(classes).astype(np.float32),
    }
    return save(
        path,
        [helper.make_node("Gemm", ["x", "w", "b"], ["logits"])],
        [value("x", TensorProto.FLOAT, ["batch", features])],
        [value("logits", TensorProto.FLOAT, ["batch", classes])],
        weights,
        **kwargs,
    )


def embedding(path: Path, rows: int = 50) -> Path:
    """Token ids [batch, sequence] -> rows of a table; ids must stay below ``rows``."""
    return save(
        path,
        [
            helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "wide"], ["y"]),
        ],
        [value("ids", TensorProto.INT32, ["batch", "sequence"])],
        [value("y", TensorProto.FLOAT, ["batch", "sequence", 4])],
        {"table": np.ones((rows, 4), np.float32)},
    )


def broken_at_run(path: Path) -> Path:
    """Loads, but every run fails: a reshape that cannot fit."""
    return save(
        path,
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [value("x", TensorProto.FLOAT, ["batch", 4])],
        [value("y", TensorProto.FLOAT, None)],
        {"shape": np.array([7, 3], np.int64)},
    )


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a.onnx and b.onnx (64 features, 10 classes), ids.onnx and broken.onnx."""
    folder = tmp_path_factory.mktemp("models")
    linear(folder / "a.onnx", seed=1)
    linear(folder / "b.onnx", seed=2)
    embedding(folder / "ids.onnx")
    broken_at_run(folder / "broken.onnx")
    return folder
