"""A checkpoint is whole or absent, whatever the disk does."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from kdexport.distill.logit_cache import AllLogits, TeacherCache
from kdexport.distill.state import Checkpoints
from kdexport.errors import KDExportError
from kdexport.models.weights import save_weights
from kdexport.progress import SILENT


@contextmanager
def disk_that_takes(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes: a full disk, as far as a program can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def state(step: int) -> dict[str, object]:
    return {"weights": torch.full((50_000,), float(step)), "step": step}


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "key")
    checkpoints.save(1, state(1))
    with disk_that_takes(100_000), pytest.raises(KDExportError, match="could not be written") as caught:
        checkpoints.save(2, state(2))
    assert "space" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.pt"]
    saved = checkpoints.latest()
    assert saved is not None
    assert saved["step"] == 1
    checkpoints.save(2, state(2))
    assert (checkpoints.latest() or {})["step"] == 2


def test_a_full_disk_leaves_the_previous_weights_whole(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_weights(torch.nn.Linear(3, 3), path)
    before = path.read_bytes()
    with disk_that_takes(100_000), pytest.raises(KDExportError, match="could not be written"):
        save_weights(torch.nn.Linear(300, 300), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "key")
    checkpoints.save(1, state(1))
    newest = checkpoints.save(2, state(2))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    assert (checkpoints.latest() or {})["step"] == 1


def test_a_teacher_cache_that_finds_no_room_says_how_much_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapped file that finds none would end the process with SIGBUS."""
    with disk_that_takes(100_000), pytest.raises(KDExportError, match="could not grow") as caught:
        TeacherCache(tmp_path, "key", views=10, samples=1000, compression=AllLogits(100))
    assert "1.9 MiB" in caught.value.hint
    one = TeacherCache(tmp_path, "key", views=10, samples=1000, compression=AllLogits(100))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(KDExportError, match="could not grow: No space left"):
        one.ensure(3, lambda indices: np.zeros((len(indices), 100)), SILENT)
    monkeypatch.undo()
    assert one.ensure(3, lambda indices: np.ones((len(indices), 100)), SILENT) is True
    assert one.read(3, np.arange(5)).sum() == 500
