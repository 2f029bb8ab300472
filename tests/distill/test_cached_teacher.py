"""A student that learns from the largest logits alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kdexport.artifacts import RunDirectory, read_epochs
from kdexport.distill import logging
from kdexport.distill.stage import distill
from kdexport.progress import Silent
from kdexport.recipe import Recipe

Tiny = Callable[..., Recipe]
QUICK = ("distill.baseline=false", "teacher.train.epochs=3")


class Recorder(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, message: str) -> None:
        self.said.append(message)


def test_a_student_of_the_largest_logits_survives_a_kill(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, recorder = tiny(*QUICK, "distill.teacher_top_k=3"), Recorder()
    distill(recipe, RunDirectory(tmp_path / "whole"), recorder)
    assert any("the 3 largest of 10 logits" in said for said in recorder.said)
    lines = [line for line in read_epochs(tmp_path / "whole" / "metrics.jsonl") if line["phase"] == "student"]
    assert [line["teacher_from"] for line in lines] == ["online", "online", "cache"]
    assert lines[-1]["loss"] < lines[0]["loss"]
    written = logging.MetricsLog.append

    def stop(self: logging.MetricsLog, entry: dict[str, object]) -> None:
        written(self, entry)
        if (entry["phase"], entry["epoch"]) == ("student", 1):
            raise KeyboardInterrupt

    monkeypatch.setattr(logging.MetricsLog, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        distill(recipe, RunDirectory(tmp_path / "broken"))
    monkeypatch.undo()
    distill(recipe, RunDirectory(tmp_path / "broken"))
    whole, broken = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "broken"))
    assert whole == broken


def test_as_many_as_there_are_is_all_of_them(tmp_path: Path, tiny: Tiny) -> None:
    for name, more in (("a", ()), ("b", ("distill.teacher_top_k=10",))):
        distill(tiny(*QUICK, "distill.epochs=1", *more), RunDirectory(tmp_path / name))
    a, b = ((tmp_path / name / "student.safetensors").read_bytes() for name in "ab")
    assert a == b


COUNTING = """
from pathlib import Path
from nets import Teacher as Plain


class Teacher(Plain):
    def forward(self, image):
        if not self.training:
            with Path(__file__).with_name("asked.txt").open("a") as handle:
                handle.write(f"{len(image)}\\n")
        return super().forward(image)
"""


def test_a_second_student_of_the_same_teacher_asks_it_nothing(tmp_path: Path, tiny: Tiny) -> None:
    nets = Path(__file__).parents[2] / "models" / "digits" / "nets.py"
    (tmp_path / "nets.py").write_text(nets.read_text())
    (tmp_path / "counting.py").write_text(COUNTING)
    teacher, asked = f"teacher.model={tmp_path / 'counting.py'}:Teacher", tmp_path / "asked.txt"
    recipe, directory = tiny(*QUICK, teacher), RunDirectory(tmp_path / "run")
    distill(recipe, directory)
    assert asked.exists()
    asked.unlink()
    distill(tiny(*QUICK, teacher, "distill.lr=0.001"), directory)
    # To see whether it takes the data, and for its operations; no split is gone through.
    assert all(int(count) <= 2 for count in asked.read_text().split())
    first, second = (
        [line for line in read_epochs(directory.metrics) if line["phase"] == "student"][-1],
        [line for line in read_epochs(directory.metrics) if line["phase"] == "teacher"][-1],
    )
    assert first["val_teacher_accuracy"] == second["val_accuracy"]  # from the file, as from the network


def test_runs_can_share_kept_logits_even_with_a_method_that_compares_layers(tmp_path: Path, tiny: Tiny) -> None:
    nets = Path(__file__).parents[2] / "models" / "digits" / "nets.py"
    (tmp_path / "nets.py").write_text(nets.read_text())
    (tmp_path / "counting.py").write_text(COUNTING)
    shared, asked = tmp_path / "shared", tmp_path / "asked.txt"
    first = RunDirectory(tmp_path / "first")
    distill(tiny(*QUICK, f"teacher.model={tmp_path / 'counting.py'}:Teacher", "distill.epochs=1"), first)
    taught = (
        "distill.baseline=false",
        "distill.views=1",
        f"distill.teacher_cache={shared}",
        f"teacher.model={tmp_path / 'counting.py'}:Teacher",
        f"teacher.weights={first.weights('teacher')}",
    )
    listening = tiny(*taught, "distill.epochs=1", "distill.terms=[{ method = 'similarity' }]")
    listening = listening.model_copy(update={"teacher": listening.teacher.model_copy(update={"train": None})})
    distill(listening, RunDirectory(tmp_path / "second"))
    asked.unlink()
    learning = tiny(*taught)
    learning = learning.model_copy(update={"teacher": listening.teacher})
    distill(learning, RunDirectory(tmp_path / "third"))
    # To see whether it takes the data, and for its operations; no split is gone through.
    assert all(int(count) <= 2 for count in asked.read_text().split())
    lines = [line for line in read_epochs(tmp_path / "third" / "metrics.jsonl") if line["phase"] == "student"]
    assert {line["teacher_from"] for line in lines} == {"cache"}


def test_damaged_logits_are_computed_again(tmp_path: Path, tiny: Tiny) -> None:
    directory = RunDirectory(tmp_path / "run")
    recipe = tiny(*QUICK)
    distill(recipe, directory)
    kept = [line for line in read_epochs(directory.metrics) if line["phase"] == "student"]
    for path in directory.cache.glob("teacher-*.logits"):
        content = bytearray(path.read_bytes())
        content[: len(content) // 2] = bytes(len(content) // 2)
        path.write_bytes(content)
    directory.weights("student").unlink()
    for path in (directory.checkpoints / "student").iterdir():
        path.unlink()
    distill(recipe, directory)
    again = [line for line in read_epochs(directory.metrics) if line["phase"] == "student"]
    timing = {"seconds", "samples_per_s", "teacher_from"}
    assert [{k: v for k, v in line.items() if k not in timing} for line in again] == [
        {k: v for k, v in line.items() if k not in timing} for line in kept
    ]
