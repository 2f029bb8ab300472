"""The cache gives back what the teacher said, whatever happens to its file."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kdexport.distill import logit_cache
from kdexport.distill.batches import Batch
from kdexport.distill.logit_cache import AllLogits, TeacherCache, TopK
from kdexport.distill.teacher import OnlineTeacher
from kdexport.progress import SILENT

SAMPLES, CLASSES = 25, 3


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logit_cache, "CHUNK", 10)


class Oracle:
    """Logits that are a function of (view, sample); counts the samples that it was asked for."""

    def __init__(self, view: int) -> None:
        self.view, self.asked = view, 0

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        self.asked += len(indices)
        return np.stack([indices + self.view / 4, -indices, indices * 0.5], axis=1)


def cache(folder: Path, **changes: Any) -> TeacherCache:
    return TeacherCache(folder, "key", **{"views": 2, "samples": SAMPLES, "compression": AllLogits(CLASSES), **changes})


def test_kept_logits_are_read_back_without_running_the_teacher_again(tmp_path: Path) -> None:
    oracle = Oracle(view=1)
    first = cache(tmp_path)
    assert first.ensure(1, oracle, SILENT) is True
    assert oracle.asked == SAMPLES
    indices = np.array([24, 0, 7, 7])
    np.testing.assert_array_equal(first.read(1, indices), Oracle(1)(indices).astype(np.float32))
    again, silent = cache(tmp_path), Oracle(1)
    assert again.ensure(1, silent, SILENT) is False
    assert silent.asked == 0
    np.testing.assert_array_equal(again.read(1, indices), first.read(1, indices))


def test_a_chunk_with_a_wrong_checksum_is_made_again(tmp_path: Path) -> None:
    first = cache(tmp_path)
    first.ensure(0, Oracle(0), SILENT)
    with first.path.open("r+b") as handle:
        handle.seek(12 * CLASSES * 2)  # in the second chunk of view 0
        handle.write(b"\xff\x00")
    oracle = Oracle(0)
    assert cache(tmp_path).ensure(0, oracle, SILENT) is True
    assert oracle.asked == 10
    np.testing.assert_array_equal(cache(tmp_path).read(0, np.arange(SAMPLES)), Oracle(0)(np.arange(SAMPLES)))


def test_a_kill_between_two_chunks_costs_one_chunk(tmp_path: Path) -> None:
    class Killed(Oracle):
        def __call__(self, indices: np.ndarray) -> np.ndarray:
            if self.asked >= 20:
                raise KeyboardInterrupt
            return super().__call__(indices)

    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path).ensure(0, Killed(0), SILENT)
    oracle = Oracle(0)
    cache(tmp_path).ensure(0, oracle, SILENT)
    assert oracle.asked == 5


def test_an_index_that_is_none_or_of_another_shape_is_not_believed(tmp_path: Path) -> None:
    cache(tmp_path).ensure(0, Oracle(0), SILENT)
    (tmp_path / "teacher-key.0.json").write_text("{")
    oracle = Oracle(0)
    cache(tmp_path).ensure(0, oracle, SILENT)
    assert oracle.asked == SAMPLES
    other = Oracle(0)
    cache(tmp_path, samples=SAMPLES - 1).ensure(0, other, SILENT)
    assert other.asked == SAMPLES - 1


def test_processes_fill_shares_of_one_file(tmp_path: Path) -> None:
    oracles = [Oracle(0), Oracle(0)]
    shards = [cache(tmp_path, rank=rank, world=2) for rank in range(2)]
    for shard, oracle in zip(shards, oracles, strict=True):
        shard.ensure(0, oracle, SILENT)
    assert [oracle.asked for oracle in oracles] == [15, 10]
    for reader in (*shards, cache(tmp_path)):
        np.testing.assert_array_equal(reader.read(0, np.arange(SAMPLES)), Oracle(0)(np.arange(SAMPLES)))
    alone = Oracle(0)
    assert cache(tmp_path).ensure(0, alone, SILENT) is False


def test_logits_beyond_half_precision_stay_finite(tmp_path: Path) -> None:
    one = cache(tmp_path)
    one.ensure(0, lambda indices: np.full((len(indices), CLASSES), 1e9), SILENT)
    assert np.isfinite(one.read(0, np.arange(3))).all()


def test_the_largest_logits_are_kept_and_made_again_where_they_are_damaged(tmp_path: Path) -> None:
    compression = TopK(CLASSES, 2)
    first = cache(tmp_path, compression=compression)
    first.ensure(0, Oracle(0), SILENT)
    assert first.path.stat().st_size == first.size_bytes == 2 * SAMPLES * compression.dtype.itemsize
    # Two of three are kept: the third is its own level, at any temperature.
    given = Oracle(0)(np.arange(SAMPLES))
    np.testing.assert_allclose(first.read(0, np.arange(SAMPLES), 4.0), given, rtol=1e-3)
    with first.path.open("r+b") as handle:
        handle.seek(12 * compression.dtype.itemsize)
        handle.write(b"\xff\x01")
    oracle = Oracle(0)
    again = cache(tmp_path, compression=compression)
    assert again.ensure(0, oracle, SILENT) is True
    assert oracle.asked == 10
    np.testing.assert_allclose(again.read(0, np.arange(SAMPLES)), given, rtol=1e-3)


def test_logits_that_are_captured_are_an_undisturbed_epochs_after_an_interruption(tmp_path: Path) -> None:
    """They depend on how batches are drawn, a little: computed later in other ones, a killed run kept other bytes."""
    rows = torch.arange(SAMPLES * CLASSES, dtype=torch.float32).reshape(SAMPLES, CLASSES)
    order = np.random.default_rng(0).permutation(SAMPLES)
    batches = [Batch(indices, 1, (rows[indices],), None) for indices in np.array_split(order, 4)]
    kept = []
    for first in (0, 3):  # of the batches; the earlier ones were seen by a process that is dead
        teacher: Any = SimpleNamespace(logits=lambda inputs: inputs[0] + inputs[0].mean())
        filled = cache(tmp_path / str(first))
        online = OnlineTeacher(teacher, None, filled, SAMPLES)
        online.prepare(1)
        online.catch_up(batches[:first])
        for batch in batches[first:]:
            online.logits(batch)
        online.finish()
        kept.append(filled.path.read_bytes())
        teacher.logits = None
        online.catch_up(batches)  # it is filled: the teacher does not run
    assert kept[0] == kept[1]
    assert any(kept[0])
