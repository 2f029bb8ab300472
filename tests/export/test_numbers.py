"""Files of networks that estimate numbers: in the data's units, and no precision takes the units' digits."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from kdexport.export import fp16, int8, network_export
from kdexport.export.accuracy_guard import AccuracyGuard
from kdexport.export.target import ExportTarget, Form
from kdexport.export.variant_inputs import CalibrationData, VariantInputs, VariantSpec
from kdexport.models.outputs import Output, install
from kdexport.models.preprocessing import of_features
from kdexport.onnx import example, metadata
from kdexport.progress import SILENT
from kdexport.tasks.regression import Regression

RNG = np.random.default_rng(0)
FEATURES = (RNG.normal(size=(200, 3)) * (1.0, 20.0, 1e3) + (0.0, 50.0, 1e4)).astype(np.float32)
PRICES = (300_000 + 80_000 * np.tanh((FEATURES - FEATURES.mean(0)) / FEATURES.std(0)) @ [[0.5], [0.3], [0.2]]).astype(
    np.float32
)  # beyond what half precision holds
TASK = Regression().fitted(PRICES, ("price",))


@pytest.fixture(scope="module")
def fitted():
    """Return a network that has learnt the prices, its output scaled back by its hook, and its preprocessing."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
    install(network, Output(None, TASK.postprocessing((3,), fresh=True), "student"))
    preprocessing = of_features(FEATURES)
    inputs, targets = preprocessing.apply((FEATURES,)), torch.tensor(PRICES)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        TASK.label_loss(network(*inputs), targets).backward()
        optimizer.step()
    return network.eval(), preprocessing


@pytest.fixture(scope="module")
def exported(fitted, tmp_path_factory):
    network, preprocessing = fitted
    path = tmp_path_factory.mktemp("numbers") / "student.onnx"
    target = ExportTarget(
        "student", network, preprocessing, ("features",), (FEATURES,), class_names=("price",),
        feature_names=("rooms", "age", "area"), task="regression", output_name=TASK.output_name, activation="none",
    )  # fmt: skip
    file = network_export.write(target, Form(18, 10, 1e-4, bake=True), path)
    assert file.parity.passed
    return path


def run(model, features=FEATURES):
    blob = str(model) if not isinstance(model, onnx.ModelProto) else model.SerializeToString()
    return onnxruntime.InferenceSession(blob, providers=["CPUExecutionProvider"]).run(None, {"features": features})[0]


def variant(builder, path, precision):
    def samples():
        return (FEATURES,)

    data = CalibrationData(samples, samples, lambda: ((FEATURES,), PRICES), task=TASK, classes=1)
    spec = VariantSpec(precision, calibration="minmax")
    guard = AccuracyGuard(path, (FEATURES,), PRICES, task=TASK, classes=1)
    return builder(VariantInputs(path, spec, data, guard, SILENT)).without(())


def last(model):
    return next(node.op_type for node in model.graph.node if model.graph.output[0].name in node.output)


def test_the_file_gives_the_datas_units(exported, fitted):
    network, preprocessing = fitted
    assert TASK.score(run(exported), PRICES) < 0.05 * PRICES.std()
    np.testing.assert_allclose(run(exported), network(*preprocessing.apply((FEATURES,))).detach().numpy(), rtol=1e-6)
    assert [output.name for output in onnx.load(exported).graph.output] == ["predictions"]
    known = metadata.read(exported)
    assert known["kdexport.task"] == "regression"
    assert json.loads(known["kdexport.features"]) == ["rooms", "age", "area"]


def test_fp16_holds_prices(exported):
    found = run(variant(fp16.builder, exported, "fp16"))
    assert np.isfinite(found).all()
    assert np.abs(found - run(exported)).max() < 0.005 * PRICES.std()


def test_int8_does_not_round_its_outputs(exported):
    made = variant(int8.builder, exported, "int8")
    assert sum(node.op_type == "DequantizeLinear" for node in made.graph.node) >= 3
    found = run(made)
    assert len(np.unique(found)) > 190  # of 200 samples; 8 bits would leave about 150 values
    assert np.abs(found - run(exported)).mean() < 0.05 * PRICES.std()
    assert [output.name for output in made.graph.output] == ["predictions"]


def test_int8_of_a_network_without_scaling_is_not_rounded_either(tmp_path):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    preprocessing = of_features(FEATURES)
    target = ExportTarget("teacher", network, preprocessing, ("features",), (FEATURES,), class_names=("a", "b"))
    path = tmp_path / "teacher.onnx"
    network_export.write(target, Form(18, 10, 1e-4, bake=True), path)
    made = variant(int8.builder, path, "int8")
    assert last(made) == "Gemm"
    assert np.abs(run(made) - run(path)).mean() < 0.05 * run(path).std()
    rough = int8.static_int8(int8.prepared(path), int8.ranges(int8.prepared(path), (FEATURES,), "minmax"))
    assert last(rough) == "DequantizeLinear"  # as of classes, whose logits may be


def test_a_network_that_squeezes_its_output_is_not_rounded(tmp_path, fitted):
    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))

        def forward(self, x):
            return self.inner(x).squeeze(1)

    torch.manual_seed(2)
    network, path = Squeezed().eval(), tmp_path / "squeezed.onnx"
    install(network, Output(None, TASK.postprocessing((3,), fresh=True), "student"))
    target = ExportTarget("student", network, of_features(FEATURES), ("features",), (FEATURES,))
    network_export.write(target, Form(18, 10, 1e-4, bake=True), path)
    assert run(path).shape == (200, 1)
    made = variant(int8.builder, path, "int8")
    assert len(np.unique(run(made))) > 190
    assert np.abs(run(made) - run(path)).mean() < 0.05 * run(path).std()


def test_one_number_a_sample_is_a_column():
    column = TASK.postprocessing((3,), fresh=False)
    assert column.kind == "column"
    assert column.apply(torch.arange(3.0)).tolist() == [[0.0], [1.0], [2.0]]
    assert torch.equal(column.apply(torch.ones(2, 1)), torch.ones(2, 1))
    two = Regression(mean=(1.0, 2.0), std=(3.0, 4.0)).postprocessing((3,), fresh=True)
    assert two.apply(torch.ones(5, 1)).shape == (5, 1)  # torch would make two numbers of one
    assert two.apply(torch.ones(5, 2))[0].tolist() == [4.0, 6.0]
    half = TASK.postprocessing((3,), fresh=True).apply(torch.ones(2, dtype=torch.bfloat16))
    assert (half.dtype, half.shape) == (torch.float32, (2, 1))
    assert half[0, 0].item() == pytest.approx(TASK.mean[0] + TASK.std[0], rel=1e-6)  # bf16 would be off by 1,000


def test_infer_reads_a_table_by_its_columns(exported):
    program = example.write(exported)
    rows = exported.with_name("rows.csv")
    rows.write_text("area,note,rooms,age\n" + "".join(f"{c},x,{a},{b}\n" for a, b, c in FEATURES[:3].tolist()))
    np.save(exported.with_name("rows.npy"), FEATURES[:3])
    message = []
    for given in ("rows.csv", "rows.npy"):
        done = subprocess.run(
            [sys.executable, program.name, given], cwd=exported.parent, capture_output=True, text=True, check=True
        )
        message.append(done.stdout.splitlines())
    assert message[0] == message[1]
    expected = [f"{number} price {value:.6g}" for number, value in enumerate(run(exported, FEATURES[:3])[:, 0])]
    assert message[0] == expected
