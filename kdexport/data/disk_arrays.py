"""Samples that stay on disk: rows of a file, indexed like an array, without this process's memory growing.

Why not a memory map: the pages of a mapped file that have been read count as this process's memory, so an epoch over
150 MiB adds 150 MiB to its peak. Letting the pages go every other batch holds that down but costs 1 to 2 ms for 128
rows of 3 KiB; reading the same rows costs 0.4 ms (benchmarks/sources_cache.py), and the system's file cache serves
both.
"""

import os
import weakref
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray


class _File:
    """A file of raw uint8 samples, open as long as someone holds it."""

    def __init__(self, path: Path, sample: tuple[int, ...]) -> None:
        self.sample = sample
        self._bytes = int(np.prod(sample, dtype=np.int64))
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        found = np.empty((len(rows), *self.sample), dtype=np.uint8)
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all()):
            self._fill(found.reshape(-1).data, int(rows[0]))
            return found
        whole = found.reshape(-1).data
        for place, row in enumerate(rows.tolist()):
            self._fill(whole[place * self._bytes : (place + 1) * self._bytes], row)
        return found

    def _fill(self, target: memoryview, row: int) -> None:
        offset = row * self._bytes
        while len(target):
            count = os.preadv(self._descriptor, (target,), offset)
            if count == 0:
                raise OSError(f"the file of decoded samples ends before row {row}")
            target, offset = target[count:], offset + count


class _Joined:
    """Two sources of rows, one after the other."""

    def __init__(self, first: "Rows", second: "Rows") -> None:
        self.sample: tuple[int, ...] = first.shape[1:]
        self._first, self._second = first, second

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        found = np.empty((len(rows), *self.sample), dtype=np.uint8)
        early = rows < len(self._first)
        found[early] = self._first[rows[early]]
        found[~early] = self._second[rows[~early] - len(self._first)]
        return found


class Rows:
    """Some rows of a file of uint8 samples, in any order.

    Has what an array of samples is asked for: length, ``shape``, ``ndim``, ``dtype``, ``nbytes`` and indexing, which
    reads the rows into an array of their own.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, file: _File | _Joined, rows: NDArray[np.int64]) -> None:
        self._file = file
        self._rows = rows
        self.shape: tuple[int, ...] = (len(rows), *file.sample)
        self.ndim = len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        if isinstance(index, tuple):  # samples first, then within them
            return np.asarray(self[index[0]][(slice(None), *index[1:])])
        chosen = self._rows[index]
        if np.ndim(chosen) == 0:
            return np.asarray(self._file.read(np.atleast_1d(chosen))[0])
        return self._file.read(chosen)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)

    def select(self, indices: NDArray[Any] | slice) -> "Rows":
        """Return some of these rows without reading them."""
        return Rows(self._file, self._rows[indices])


def open_rows(path: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """Open a file of raw uint8 samples; what comes back is used like an array of this shape."""
    return cast(NDArray[Any], Rows(_File(path, shape[1:]), np.arange(shape[0])))


def joined(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Return samples of the same shape one after the other; what lies on disk stays there."""
    if isinstance(first, Rows) and isinstance(second, Rows):
        return cast(NDArray[Any], Rows(_Joined(first, second), np.arange(len(first) + len(second))))
    return np.concatenate([first, second])
