"""metrics.jsonl: one line per epoch, kept true when a run is resumed or repeated."""

import json
import math
from pathlib import Path
from typing import Any

from kdexport.artifacts import write_text
from kdexport.distill.tracking import Trackers
from kdexport.errors import KDExportError


class MetricsLog:
    """The epoch log of one run.

    Args:
        path: The file; made when the first line is written.
        trackers: Are told the same.
        writes: False in all processes but one.
    """

    def __init__(self, path: Path, trackers: Trackers, *, writes: bool = True) -> None:
        self._path, self._trackers, self._writes = path, trackers, writes

    def unchanged(self, phase: str) -> None:
        """Let the trackers know of a phase that was trained before."""
        if self._writes:
            self._trackers.remember(line for line in read(self._path) if line["phase"] == phase)

    def start(self, phase: str, epoch: int) -> None:
        """Drop what the file says of a phase from an epoch on: it is about to be trained again."""
        if not self._writes:
            return
        kept = [line for line in read(self._path) if line["phase"] != phase or line["epoch"] < epoch]
        if self._path.exists():
            write_text(self._path, "".join(_line(entry) for entry in kept))
        self._trackers.begin()
        self._trackers.remember(line for line in kept if line["phase"] == phase)

    def append(self, entry: dict[str, Any]) -> None:
        """Add one epoch."""
        if self._writes:
            try:
                with self._path.open("a", encoding="utf-8") as handle:
                    handle.write(_line(entry))
            except OSError as error:
                raise KDExportError(
                    f"{self._path} could not be written: {error.strerror or error}",
                    hint="free some space, then give the same command again: it goes on from the last checkpoint",
                ) from error
            self._trackers.add(_finite(entry))

    def keep(self, phase: str, epoch: int, scores: dict[str, Any]) -> None:
        """Mark the epoch whose weights a phase has kept, and add what they score at the end."""
        if self._writes:
            entries = [
                entry | {"kept": True, **scores} if (entry["phase"], entry["epoch"]) == (phase, epoch) else entry
                for entry in read(self._path)
            ]
            write_text(self._path, "".join(_line(entry) for entry in entries))
            self._trackers.add(_finite({"phase": phase, "epoch": epoch, **scores}))


def read(path: Path) -> list[dict[str, Any]]:
    """Return every whole line; one that a kill cut off is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(_finite(entry), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Return a value with None for what is no number."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
