"""A network run on many samples, without gradients: as many at a time as are sure to be little, fewer if need be.

How many go through together changes a result in its last bits alone, so what runs out of memory is run again in
halves, and the training goes on.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

from kdexport.data.samples import Split
from kdexport.errors import KDExportError
from kdexport.models.loading import evaluating
from kdexport.models.preprocessing import Preprocessing, as_tensor

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
    """Return float32 logits [samples, classes] of some consecutive samples, in evaluation mode and without gradients.

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
        return found

    with evaluating(network):
        return in_parts(logits, np.arange(len(split))[rows], max(2, at_once(split, device)))


def out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine itself, could not give the memory that was asked for."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, Exception) and should_reduce_batch_size(error)
    )
