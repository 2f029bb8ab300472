"""metrics.jsonl: one line per epoch, kept true when a run is resumed or repeated, and shown by trackers.

In MLflow, through its own client, each number of metrics.jsonl is a metric, its epoch the step. They go to the server
that ``MLFLOW_TRACKING_URI`` names, else into ``mlruns`` in the run directory: ``MLFLOW_ALLOW_FILE_STORE=true mlflow ui
--backend-store-uri RUN/mlruns``.
"""

import importlib.util
import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from kdexport.artifacts import check_held, read_epochs, write_text
from kdexport.errors import KDExportError, StorageError

MLFLOW_FOLDER = "mlruns"  # in the run directory
MOST_METRICS = 1000  # that MLflow takes in one call
ALLOW_FILES = "MLFLOW_ALLOW_FILE_STORE"  # MLflow 3.x refuses a store of files without it


class MlflowTracker:
    """One run of the experiment ``kdexport``.

    Args:
        experiment: The experiment; made where there is none.
        run_name: How the run is called.
        folder: The run directory.
    """

    name = "mlflow"

    def __init__(self, experiment: str, run_name: str, folder: Path) -> None:
        self._experiment, self._run_name, self._folder = experiment, run_name, folder
        self._client: Any = None
        self._run = ""

    def start(self) -> None:
        """Open the store and begin a run; raises what MLflow does where the server does not answer."""
        from mlflow.tracking import MlflowClient

        address = os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            os.environ.setdefault(ALLOW_FILES, "true")
            address = (self._folder / MLFLOW_FOLDER).resolve().as_uri()
        self._client = MlflowClient(tracking_uri=address)
        known = self._client.get_experiment_by_name(self._experiment)
        experiment = known.experiment_id if known is not None else self._client.create_experiment(self._experiment)
        self._run = self._client.create_run(experiment, run_name=self._run_name).info.run_id

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Show one epoch's numbers."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        for first in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._run, metrics=metrics[first : first + MOST_METRICS])

    def finish(self) -> None:
        """Close the run."""
        self._client.set_terminated(self._run)


FOLDER = "tensorboard"  # in the run directory: tensorboard --logdir RUN/tensorboard
PROJECT = "kdexport"  # on Weights & Biases; the experiment in MLflow
FIXES = {"wandb": " (wandb login, or WANDB_MODE=offline)", "mlflow": " (MLFLOW_TRACKING_URI names its server)"}


class Trackers:
    """The trackers of one sitting; they open when the first phase begins to train.

    Args:
        names: ``"tensorboard"``, ``"wandb"``, ``"mlflow"``; none: nothing is done.
        folder: The run directory.
        run_name: How Weights & Biases and MLflow call the run.

    Raises:
        KDExportError: A package that a tracker needs is not installed.
    """

    def __init__(self, names: Sequence[str], folder: Path, run_name: str) -> None:
        self._names, self._folder, self._run_name = tuple(dict.fromkeys(names)), folder, run_name
        self._open: list[Any] = []
        self._earlier: list[dict[str, Any]] = []
        for name in self._names:
            if importlib.util.find_spec(name) is None:
                raise KDExportError(
                    f"track = {list(self._names)}: {name} is not installed", hint=f"pip install {name}, or leave it out"
                )

    def remember(self, entries: Iterable[dict[str, Any]]) -> None:
        """Take note of epochs that were trained before; they are shown if anything is trained at all."""
        for entry in entries:
            if self._open:
                self.add(entry)
            elif self._names:
                self._earlier.append(entry)

    def begin(self) -> None:
        """Open the trackers, if they aren't, and show what they were to remember.

        Raises:
            KDExportError: A tracker does not start: no login, no network.
        """
        if self._open:
            return
        for name in self._names:
            try:
                tracker = self._tracker(name)
                tracker.start()
            except Exception as error:
                raise KDExportError(
                    f"{name} does not start: {error}",
                    hint=f"fix that{FIXES.get(name, '')}, or leave {name} out",
                ) from error
            self._open.append(tracker)
        earlier, self._earlier = self._earlier, []
        for entry in earlier:
            self.add(entry)

    def add(self, entry: dict[str, Any]) -> None:
        """Show one epoch: a line of metrics.jsonl."""
        for tracker in self._open:
            if tracker.name in ("tensorboard", "mlflow"):
                tracker.log(points(entry), step=entry["epoch"])
            else:  # its steps only grow, and phases count their epochs each from 0
                tracker.log({**points(entry), f"{entry['phase']}/epoch": entry["epoch"]})

    def close(self) -> None:
        """Write out what is left."""
        for tracker in self._open:
            tracker.finish()
        self._open.clear()

    def _tracker(self, name: str) -> Any:
        if name == "tensorboard":
            for old in (self._folder / FOLDER).glob("events.out.tfevents.*"):
                old.unlink()
            return LOGGER_TYPE_TO_CLASS[name](FOLDER, self._folder)
        if name == "mlflow":
            return MlflowTracker(PROJECT, self._run_name, self._folder)
        return LOGGER_TYPE_TO_CLASS[name](PROJECT, name=self._run_name, dir=str(self._folder))


def points(entry: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of one epoch under names that begin with its phase, e.g. ``student/terms/soft_targets``."""
    phase = entry["phase"]
    return {f"{phase}/{name}": value for name, value in _numbers(entry) if name != "epoch"}


def _numbers(table: dict[str, Any]) -> Iterable[tuple[str, float]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{inner}", number) for inner, number in _numbers(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


class MetricsLog:
    """The epoch log of one run.

    Args:
        path: The file; made when the first line is written.
        trackers: Are told the same.
        phases: Those of this run so far, in their order; each that begins or is unchanged is added.
        writes: False in all processes but one.
    """

    def __init__(self, path: Path, trackers: Trackers, phases: list[str], *, writes: bool = True) -> None:
        self._path, self._trackers, self._phases, self._writes = path, trackers, phases, writes
        self._epochs: list[dict[str, Any]] = []

    def of(self, phase: str) -> list[dict[str, Any]]:
        """Return what the file says of a phase."""
        return [line for line in read_epochs(self._path) if line["phase"] == phase]

    def unchanged(self, phase: str, epochs: Sequence[dict[str, Any]] = ()) -> None:
        """Let the trackers know of a phase that was trained before, and the file of epochs that it has lost."""
        if self._writes:
            self._replace(phase, epochs or self.of(phase))
            self._trackers.remember(self.of(phase))

    def start(self, phase: str, epoch: int, earlier: Sequence[dict[str, Any]] = ()) -> None:
        """Drop what the file says of a phase from an epoch on: it is about to be trained again.

        Args:
            phase: That begins.
            epoch: Where.
            earlier: What its checkpoint says of the epochs before; the file may have lost some.
        """
        if not self._writes:
            return
        self._epochs = list(earlier) or [line for line in self.of(phase) if line["epoch"] < epoch]
        self._replace(phase, self._epochs)
        self._trackers.begin()
        self._trackers.remember(self._epochs)

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """What was said of the phase that is in training; for its checkpoint."""
        return list(self._epochs)

    def _replace(self, phase: str, epochs: Sequence[dict[str, Any]]) -> None:
        """Let the file say this of a phase, behind those that came before it in this run."""
        if phase not in self._phases:
            self._phases.append(phase)
        others = [entry for entry in read_epochs(self._path) if entry["phase"] != phase]
        before = [entry for name in self._phases for entry in others if entry["phase"] == name]
        after = [entry for entry in others if entry["phase"] not in self._phases]
        text = "".join(_line(entry) for entry in (*before, *epochs, *after))
        if text.encode() != (self._path.read_bytes() if self._path.is_file() else b""):
            write_text(self._path, text)

    def append(self, entry: dict[str, Any]) -> None:
        """Add one epoch."""
        if self._writes:
            check_held(self._path)
            try:
                with self._path.open("a", encoding="utf-8") as handle:
                    handle.write(_line(entry))
            except OSError as error:
                again = "give the same command again"
                hint = f"free some space, then {again}: it goes on from the last checkpoint"
                if not self._path.parent.is_dir():
                    hint = f"the run directory was taken away while it was used; {again}: it starts anew"
                raise StorageError(
                    f"{self._path} could not be written: {error.strerror or error}", hint=hint
                ) from error
            self._epochs.append(json.loads(_line(entry)))  # numbers of Python's own: a checkpoint takes no others
            self._trackers.add(_finite(entry))

    def keep(self, phase: str, epoch: int, scores: dict[str, Any]) -> None:
        """Mark the epoch whose weights a phase has kept, and add what they score at the end."""
        if self._writes:
            entries = [
                entry | {"kept": True, **scores} if (entry["phase"], entry["epoch"]) == (phase, epoch) else entry
                for entry in read_epochs(self._path)
            ]
            write_text(self._path, "".join(_line(entry) for entry in entries))
            self._trackers.add(_finite({"phase": phase, "epoch": epoch, **scores}))


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(_finite(entry), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Return a value with None for what is no number."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
