"""Masks, a class id for each pixel, and even grids of the pixels of masks and maps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdexport.errors import KDExportError
from kdexport.tasks.base import Array

if TYPE_CHECKING:
    from torch import Tensor

VOID = 255  # as a target: the pixel has no class and counts nowhere
MOST_CLASSES = 255  # a mask is a byte a pixel, and one value is void's
AT_ONCE = 32  # samples that are counted together


def largest_class(masks: Array) -> int:
    """Return the largest class id of some masks; -1 where all is void."""
    known = masks[masks != VOID]
    return int(known.max()) if known.size else -1


def in_parts(targets: Array) -> Iterator[tuple[int, Array]]:
    """Yield masks some at a time, with the number of the first: they may lie on disk."""
    for start in range(0, len(targets), AT_ONCE):
        yield start, np.asarray(targets[start : start + AT_ONCE])


def grid(height: int, width: int, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows and columns of an even grid of at most ``most`` pixels, about every k-th of each axis."""
    step = max(1, math.isqrt(height * width // most))
    while -(-height // step) * -(-width // step) > most:
        step += 1
    return positions(height, -(-height // step)), positions(width, -(-width // step))


def positions(size: int, count: int) -> NDArray[np.int64]:
    """Return ``count`` positions evenly spread over ``size``: the middle of each equal part."""
    return (2 * np.arange(count, dtype=np.int64) + 1) * size // (2 * count)


def at_grid(maps: Array, rows: int, columns: int) -> Array:
    """Return maps ``[..., h, w]`` at an even grid of so many rows and columns."""
    return maps[..., positions(maps.shape[-2], rows)[:, None], positions(maps.shape[-1], columns)]


def check_masks(targets: Tensor, logits: Tensor, what: str) -> None:
    """Hold that there is one class id for each pixel of the logits.

    Raises:
        KDExportError: There is not.
    """
    wanted = (logits.shape[0], *logits.shape[2:])
    if targets.is_floating_point() or targets.shape != wanted:
        raise KDExportError(
            f"{what} takes a class for each pixel, {list(wanted)}; the masks are {targets.dtype} {list(targets.shape)}",
            hint="give masks of the size of the images",
        )
