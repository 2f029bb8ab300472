"""The main job, once, by the README's own command: what it leaves behind and what it proves."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdexport.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
pytestmark = pytest.mark.slow

CONTRACT = [
    "recipe.toml",
    "metrics.jsonl",
    "checkpoints",
    "cache",
    "teacher.safetensors",
    "student.safetensors",
    "student-plain.safetensors",
    "teacher.onnx",
    "student.onnx",
    "student-plain.onnx",
    "student.int8.onnx",
    "student.fp16.onnx",
    "distill.json",
    "export.json",
    "bench.json",
    "report.json",
    "report.md",
    "report.html",
]


def readme_command(marker: str) -> list[str]:
    """Return the commands, joined by && in README, that follow a marker."""
    found = re.search(rf"<!-- {marker} -->\n```sh\n(.+)\n```", README)
    assert found, f"README has no {marker}"
    return [command.strip() for command in found[1].split("&&")]


def call(command: list[str], folder: Path, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README's command names, so that the run directory does not land in the project.

    What is measured is measured for a shorter time: beside other tests no time makes it exact.
    """
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "models" / "digits", folder / "models" / "digits")
    recipe = folder / "models" / "digits" / "recipe.toml"
    text, changed = re.subn(r"max_seconds = 4\.0", "max_seconds = 1.0\nmin_seconds = 0.3", recipe.read_text())
    assert changed == 1
    recipe.write_text(text)
    return folder


@pytest.fixture(scope="module")
def run(checkout: Path) -> Path:
    """The run directory of the README's first command, without its installation."""
    install, job = readme_command("run-command")
    assert install.startswith("pip install")
    done = call(shlex.split(job), checkout)
    assert done.returncode == 0, done.stderr
    assert "ship" in done.stdout
    return checkout / "runs" / "digits"


@pytest.fixture(scope="module")
def report(run: Path) -> dict:
    document: dict = json.loads((run / "report.json").read_text())
    return document


def test_readme_installs_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for marker in ("run-command", "test-command"):
        asked = re.search(r"\[(.+?)\]", readme_command(marker)[0])
        assert asked
        assert set(asked[1].split(",")) <= set(extras)
    assert readme_command("test-command")[1].split()[0] == "pytest"


def test_the_run_directory_holds_what_the_contract_lists(run: Path) -> None:
    assert [name for name in CONTRACT if not (run / name).exists()] == []
    assert list(run.glob(".*.tmp*")) == []


def model(report: dict, name: str) -> dict:
    return next(entry for entry in report["models"] if entry["name"] == name)


def test_the_student_is_small_quick_and_nearly_as_good(report: dict) -> None:
    teacher, student = model(report, "teacher"), model(report, "student")
    assert teacher["accuracy"] >= 0.98
    assert student["parameters"] * 20 <= teacher["parameters"]
    assert student["size_bytes"] * 15 <= teacher["size_bytes"]
    assert teacher["accuracy"] - student["accuracy"] <= 0.015
    for entry in report["models"]:
        low, high = entry["accuracy_ci95"]
        assert low <= entry["accuracy"] <= high
    against = next(
        entry for entry in report["tradeoffs"] if (entry["model"], entry["against"]) == ("student", "teacher")
    )
    assert all(speedup["ratio"] >= 3 for speedup in against["speedup"])


def test_every_file_was_proved_on_real_samples(report: dict) -> None:
    for entry in report["models"]:
        if entry["precision"] == "fp32":
            assert entry["parity"]["passed"]
            assert entry["parity"]["samples"] >= 256
            assert entry["parity"]["max_rel"] <= entry["parity"]["tolerance"]


def test_every_model_was_measured_where_it_was_reported_to_run(report: dict) -> None:
    assert {entry["model"] for entry in report["measurements"]} == {entry["name"] for entry in report["models"]}
    for entry in report["measurements"]:
        assert entry["placement"] == {"CPUExecutionProvider": 1.0}
        latency = entry["latency_ms"]
        assert latency["samples"] >= 64
        assert latency["p50"] <= latency["p90"]
        assert entry["memory_mib"]["peak_rss"] > entry["memory_mib"]["model"] > 0


def test_accuracy_inside_onnx_runtime_is_that_of_the_file(run: Path, report: dict) -> None:
    """The student's figure again, by hand: the digits, onnxruntime and numpy, none of kdexport's own code."""
    import numpy as np
    import onnxruntime
    from sklearn.datasets import load_digits

    images = load_digits().images
    session = onnxruntime.InferenceSession(run / "student.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.type == "tensor(uint8)"
    raw = np.round(images * 255 / 16).astype(np.uint8)[..., None]
    right = session.run(None, {given.name: raw})[0].argmax(axis=1) == load_digits().target
    student = model(report, "student")
    # The test split is a fifth of these; on the rest it was trained.
    wrong_in_test = round((1 - student["accuracy"]) * student["evaluation"]["samples"])
    assert wrong_in_test <= (~right).sum() <= wrong_in_test + 0.02 * len(right)


def again(command: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a command in this process, which has loaded torch already."""
    monkeypatch.chdir(folder)
    name, *words = command
    assert name == "kdexport"
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output


def test_the_same_command_again_does_nothing_twice(run: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [
        "teacher.safetensors",
        "student.safetensors",
        "student.onnx",
        "student.int8.onnx",
        "bench.json",
        "report.json",
    ]
    before = {name: (run / name).stat().st_mtime_ns for name in kept}
    again(shlex.split(readme_command("run-command")[1]), checkout, monkeypatch)
    assert {name: (run / name).stat().st_mtime_ns for name in kept} == before


def test_the_resolved_recipe_gives_the_same_run(run: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / "report.json").stat().st_mtime_ns
    again(["kdexport", "run", "runs/digits/recipe.toml"], checkout, monkeypatch)
    assert (run / "report.json").stat().st_mtime_ns == before


def test_a_requirement_that_does_not_hold_is_exit_3(run: Path, checkout: Path) -> None:
    """Only the report is made again; all else is unchanged."""
    bench = (run / "bench.json").stat().st_mtime_ns
    job = [*shlex.split(readme_command("run-command")[1]), "--set", "require.max_size_mib=0.0001"]
    failed = call(job, checkout)
    assert failed.returncode == 3
    assert "not met" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert (run / "student.safetensors").exists()
    assert (run / "bench.json").stat().st_mtime_ns >= bench
