"""How far the outputs of two models are apart: pure arithmetic on arrays, for the proof (``parity``).

An output is judged as a whole, and each channel whose values are far smaller by its own size: class scores beside
boxes in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdexport.onnx.sessions import Arrays

SMALLER = 10.0  # a channel whose values are smaller than the output's by this factor is judged by its own
SMALLEST = 1e-5  # of the output's largest value: what a channel's values count as at least
CHANNELS = 4096  # an axis that is longer holds no channels

# Times PyTorch's own rounding error: what another order of summation may add. More on hard samples: a norm over a flat
# signal divides the rounding of its mean by the root of epsilon, and ONNX Runtime sums less finely (40 times measured).
ROUNDING = 10.0
HARD_ROUNDING = 100.0
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Both models' outputs for one batch."""

    inputs: Arrays
    expected: Arrays
    actual: Arrays

    @property
    def size(self) -> int:
        """Samples in the batch."""
        return len(self.inputs[0])

    @property
    def numeric(self) -> list[int]:
        """Which outputs hold numbers; the others hold names."""
        return [k for k, array in enumerate(self.expected) if array.dtype != object]


def finite(array: np.ndarray) -> Values:
    """Return an array in float64, its NaN and infinities as 0: they are compared by place."""
    return np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def difference_of(pair: Pair, k: int) -> Values:
    """Return the absolute difference of one output, value by value."""
    return np.abs(finite(pair.expected[k]) - finite(pair.actual[k]))


def beyond_rounding(difference: Values, rounding: Values) -> Values:
    """Return what of a difference on hard samples rounding does not account for, sample by sample."""
    per_sample = rounding
    if rounding.ndim:
        per_sample = rounding.max(axis=tuple(range(1, rounding.ndim)), keepdims=True, initial=0.0)
    return np.maximum(difference - HARD_ROUNDING * per_sample, 0.0)


def relative_difference(
    expected: list[Values], differences: list[Values], rounding: list[Values] | None = None
) -> float:
    """Return the largest difference of one output, relative to its largest value, or to a small channel's own.

    Args:
        expected: The reference's values, a batch each.
        differences: Beside them, absolute.
        rounding: The reference's own error, which excuses single channels.
    """
    largest = max(float(np.abs(item).max(initial=0.0)) for item in expected)
    worst = max(float(item.max(initial=0.0)) for item in differences)
    if largest == 0:
        return worst
    found = [worst / largest]
    shapes = {item.shape for item in expected}
    ndim = expected[0].ndim
    for axis in {1, ndim - 1} - {0} if ndim > 1 else ():
        sizes = {shape[axis] for shape in shapes}
        if len(sizes) != 1 or not 2 <= min(sizes) <= CHANNELS:
            continue
        size = _per_channel([np.abs(item) for item in expected], axis)
        off = _per_channel(differences, axis)
        if rounding is not None:
            off = np.maximum(off - ROUNDING * _per_channel(rounding, axis), 0.0)
        small = size < largest / SMALLER
        if small.any():
            found.append(float((off[small] / np.maximum(size[small], SMALLEST * largest)).max()))
    return max(found)


def _per_channel(arrays: list[Values], axis: int) -> Values:
    """Return the largest value of each channel over some batches."""
    largest: Values = np.stack(
        [np.moveaxis(item, axis, 0).reshape(item.shape[axis], -1).max(axis=1, initial=0.0) for item in arrays]
    ).max(0)
    return largest


def sample_axis(pairs: list[Pair], k: int) -> int | None:
    """Return the one axis of an output that is as long as each batch; None for none, or several."""
    first = pairs[0].expected[k].ndim
    axes = [axis for axis in range(first) if all(pair.expected[k].shape[axis] == pair.size for pair in pairs)]
    if len({pair.size for pair in pairs}) == 1:  # any axis of that length would do
        return axes[0] if axes else None
    return axes[0] if len(axes) == 1 else None


def joined_batches(pairs: list[Pair], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an output's values over all batches, samples first; flat where no axis is the samples'."""
    axis = sample_axis(pairs, k)
    sides = [pair.expected[k] for pair in pairs], [pair.actual[k] for pair in pairs]
    if axis is None:
        expected, actual = (np.concatenate([array.ravel() for array in side]) for side in sides)
    else:
        expected, actual = (np.concatenate([np.moveaxis(array, axis, 0) for array in side]) for side in sides)
    return expected, actual


def samples_with(pairs: list[Pair], test: Callable[[Values], NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Return for each sample whether a value of its outputs passes a test; of its whole batch, where no axis is its."""
    found = []
    axes = {k: sample_axis(pairs, k) for k in pairs[0].numeric}
    for pair in pairs:
        passes = np.zeros(pair.size, dtype=bool)
        for k, axis in axes.items():
            values = test(pair.expected[k].astype(np.float64))
            passes |= values.any() if axis is None else np.moveaxis(values, axis, 0).reshape(pair.size, -1).any(axis=1)
        found.append(passes)
    return np.concatenate(found)


def cosine(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the smallest cosine between a sample's outputs; samples of all zeros are left out."""
    e, a = finite(expected).reshape(len(expected), -1), finite(actual).reshape(len(actual), -1)
    norms = np.linalg.norm(e, axis=1) * np.linalg.norm(a, axis=1)
    nonzero = norms > 0
    return float(((e * a).sum(axis=1)[nonzero] / norms[nonzero]).min()) if nonzero.any() else 0.0


def chooses(output: np.ndarray) -> bool:
    """Whether an output has several values a sample (a map: a pixel) of which one can be the largest."""
    return bool(output.shape[1 if output.ndim == 4 else -1] > 1)


def argmax_agreement(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the share of decisions that are the same, over samples, or over a map's pixels."""
    axis = 1 if expected.ndim == 4 else -1  # a map's channels are its second axis
    return float((expected.argmax(axis=axis) == actual.argmax(axis=axis)).mean())
