"""What is scored after measuring, and that a pack scores as this machine does."""

import argparse
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper

from kdexport.bench import packed, stage
from kdexport.bench.packed import Job
from kdexport.bench.plan import Device
from kdexport.bench.runner import Outcome
from kdexport.bench.scoring import scoring_device, session_for
from kdexport.data.samples import Dataset, Split
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx import sessions
from kdexport.onnx.describe import describe_file
from kdexport.progress import Silent
from kdexport.results import Failure
from kdexport.tasks import TASKS

from .conftest import save, value

CPU = Device("cpu", "CPUExecutionProvider")


def failure(model: str, device: str = "cpu") -> Failure:
    return Failure(model, device, 1, 1, "the worker was killed by SIGSEGV")


class Captured(Silent):
    def __init__(self):
        self.warnings = []

    def warn(self, message):
        self.warnings.append(message)


def classifier(path: Path) -> Path:
    """Labels first, then probabilities, as scikit-learn's converters write them; the batch is fixed to 8."""
    return save(
        path,
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("ArgMax", ["y"], ["label"], axis=1, keepdims=0),
            helper.make_node("Softmax", ["y"], ["probabilities"], axis=1),
        ],
        [value("x", TensorProto.FLOAT, [8, 4])],
        [value("label", TensorProto.INT64, [8]), value("probabilities", TensorProto.FLOAT, [8, 3])],
        {"w": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)},
    )


@pytest.fixture
def data() -> Dataset:
    rng = np.random.default_rng(1)
    test = Split((rng.standard_normal((20, 4)).astype(np.float32),), rng.integers(0, 3, 20))
    return Dataset("random", ("x",), ("a", "b", "c"), test, test, test, Preprocessing("none"), {})


def test_a_pack_takes_from_a_model_what_this_machine_takes(tmp_path, data):
    path = classifier(tmp_path / "m.onnx")
    here = sessions.OnnxSession(path).predict(data.test.inputs)
    there = session_for(path, CPU, task=TASKS["classification"]).predict(data.test.inputs)
    assert there.shape == (20, 3)
    np.testing.assert_array_equal(there, here)
    np.testing.assert_allclose(np.exp(there).sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("form", ["logits", "sigmoid"])
def test_several_labels_are_scored_alike_with_and_without_a_sigmoid_here_and_in_a_pack(tmp_path, form):
    rng = np.random.default_rng(1)
    weight, rows = rng.standard_normal((4, 3)).astype(np.float32), rng.standard_normal((40, 4)).astype(np.float32)
    logits = rows @ weight
    labels = ((logits + rng.standard_normal(logits.shape)) > 0).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"]), helper.make_node("Sigmoid", ["logits"], ["sigmoid"])]
    inputs, outputs = [value("x", TensorProto.FLOAT, ["n", 4])], [value(form, TensorProto.FLOAT, ["n", 3])]
    path = save(tmp_path / "m.onnx", nodes, inputs, outputs, {"w": weight})
    split = Split((rows,), labels)
    data = Dataset("random", ("x",), ("a", "b", "c"), split, split, split, Preprocessing("none"), {})
    model = describe_file(path)
    (here,) = stage.score([model], Path(), data, Outcome((), (), {}), [CPU], Silent())
    right = (logits > 0) == (labels > 0.5)
    hits = ((logits > 0) & (labels > 0.5)).sum(axis=0)
    assert [found.accuracy for found in here.evaluation.per_class] == pytest.approx(hits / labels.sum(axis=0))
    assert 0.6 < right.mean() < 1  # neither every class nor none
    found = session_for(path, CPU, task=TASKS["multilabel"]).predict((rows,))
    np.testing.assert_array_equal(found > 0, logits > 0)


@pytest.mark.parametrize(
    ("measured", "failed", "expected"),
    [
        ([("m", "cpu")], [("m", "cpu")], "cpu"),  # at another batch size
        ([], [("m", "cpu")], None),
        ([("m", "cuda")], [("m", "cpu")], "cuda"),
        ([("m", "cuda")], [("m", "tensorrt")], "cuda"),
        ([("m", "cuda"), ("m", "cpu")], [], "cpu"),  # the first that was asked for
        ([], [("m", "cuda")], None),
        ([("n", "cpu")], [], "cpu"),
    ],
)
def test_a_model_is_scored_where_it_was_measured_and_not_where_it_ended_a_worker(measured, failed, expected):
    measurements = [SimpleNamespace(model=model, device=device) for model, device in measured]
    outcome = SimpleNamespace(measurements=measurements, failures=[failure(*pair) for pair in failed])
    devices = [CPU, Device("cuda", "CUDAExecutionProvider")]
    found = scoring_device(outcome, "m", devices)
    assert (found and found.name) == expected


def test_a_model_that_failed_is_not_scored_and_the_result_stands(tmp_path, data, quick, monkeypatch):
    files = [describe_file(classifier(tmp_path / f"{name}.onnx")) for name in ("good", "bad")]
    opened = []

    class Watched(sessions.OnnxSession):
        def __init__(self, path, *arguments, **options):
            opened.append(path.stem)
            super().__init__(path, *arguments, **options)

    monkeypatch.setattr(sessions, "OnnxSession", Watched)
    monkeypatch.setattr(stage, "run_plan", lambda *_: Outcome((), (failure("bad"),), {}))
    progress = Captured()
    settings = quick.model_copy(update={"batch_sizes": (8,)})
    result = stage.bench(files, settings, name="x", dataset=data, progress=progress)
    assert opened == ["good"]
    assert [model.accuracy is not None for model in result.models] == [True, False]
    assert progress.warnings == ["bad could not be scored: it failed when it was measured"]


def test_in_a_pack_one_that_cannot_be_scored_costs_only_its_own_score(tmp_path, data):
    models = [describe_file(classifier(tmp_path / f"{name}.onnx")) for name in ("good", "bad", "odd")]
    (tmp_path / "bad.onnx").unlink()
    (tmp_path / "odd.onnx").write_bytes(b"cut off")
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "d.npz", labels=data.test.labels, **{"input:x": data.test.inputs[0]})
    manifest = {
        "feeds": {model.name: "d" for model in models},
        "class_names": data.class_names,
        "task": "classification",
    }
    plan = SimpleNamespace(targets=[SimpleNamespace(path=model.file) for model in models])
    progress = Captured()
    result = SimpleNamespace(models=models, measurements=[], failures=[failure("bad")])
    good, bad, odd = packed.score(Job(tmp_path, manifest, plan, [CPU], progress), result)
    assert good.evaluation.samples == 20
    assert (bad.accuracy, odd.accuracy) == (None, None)
    assert [warning.partition(":")[0] for warning in progress.warnings] == [
        "bad could not be scored",
        "odd could not be scored",
    ]


def test_a_pack_keeps_what_was_measured_when_scoring_ends_it(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "p.pyz", "w"):
        pass
    measured = {"name": "x", "measurements": [1]}

    def crash(job, result):
        raise SystemExit(139)

    monkeypatch.setattr(sys, "argv", [str(tmp_path / "p.pyz")])
    monkeypatch.setattr(packed, "_job", lambda *_: None)
    monkeypatch.setattr(packed, "_measure", lambda _: measured)
    monkeypatch.setattr(packed, "score", crash)
    with pytest.raises(SystemExit):
        packed._main(argparse.Namespace(out=str(tmp_path / "bench.json")))
    assert json.loads((tmp_path / "bench.json").read_text()) == measured
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "p.pyz"]


@pytest.mark.parametrize("place", [".", "absent/bench.json"])
def test_a_pack_refuses_a_place_that_is_no_file_before_it_measures(tmp_path, monkeypatch, capsys, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["p.pyz", "--out", place])
    with pytest.raises(SystemExit):
        packed._parse()
    assert f"--out {place} is no file" in capsys.readouterr().err
