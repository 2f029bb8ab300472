"""Numbers go the whole way: from a table to a file in the table's units, scored alike in every place."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pandas
import pytest
from sklearn import metrics

from kdexport.cli import app
from kdexport.data.datasets import load_data
from kdexport.distill.preflight import check_settings
from kdexport.distill.teacher import Ensemble
from kdexport.errors import RecipeError, SourceError
from kdexport.export.differences import chooses
from kdexport.models.loading import load_model
from kdexport.models.predictors import load_predictor
from kdexport.pipeline import run
from kdexport.recipe import Data, Recipe, Student, Teacher
from kdexport.report.card import card
from kdexport.report.markdown import markdown, pictures_of
from kdexport.report.stage import report as make
from kdexport.results import BenchResult, Report, from_json
from kdexport.scoring import evaluate
from kdexport.tasks import TASKS

NETS = """
from torch import nn
def net(width=32, num_classes=2):
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, num_classes))
"""
RECIPE = """
name = "houses"
[data]
source = "table:houses.csv"
label_columns = ["price", "rent"]
[teacher]
model = "nets.py:net"
[teacher.train]
epochs = 30
batch_size = 32
lr = 0.01
[[teacher.also]]
model = "nets.py:net"
args = { width = 16 }
train = { epochs = 10, batch_size = 32, lr = 0.01, label_loss = "huber" }
[student]
model = "nets.py:net"
args = { width = 8 }
[distill]
epochs = 15
batch_size = 32
lr = 0.02
label_weight = 0.5
label_loss = "mae"
terms = [{ method = "output_mse" }, { method = "teacher_bounded", weight = 0.5 }, { method = "similarity", student_layer = "1", teacher_layer = "1" }]
[export]
quantize = ["int8", "fp16"]
max_drop = 4000
[bench]
min_seconds = 0.02
max_seconds = 0.05
rounds = 1
threads = [1]
batch_sizes = [1]
[require]
max_drop = 50000
min_score = 60000
"""  # noqa: E501


@pytest.fixture(scope="module")
def houses(tmp_path_factory):
    """Return a folder with a table, a recipe and its run, and the report."""
    folder = tmp_path_factory.mktemp("houses")
    generator = np.random.default_rng(0)
    rooms, age, area = generator.integers(1, 9, 240), generator.uniform(0, 80, 240), generator.gamma(9, 12, 240)
    price = 60_000 * rooms + 3_000 * area - 2_000 * age + generator.normal(0, 9_000, 240)  # beyond half precision
    rent = 0.003 * price + 4 * rooms + generator.normal(0, 30, 240)
    frame = pandas.DataFrame({"rooms": rooms, "price": price, "age": age, "rent": rent, "area": area})
    frame.to_csv(folder / "houses.csv", index=False)
    (folder / "nets.py").write_text(NETS)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder, run(Recipe.load(folder / "recipe.toml"), folder / "run"), frame


def predicted(folder, name, frame):
    session = onnxruntime.InferenceSession(str(folder / "run" / f"{name}.onnx"), providers=["CPUExecutionProvider"])
    return session.run(None, {"features": frame[["rooms", "age", "area"]].to_numpy(np.float32)})[0].astype(np.float64)


def test_every_model_is_scored_as_scikit_learn_does(houses):
    folder, report, _ = houses
    test = Recipe.load(folder / "run" / "recipe.toml")
    split = load_data(test.data, test.seed, folder / "cache").test
    true = np.asarray(split.labels, np.float64)
    rows = pandas.DataFrame(split.inputs[0], columns=["rooms", "age", "area"])
    assert {model.name for model in report.models} == {
        "teacher", "student", "student-plain", "student.int8", "student.fp16",
    }  # fmt: skip
    for model in report.models:
        found = predicted(folder, model.name, rows)
        assert np.isfinite(found).all()
        assert model.score.metric == "mean_absolute_error"
        assert model.score.value == pytest.approx(metrics.mean_absolute_error(true, found), rel=1e-9, abs=1e-9)
        evaluation = model.evaluation
        assert evaluation.metrics["rmse"] == pytest.approx(metrics.root_mean_squared_error(true, found), rel=1e-9)
        assert evaluation.metrics["r2"] == pytest.approx(metrics.r2_score(true, found), abs=1e-9)
        assert [row.name for row in evaluation.per_target] == ["price", "rent"]
        assert model.accuracy is None
        assert evaluation.metrics["r2"] > 0.5, model.name


def test_lower_is_better_in_every_decision(houses):
    _, report, _ = houses
    by_name = {model.name: model for model in report.models}
    gates = {gate.requirement: gate for gate in report.gates}
    picked = by_name[gates["max_drop"].model]
    teacher = by_name["teacher"].score.value
    assert gates["max_drop"].value == pytest.approx(picked.score.value - teacher)  # worse is a drop, though it is more
    assert gates["min_score"].value == picked.score.value
    assert gates["min_score"].higher_is_better is False
    assert gates["min_score"].passed is (gates["min_score"].verdict != "fail")
    assert report.pick is not None


def test_limits_read_the_right_way_round(houses):
    folder, report, _ = houses
    bench = from_json(BenchResult, json.loads((folder / "run" / "bench.json").read_text()))
    recipe = Recipe.load(folder / "run" / "recipe.toml")

    def gates(**limits):
        require = recipe.require.model_copy(update={"max_drop": None, "min_score": None, **limits})
        return {gate.requirement: gate for gate in make([bench], require).gates}

    worst = max(model.score.ci95[1] for model in report.models)
    best = min(model.score.ci95[0] for model in report.models)
    assert gates(min_score=worst + 1)["min_score"].verdict == "pass"
    assert gates(min_score=best - 1)["min_score"].verdict == "fail"
    assert gates(max_drop=10 * worst)["max_drop"].verdict == "pass"


def test_the_report_speaks_of_numbers(houses):
    folder, report, _ = houses
    page = markdown(report)
    assert "| model | MAE |" in page
    pictures = dict(pictures_of(report))
    assert {"report-predictions.svg", "report-residuals.svg"} <= set(pictures)
    text = card(report, folder / "run")
    assert "Estimating price, rent" in text
    assert "tabular-regression" in text
    assert "| price |" in text
    assert "mAE" not in text + page
    whole = json.loads((folder / "run" / "report.json").read_text())
    assert from_json(Report, whole).models[0].evaluation.per_target[0].name == "price"


def test_evaluate_and_bench_know_the_columns_from_the_file(houses, monkeypatch, capsys):
    folder, _, frame = houses
    new = folder / "new.csv"
    frame.assign(note=0.0, split="test").iloc[:50].to_csv(new, index=False)
    rest = frame.assign(note=0.0, split="train").iloc[50:]
    rest.to_csv(new, mode="a", index=False, header=False)
    monkeypatch.chdir(folder)
    assert command(capsys, "evaluate", "run/student.onnx", "--data", "table:new.csv", "--json")["score"]["value"] == (
        pytest.approx(
            metrics.mean_absolute_error(frame[["price", "rent"]][:50], predicted(folder, "student", frame[:50])),
            rel=1e-5,  # the table's targets are float64, what is scored is float32
        )
    )
    measured = command(
        capsys, "bench", "run/student.onnx", "run/student.int8.onnx", "--data", "table:new.csv", "--rounds", "1",
        "--min-seconds", "0.02", "--max-seconds", "0.05", "--threads", "1", "--json",
    )  # fmt: skip
    expected = metrics.mean_absolute_error(frame[["price", "rent"]][:50], predicted(folder, "student", frame[:50]))
    assert measured["models"][0]["score"]["value"] == pytest.approx(expected, rel=1e-5)
    assert measured["models"][1]["teacher_agreement"]["top1"] is None
    assert measured["models"][1]["teacher_agreement"]["logit_correlation"] > 0.99


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        app(list(arguments))
    said = capsys.readouterr()
    assert ended.value.code in (0, None), said.err
    return json.loads(said.out)


def test_the_pack_scores_alike_with_numpy_alone(houses, tmp_path):
    folder, report, _ = houses
    made = tmp_path / "bench.pyz"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "kdexport", "bench", str(folder / "run"), "--pack", str(made), "--quiet"],
        check=True, capture_output=True, env=environment,
    )  # fmt: skip
    for name in ("torch", "onnx", "pydantic", "typer", "rich", "sklearn", "safetensors", "onnx_ir", "kdexport"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not on the device')")
    done = subprocess.run(
        [sys.executable, str(made), "--out", str(tmp_path / "there.json"), "--quiet"],
        capture_output=True, text=True, check=False, env={**environment, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    there = {model["name"]: model for model in json.loads((tmp_path / "there.json").read_text())["models"]}
    for model in report.models:
        assert there[model.name]["score"]["value"] == pytest.approx(model.score.value, rel=1e-9)
        assert there[model.name]["evaluation"]["metrics"] == pytest.approx(model.evaluation.metrics, rel=1e-9)
        targets = there[model.name]["evaluation"]["per_target"]
        for here, target in zip(model.evaluation.per_target, targets, strict=True):
            for figure in ("mae", "rmse", "r2", "bias"):
                assert target[figure] == pytest.approx(getattr(here, figure), rel=1e-9), (here.name, figure)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("distill.label_smoothing=0.1", "distill.label_smoothing is for classes, and the task is regression"),
        ("teacher.train.balanced=true", "teacher.train.balanced is for classes"),
        ("distill.teacher_top_k=1", "distill.teacher_top_k is for classes"),
        ('teacher.combine="confidence"', "teacher.combine = .confidence. is for classes"),
        ('distill.augment=["flip", "mixup"]', "mixup in distill.augment is for classes"),
    ],
)
def test_settings_of_classes_are_refused(houses, change, told):
    recipe = Recipe.load(houses[0] / "recipe.toml", [change])
    with pytest.raises(RecipeError, match=told):
        check_settings(recipe, TASKS["regression"])
    check_settings(recipe, TASKS["classification"])


def test_a_label_loss_of_another_task_is_refused():
    with pytest.raises(RecipeError, match="regression has no label_loss 'cross_entropy'") as told:
        TASKS["regression"].check_label_loss("cross_entropy")
    assert "mse, mae, huber" in told.value.hint


def test_teachers_of_numbers_are_averaged_as_they_are():
    import torch
    from torch import nn

    from kdexport.models.preprocessing import Preprocessing

    class Always(nn.Module):
        def __init__(self, *values):
            super().__init__()
            self.register_buffer("values", torch.tensor(values))

        def forward(self, x):
            return self.values.expand(len(x), -1)

    members = [(Always(100.0, 1.0), Preprocessing()), (Always(200.0, 2.0), Preprocessing())]
    found = Ensemble(members, [3.0, 1.0], "average", relative=False)(torch.zeros(4, 1))
    assert found.tolist() == [[125.0, 1.25]] * 4


def linear_file(path, weights, squeeze=False):
    """Write a file of another tool's: a linear model of three columns, of which nothing is said."""
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["z" if squeeze else "y"])]
    constants = [onnx.numpy_helper.from_array(np.asarray(weights, np.float32), "w")]
    if squeeze:
        nodes.append(onnx.helper.make_node("Squeeze", ["z", "axes"], ["y"]))
        constants.append(onnx.numpy_helper.from_array(np.array([1]), "axes"))
    value = onnx.helper.make_tensor_value_info
    inputs = [value("x", onnx.TensorProto.FLOAT, ["n", 3])]
    outputs = [value("y", onnx.TensorProto.FLOAT, ["n"] if squeeze else ["n", 1])]
    graph = onnx.helper.make_graph(nodes, "linear", inputs, outputs, constants)
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)


@pytest.mark.parametrize("squeeze", [False, True])
def test_a_file_that_says_nothing_takes_a_tables_numbers_as_they_are(houses, tmp_path, squeeze):
    folder, _, _ = houses
    linear_file(tmp_path / "given.onnx", [[60_000.0], [-2_000.0], [3_000.0]], squeeze)
    columns = {"label_columns": ("price",), "feature_columns": ("rooms", "age", "area")}
    source = f"table:{folder / 'houses.csv'}"
    spec = Student(model=str(tmp_path / "given.onnx"))
    scores = {}
    for standardize in (None, True):
        data = load_data(Data(source=source, standardize=standardize, **columns), 0, tmp_path / "cache")
        predictor = load_predictor(spec, data)
        found, outputs = evaluate(predictor.predict, data.test, data.class_names)
        scores[standardize] = found.score.value
        assert any("fed as they are" in note for note in predictor.notes) is (standardize is None)
        model = load_model("teacher", Teacher(model=spec.model), data)
        teachers = model.network(*model.preprocessing.apply(data.test.inputs)).numpy()
        np.testing.assert_allclose(teachers, outputs, rtol=1e-5)
    assert scores[None] < 10_000
    assert scores[True] > 300_000


def test_one_number_a_sample_has_no_largest(houses):
    _, report, _ = houses
    assert report.models[0].parity.argmax_agreement is not None  # of price and rent, for what it is worth
    assert not chooses(np.zeros((4, 1)))
    assert chooses(np.zeros((4, 2)))
    assert chooses(np.zeros((4, 3, 5, 1)))


def test_bench_and_export_take_the_column_of_a_file_that_says_nothing(houses, tmp_path, monkeypatch, capsys):
    _, _, frame = houses
    monkeypatch.chdir(tmp_path)
    linear_file(tmp_path / "given.onnx", [[60_000.0], [-2_000.0], [3_000.0]])
    frame[["rooms", "age", "area", "price"]].to_csv("h.csv", index=False)
    quick = ("--rounds", "1", "--min-seconds", "0.02", "--max-seconds", "0.05", "--threads", "1", "--json")
    given = ("--data", "table:h.csv", "--label-column", "price")
    measured = command(capsys, "bench", "given.onnx", *given, *quick)
    assert measured["models"][0]["score"]["value"] < 10_000
    with pytest.raises(SystemExit):
        app(["bench", "given.onnx", "--label-column", "price"])
    assert "add --data table:FILE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        app(["bench", "given.onnx", "--data", "table:h.csv"])
    assert "--label-column price" in capsys.readouterr().err
    made = command(capsys, "export", "given.onnx", "--quantize", "int8", *given, "--out", "small.onnx", "--json")
    assert made["models"][0]["precision"] == "int8"


@pytest.mark.parametrize("width", [1, 3])
def test_a_network_of_another_width_is_refused(houses, tmp_path, width):
    folder, _, _ = houses
    columns = {"label_columns": ("price", "rent"), "feature_columns": ("rooms", "age", "area")}
    data = load_data(Data(source=f"table:{folder / 'houses.csv'}", **columns), 0, tmp_path / "cache")
    spec = Student(model=f"{folder / 'nets.py'}:net", args={"num_classes": width})
    with pytest.raises(
        SourceError, match=rf"gives \[\d, {width}\] for \d samples; the data have 2 targets .price, rent."
    ):
        load_model("student", spec, data, learns=True)
