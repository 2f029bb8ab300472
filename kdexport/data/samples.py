"""Samples in memory or on disk: the one form in which every data source hands them over.

An image is uint8 NHWC, as it was stored (possibly in a memory-mapped file); anything else is fed as it is. What a
network needs done to it first is its ``Preprocessing``, not the data's.

``DiskArray``: samples that stay on disk, rows of a file, indexed like an array, without this process's memory growing.
Why not a memory map: the pages of a mapped file that have been read count as this process's memory, so an epoch over
150 MiB adds 150 MiB to its peak. Letting the pages go every other batch holds that down but costs 1 to 2 ms for 128
rows of 3 KiB; reading the same rows costs 0.4 ms (benchmarks/sources_cache.py), and the system's file cache serves
both.
"""

import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kdexport.data.vocabulary import Vocabulary
from kdexport.errors import SourceError
from kdexport.models.preprocessing import Preprocessing
from kdexport.progress import SILENT, Progress
from kdexport.tasks import TASKS, task_of
from kdexport.tasks.base import Task


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


def select(array: NDArray[Any], indices: NDArray[Any]) -> NDArray[Any]:
    """Return some samples of an array; what lies on disk stays there."""
    return cast(NDArray[Any], array.select(indices)) if isinstance(array, Rows) else np.asarray(array[indices])


def joined(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Return samples of the same shape one after the other; what lies on disk stays there."""
    if isinstance(first, Rows) and isinstance(second, Rows):
        return cast(NDArray[Any], Rows(_Joined(first, second), np.arange(len(first) + len(second))))
    return np.concatenate([first, second])


@dataclass(frozen=True)
class Split:
    """Some samples with or without labels.

    ``inputs`` holds one array per network input, its first axis the samples; one on disk is a ``Rows``, which is used
    like an array and read when it is indexed. ``labels`` is int64 ``[samples]``, or float32 ``[samples, classes]`` of
    0 and 1 where a sample can have several, or uint8 ``[samples, h, w]`` where each pixel has one, or None where
    nothing is labelled.
    """

    inputs: tuple[NDArray[Any], ...]
    labels: NDArray[Any] | None = None
    given_task: Task | None = None  # None: read off the labels
    texts: NDArray[Any] | None = None  # of text the sentences themselves, str: another tokenizer may want them
    calibration: "Split | None" = None  # the validation samples, where a score needs something fitted on them

    @property
    def task(self) -> Task:
        """What the samples are for."""
        if self.given_task is not None:
            return self.given_task
        return TASKS["classification"] if self.labels is None else task_of(self.labels)

    def __len__(self) -> int:
        return len(self.inputs[0])

    @property
    def multi_label(self) -> bool:
        """Whether a sample can have several labels."""
        return self.labels is not None and self.task.name == "multilabel"

    def batches(self, size: int) -> Iterator["Split"]:
        """Yield the samples in order, ``size`` at a time; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))

    def take(self, indices: NDArray[Any] | slice) -> "Split":
        """Return the samples at ``indices`` in memory (a copy, except for a slice)."""
        return replace(
            self,
            inputs=tuple(array[indices] for array in self.inputs),
            labels=None if self.labels is None else self.labels[indices],
            texts=None if self.texts is None else self.texts[indices],
        )

    def spread(self, count: int) -> "Split":
        """Return so many samples, at most, evenly spread, in memory; what belongs together stays together."""
        if len(self) <= count:
            return self.take(slice(None))
        if self.labels is None:
            return self.take(np.linspace(0, len(self) - 1, count).astype(np.int64))
        return self.take(self.task.spread(self.labels, count))

    def select(self, indices: NDArray[Any]) -> "Split":
        """Return the samples at ``indices`` as a split; what lies on disk stays there."""
        return replace(
            self,
            inputs=tuple(select(array, indices) for array in self.inputs),
            labels=None if self.labels is None else select(self.labels, indices),
            texts=None if self.texts is None else self.texts[indices],
        )


@dataclass(frozen=True)
class Dataset:
    """Three labelled splits and what is known of them."""

    name: str
    input_names: tuple[str, ...]
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    preprocessing: Preprocessing  # of a network that has none of its own
    splits_made_by: dict[str, str]  # split -> "source", or how it was made
    unlabelled: Split | None = None  # more inputs for the teacher to speak about
    skipped: tuple[str, ...] = ()  # samples left out as damaged, each with its reason
    notes: tuple[str, ...] = ()  # what the user may want to know of how it was read
    warnings: tuple[str, ...] = ()  # what makes a score on it worth less than it looks
    feature_names: tuple[str, ...] = ()  # of a table's columns, in the order in which they are fed
    measured: bool = False  # the preprocessing's mean and std are these images' own, for want of others
    corpus: NDArray[Any] | None = None  # the texts of the train split before ``data.fraction`` thins it
    vocabulary: Vocabulary | None = None  # of the student's or the file's own: inputs[2:4] are by it
    coverage: tuple[str, ...] = ()  # how much of the texts that knows, a line each

    @property
    def num_classes(self) -> int:
        """How wide a network's output must be."""
        return len(self.class_names)

    @property
    def task(self) -> Task:
        """What the samples are for."""
        return self.train.task

    @property
    def multi_label(self) -> bool:
        """Whether a sample can have several labels."""
        return self.train.multi_label

    @property
    def values_per_sample(self) -> int:
        """How many numbers an output has."""
        return 1 if self.train.labels is None else self.task.values_per_sample(self.train.labels, self.class_names)

    @property
    def with_unlabelled(self) -> Split:
        """The training samples and then the unlabelled ones (``Task.no_targets``): what a teacher is asked about.

        Raises:
            SourceError: There are unlabelled samples, and the task's loss cannot leave them out.
        """
        if self.unlabelled is None:
            return self.train
        unknown = self.task.no_targets(len(self.unlabelled), np.asarray(self.train.labels))
        if unknown is None:
            what = "where a sample has several labels" if self.multi_label else f"for {self.task.name}"
            raise SourceError(
                f"{self.name}: unlabelled samples cannot be used {what}", hint="take unlabelled out of [data]"
            )
        inputs = zip(self.train.inputs, self.unlabelled.inputs, strict=True)
        return replace(
            self.train,
            inputs=tuple(joined(own, more) for own, more in inputs),
            labels=np.concatenate([np.asarray(self.train.labels), unknown]),
        )


@dataclass(frozen=True)
class PicturesNeeded:
    """How large the networks need pictures: ``side`` is asked for only where pictures are decoded."""

    key: str = ""  # stands for what ``side`` depends on
    side: Callable[[], int] = lambda: 0  # of the square that a network starts from; 0: it takes what comes


@dataclass(frozen=True)
class Reading:
    """What a loader is given beside the recipe's [data]."""

    cache: Path  # folder for decoded samples
    progress: Progress = SILENT
    needed: PicturesNeeded = PicturesNeeded()
    task: str | None = None  # what the data are for, where the recipe says so


@dataclass(frozen=True)
class Source:
    """What a data source gives, before the missing splits are made from the training samples."""

    train: Split
    class_names: tuple[str, ...]
    val: Split | None = None
    test: Split | None = None
    input_names: tuple[str, ...] = ("input",)
    preprocessing: Preprocessing | None = None  # None: the default for this kind of input
    unlabelled: Split | None = None
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    levels: tuple[float, float] | None = None  # of deep pictures: what was scaled to 0..255
    standardize: bool = False  # whether features are standardized unless the recipe says otherwise
    feature_names: tuple[str, ...] = ()  # of a table's columns, in the order in which they are fed
