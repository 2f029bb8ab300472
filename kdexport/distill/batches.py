"""Batches of one split: drawn by a seed, gathered by index, augmented whole, moved to the device.

There is no worker process and no per-sample Python: a batch is one gather from memory (or from the memory-mapped
cache of decoded samples), one copy, one augmentation. Which sample stands where depends on the seed and the epoch
alone, so that a resumed epoch goes on where it stopped.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kdexport.data.augment import Augmentation
from kdexport.data.samples import Split
from kdexport.data.splits import balanced_order
from kdexport.errors import KDExportError


@dataclass(frozen=True)
class Batch:
    """Raw inputs on the device: preprocessing is each model's own."""

    indices: np.ndarray  # int64 [batch], into the split
    view: int  # which augmentation of each sample
    inputs: tuple[Tensor, ...]  # raw form, augmented
    labels: Tensor | None
    whole: int | None = None  # samples over all processes; None: these are all


class Batches:
    """Iterates over a training split.

    Args:
        split: The samples.
        batch_size: Samples over all processes; an epoch's batches are even, and none holds one sample unless all
            are to.
        seed: Draws the order.
        augmentation: Applied to the first input, or None.
        views: Number of distinct augmented views; epoch ``e`` shows view ``e % views``.
        device: Where the tensors go.
        balanced: Whether an epoch shows every class as often: rare samples several times, common ones now and then.
        rank: Which process this is.
        world: How many processes share a batch.

    Raises:
        KDExportError: There are batches with fewer samples than processes.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        augmentation: Augmentation | None,
        views: int,
        device: torch.device,
        balanced: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.split = split
        self.augmentation = augmentation
        self.views = views if augmentation is not None else 1
        self.device = device
        self._seed, self._rank, self._world = seed, rank, world
        self._balanced = balanced
        count = -(-len(split) // batch_size)
        if batch_size > 1:  # rather one sample more in a batch than one alone: it has no statistics
            count = min(count, len(split) // (2 * world))
        self.per_epoch = max(1, count)
        if len(split) // self.per_epoch < world:
            raise KDExportError(
                f"{world} processes cannot share batches of {len(split) // self.per_epoch} samples",
                hint="raise batch_size: it is over all processes; or start fewer of them",
            )

    def view(self, epoch: int) -> int:
        """Return the view that an epoch shows."""
        return epoch % self.views

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from batch ``start`` on."""
        generator = np.random.default_rng([self._seed, epoch])
        if self._balanced and self.split.labels is not None:
            order = balanced_order(self.split.labels, generator)
        else:
            order = generator.permutation(len(self.split))
        for indices in np.array_split(order, self.per_epoch)[start:]:
            yield replace(self.gather(indices[self._rank :: self._world], self.view(epoch)), whole=len(indices))

    def gather(self, indices: np.ndarray, view: int) -> Batch:
        """Return given samples in a given view."""
        samples = self.split.take(indices)
        inputs = tuple(self._move(array) for array in samples.inputs)
        if self.augmentation is not None:
            inputs = (self.augmentation(inputs[0], indices, view), *inputs[1:])
        labels = None if samples.labels is None else self._move(samples.labels)
        if self.augmentation is not None and self.augmentation.mixes and labels is not None:
            labels = self._move(self.augmentation.labels(indices, view))
        return Batch(indices, view, inputs, labels)

    def _move(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)
