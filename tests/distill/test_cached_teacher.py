"""A student that learns from the largest logits alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kdexport.artifacts import RunDirectory
from kdexport.distill import metrics
from kdexport.distill.stage import distill
from kdexport.progress import Silent
from kdexport.recipe import Recipe

Tiny = Callable[..., Recipe]
QUICK = ("distill.baseline=false", "teacher.train.epochs=3")


class Recorder(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def test_a_student_of_the_largest_logits_survives_a_kill(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, recorder = tiny(*QUICK, "distill.teacher_top_k=3"), Recorder()
    distill(recipe, RunDirectory(tmp_path / "whole"), recorder)
    assert any("the 3 largest of 10 logits" in said for said in recorder.said)
    lines = [line for line in metrics.read(tmp_path / "whole" / "metrics.jsonl") if line["phase"] == "student"]
    assert [line["teacher_from"] for line in lines] == ["online", "online", "cache"]
    assert lines[-1]["loss"] < lines[0]["loss"]
    written = metrics.MetricsLog.append

    def stop(self: metrics.MetricsLog, entry: dict[str, object]) -> None:
        written(self, entry)
        if (entry["phase"], entry["epoch"]) == ("student", 1):
            raise KeyboardInterrupt

    monkeypatch.setattr(metrics.MetricsLog, "append", stop)
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
