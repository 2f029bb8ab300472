"""The teacher's logits, computed once per (sample, view) and read from then on.

One memory-mapped fp16 file ``[views, samples, classes]`` (of many classes the largest: see ``TopK``) with an index
of checksums beside it. A view is filled before the epoch that first shows it, in the samples' own order and in batches
of the cache's choosing: the same work as a teacher that runs within the step, in larger batches and without gradients,
and the numbers do not depend on how the student draws its batches. So a killed, a resumed and an undisturbed run read
the same bytes, and runs of one teacher over one data set may share the file.
"""

import json
import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdexport.artifacts import locked, read_json, write_text
from kdexport.errors import StorageError
from kdexport.progress import Progress, Silent

WHOLE_UP_TO = 1000  # classes: 2 kB a sample
TOP_K = 128  # above that, unless the recipe says
ROWS_AT_ONCE = 256  # what is worked on beside them: some MiB
FP16_MAX = 65504.0


class Compression(Protocol):
    """From logits to what lies in the file, and back."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """One sample in the file."""

    def compress(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Return ``[samples]`` records of logits ``[samples, classes]``."""

    def decompress(self, records: NDArray[Any], temperature: float) -> NDArray[Any]:
        """Return logits ``[samples, classes]`` for a loss of this temperature, above 0 (infinity: squared errors)."""


@dataclass(frozen=True)
class AllLogits:
    """Every logit, in half precision unless otherwise asked."""

    classes: int
    number: type[np.floating[Any]] = np.float16

    @property
    def dtype(self) -> np.dtype[Any]:
        """One sample in the file."""
        return np.dtype((self.number, (self.classes,)))

    def compress(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Return ``[samples, classes]``, values beyond the number's range at its ends."""
        largest = np.finfo(self.number).max
        compressed: NDArray[Any] = np.clip(logits, -largest, largest).astype(self.number)
        return compressed

    def decompress(self, records: NDArray[Any], temperature: float) -> NDArray[np.float32]:  # noqa: ARG002
        """Return them as they were."""
        return np.asarray(records, dtype=np.float32)


@dataclass(frozen=True)
class TopK:
    """The ``k`` largest logits, ``k`` below ``classes``, and the levels of the others."""

    classes: int
    k: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """One sample in the file."""
        index = np.uint16 if self.classes <= 1 << 16 else np.uint32
        return np.dtype(
            [("values", np.float16, (self.k,)), ("classes", index, (self.k,)), ("levels", np.float32, (2,))]
        )

    def compress(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Return ``[samples]`` records; ``levels`` holds the mean and the log-sum-exp's level of the others."""
        records = np.zeros(len(logits), dtype=self.dtype)
        for start in range(0, len(logits), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            given = np.clip(logits[rows], -FP16_MAX, FP16_MAX).astype(np.float64)
            largest = np.argpartition(given, -self.k, axis=1)[:, -self.k :]
            largest.sort(axis=1)
            records["values"][rows] = np.take_along_axis(given, largest, axis=1)
            records["classes"][rows] = largest
            others = given.copy()
            np.put_along_axis(others, largest, -np.inf, axis=1)
            top = others.max(axis=1, keepdims=True)
            weight = np.exp(others - top).sum(axis=1)
            np.put_along_axis(others, largest, 0.0, axis=1)
            count = self.classes - self.k
            records["levels"][rows, 0] = others.sum(axis=1) / count
            records["levels"][rows, 1] = top[:, 0] + np.log(weight) - np.log(count)
        return records

    def decompress(self, records: NDArray[Any], temperature: float) -> NDArray[np.float32]:
        """Return ``[samples, classes]``: the largest where they were, the others at one level."""
        mean, level = records["levels"][:, 0], records["levels"][:, 1]
        logits = np.empty((len(records), self.classes), dtype=np.float32)
        logits[:] = (mean + (level - mean) / np.float32(temperature))[:, None]
        np.put_along_axis(logits, records["classes"].astype(np.int64), records["values"].astype(np.float32), axis=1)
        return logits


def compression_for(classes: int, top_k: int | None) -> AllLogits | TopK:
    """Return how logits of so many classes are kept.

    Args:
        classes: How many there are.
        top_k: ``distill.teacher_top_k``; None: whole up to 1,000 classes, above that the 128 largest.
    """
    wanted = top_k if top_k is not None else classes if classes <= WHOLE_UP_TO else TOP_K
    return AllLogits(classes) if wanted >= classes else TopK(classes, wanted)


@dataclass(frozen=True)
class Pixels:
    """The logits of an even grid of a map's pixels, each kept as ``inner`` keeps a sample's."""

    inner: AllLogits | TopK
    rows: int
    columns: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """One sample in the file."""
        return np.dtype((self.inner.dtype, (self.rows * self.columns,)))

    def compress(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Return ``[samples, pixels]`` records of maps ``[samples, classes, rows, columns]``, of the grid already."""
        pixels = np.moveaxis(logits, 1, -1).reshape(-1, self.inner.classes)
        records = self.inner.compress(pixels)
        return records.reshape(len(logits), self.rows * self.columns, *records.shape[1:])

    def decompress(self, records: NDArray[Any], temperature: float) -> NDArray[np.float32]:
        """Return maps ``[samples, classes, rows, columns]``."""
        pixels = records.reshape(-1, *records.shape[2:])
        maps = self.inner.decompress(pixels, temperature).reshape(len(records), self.rows, self.columns, -1)
        return np.ascontiguousarray(np.moveaxis(maps, -1, 1))


@dataclass(frozen=True)
class Records:
    """What a task keeps of outputs, as it is."""

    dtype: np.dtype[Any]

    def compress(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Return it."""
        return logits

    def decompress(self, records: NDArray[Any], temperature: float) -> NDArray[Any]:  # noqa: ARG002
        """Return it."""
        return np.array(records)


CHUNK = 2048  # samples under one checksum: what a kill can cost
CHUNK_BYTES = 2**25  # that they take in the file, at most


class TeacherCache:
    """Logits of one teacher on one split.

    Args:
        folder: Where its files lie: on storage that all processes share.
        key: Hash of all that the logits depend on: weights, preprocessing, data, augmentation.
        views: Number of augmented views.
        samples: Number of samples in the split.
        compression: How a sample's logits lie in the file.
        rank: Which process this is: each fills its own share of the chunks, under an index of its own.
        world: How many processes fill the cache together.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        *,
        views: int,
        samples: int,
        compression: Compression,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"teacher-{key}.logits"
        self._index_path = folder / f"teacher-{key}.{rank}.json"
        self.compression = compression
        self._shape = (
            views,
            samples,
            compression.dtype.itemsize // 2,
        )  # in units of 2 bytes: whole, these are the classes
        self._chunk = max(1, min(CHUNK, CHUNK_BYTES // max(compression.dtype.itemsize, 1)))
        self._mine = range(rank, -(-samples // self._chunk), world)
        self._complete: set[int] = set()
        with self._growing(), self.path.open("ab") as handle:
            handle.truncate(self.size_bytes)  # sparse: no space is taken before it is filled
        self._sums: dict[str, int] = {}
        self._records = np.memmap(self.path, compression.dtype, "r+", shape=(views, samples))

    @property
    def size_bytes(self) -> int:
        """What the file takes once it is full."""
        return 2 * math.prod(self._shape)

    def ensure(self, view: int, compute: Callable[[np.ndarray], np.ndarray], progress: Progress) -> bool:
        """Fill this process's share of a view where it is not filled yet; a chunk with a wrong checksum is made anew.

        Args:
            view: Which view.
            compute: Indices [n] -> logits [n, classes] of that view.
            progress: Shows the work.

        Returns:
            Whether the teacher had to run.
        """
        if view in self._complete:
            return False
        missing = self._missing(view)
        if not missing:
            self._complete.add(view)
            return False
        with self._alone():
            missing = self._missing(view)  # another run of the same teacher may have filled it meanwhile
            shown = progress if len(missing) > 1 else Silent()  # a blink is not worth a line
            views = self._shape[0]
            what = f"teacher, view {view + 1} of {views}" if views > 1 else "teacher"
            with shown.task(what, total=len(missing)) as task:
                for chunk in missing:
                    self._fill(view, chunk, compute)
                    task.advance()
        self._complete.add(view)
        return bool(missing)

    def is_filled(self, view: int) -> bool:
        """Whether this process's share of a view is there, whole."""
        return not self._missing(view)

    def _missing(self, view: int) -> list[int]:
        self._sums = self._read_indices()
        return [chunk for chunk in self._mine if not self._is_whole(view, chunk)]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Fill this process's share alone: another run would write the same, at the same time."""
        with locked(self._index_path.with_suffix(".lock"), wait=True):
            yield

    def read(self, view: int, indices: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Return float32 logits [len(indices), classes] of a filled view, for a loss of this temperature."""
        return self.compression.decompress(self._records[view, indices], temperature)

    def _fill(self, view: int, chunk: int, compute: Callable[[np.ndarray], np.ndarray]) -> None:
        rows = self._rows(chunk)
        logits = compute(np.arange(rows.start, rows.stop))
        self._take_space(view, rows)
        self._records[view, rows] = self.compression.compress(logits)
        self._records.flush()
        self._sums[f"{view}/{chunk}"] = self._checksum(view, chunk)
        write_text(self._index_path, json.dumps({"shape": self._shape, "chunk": self._chunk, "crc32": self._sums}))

    def _take_space(self, view: int, rows: slice) -> None:
        """Take the space of some rows on the disk: a mapped file that finds none ends the process without a word."""
        row_bytes = self.compression.dtype.itemsize
        offset = (view * self._shape[1] + rows.start) * row_bytes
        if hasattr(os, "posix_fallocate"):
            with self._growing(), self.path.open("r+b") as handle:
                os.posix_fallocate(handle.fileno(), offset, (rows.stop - rows.start) * row_bytes)

    @contextmanager
    def _growing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"the teacher cache {self.path} could not grow: {error.strerror or error}",
                hint=f"it takes {self.size_bytes / 2**20:,.1f} MiB: free some space, lower distill.views or set"
                " distill.teacher_top_k, then give the same command again",
            ) from error

    def _is_whole(self, view: int, chunk: int) -> bool:
        expected = self._sums.get(f"{view}/{chunk}")
        return expected is not None and expected == self._checksum(view, chunk)

    def _checksum(self, view: int, chunk: int) -> int:
        return zlib.crc32(self._records[view, self._rows(chunk)].tobytes())

    def _rows(self, chunk: int) -> slice:
        return slice(chunk * self._chunk, min((chunk + 1) * self._chunk, self._shape[1]))

    def _read_indices(self) -> dict[str, int]:
        sums: dict[str, int] = {}
        for path in self.path.parent.glob(f"{self.path.stem}.*.json"):
            index = read_json(path) or {}
            known = index.get("crc32")
            if isinstance(known, dict) and (index.get("shape"), index.get("chunk")) == (list(self._shape), self._chunk):
                sums |= known
        return sums
