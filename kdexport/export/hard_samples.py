"""Samples that real data seldom hold and a wrong file gives away: blank, flat, faint, at the ends of the value range.

A guard lost in a division, a logarithm or a root shows on a blank sample alone; a size taken for a constant shows at
another size alone.
"""

from collections.abc import Sequence

import numpy as np

from kdexport.onnx.sessions import Arrays

FAINT = 1e-4  # times a real sample: where an epsilon is as large as what it is added to

# Other sizes of a dynamic axis, in the order in which they are tried: as multiples, then as steps of a stride.
TIMES = (1.5, 0.5, 2.0, 3.0)
PLUS = (1, -1, 8, -8, 32, -32)


def hard(inputs: Arrays, names: Sequence[str]) -> Arrays:
    """Return hard samples, one array per input, first axis samples.

    Args:
        inputs: Real or random samples in the same form; at least one.
        names: Of the inputs: a mask keeps its first element, for a text without a word is none.
    """
    return tuple(_of_one(array, name) for array, name in zip(inputs, names, strict=True))


def _of_one(array: np.ndarray, name: str) -> np.ndarray:
    low, high, one = array.min(), array.max(), array[len(array) // 2]
    if "mask" in name and array.dtype.kind in "biu":
        first = np.zeros_like(one)
        if first.ndim:
            first[..., 0] = high
        rows = [first, np.full_like(one, high), first, np.full_like(one, high), one, one]
    else:
        half = one.copy()
        if half.ndim:
            half[len(half) // 2 :] = 0
        flat = one.dtype.type(0.5) if one.dtype.kind == "f" else one.dtype.type(int(high) // 2)
        faint = one * one.dtype.type(FAINT) if one.dtype.kind == "f" else one
        rows = [np.full_like(one, value) for value in (0, flat, low, high)] + [half, faint]
    return np.stack(rows).astype(array.dtype)


def other_sizes(size: int) -> list[int]:
    """Return sizes to try an axis at besides ``size``, the most telling first."""
    wanted = [*(int(size * times) for times in TIMES), *(size + step for step in PLUS)]
    return [item for item in dict.fromkeys(wanted) if item > 0 and item != size]


def with_size(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Return samples cut or repeated along an axis to another size."""
    index = np.arange(size) % array.shape[axis]
    return np.ascontiguousarray(array.take(index, axis=axis))
