"""`search --dry-run`: what would be tried, and how long it would take, without a figure that nothing is behind."""

from pathlib import Path

import pytest

from kdexport import figures
from kdexport.errors import KDExportError
from kdexport.results import ModelFile
from kdexport.search import dry_run as planning
from kdexport.search.terminal import planned


@pytest.fixture
def no_export(monkeypatch, tmp_path_factory) -> None:
    """Let the teacher's file be a made one of 100 KB, which the stopwatch goes by."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.onnx"
    path.write_bytes(bytes(10**5))
    file = ModelFile("teacher", str(path), "", "fp32", 10**5, 10**4, None)
    monkeypatch.setattr(planning._Steps, "_teacher_file", lambda _: file)


def test_what_fails_does_not_make_the_rest_cost_nothing(recipe_with, stopwatch) -> None:
    """Each of the first three drawn fails: the next ones are built, and the estimate is theirs."""
    spaces = [{"args": {"width": width, "fail": True}} for width in (4, 8, 12)]
    plan = planning.dry_run(recipe_with(*spaces, {"args": {"width": [6, 300]}}, seed=18))
    assert (plan.candidates, plan.measured, plan.trained) == (5, 5, 5)
    assert [outcome.partition(":")[0] for outcome in plan.tried.values()] == [
        "fails", "fails", "fails", "over the budget", "within the budget",
    ]  # fmt: skip
    assert plan.rungs == ((1, 2), (2, 1))
    assert all(plan.seconds[step] > 0 for step in ("teacher", "measuring", "training", "final"))
    assert plan.seconds["total"] == pytest.approx(sum(plan.seconds[step] for step in list(plan.seconds)[:-1]))


def test_spaces_of_which_nothing_can_be_built_are_refused(recipe_with, stopwatch, no_export) -> None:
    with pytest.raises(KDExportError, match=r"none of 2 candidates .* this width is not for me") as caught:
        planning.dry_run(recipe_with({"args": {"width": [4, 8], "fail": True}}))
    assert "search.space" in caught.value.hint


def test_a_training_that_cannot_be_timed_is_not_said_to_take_no_time(
    recipe_with, stopwatch, no_export, monkeypatch
) -> None:
    def no_labels(*_: object) -> float:
        raise RuntimeError

    monkeypatch.setattr(planning, "_epoch_s", no_labels)
    monkeypatch.setattr(planning._Steps, "teacher_s", lambda _: 0.0)
    plan = planning.dry_run(recipe_with({"args": {"width": 4}}))
    assert plan.seconds["training"] is plan.seconds["total"] is None
    assert figures.duration(None) == figures.UNKNOWN
    assert planned(plan, 80)  # and can be shown


def test_nothing_of_it_is_kept(recipe_with, stopwatch, no_export, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(planning.tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    planning.dry_run(recipe_with({"args": {"width": 4}}))
    assert list(Path(tmp_path).iterdir()) == []
