"""Embeddings go the whole way: taught, exported, rounded, measured, packed, scored alike everywhere, and told."""

import json
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sklearn import metrics
from typer.testing import CliRunner

from kdexport.artifacts import RunDirectory
from kdexport.bench.pack import pack
from kdexport.bench.packed import samples_in as held_samples
from kdexport.bench.packed import summary
from kdexport.bench.stage import BenchRequest
from kdexport.cli import app
from kdexport.data.datasets import load_data
from kdexport.distill import logging
from kdexport.distill.stage import distill
from kdexport.errors import KDExportError
from kdexport.export.stage import export
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx.sessions import OnnxSession
from kdexport.pipeline import run
from kdexport.progress import SILENT
from kdexport.recipe import Data, Recipe
from kdexport.scoring import evaluate

NETS = """
from torch import nn

class Embedder(nn.Module):
    def __init__(self, width=6, deep=12):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, deep, 3, 2, 1), nn.BatchNorm2d(deep), nn.ReLU(), nn.Flatten())
        self.last = nn.Linear(16 * deep, width)

    def forward(self, image):
        return self.last(self.body(image))
"""
RECIPE = """
name = "who"
task = "embedding"
[data]
source = "npz:digits.npz"
[teacher]
model = "nets.py:Embedder"
args = { width = 12, deep = 16 }
[teacher.train]
epochs = 4
batch_size = 60
lr = 0.01
label_loss = "arcface"
arcface_scale = 16.0
[student]
model = "nets.py:Embedder"
[distill]
epochs = 3
batch_size = 60
lr = 0.01
label_weight = 0.1
[[distill.terms]]
method = "cosine"
[[distill.terms]]
method = "relational"
weight = 0.01
[[distill.terms]]
method = "output_mse"
[export]
quantize = ["int8"]
max_drop = 0.05
calibration = "minmax"
calibration_samples = 32
[bench]
min_seconds = 0.02
max_seconds = 0.05
rounds = 1
threads = [1]
batch_sizes = [1]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits as identities: six to learn, two for the threshold, two to score."""
    from sklearn.datasets import load_digits

    place = tmp_path_factory.mktemp("who")
    found = load_digits()
    arrays = {}
    for split, digits in (("train", (0, 1, 2, 3, 4, 5)), ("val", (6, 7)), ("test", (8, 9))):
        chosen = np.concatenate([np.flatnonzero(found.target == digit)[:40] for digit in digits])
        arrays[f"x_{split}"] = (found.images[chosen] * 15).astype(np.uint8)[..., None]
        arrays[f"y_{split}"] = found.target[chosen]
    np.savez(place / "digits.npz", **arrays)
    (place / "nets.py").write_text(NETS)
    (place / "recipe.toml").write_text(RECIPE)
    return place


@pytest.fixture(scope="module")
def report(folder):
    return run(Recipe.load(folder / "recipe.toml", []), folder / "run")


def recipe(folder, *overrides):
    return Recipe.load(folder / "recipe.toml", ["export.quantize=[]", *overrides])


def test_every_file_is_scored_at_a_threshold_of_its_own_as_scikit_learn_does(report, folder):
    with np.load(folder / "digits.npz") as arrays:
        for model in report.models:
            session = OnnxSession(folder / "run" / model.file)
            outputs = {split: session.predict((arrays[f"x_{split}"],)) for split in ("val", "test")}
            lengths = np.linalg.norm(outputs["test"], axis=1)  # 1 in int8 too: it is in the file
            assert lengths == pytest.approx(1.0, abs=1e-2 if model.precision == "int8" else 1e-5)
            numbers = arrays["y_test"]
            left, right = np.triu_indices(len(numbers), 1)
            cosines = metrics.pairwise.cosine_similarity(outputs["test"].astype(np.float64))[left, right]
            same, threshold = numbers[left] == numbers[right], model.evaluation.metrics["threshold"]
            expected = metrics.balanced_accuracy_score(same, cosines >= threshold)
            assert model.score.value == pytest.approx(expected, abs=1e-9)
            assert model.evaluation.metrics["auc"] == pytest.approx(metrics.roc_auc_score(same, cosines), abs=1e-9)
            assert model.score.metric == "verification_accuracy"
            assert model.accuracy is None
            assert model.evaluation.task == "embedding"
    teacher = report.models[0]
    assert teacher.score.ci95[0] > 0.5
    assert all(model.parity is None or model.parity.passed for model in report.models)


def test_what_learned_beside_the_student_is_in_no_file(report, folder):
    state = load_file(folder / "run" / "student.safetensors")
    assert {name.partition(".")[0] for name in state} == {"body", "last"}
    student = next(model for model in report.models if model.name == "student")
    assert list(OnnxSession(folder / "run" / student.file).predict((np.zeros((3, 8, 8, 1), np.uint8),)).shape) == [3, 6]
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    taught = next(line for line in lines if line["phase"] == "student" and "terms" in line)
    assert set(taught["terms"]) == {"labels", "cosine", "relational", "output_mse"}
    assert taught["teacher_from"] in ("online", "cache")
    plain = next(line for line in lines if line["phase"] == "student-plain" and "terms" in line)
    assert set(plain["terms"]) == {"labels"}


def test_every_file_states_the_threshold_that_validation_chose_for_it(report, folder, tmp_path, capsys, monkeypatch):
    for model in report.models:
        file = folder / "run" / model.file
        assert float(OnnxSession(file).metadata["kdexport.threshold"]) == model.evaluation.metrics["threshold"]
    assert len({model.evaluation.metrics["threshold"] for model in report.models}) == len(report.models)
    shown = CliRunner().invoke(app, ["export", "--describe", str(folder / "run" / "student.onnx")])
    assert f"threshold {report.models[1].evaluation.metrics['threshold']!r}" in " ".join(shown.stdout.split())
    with np.load(folder / "digits.npz") as arrays:
        some = arrays["x_test"][[0, 1, 45]]
    np.save(tmp_path / "some.npy", some)
    script = folder / "run" / "infer.py"
    monkeypatch.setattr("sys.argv", ["infer.py", str(tmp_path / "some.npy")])
    exec(compile(script.read_text(), str(script), "exec"), {"__file__": str(script), "__name__": "__main__"})
    told = capsys.readouterr().out
    vectors = OnnxSession(folder / "run" / "student.onnx").predict((some,))
    threshold = report.models[1].evaluation.metrics["threshold"]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        same = "the same identity" if vectors[one] @ vectors[other] >= threshold else "two identities"
        assert f"{one} and {other}: {same} (threshold {threshold:.3f})" in told


def test_the_page_the_card_and_the_script_speak_of_embeddings(report, folder):
    page = (folder / "run" / "report.html").read_text()
    assert "verification accuracy" in page
    assert "same identity" in page  # the picture of the cosines
    card = (folder / "run" / "card.md").read_text()
    assert "cosine" in card
    assert "threshold" in card
    script = (folder / "run" / "infer.py").read_text()
    compile(script, "infer.py", "exec")
    assert "cosine" in script


def test_evaluate_and_bench_give_the_reports_score(report, folder, tmp_path):
    student = next(model for model in report.models if model.name == "student")
    made = folder / "run" / student.file
    call = CliRunner().invoke(app, ["evaluate", str(made), "--recipe", str(folder / "recipe.toml"), "--json"])
    assert call.exit_code == 0, call.stderr
    found = json.loads(call.stdout)
    assert found["score"]["value"] == pytest.approx(student.score.value, abs=1e-12)
    assert found["metrics"] == pytest.approx(student.evaluation.metrics, abs=1e-12)
    shown = CliRunner().invoke(app, ["evaluate", str(made), "--recipe", str(folder / "recipe.toml")])
    assert "verification accuracy" in shown.stdout
    assert "TAR at FAR 1 %" in shown.stdout
    source = f"npz:{folder / 'digits.npz'}"
    quick = ["--threads", "1", "--max-seconds", "0.05", "--min-seconds", "0.02", "--rounds", "1", "--out"]
    call = CliRunner().invoke(app, ["bench", str(made), "--data", source, *quick, str(tmp_path / "b.json")])
    assert call.exit_code == 0, call.stderr
    (model,) = json.loads((tmp_path / "b.json").read_text())["models"]
    assert model["score"]["value"] == pytest.approx(student.score.value, abs=1e-12)
    assert model["evaluation"]["task"] == "embedding"


def test_a_pack_scores_by_the_validation_samples_that_it_brings(report, folder, tmp_path):
    dataset = load_data(Data(source=f"npz:{folder / 'digits.npz'}"), 0, tmp_path, task="embedding")
    settings = recipe(folder).bench
    models = [model for model in report.models if model.name in ("student", "student.int8")]
    out = tmp_path / "bench.pyz"
    pack(BenchRequest(models, settings, "who", folder=folder / "run", dataset=dataset), out, progress=SILENT)
    with zipfile.ZipFile(out) as archive:
        archive.extractall(tmp_path / "there")
        manifest = json.loads(archive.read("manifest.json"))
    for model in models:
        with np.load(tmp_path / "there" / "data" / f"{manifest['feeds'][model.name]}.npz") as held:
            split = held_samples(held, manifest["task"])
        session = OnnxSession(folder / "run" / model.file)
        found, _ = evaluate(session.predict, split, manifest["class_names"])
        assert found.score == model.score
        assert found.metrics == model.evaluation.metrics
        measured = SimpleNamespace(**dict.fromkeys(("device", "batch_size", "threads"), 1), model=model.name,
                                   latency_ms=SimpleNamespace(p50=1.0))  # fmt: skip
        told = SimpleNamespace(models=[model], measurements=[measured], failures=[])
        expected = f"verification accuracy {found.score.value:.4f} at a cosine of {found.metrics['threshold']:.4f}"
        assert next(summary(told)).endswith(expected)


def test_an_interrupted_training_ends_with_the_same_bytes(folder, tmp_path, monkeypatch):
    """The heads are in the checkpoint: identities' vectors and the projections go on where they stopped."""
    made = recipe(folder, "distill.baseline=false", "teacher.train.epochs=1", "distill.augment=['shift']")
    distill(made, RunDirectory(tmp_path / "whole"))
    written = logging.MetricsLog.append

    def stop(self, entry):
        written(self, entry)
        if (entry["phase"], entry["epoch"]) == ("student", 1):
            raise KeyboardInterrupt

    monkeypatch.setattr(logging.MetricsLog, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        distill(made, RunDirectory(tmp_path / "broken"))
    monkeypatch.undo()
    held = torch.load(next((tmp_path / "broken" / "checkpoints" / "student").glob("step-*.pt")), weights_only=True)
    assert {name.split(".")[0] for name in held["state"]["heads"]} == {"label", "projections"}
    assert held["state"]["heads"]["label.weight"].shape == (6, 6)  # the identities that are learned from
    distill(made, RunDirectory(tmp_path / "broken"))
    whole, broken = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "broken"))
    assert whole == broken


def test_a_width_that_is_asked_for_is_part_of_the_student(folder, tmp_path, monkeypatch):
    made = recipe(folder, "student.embedding_dim=12", "teacher.train.epochs=1", "distill.epochs=1",
                  "distill.baseline=false")  # fmt: skip
    directory = RunDirectory(tmp_path / "run")
    result = export(made, distill(made, directory), directory)
    state = load_file(tmp_path / "run" / "student.safetensors")
    assert state["embedding_projection.weight"].shape == (12, 6)
    student = next(model for model in result.models if model.name == "student")
    outputs = OnnxSession(tmp_path / "run" / student.file).predict((np.zeros((3, 8, 8, 1), np.uint8),))
    assert outputs.shape == (3, 12)
    assert student.parity.passed
    again = ["evaluate", f"{folder / 'nets.py'}:Embedder", "--weights", str(tmp_path / "run" / "student.safetensors"),
             "--recipe", str(folder / "recipe.toml"), "--set", "student.embedding_dim=12", "--json"]  # fmt: skip
    call = CliRunner().invoke(app, again)
    assert call.exit_code == 0, call.stderr
    found = json.loads(call.stdout)["score"]["value"]
    again[1:4] = [str(tmp_path / "run" / student.file)]
    call = CliRunner().invoke(app, [item for item in again if "embedding_dim" not in item and item != "--set"])
    assert call.exit_code == 0, call.stderr
    assert json.loads(call.stdout)["score"]["value"] == pytest.approx(found, abs=1e-3)  # of a pair at the threshold


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("distill.terms=[{ method = 'soft_targets' }]", "compares classes, and an embedding has none"),
        ("distill.label_loss='mse'", "no label_loss 'mse'"),
        ("distill.terms=[{ method = 'FOLDER/own.py:own' }]", "embeddings of 6 numbers of the student and 12 of the"),
        ("distill.terms=[{ method = 'FOLDER/own.py:faulty' }]", "KeyError: 'x' in training mode"),
        ("distill={ label_weight = 0.0, data_free = {} }", "makes samples that a classifier is sure of"),
        ("distill.augment=['mixup']", "those of embedding cannot be mixed"),
        ("task='classification'", "embedding_dim|gives|classes"),
        ("student.model='torchvision:resnet18'", "nothing says how wide its embedding is to be"),
        ("data.source='npz:FOLDER/one.npz'", "all of one identity"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_trained(folder, tmp_path, change, message):
    (folder / "own.py").write_text(
        "def own(student_logits, teacher_logits):\n    return (student_logits - teacher_logits).mean()\n"
        "def faulty(labels):\n    return {}['x']\n"
    )
    np.savez(folder / "one.npz", x_train=np.zeros((6, 8, 8, 1), np.uint8), y_train=np.full(6, 3))
    with pytest.raises(KDExportError, match=message) as caught:
        distill(recipe(folder, change.replace("FOLDER", str(folder))), RunDirectory(tmp_path / "run"))
    assert caught.value.hint
    assert not (tmp_path / "run" / "teacher.safetensors").exists()


def test_weights_say_that_they_embed_where_a_network_is_exported_by_itself(report, folder, tmp_path):
    student = next(model for model in report.models if model.name == "student")
    common = [f"{folder / 'nets.py'}:Embedder", "--weights", str(folder / "run" / "student.safetensors")]
    common += ["--data", f"npz:{folder / 'digits.npz'}"]
    call = CliRunner().invoke(app, ["export", *common, "--onnx", "--out", str(tmp_path / "alone.onnx")])
    assert call.exit_code == 0, call.stderr
    call = CliRunner().invoke(app, ["evaluate", str(tmp_path / "alone.onnx"), *common[3:], "--json"])
    assert call.exit_code == 0, call.stderr
    assert json.loads(call.stdout)["score"]["value"] == pytest.approx(student.score.value, abs=0.02)
    session = OnnxSession(tmp_path / "alone.onnx")
    assert tuple(session.output_names) == ("embedding",)
    assert np.linalg.norm(session.predict((np.zeros((2, 8, 8, 1), np.uint8),)), axis=1) == pytest.approx(1.0)
    call = CliRunner().invoke(app, ["evaluate", *common, "--json"])
    assert call.exit_code == 0, call.stderr
    assert json.loads(call.stdout)["score"]["metric"] == "verification_accuracy"


def test_several_teachers_are_one_embedding_whose_cosines_are_their_mean(folder, tmp_path):
    from kdexport.distill.teacher import Ensemble

    class Unit(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layer = torch.nn.Linear(4, width)

        def forward(self, x):
            return torch.nn.functional.normalize(self.layer(x))

    members = [(Unit(3), Preprocessing("none")), (Unit(5), Preprocessing("none"))]
    both = Ensemble(members, [3.0, 1.0], "average", embeds=True)
    x = torch.randn(6, 4)
    rows, (first, second) = both(x), both.each(x)
    assert rows.shape == (6, 8)
    assert torch.allclose(rows @ rows.T, 0.75 * first @ first.T + 0.25 * second @ second.T, atol=1e-6)
    other = json.dumps(f"{folder / 'nets.py'}:Embedder")
    also = f"teacher.also=[{{ model = {other}, args = {{ width = 10 }}, train = {{ epochs = 1 }} }}]"
    with pytest.raises(KDExportError, match="an embedding is not sure"):
        distill(
            recipe(folder, also, "teacher.combine='confidence'", "teacher.train.epochs=1"),
            RunDirectory(tmp_path / "run"),
        )


def test_a_recipe_without_terms_compares_embeddings(folder):
    text = (folder / "recipe.toml").read_text()
    (folder / "bare.toml").write_text(text[: text.index("[[distill.terms]]")] + text[text.index("[export]") :])
    assert [term.method for term in Recipe.load(folder / "bare.toml", []).distill.terms] == ["cosine"]
