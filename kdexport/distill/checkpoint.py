"""Training state on disk: written atomically, the last two kept, a broken one passed over."""

import contextlib
import pickle
import time
from pathlib import Path
from typing import Any

import torch

from kdexport.artifacts import read_json, write_atomically, write_json

KEPT = 2


class Checkpoints:
    """The checkpoints of one phase ("teacher", "student", "student-plain").

    Args:
        folder: Their place; made when the first is written.
        key: Hash of all that the phase depends on; a checkpoint with another key is not this training's.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key
        self.written_at = time.monotonic()

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after so many optimizer steps, then drop all but the last two."""
        path = self._folder / f"step-{step:09d}.pt"
        write_atomically(path, lambda temporary: _write({"key": self._key, "state": state}, temporary))
        for old in self._paths()[KEPT:]:
            old.unlink(missing_ok=True)
        self.written_at = time.monotonic()
        return path

    def latest(self) -> dict[str, Any] | None:
        """Return the newest whole state of this training, or None."""
        for path in self._paths():
            with contextlib.suppress(OSError, EOFError, RuntimeError, pickle.UnpicklingError):
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
                if checkpoint["key"] == self._key:
                    state: dict[str, Any] = checkpoint["state"]
                    return state
        return None

    def note(self, name: str, document: dict[str, Any]) -> None:
        """Write down a choice that the whole training keeps to."""
        write_json(self._folder / f"{name}.json", {"key": self._key, name: document})

    def noted(self, name: str) -> dict[str, Any] | None:
        """Return the choice that this training has made before, or None."""
        document = read_json(self._folder / f"{name}.json") or {}
        return document.get(name) if document.get("key") == self._key else None

    @property
    def newest(self) -> Path | None:
        """The newest file, for messages."""
        return next(iter(self._paths()), None)

    def clear(self) -> None:
        """Remove them: the phase is done, its weights are written."""
        for path in self._paths():
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("step-*.pt"), reverse=True)


def _write(document: dict[str, Any], path: Path) -> None:
    try:
        torch.save(document, path)
    except RuntimeError as error:  # what torch's writer makes of a full disk
        raise OSError(f"the disk is full or does not take more ({error})") from error
