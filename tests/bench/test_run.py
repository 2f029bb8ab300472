import json

import numpy as np
import pytest
from onnx import TensorProto, helper

from kdexport.artifacts import RunDirectory
from kdexport.bench.stage import bench_run
from kdexport.onnx.describe import describe_file
from kdexport.progress import Silent
from kdexport.recipe import Recipe
from kdexport.results import ExportResult

from .conftest import save, value


@pytest.fixture
def run(tmp_path):
    """A run on real digits whose one model takes raw images, [batch, 8, 8, 1] uint8."""
    rng = np.random.default_rng(0)
    save(
        tmp_path / "teacher.onnx",
        [
            helper.make_node("Cast", ["images"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["wide"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ],
        [value("images", TensorProto.UINT8, ["batch", 8, 8, 1])],
        [value("logits", TensorProto.FLOAT, ["batch", 10])],
        {"w": rng.standard_normal((64, 10)).astype(np.float32)},
    )
    document = {
        "name": "quick",
        "data": {"source": "digits"},
        "teacher": {"model": "nets.py:Teacher"},
        "student": {"model": "nets.py:Student"},
        "bench": {"min_seconds": 0.03, "max_seconds": 0.05, "rounds": 1, "precision": 0.5},
    }
    (tmp_path / "metrics.jsonl").write_text('{"phase": "student", "epoch": 1}\n{"phase": "student", "epoch": 2}\n{"pha')
    model = describe_file(tmp_path / "teacher.onnx")
    exported = ExportResult("quick", (model,))

    def measure(**changes):
        recipe = Recipe.parse({**document, **changes}, base=tmp_path)
        return bench_run(recipe, exported, RunDirectory(tmp_path), Silent())

    return measure, tmp_path


def test_a_run_is_measured_once_and_again_only_for_what_touches_it(run):
    measure, folder = run
    first = measure()
    assert first.models[0].accuracy is not None
    assert first.models[0].evaluation.samples > 100
    assert [line["epoch"] for line in first.training] == [1, 2]
    assert (folder / "bench.samples.npz").exists()

    again = measure(require={"min_speedup": 3.0})  # changes what is asked of the figures, not the figures
    assert again.created == first.created
    assert again.measurements == first.measurements
    assert json.loads((folder / "bench.json").read_text())["recipe"]["require"]["min_speedup"] == 3.0

    other = measure(bench={"min_seconds": 0.03, "max_seconds": 0.05, "rounds": 4, "precision": 0.5})
    assert len(other.measurements[0].latency_ms.rounds_p50) == 4
