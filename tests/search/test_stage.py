"""A whole search: what is out and why, who is picked, that nothing is lost or done twice.

The stopwatch goes by the size of files.
"""

import errno
import json
import os
import shutil

import jsonschema
import pytest
from safetensors.numpy import load_file

from kdexport.artifacts import RunDirectory, sha256
from kdexport.data.datasets import load_data
from kdexport.distill.stage import distill
from kdexport.errors import KDExportError, RequirementError, StorageError
from kdexport.onnx.sessions import OnnxSession
from kdexport.recipe import Recipe
from kdexport.search import candidates, stage
from kdexport.search.context import study_key
from kdexport.search.final import enforce
from kdexport.search.results import SCHEMA_FILE, SearchResult, from_json, schema
from kdexport.search.stage import search
from kdexport.search.study import LOCKS, Study, alone, check_own

SPACES = (
    {"args": {"width": [4, 8, 16, 300]}},
    {"args": {"width": 12, "fail": True}},
    {"args": {"width": 10, "nan": True}},
)


@pytest.fixture(scope="module")
def found(recipe_with, stopwatch, tmp_path_factory):
    """A search of six candidates: its recipe, its directory and its result."""
    root = tmp_path_factory.mktemp("search") / "s"
    recipe = recipe_with(*SPACES)
    return recipe, root, search(recipe, root)


def by_name(result: SearchResult) -> dict:
    return {str(trial.args["width"]): trial for trial in result.trials}


def test_each_candidate_ends_as_it_should(found) -> None:
    trials = by_name(found[2])
    assert trials["300"].outcome == "over budget"  # 22 KB of weights take more than 0.2 ms here
    assert "budget 0.200 ms" in trials["300"].why
    assert not trials["300"].rungs
    assert trials["12"].outcome == "failed"
    assert "this width is not for me" in trials["12"].why
    assert trials["10"].outcome == "failed"  # measured well; optuna 136, allennlp-optuna 49: NaN in training
    assert "in training mode the student gives NaN" in trials["10"].why
    assert trials["10"].files
    assert sorted(trial.outcome for trial in trials.values()).count("picked") == 1
    # three go to the first rung, two to the second, one to the end
    assert sorted(len(trial.rungs) for trial in trials.values()) == [0, 0, 0, 1, 2, 3]
    assert [rung.epochs for rung in max(trials.values(), key=lambda trial: len(trial.rungs)).rungs] == [1, 2, 4]
    assert {trial.outcome for trial in trials.values()} == {"picked", "dropped", "over budget", "failed"}
    assert list(found[1].glob("trials/*/checkpoints/*/*.pt")) == []  # nothing is left to go on from


def test_the_pick_is_the_recipe_run_alone(found, tmp_path) -> None:
    _, root, result = found
    picked = Recipe.load(root / result.pick.directory / "recipe.toml")
    assert picked.search is None
    assert (picked.require.max_latency_ms, picked.require.max_drop) == (0.2, 0.5)
    alone_run = RunDirectory(tmp_path / "alone")
    distill(picked, alone_run)
    assert sha256(alone_run.weights("student")) == sha256(root / "picked" / "student.safetensors")
    assert sha256(alone_run.weights("teacher")) == sha256(root / "picked" / "teacher.safetensors")
    # and in its place nothing is trained again
    said: list[str] = []

    class Told(stage.SILENT.__class__):  # type: ignore[name-defined]
        def message(self, message: str) -> None:
            said.append(message)

    distill(picked, RunDirectory(root / "picked"), Told())
    assert [line for line in said if "unchanged" in line] == [
        "teacher: unchanged, not trained again",
        "student: unchanged, not trained again",
    ]
    trial = next(trial for trial in result.trials if trial.outcome == "picked")
    assert load_file(root / "picked" / "student.safetensors")["hidden.weight"].shape == (trial.args["width"], 64)
    # what is told is of the file that ships, not of another epoch (ray 28734)
    data = load_data(picked.data, picked.seed, tmp_path / "cache")
    logits = OnnxSession(root / "picked" / "student.onnx").predict(data.val.inputs)
    assert trial.files[0].val_score.value == (logits.argmax(1) == data.val.labels).mean()


def test_the_schema_that_ships_is_that_of_the_search():
    pytest.importorskip("pydantic", minversion="2.13", reason="pydantic before 2.13 describes no dataclasses")
    assert schema() == json.loads(SCHEMA_FILE.read_text()), "python -m kdexport.search.results"


def test_search_json_is_what_its_schema_says(found) -> None:
    _, root, result = found
    document = json.loads((root / "search.json").read_text())
    jsonschema.validate(document, json.loads(SCHEMA_FILE.read_text()))
    assert from_json(document) == result
    assert document["seconds"]["measuring_share"] == pytest.approx(
        (result.seconds.measuring + result.seconds.final)
        / (result.seconds.teacher + result.seconds.measuring + result.seconds.training + result.seconds.final)
    )


def test_the_page_shows_every_trial_and_why_it_is_out(found) -> None:
    _, root, result = found
    page = (root / "search.html").read_text()
    assert page.count("<tr data-model=") == len(result.trials) == 6
    assert "this width is not for me" in page
    assert "budget: left of this line" in page
    assert "required: left of this line" in page
    assert f"{result.pick.name} is within the budget" in page


def test_the_same_search_again_does_nothing(found, monkeypatch) -> None:
    recipe, root, result = found

    def never(*_, **__):
        raise AssertionError("done twice")

    for name in ("train_to", "train_in_full"):
        monkeypatch.setattr(stage, name, never)
    monkeypatch.setattr("kdexport.search.measure.bench", never)
    again = search(recipe, root)
    assert again.pick == result.pick
    assert again.trials == result.trials


def test_killed_at_any_step_it_goes_on_and_trains_nothing_twice(recipe_with, stopwatch, tmp_path, monkeypatch) -> None:
    recipe = recipe_with({"args": {"width": [4, 8]}})
    trained: list[tuple[str, object]] = []
    for name in ("train_to", "train_in_full"):
        true = getattr(stage, name)

        def counted(recipe, directory, *rest, true=true, name=name):
            outcome = true(recipe, directory, *rest)
            trained.append((directory.root.name, name))
            return outcome

        monkeypatch.setattr(stage, name, counted)
    killed = {"add": 1, "note": 2, "note_rung": 1, "keep": 1, "out": 1, "finished": 1}  # on which call of each
    for method, number in killed.items():
        true, calls = getattr(Study, method), []

        def dies(self, *args, true=true, calls=calls, number=number, **named):
            done = true(self, *args, **named)
            calls.append(1)
            if len(calls) == number:
                raise KeyboardInterrupt
            return done

        monkeypatch.setattr(Study, method, dies)
    for _ in range(20):
        try:
            result = search(recipe, tmp_path / "s")
        except KeyboardInterrupt:
            continue
        break
    assert result.pick is not None
    assert len(trained) == len(set(trained))
    assert len(result.trials) == 2


def test_killed_before_candidates_are_judged_the_budget_still_holds(
    recipe_with, stopwatch, tmp_path, monkeypatch
) -> None:
    """Found by benchmarks/search_kill.py: measured and not judged, a candidate over the budget was trained."""
    recipe = recipe_with({"args": {"width": [4, 300]}})

    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(candidates, "_judge", dies)
        with pytest.raises(KeyboardInterrupt):
            search(recipe, tmp_path / "s")
    trials = by_name(search(recipe, tmp_path / "s"))
    assert trials["300"].outcome == "over budget"
    assert not trials["300"].rungs


def test_a_trial_that_another_process_holds_is_left_to_it(recipe_with, stopwatch, tmp_path, monkeypatch) -> None:
    recipe, root = recipe_with({"args": {"width": [4, 8]}}), tmp_path / "s"
    waited: list[float] = []
    holds = alone(root, "trial-0", wait=False)
    assert holds.__enter__()

    def other_process_ends(seconds: float) -> None:
        waited.append(seconds)
        holds.__exit__(None, None, None)

    monkeypatch.setattr(stage.time, "sleep", other_process_ends)
    result = search(recipe, root)
    assert waited == [stage.WAIT_S]  # once trial 1 was trained and only 0 was left
    assert [trial.rungs[0].epochs for trial in result.trials] == [2, 2]


def test_a_budget_that_nothing_meets_names_the_nearest(recipe_with, stopwatch, tmp_path) -> None:
    recipe = recipe_with({"args": {"width": 8}}, search__budget={"latency_ms": 0.01})
    result = search(recipe, tmp_path / "s")
    assert result.pick is None
    trial = result.trials[0]
    assert result.nearest.name == trial.name == "Net(width=8)"
    assert result.nearest.by == pytest.approx(trial.files[0].latency_ms / 0.01 - 1)
    with pytest.raises(RequirementError, match=r"nearest is Net\(width=8\), \d+ % beyond: latency") as caught:
        enforce(result)
    assert "raise search.budget" in caught.value.hint
    assert caught.value.exit_code == 3
    assert "Nothing is within the budget" in (tmp_path / "s" / "search.html").read_text()


def test_only_failing_factories_are_an_error(recipe_with, stopwatch, tmp_path) -> None:
    with pytest.raises(KDExportError, match=r"none of 1 candidates could be built.*this width is not for me"):
        search(recipe_with({"args": {"width": 4, "fail": True}}), tmp_path / "s")


def test_a_storage_of_another_recipe_or_none_is_told(found, recipe_with, tmp_path) -> None:
    recipe, root, _ = found
    other = recipe_with(*SPACES, search__trials=3)
    with pytest.raises(KDExportError, match=r"belongs to another recipe: search.trials differs"):
        search(other, root)
    token = (root / ".search").read_bytes()
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(token[:3])):
        damage(root / ".search")  # what the study beside it says too is given back
        Study(recipe, root, study_key(recipe), maximize=True)
        assert (root / ".search").read_bytes() == token
    study = Study(recipe, root, study_key(recipe), maximize=True)
    for error in (RecursionError("too deep"), OverflowError("too large")):  # of a cell that was changed
        with pytest.raises(KDExportError, match=f"is damaged: {error}"), study._whole():
            raise error
    url = f"sqlite:///{root / 'study.db'}"
    with pytest.raises(KDExportError, match="of another directory") as caught:
        search(recipe_with(*SPACES, search__storage=url), tmp_path / "elsewhere")
    assert "--out DIR" in caught.value.hint
    for storage in ("postgres://nobody:secret@localhost:1/x", "sqlite:////nowhere/at/all.db", "no url"):
        with pytest.raises(KDExportError, match="the study cannot be opened in") as caught:
            Study(recipe_with(*SPACES, search__storage=storage), tmp_path, {}, maximize=True)
        assert "secret" not in caught.value.message.split(":")[0]
    assert study_key(recipe) == study_key(recipe_with(*SPACES))
    url = "postgresql+psycopg2cffi://nobody:secret@localhost/x"
    with pytest.raises(KDExportError, match="needs a driver that is not installed: psycopg2cffi") as caught:
        Study(recipe_with(*SPACES, search__storage=url), tmp_path, {}, maximize=True)
    assert "psycopg2cffi" in caught.value.hint
    assert "secret" not in str(caught.value)


def test_a_device_that_is_not_there_and_files_of_the_user_s_are_told_first(recipe_with, tmp_path) -> None:
    with pytest.raises(KDExportError, match="nowhere"):
        search(recipe_with({"args": {"width": 4}}, search__device="nowhere"), tmp_path / "s")
    assert not (tmp_path / "s").exists()
    (tmp_path / "teacher" / "cache").mkdir(parents=True)  # left by a search whose directory was removed under it
    (tmp_path / "teacher" / ".lock").touch()
    check_own(tmp_path)
    (tmp_path / "recipe.toml").write_text("mine")
    with pytest.raises(KDExportError, match=r"holds recipe.toml, and no search has been there") as caught:
        search(recipe_with({"args": {"width": 4}}), tmp_path)
    assert "--out DIR" in caught.value.hint
    assert (tmp_path / "recipe.toml").read_text() == "mine"


@pytest.mark.parametrize("full", ["kdexport.search.measure.save_weights", "kdexport.search.stage.train_in_full"])
def test_a_full_disk_ends_the_search_and_costs_no_candidate(
    full, found, recipe_with, stopwatch, monkeypatch, tmp_path
) -> None:
    """Failed trials stay: the same search with enough space picked another student."""

    def no_space(*_):
        raise StorageError("no space", hint="free some")

    recipe = recipe_with({"args": {"width": 4}})
    shutil.copytree(found[1] / "teacher", tmp_path / "teacher")
    (tmp_path / LOCKS).mkdir()
    monkeypatch.setattr(full, no_space)
    with pytest.raises(StorageError, match="no space"):
        search(recipe, tmp_path)
    assert [one.state for one in Study(recipe, tmp_path, study_key(recipe), maximize=True).entries()] == ["open"]


def test_a_pick_that_the_disk_has_no_room_for_leaves_no_half_of_itself(found, stopwatch, monkeypatch, tmp_path) -> None:
    def no_space(source, target):
        target.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    root = shutil.copytree(found[1], tmp_path / "s")
    shutil.rmtree(root / "picked")
    with monkeypatch.context() as patch:
        patch.setattr("kdexport.search.final.shutil.copyfile", no_space)
        with pytest.raises(StorageError, match="picked could not be written: No space left"):
            search(found[0], root)
    assert not list(root.glob("*picked*"))
    search(found[0], root)
    assert (root / "picked" / "recipe.toml").is_file()


def test_a_search_whose_directory_is_taken_away_says_so(recipe_with, stopwatch, monkeypatch, tmp_path) -> None:
    """It spoke of its storage, and what it made again was nobody's."""
    root = tmp_path / "s"
    monkeypatch.setattr(stage, "ready_teacher", lambda *_: shutil.rmtree(root) or (root / "trials").mkdir())
    with pytest.raises(StorageError, match="was taken away while it was used"):
        search(recipe_with({"args": {"width": 4}}), root)
    assert not root.exists()


def test_torchrun_is_told_how_a_search_is_shared(recipe_with, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(KDExportError, match="does not run under torchrun") as caught:
        search(recipe_with({"args": {"width": 4}}), tmp_path)
    assert "several times" in caught.value.hint


def test_without_optuna_the_extra_is_named(recipe_with, monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(KDExportError, match="needs optuna") as caught:
        search(recipe_with({"args": {"width": 4}}), tmp_path)
    assert "kdexport[search]" in caught.value.hint


def test_a_study_that_is_lost_in_the_middle_is_told_and_its_work_is_kept(
    found, recipe_with, stopwatch, monkeypatch, tmp_path
) -> None:
    """optuna 2722: the database file is removed while the search runs."""
    recipe, root, _ = found
    copy = shutil.copytree(root, tmp_path / "s")
    true = stage._entrants

    def gone(context):
        (copy / "study.db").write_bytes(b"")
        return true(context)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "_entrants", gone)
        with pytest.raises(KDExportError, match="the study's storage fails") as caught:
            search(recipe, copy)
        assert "the same command again" in caught.value.hint
    (copy / "study.db").unlink()
    monkeypatch.setattr("kdexport.search.measure.bench", lambda *_, **__: 1 / 0)  # all was measured before
    again = search(recipe, copy)
    assert again.pick == found[2].pick
    lines = [line for path in (copy / "trials").glob("*/metrics.jsonl") for line in path.read_text().splitlines()]
    epochs = [(line["phase"], line["epoch"]) for line in map(json.loads, lines) if "loss" in line]
    assert len([one for one in epochs if one[0] == "student"]) == 1 + 2 + 4  # one out at each rung: none trained again


def test_untrained_files_are_exported_and_measured_in_each_precision(found, recipe_with, monkeypatch, tmp_path) -> None:
    """Nothing is stood in for here: two files and the teacher, each in a fresh process."""
    from kdexport.bench.stage import bench
    from kdexport.export.stage import export
    from kdexport.search import measure
    from kdexport.search.context import ready_teacher, teacher_run
    from kdexport.search.space import Spaces, recipe_of

    recipe, root, _ = found
    _, _, teacher = ready_teacher(recipe, root, stage.SILENT)
    monkeypatch.setattr(measure, "bench", bench)
    monkeypatch.setattr(measure, "export", export)
    quick = {"rounds": 1, "min_seconds": 0.01, "max_seconds": 0.05, "precision": 0.5}
    monkeypatch.setattr(measure, "FIRST_LOOK", quick)
    both = recipe_with({"args": {"width": 200}, "precision": ["fp32", "int8"]})
    shared = measure.Candidates(tmp_path, both.search, teacher, teacher_run(root), stage.SILENT)
    (one,) = Spaces(both.search, tmp_path).listed()
    batch = [(one.key, recipe_of(one, both, tmp_path), one.precisions)]
    costs = measure.measure_batch(shared, batch)[one.key]
    assert costs.parameters == 64 * 200 + 200 + 200 * 10 + 10
    assert costs.files["int8"].size_bytes < 0.5 * costs.files["fp32"].size_bytes
    assert all(found.latency_ms > 0 and found.speedup > 0 and found.memory_mib > 10 for found in costs.files.values())
    assert costs.files["fp32"].latency_ms_ci95 is None  # one round says nothing of its spread
    monkeypatch.setattr(measure, "bench", None)  # what was measured is taken as it is
    assert measure.measure_batch(shared, batch)[one.key] == costs
    assert not (tmp_path / "untrained" / one.key).exists()
