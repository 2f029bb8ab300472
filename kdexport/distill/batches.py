"""Samples on their way through a network: in batches to train on, or many at once without gradients.

Batches of one split are drawn by a seed, gathered by index, augmented whole and moved to the device.

There is no worker process and no per-sample Python: a batch is one gather from memory (or from the memory-mapped
cache of decoded samples), one copy, one augmentation. Which sample stands where depends on the seed and the epoch
alone, so that a resumed epoch goes on where it stopped.

Without gradients, as many samples go through at a time as are sure to be little, fewer if need be. How many go through
together changes a result in its last bits alone, so what runs out of memory is run again in halves, and the training
goes on.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

from kdexport import memory
from kdexport.data.augment import Augmentation
from kdexport.data.samples import Split
from kdexport.data.splits import balanced_order
from kdexport.errors import KDExportError
from kdexport.models.loading import evaluating
from kdexport.models.preprocessing import Preprocessing, as_tensor, tensor_on


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
        together = self.split.task.samples_together
        if self._balanced and self.split.labels is not None:
            order = balanced_order(self.split.labels, generator)
        else:
            order = generator.permutation(len(self.split) // together)
        for units in np.array_split(order, self.per_epoch)[start:]:
            own = units[self._rank :: self._world]
            indices = (own[:, None] * together + np.arange(together)).reshape(-1)
            yield replace(self.gather(indices, self.view(epoch)), whole=len(units) * together)

    def gather(self, indices: np.ndarray, view: int) -> Batch:
        """Return given samples in a given view."""
        samples = self.split.take(indices)
        inputs = tuple(self._move(array) for array in samples.inputs)
        if self.augmentation is not None:
            inputs = (self.augmentation(inputs[0], indices, view), *inputs[1:])
        labels = None if samples.labels is None else self._move(samples.labels)
        if self.augmentation is not None and labels is not None and labels.ndim == 3:
            labels = self.augmentation.masks(labels, indices, view)
        if self.augmentation is not None and self.augmentation.mixes and labels is not None:
            labels = self._move(self.augmentation.labels(indices, view))
        return Batch(indices, view, inputs, labels)

    def _move(self, array: np.ndarray) -> Tensor:
        return tensor_on(array, self.device)


# Samples at a time, and bytes of float32 inputs: what the layers make of them is several times as large. A CPU is
# fastest where that stays in its caches: on two cores mobilenet_v3_small at 224x224 took four times as long per sample
# at 256 as at 16, ResNet-56 at 32x32 1.6 times as long at 256 as at 64.
CPU_MOST, CPU_BYTES = 64, 8 * 2**20
GPU_MOST, GPU_BYTES = 256, 64 * 2**20


def at_once(split: Split, device: torch.device) -> int:
    """Return how many samples of a split go through a network together."""
    most, size = (CPU_MOST, CPU_BYTES) if device.type == "cpu" else (GPU_MOST, GPU_BYTES)
    sample = 4 * sum(math.prod(array.shape[1:]) for array in split.inputs)
    return max(1, min(most, size // max(sample, 1)))


def even_parts(indices: np.ndarray, size: int) -> list[np.ndarray]:
    """Return indices in even parts of ``size`` at most; of ``size + 1``, where a part would else hold one alone.

    What compares the samples of a batch, or normalizes over them, cannot do so with one.
    """
    count = -(-len(indices) // size)
    return np.array_split(indices, min(count, max(1, len(indices) // 2)) if size > 1 else count)


def lay_out_for_inference(network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Bring a network's kernels into the layout of stored images, where a CPU computes with it and the network can.

    Convolutions then run on the images as they come, in 0.6 to 0.9 of the time. A network that calls ``view`` on what
    it computes cannot.

    Args:
        network: In evaluation mode.
        inputs: Some preprocessed samples, to try it.
    """
    if inputs[0].device.type != "cpu" or not any(parameter.ndim == 4 for parameter in network.parameters()):
        return
    network.to(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            network(*inputs)
    except Exception:  # noqa: BLE001 - whatever it is, the network does not do that as it was
        network.to(memory_format=torch.contiguous_format)


def in_parts(compute: Callable[[np.ndarray], np.ndarray], indices: np.ndarray, size: int) -> np.ndarray:
    """Return what is computed for all indices, in even parts of ``size`` at most, halved where the memory is too small.

    Args:
        compute: Indices [n] -> results [n, ...].
        indices: Of the samples, at least one.
        size: How many to compute at a time.

    Raises:
        KDExportError: The memory does not hold one sample.
    """
    try:
        parts = [compute(part) for part in even_parts(indices, size)]
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if size == 1:
            raise KDExportError(
                f"the device has not enough memory for one sample: {error}",
                hint="end what else runs on it, or take a device with more memory",
            ) from error
    else:
        return np.concatenate(parts)
    clear_device_cache()
    return in_parts(compute, indices, max(1, min(size, len(indices)) // 2))


def predict_all(
    network: nn.Module,
    preprocessing: Preprocessing,
    split: Split,
    device: torch.device,
    rows: slice = slice(None),
) -> np.ndarray:
    """Return float32 logits [samples, classes] of some consecutive samples, in evaluation mode and without gradients;
    of maps what the task keeps of them.

    Args:
        network: Called as ``network(*inputs)``; left in the mode that it was in.
        preprocessing: The network's.
        split: The samples; read a few at a time.
        device: Where the network is.
        rows: Which samples; else all.
    """

    def logits(indices: np.ndarray) -> np.ndarray:
        batch = split.take(slice(indices[0], indices[-1] + 1))
        inputs = preprocessing.apply([as_tensor(array).to(device) for array in batch.inputs])  # small until it is there
        found: np.ndarray = network(*inputs).float().cpu().numpy()
        return split.task.kept(found, batch.labels)

    with evaluating(network):
        return in_parts(logits, np.arange(len(split))[rows], max(2, at_once(split, device)))


def out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine itself, could not give the memory that was asked for."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, Exception) and (should_reduce_batch_size(error) or memory.exhausted(error))
    )
