"""The report stage of a run: made once, made again only when what it depends on has changed."""

from dataclasses import replace
from pathlib import Path

import pytest

from kdexport import results
from kdexport.artifacts import RunDirectory
from kdexport.errors import KDExportError
from kdexport.progress import Silent
from kdexport.recipe import Recipe
from kdexport.report import stage
from kdexport.report.reading import read_benches, read_report
from kdexport.report.stage import report, report_run, write_report


class Listening(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, message: str) -> None:
        self.messages.append(message)


def recipe(**require) -> Recipe:
    return Recipe.parse(
        {
            "name": "digits",
            "data": {"source": "digits"},
            "teacher": {"model": "a.b:T"},
            "student": {"model": "a.b:S"},
            "require": require,
        }
    )


def test_nothing_is_done_twice(build, tmp_path: Path) -> None:
    directory, listening = RunDirectory(tmp_path), Listening()
    first = report_run(recipe(min_speedup=3.0), build.bench(), directory, listening)
    made = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert report_run(recipe(min_speedup=3.0), build.bench(), directory, listening) == first
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == made
    assert listening.messages[-1] == "report: nothing has changed"

    other = report_run(recipe(min_speedup=4.0), build.bench(), directory, listening)
    assert other.gates[0].limit == 4.0
    directory.report("html").unlink()
    report_run(recipe(min_speedup=4.0), build.bench(), directory, listening)
    assert directory.report("html").exists()


def test_a_recipe_may_name_places(build, tmp_path: Path) -> None:
    """As `--set data.args.folder=/path/to/recordings` leaves it in the run's recipe."""
    benched = replace(build.bench(), recipe={"data": {"args": {"folder": str(tmp_path)}}})
    made = report_run(recipe(), benched, RunDirectory(tmp_path), Silent())
    assert made.recipe == benched.recipe


def test_what_is_written_reads_back_the_same(build, tmp_path: Path) -> None:
    bench = build.bench(conditions=(("cpu", 1, 1), ("cpu", 8, 2)))
    made = report_run(recipe(min_speedup=3.0), bench, RunDirectory(tmp_path), Silent())
    assert read_report(tmp_path) == made
    (again,) = read_benches(str(tmp_path / "report.json"))
    assert again.models == bench.models
    assert {(item.model, item.batch_size): item for item in again.measurements} == {
        (item.model, item.batch_size): item for item in bench.measurements
    }
    (tmp_path / "bench.json").write_text(results.dumps(bench))
    assert read_benches(str(tmp_path)) == (bench,)


def test_a_run_that_was_killed_between_two_files_of_its_report_writes_them_again(build, tmp_path: Path) -> None:
    """report.json comes last: without it every later run was refused, its other files taken for a user's."""
    directory = RunDirectory(tmp_path)
    for damage in ("gone", '{"half'):
        with directory.lock():
            first = report_run(recipe(), build.bench(), directory, Silent())
        directory.report("json").write_text(damage) if damage != "gone" else directory.report("json").unlink()
        with directory.lock():
            assert report_run(recipe(), build.bench(), directory, Silent()) == first
        assert read_report(tmp_path) == first


@pytest.mark.parametrize("name", ["report.md", "report.json"])
def test_files_of_the_users_are_not_replaced(build, tmp_path: Path, name: str) -> None:
    """A report of measurements beside one's own report.md was written over it."""
    made = report([build.bench()])
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(KDExportError, match="which no report of kdexport's belongs to") as caught:
        write_report(made, tmp_path)
    assert "--out" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(KDExportError, match="is a file"):
        write_report(made, tmp_path / name)
    (tmp_path / name).unlink()
    write_report(made, tmp_path)
    write_report(made, tmp_path)


def test_a_report_that_the_disk_has_no_room_for_leaves_nothing_of_itself(build, tmp_path: Path, monkeypatch) -> None:
    """The same command again took its own parts for somebody else's files."""
    made = report([build.bench()])
    written = stage.write_text

    def full(path: Path, text: str) -> None:
        if path.name in ("report.html", "report.json"):
            raise KDExportError("no space", hint="free some")
        written(path, text)

    monkeypatch.setattr(stage, "write_text", full)
    with pytest.raises(KDExportError, match="no space"):
        write_report(made, tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "report.md").write_text("a run's, that was killed here")
    (tmp_path / ".lock").touch()
    assert (tmp_path / "report.json") in write_report(made, tmp_path)


def test_python_gets_the_same_errors(build) -> None:
    with pytest.raises(KDExportError):
        report([])
