"""How far a sample's outputs depend on what else is in its batch.

Dynamic quantization takes the range of the activations from the whole batch, so that a sample is rounded otherwise
beside others than alone: measured here, each sample alone against the same sample in a batch. Networks whose own
forward depends on the batch are refused before (``diagnosis``).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from kdexport import figures
from kdexport.export import parity
from kdexport.export.differences import chooses, finite
from kdexport.onnx.graphs import nodes
from kdexport.onnx.sessions import Arrays

SAMPLES = 64
SMALL = 0.1  # of the middle sample's largest output: what a sample's counts as at least
# Operators that quantize an activation by its range, of the whole tensor.
BY_RANGE = ("DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul")


@dataclass(frozen=True)
class BatchEffect:
    """Samples alone against the same samples in a batch."""

    largest: float  # change of an output, relative to the sample's largest
    batch: int
    decisions: int | None  # that are others; None where the outputs are no decisions

    @property
    def sentence(self) -> str:
        """What to say of it."""
        others = "" if self.decisions is None else f", {self.decisions} of {self.batch} decisions are others"
        return (
            f"a sample's outputs depend on what else is in its batch, for activations are quantized by the whole "
            f"batch's range: alone and in a batch of {self.batch} they differ by up to "
            f"{figures.percent(self.largest, 2)} of the sample's largest{others}"
        )


def by_range(model: onnx.ModelProto) -> bool:
    """Whether a graph quantizes activations by their range in the batch."""
    return any(node.op_type in BY_RANGE for node in nodes(model.graph))


def measured(run: Callable[[Arrays], Arrays], samples: Arrays, fixed_batch: int | None) -> BatchEffect | None:
    """Run some samples in a batch, and each alone; None where a batch holds one sample.

    Args:
        run: Maps a batch of every input to every output.
        samples: One array per input, first axis samples.
        fixed_batch: That the file takes; a sample is then alone when the batch is filled with it.
    """
    batch = min(fixed_batch or SAMPLES, len(samples[0]))
    if batch < 2:
        return None
    chosen = parity.spread(len(samples[0]), batch)
    several = tuple(array[chosen] for array in samples)
    copies = fixed_batch or 1
    alone = [run(tuple(np.repeat(array[k : k + 1], copies, axis=0) for array in several)) for k in range(batch)]
    largest, decisions = 0.0, None
    for number, together in enumerate(run(several)):
        single = [item[number] for item in alone]
        if together.dtype.kind != "f" or any(one.shape[1:] != together.shape[1:] or not one.ndim for one in single):
            continue  # names, or an output that has no axis of the samples
        each = np.stack([one[0] for one in single])
        sizes = np.abs(finite(each)).reshape(batch, -1).max(axis=1, initial=0.0)
        sizes = np.maximum(sizes, SMALL * np.median(sizes))  # near 0, any change is large
        changes = np.abs(finite(together) - finite(each)).reshape(batch, -1).max(axis=1, initial=0.0)
        largest = max(largest, float((changes / np.where(sizes > 0, sizes, 1.0)).max()))
        if number == 0 and together.ndim == 2 and chooses(together):
            decisions = int((together.argmax(axis=-1) != each.argmax(axis=-1)).sum())
    return BatchEffect(largest, batch, decisions)
