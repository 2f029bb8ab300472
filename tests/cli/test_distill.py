"""`kdexport distill` from flags."""

import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import Result

from kdexport.cli.console import command
from kdexport.cli.distill import _pruned
from kdexport.errors import Terminated
from kdexport.recipe import Prune, Recipe

NETS = Path(__file__).parents[2] / "models" / "digits" / "nets.py"


def test_flags_alone_say_it_all(
    kdexport: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = kdexport(
        *("distill", "--data", "digits", "--teacher", f"{NETS}:Teacher", "--teacher-arg", "width=8"),
        *("--teacher-epochs", 1, "--student", f"{NETS}:Student", "--student-arg", "width=4", "--epochs", 2),
        *("--method", "dist", "--method", "soft_targets", "--temperature", 3.0, "--augment", "shift", "--views", 1),
        *("--lr", 0.01, "--no-baseline", "--set", "data.fraction=0.2", "--json"),
    )
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert [network["name"] for network in made["networks"]] == ["teacher", "student"]
    recipe = Recipe.load(tmp_path / "runs" / "Student" / "recipe.toml")
    assert [(term.method, term.weight) for term in recipe.distill.terms] == [("dist", 0.45), ("soft_targets", 0.45)]
    assert [term.model_dump()["temperature"] for term in recipe.distill.terms] == [3.0, 3.0]
    assert (recipe.distill.lr, recipe.distill.augment, recipe.student.args) == (0.01, ("shift",), {"width": 4})
    assert (tmp_path / "runs" / "Student" / "student.safetensors").exists()


def test_flags_change_a_recipe(kdexport: Callable[..., Result], tmp_path: Path) -> None:
    result = kdexport(
        *(
            "distill",
            NETS.with_name("recipe.toml"),
            "--out",
            tmp_path,
            "--epochs",
            1,
            "--temperature",
            2.0,
            "--no-baseline",
        ),
        *("--teacher-epochs", 1, "--teacher-arg", "width=8", "--set", "data.fraction=0.2", "--quiet"),
    )
    assert result.exit_code == 0, result.output
    assert "kdexport export" in result.stdout
    assert result.stderr == ""
    recipe = Recipe.load(tmp_path / "recipe.toml")
    assert (recipe.name, recipe.distill.terms[0].model_dump()["temperature"], recipe.distill.lr) == (
        "digits",
        2.0,
        0.008,
    )


def test_a_changed_rate_asks_before_training_is_lost(kdexport: Callable[..., Result], tmp_path: Path) -> None:
    short = ("--epochs", 1, "--no-baseline", "--teacher-epochs", 1, "--teacher-arg", "width=4", "--quiet")
    job = ("distill", NETS.with_name("recipe.toml"), "--out", tmp_path, *short, "--set", "data.fraction=0.2")
    assert kdexport(*job).exit_code == 0
    kept = [(tmp_path / name).read_bytes() for name in ("student.safetensors", "recipe.toml")]
    refused = kdexport(*job, "--lr", 0.001)
    assert refused.exit_code == 1
    assert "student would be trained again from the start (lr 0.008 -> 0.001): 1 epochs" in refused.stderr
    assert "--restart" in refused.stderr
    assert kept == [(tmp_path / name).read_bytes() for name in ("student.safetensors", "recipe.toml")]
    nothing_left = kdexport(*job, "--lr", 0.001, "--extend")
    assert "set its epochs above 1" in nothing_left.stderr
    assert kdexport(*job, "--lr", 0.001, "--restart", "--extend").exit_code == 1
    again = kdexport(*job, "--lr", 0.001, "--restart")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "student.safetensors").read_bytes() != kept[0]


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_what_a_signal_stops_ends_with_the_shells_code(stop: type[KeyboardInterrupt], code: int) -> None:
    with pytest.raises(typer.Exit) as caught, command(json=False, quiet=True, verbose=False, resumes=True):
        raise stop
    assert caught.value.exit_code == code


def test_the_table_calls_a_score_a_score_and_counts_nothing_that_it_has_not(tmp_path):
    from rich.console import Console

    from kdexport.cli.tables import trained
    from kdexport.results import DistillResult, TrainedNetwork

    def network(name, parameters, score):
        values = {field.name: None for field in dataclasses.fields(TrainedNetwork)}
        return TrainedNetwork(
            **{**values, "name": name, "weights": "w", "parameters": parameters, "epochs": 0, "val_score": score}
        )

    networks = (network("teacher", 0, None), network("student", 1234, 0.5))
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(trained(DistillResult("x", ("a", "b"), {}, {}, networks), tmp_path))
    text = console.export_text()
    assert "val score" in text  # of several labels it is no accuracy
    assert re.search(r"^teacher +given", text, re.MULTILINE)  # an ONNX file is not said to have 0 parameters
    assert re.search(r"^student +1.23 k ", text, re.MULTILINE)


def test_prune_puts_the_teacher_in_the_place_of_the_student(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "r"\ndata = { source = "digits" }\nteacher = { model = "nets.py:T" }\n'
        'student = { model = "nets.py:S", args = { width = 4 } }\n'
    )
    student = Recipe.load(recipe, _pruned(recipe, 0.4)).student
    assert (student.model, student.args) == (f"{tmp_path}/nets.py:T", {})
    assert student.prune == Prune(keep=0.4)
    recipe.write_text(
        'name = "r"\ndata = { source = "digits" }\nteacher = { model = "nets.py:T" }\n'
        'student = { model = "teacher", prune = { keep = 0.4, round_to = 4 } }\n'
    )
    assert Recipe.load(recipe, _pruned(recipe, 0.2)).student.prune == Prune(keep=0.2, round_to=4)
    assert _pruned(recipe, None) == []


def test_prune_and_a_student_exclude_each_other(kdexport: Callable[..., Result]) -> None:
    done = kdexport("distill", "--data", "digits", "--teacher", "n.py:T", "--student", "n.py:S", "--prune", "0.4")
    assert done.exit_code == 1
    assert "--student names another" in done.stderr
    done = kdexport("distill", "--data", "digits", "--teacher", "n.onnx", "--prune", "0.4")
    assert done.exit_code == 1
    assert "n.onnx cannot be pruned" in done.stderr
