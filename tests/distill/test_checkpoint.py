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
from torch.optim.swa_utils import AveragedModel

from kdexport.distill.logit_cache import AllLogits, TeacherCache
from kdexport.distill.optimization import accelerator_for
from kdexport.distill.state import Checkpoints, LoopState, snapshot
from kdexport.errors import KDExportError, SourceError
from kdexport.models.weights import load_weights, save_weights
from kdexport.progress import SILENT
from kdexport.tasks import TASKS


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


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_runs_own_checkpoint_is_taken_as_weights(epochs: int, tmp_path: Path) -> None:
    """It holds the last weights, their average and the best so far: the best, where an epoch was scored."""
    torch.manual_seed(0)
    best, network = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    average = AveragedModel(torch.nn.Linear(3, 3))
    loop = LoopState(torch.device("cpu"), epochs=2, per_epoch=1, task=TASKS["classification"])
    if epochs:
        loop.judge(1, 0.9, best)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = snapshot(network, optimizer, average if epochs else None, loop, accelerator_for("fp32"))
    path = Checkpoints(tmp_path, "key").save(1, state)
    fresh = torch.nn.Linear(3, 3)
    load_weights(fresh, path)
    assert torch.equal(fresh.weight, (best if epochs else network).weight)
    with pytest.raises(SourceError, match="is a folder") as caught:
        load_weights(fresh, tmp_path)
    assert path.name in caught.value.hint


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


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_one_bit_is_enough_for_a_checkpoint_to_be_passed_over(share: float, tmp_path: Path) -> None:
    """torch's reader compares no checksums: a training went on from the weights that it gave."""
    checkpoints = Checkpoints(tmp_path, "key")
    checkpoints.save(1, state(1))
    newest = checkpoints.save(2, state(2))
    damaged = bytearray(newest.read_bytes())
    damaged[int(share * len(damaged))] ^= 4
    newest.write_bytes(damaged)
    assert (checkpoints.latest() or {})["step"] == 1
    assert checkpoints.damaged == [newest]


def test_a_folder_in_the_place_of_a_checkpoint_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "step-000000001.pt" / "inner").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path, "key")
    assert checkpoints.latest() is None
    checkpoints.save(2, state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002.pt"]


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
