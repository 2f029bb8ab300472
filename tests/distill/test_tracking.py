"""TensorBoard shows what logging.jsonl says: all of it, each point once, whatever was killed or trained again."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from kdexport.artifacts import RunDirectory, read_epochs
from kdexport.distill import logging
from kdexport.distill.logging import MetricsLog, Trackers, points
from kdexport.distill.stage import distill
from kdexport.errors import KDExportError
from kdexport.recipe import Recipe

Tiny = Callable[..., Recipe]
ENTRY = {"phase": "student", "epoch": 2, "loss": 0.5, "terms": {"labels": 1.0}, "val_kl": None, "teacher_from": "cache"}


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard reads from a run directory: name -> (epoch, value) in the order of the file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def expected(directory: RunDirectory) -> dict[str, list[tuple[int, float]]]:
    series: dict[str, list[tuple[int, float]]] = {}
    for entry in read_epochs(directory.metrics):
        for name, value in points(entry).items():
            series.setdefault(name, []).append((entry["epoch"], pytest.approx(value, rel=1e-6)))
    return series


def test_a_line_becomes_the_numbers_under_its_phase() -> None:
    assert points(ENTRY) == {"student/loss": 0.5, "student/terms/labels": 1.0}


def test_an_absent_package_is_told_before_anything_is_trained(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.importlib.util, "find_spec", lambda name: None)  # noqa: ARG005
    with pytest.raises(KDExportError, match="wandb is not installed") as caught:
        distill(tiny("distill.track=['wandb']"), RunDirectory(tmp_path))
    assert "pip install wandb" in caught.value.hint
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_tracker_that_does_not_start_stops_the_run_before_it_trains(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Offline:
        def start(self) -> None:
            raise OSError("no network")

    monkeypatch.setattr(Trackers, "_tracker", lambda self, name: Offline())  # noqa: ARG005
    with pytest.raises(KDExportError, match="tensorboard does not start: no network"):
        distill(tiny("distill.track=['tensorboard']"), RunDirectory(tmp_path))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_mlflow_keeps_every_epoch_in_the_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="mlflow is not installed: pip install 'kdexport[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    trackers = Trackers(("mlflow",), tmp_path, "digits")
    trackers.remember([{**ENTRY, "epoch": 1, "loss": 0.9}])
    trackers.begin()
    trackers.add(ENTRY)
    trackers.close()
    client = tracking.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("kdexport").experiment_id])
    assert (run.info.run_name, run.info.status) == ("digits", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "student/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.9), (2, 0.5)]


def test_mlflow_gets_what_its_client_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in of its client, where MLflow itself is not installed."""
    calls: list[tuple[str, object]] = []

    class Client:
        def __init__(self, tracking_uri: str) -> None:
            calls.append(("at", tracking_uri))

        def get_experiment_by_name(self, name: str) -> None:
            calls.append(("experiment", name))

        def create_experiment(self, name: str) -> str:
            return "7"

        def create_run(self, experiment: str, run_name: str) -> SimpleNamespace:
            calls.append(("run", (experiment, run_name)))
            return SimpleNamespace(info=SimpleNamespace(run_id="id"))

        def log_batch(self, run: str, metrics: list[tuple[str, float, int]]) -> None:
            calls.append((run, metrics))

        def set_terminated(self, run: str) -> None:
            calls.append(("end", run))

    metric = SimpleNamespace(Metric=lambda name, value, time, step: (name, value, step))  # noqa: ARG005
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", SimpleNamespace(MlflowClient=Client))
    monkeypatch.setitem(sys.modules, "mlflow.entities", metric)
    monkeypatch.setattr(logging.importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    trackers = Trackers(("mlflow",), tmp_path, "digits")
    trackers.begin()
    trackers.add(ENTRY)
    trackers.close()
    assert calls == [
        ("at", (tmp_path / "mlruns").as_uri()),
        ("experiment", "kdexport"),
        ("run", ("7", "digits")),
        ("id", [("student/loss", 0.5, 2), ("student/terms/labels", 1.0, 2)]),
        ("end", "id"),
    ]


def test_tensorboard_shows_every_epoch_once_after_a_kill_and_a_change(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    track = ("distill.track=['tensorboard']", "distill.baseline=false")
    directory = RunDirectory(tmp_path)
    written = logging.MetricsLog.append

    def stop(self: logging.MetricsLog, entry: dict[str, object]) -> None:
        written(self, entry)
        if (entry["phase"], entry["epoch"]) == ("student", 1):
            raise KeyboardInterrupt  # shown, and its checkpoint is not written: the epoch comes again

    monkeypatch.setattr(logging.MetricsLog, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        distill(tiny(*track), directory)
    monkeypatch.undo()
    assert shown(tmp_path) == expected(directory)
    distill(tiny(*track), directory)
    first = shown(tmp_path)
    assert first == expected(directory)
    assert [epoch for epoch, _ in first["student/loss"]] == [0, 1, 2]
    assert [epoch for epoch, _ in first["teacher/loss"]] == [0, 1]
    # What is asked for anew is trained and shown anew; the teacher's epochs are shown as they were.
    distill(tiny(*track, "distill.terms.0.temperature=2.0", "distill.epochs=2"), directory)
    second = shown(tmp_path)
    assert second == expected(directory)
    assert second["teacher/loss"] == first["teacher/loss"]
    assert len(second["student/loss"]) == 2
    # Nothing is trained: the picture stays.
    distill(tiny(*track, "distill.terms.0.temperature=2.0", "distill.epochs=2"), directory)
    assert shown(tmp_path) == second


def test_tracking_changes_no_weights(tmp_path: Path, tiny: Tiny) -> None:
    pytest.importorskip("tensorboard")
    quick = ("distill.baseline=false", "distill.epochs=1")
    distill(tiny(*quick), RunDirectory(tmp_path / "a"))
    distill(tiny(*quick, "distill.track=['tensorboard']"), RunDirectory(tmp_path / "a"))
    assert not (tmp_path / "a" / "tensorboard").exists()  # the same training: not done again


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="Weights & Biases is not installed")
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers = Trackers(["wandb"], tmp_path, "name")
    trackers.begin()
    trackers.add(ENTRY)
    trackers.close()
    assert list(tmp_path.glob("wandb/offline-run-*"))


def test_a_run_directory_that_was_taken_away_is_told_as_that(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl", Trackers((), tmp_path / "run", "gone"), [])
    with pytest.raises(KDExportError, match="could not be written: No such file or directory") as caught:
        log.append({"phase": "student", "epoch": 0})
    assert caught.value.hint.startswith("the run directory was taken away while it was used")


def test_damaged_lines_of_the_log_are_passed_over(tmp_path: Path) -> None:
    lines = [
        b'{"phase": "student", "epoch": 0}',
        b'{"phase": "stu',
        b"\xff\xfe",
        b"3",
        b"[]",
        b'{"epoch": 1}',
        b"[" * 5000,
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*lines, b'{"phase": "student", "epoch": 1}']))
    assert [line["epoch"] for line in read_epochs(tmp_path / "metrics.jsonl")] == [0, 1]
