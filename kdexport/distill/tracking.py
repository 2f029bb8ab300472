"""The epoch log, shown in TensorBoard or Weights & Biases by Accelerate's trackers.

``metrics.jsonl`` stays the source. A sitting that trains anything begins a new run of the tracker with all the epochs
that still hold, and adds its own: whatever was killed, resumed or trained again, no point is lost and none is there
twice. TensorBoard's earlier files are removed for that; on Weights & Biases earlier sittings stay as runs beside it.
"""

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from kdexport.errors import KDExportError

FOLDER = "tensorboard"  # in the run directory: tensorboard --logdir RUN/tensorboard
PROJECT = "kdexport"  # on Weights & Biases


class Trackers:
    """The trackers of one sitting; they open when the first phase begins to train.

    Args:
        names: ``"tensorboard"``, ``"wandb"``; none: nothing is done.
        folder: The run directory.
        run_name: How Weights & Biases calls the run.

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
                    hint=f"mend that (wandb login, or WANDB_MODE=offline), or leave {name} out",
                ) from error
            self._open.append(tracker)
        earlier, self._earlier = self._earlier, []
        for entry in earlier:
            self.add(entry)

    def add(self, entry: dict[str, Any]) -> None:
        """Show one epoch: a line of metrics.jsonl."""
        for tracker in self._open:
            if tracker.name == "tensorboard":
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
