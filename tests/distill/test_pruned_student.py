"""A pruned teacher as the student of a run on real digits: where it starts, what it leaves, and that it resumes."""

import json
import sys
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from kdexport.artifacts import RunDirectory
from kdexport.cli import app
from kdexport.distill import logging
from kdexport.distill.stage import distill
from kdexport.errors import RecipeError, SourceError
from kdexport.export.stage import export
from kdexport.models.fitted_data import load_run_data
from kdexport.models.loading import load_model
from kdexport.models.pruning import prune
from kdexport.recipe import Recipe
from kdexport.results import DistillResult, from_json

Tiny = Callable[..., Recipe]
pytest.importorskip("torch_pruning")
Run = tuple[Recipe, RunDirectory, DistillResult]
PRUNED = ('student={ model = "teacher", prune = { keep = 0.4, round_to = 2, importance = "taylor" } }',)


@pytest.fixture(scope="module")
def tiny_pruned() -> Callable[..., Recipe]:
    digits = Path(__file__).parents[2] / "models" / "digits" / "recipe.toml"
    small = ("teacher.args.width=12", "teacher.train.epochs=2", "distill.epochs=1", "distill.views=1")
    return lambda *more: Recipe.load(digits, [*small, "data.fraction=0.3", *PRUNED, *more])


@pytest.fixture(scope="module")
def run(tiny_pruned: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = RunDirectory(tmp_path_factory.mktemp("run"))
    still = ("distill.lr=1e-12", "distill.weight_decay=0.0", "distill.warmup_epochs=0.0")  # what it starts from shows
    recipe = tiny_pruned('export.quantize=["int8"]', "export.calibration=minmax", *still)
    return recipe, directory, distill(recipe, directory)


def test_both_students_start_from_the_trained_teacher_without_its_channels(run: Run) -> None:
    recipe, directory, _ = run
    dataset = load_run_data(recipe, directory.cache)
    teacher = load_model("teacher", recipe.teacher, dataset, directory.weights("teacher"))
    assert recipe.student.prune is not None
    few = teacher.preprocessing.apply(dataset.train.take(slice(0, 2)).inputs)
    magnitude = recipe.student.prune.model_copy(update={"importance": "magnitude"})
    shapes = {name: item.shape for name, item in prune(teacher.network, magnitude, few, "it")[0].state_dict().items()}
    whole, student = load_file(directory.weights("teacher")), load_file(directory.weights("student"))
    plain = load_file(directory.weights("student-plain"))
    assert {name: item.shape for name, item in student.items()} == shapes
    weights = [name for name in student if name.endswith("weight")]
    for name in weights:
        torch.testing.assert_close(student[name], plain[name], rtol=0, atol=1e-9)
    stem = "stages.0.0.0.weight"  # whatever is ranked how: each filter that is left is one of the teacher's
    for filters in student[stem]:
        assert any(torch.allclose(filters, other, rtol=0, atol=1e-9) for other in whole[stem])


def test_what_was_cut_stands_in_distill_json(
    run: Run,
) -> None:
    recipe, directory, result = run
    teacher, student, plain = result.networks
    assert teacher.pruned is None
    assert student.pruned is not None
    assert student.pruned == plain.pruned
    assert (student.pruned.parameters_before, student.pruned.parameters) == (teacher.parameters, student.parameters)
    assert (student.pruned.macs_before, student.pruned.macs) == (teacher.macs, student.macs)
    assert student.pruned.kept == student.parameters / teacher.parameters
    assert abs(student.pruned.kept - 0.4) < 0.15
    own, whole = load_file(directory.weights("student")), load_file(directory.weights("teacher"))
    for row in student.pruned.layers:
        assert row.before == tuple(whole[f"{row.layer}.weight"].shape)
        assert row.after == tuple(own[f"{row.layer}.weight"].shape)
    assert from_json(DistillResult, _document(directory)) == result
    assert tomllib.loads(recipe.to_toml(relative_to=directory.root))["student"]["prune"]["keep"] == 0.4


def _document(directory: RunDirectory) -> dict[str, object]:
    document = json.loads(directory.stage("distill").read_text())
    return {name: value for name, value in document.items() if name not in ("key", "files")}


def test_student_pt2_needs_no_class_and_computes_the_same(run: Run) -> None:
    recipe, directory, result = run
    dataset = load_run_data(recipe, directory.cache)
    student = load_model("student", recipe.student, dataset, directory.weights("student"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")  # torch before 2.12
        program = torch.export.load(directory.root / "student.pt2").module()
    for count in (1, 5):
        inputs = student.preprocessing.apply(dataset.test.take(slice(0, count)).inputs)
        with torch.no_grad():
            torch.testing.assert_close(program(*inputs), student.network(*inputs), rtol=1e-5, atol=1e-5)
    before = (directory.root / "student.pt2").stat().st_mtime_ns
    assert distill(recipe, directory) == result
    assert (directory.root / "student.pt2").stat().st_mtime_ns == before


def test_it_is_exported_and_proved_and_quantized(run: Run) -> None:
    recipe, directory, result = run
    models = {model.name: model for model in export(recipe, result, directory).models}
    student = models["student"]
    assert student.parity is not None
    assert student.parity.passed
    assert student.pruned == result.networks[1].pruned
    assert models["student.int8"].quantized is not None
    assert models["student.int8"].size_bytes < student.size_bytes


def test_evaluate_takes_the_weights_and_the_program(run: Run) -> None:
    recipe, directory, _ = run
    asked = ["--recipe", str(directory.root / "recipe.toml"), "--json"]
    recipe.write(directory.root / "recipe.toml")
    weights = ["--weights", str(directory.weights("student")), "--arg", "width=12"]
    scores = [
        json.loads(CliRunner().invoke(app, ["evaluate", *what, *asked]).stdout)["score"]["value"]
        for what in ([recipe.teacher.model, *weights], [str(directory.root / "student.pt2")])
    ]
    assert scores[0] == scores[1]


def test_a_stopped_run_goes_on_to_the_same_weights(
    tiny_pruned: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_pruned("distill.epochs=2", "distill.baseline=false")
    distill(recipe, RunDirectory(tmp_path / "whole"))
    appended = logging.MetricsLog.append

    def stop(self: logging.MetricsLog, record: dict[str, object]) -> None:
        appended(self, record)
        if record["phase"] == "student":
            raise KeyboardInterrupt

    monkeypatch.setattr(logging.MetricsLog, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        distill(recipe, RunDirectory(tmp_path / "broken"))
    monkeypatch.undo()
    distill(recipe, RunDirectory(tmp_path / "broken"))
    whole, broken = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "broken"))
    assert whole == broken


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.prune.keep=0"], "student.prune.keep: is the share of the parameters to keep, above 0 and below 1"),
        (["student.prune.keep=1"], "above 0 and below 1"),
        (["student.prune.keep=-0.2"], "above 0 and below 1"),
        (["student.prune.keep=true"], "above 0 and below 1"),
        (["student.prune.keep={ latency = 0.3 }"], "a budget of latency cannot be pruned to yet"),
        (["student.prune.layers=[]"], 'is "every-other", or a list of the blocks'),
        (["student.prune.round_to=0"], "student.prune.round_to: should be greater than or equal to 1"),
        (["student.prune={ round_to = 8 }"], "says nothing of what is taken out"),
        (['student={ model = "teacher" }'], "says nothing of what is kept of it"),
        (["student.model=nets.py:Student"], 'set student.model = "teacher"'),
        (["teacher={ model = 'big.onnx' }"], "big.onnx cannot be pruned"),
        (["teacher={ model = 'big.pt2' }"], "big.pt2 cannot be pruned"),
    ],
)
def test_a_recipe_that_cannot_be_pruned_is_refused(tiny_pruned: Tiny, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        tiny_pruned(*overrides)
    assert message in caught.value.message


def test_the_extra_is_named_before_the_teacher_trains(
    tiny_pruned: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(SourceError, match="needs torch-pruning, which is not installed") as caught:
        distill(tiny_pruned(), RunDirectory(tmp_path))
    assert "kdexport[prune]" in caught.value.hint
    assert not (tmp_path / "teacher.safetensors").exists()
