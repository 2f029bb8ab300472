"""Samples in memory or on disk: the one form in which every data source hands them over.

An image is uint8 NHWC, as it was stored (possibly in a memory-mapped file); anything else is fed as it is. What a
network needs done to it first is its ``Preprocessing``, not the data's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kdexport.data.disk_arrays import Rows, joined
from kdexport.errors import SourceError
from kdexport.models.preprocessing import Preprocessing
from kdexport.progress import SILENT, Progress
from kdexport.tasks import TASKS, task_of
from kdexport.tasks.base import Task
from kdexport.tasks.classification import UNLABELLED


@dataclass(frozen=True)
class Split:
    """Some samples with or without labels.

    ``inputs`` holds one array per network input, its first axis the samples; one on disk is a ``Rows``, which is used
    like an array and read when it is indexed. ``labels`` is int64 ``[samples]``, or
    float32 ``[samples, classes]`` of 0 and 1 where a sample can have several, or None where nothing is labelled.
    """

    inputs: tuple[NDArray[Any], ...]
    labels: NDArray[Any] | None = None
    given_task: Task | None = None  # None: read off the labels

    @property
    def task(self) -> Task:
        """What the samples are for."""
        if self.given_task is not None:
            return self.given_task
        return TASKS["classification"] if self.labels is None else task_of(np.asarray(self.labels))

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
        )

    def select(self, indices: NDArray[Any]) -> "Split":
        """Return the samples at ``indices`` as a split; what lies on disk stays there."""
        return replace(
            self,
            inputs=tuple(
                cast(Any, array).select(indices) if isinstance(array, Rows) else array[indices] for array in self.inputs
            ),
            labels=None if self.labels is None else self.labels[indices],
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
    measured: bool = False  # the preprocessing's mean and std are these images' own, for want of others

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
    def with_unlabelled(self) -> Split:
        """The training samples and then the unlabelled ones, whose label is ``UNLABELLED``: what a teacher is asked
        about.

        Raises:
            SourceError: There are unlabelled samples and the others have several labels each.
        """
        if self.unlabelled is None:
            return self.train
        if self.multi_label:
            raise SourceError(
                f"{self.name}: unlabelled samples cannot be used where a sample has several labels",
                hint="take unlabelled out of [data]",
            )
        unknown = np.full(len(self.unlabelled), UNLABELLED, dtype=np.int64)
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
