"""How a teacher's logits are kept: whole, or the largest of each sample and two numbers for all the others.

Of thousands of classes a teacher speaks of few. The ``k`` largest logits are kept as they are; the others are taken to
lie at one level, which is chosen so that together they weigh what they did. How much they weigh depends on the
temperature that a loss divides by, so two levels are kept: their mean, which is right where the temperature is high
(and has the least squared error), and the one that gives their log-sum-exp, which is right at temperature 1. Between
the two, ``mean + (level - mean) / T`` is what logits with a normal distribution would need. What is lost is which of
the others was likelier than which.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

WHOLE_UP_TO = 1000  # classes: 2 kB a sample
TOP_K = 128  # above that, unless the recipe says
ROWS_AT_ONCE = 256  # what is worked on beside them: some MiB
FP16_MAX = 65504.0


class Packing(Protocol):
    """From logits to what lies in the file, and back."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """One sample in the file."""

    def pack(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Return ``[samples]`` records of logits ``[samples, classes]``."""

    def unpack(self, records: NDArray[Any], temperature: float) -> NDArray[np.float32]:
        """Return logits ``[samples, classes]`` for a loss of this temperature, above 0 (infinity: squared errors)."""


@dataclass(frozen=True)
class Whole:
    """Every logit, in half precision unless otherwise asked."""

    classes: int
    number: type[np.floating[Any]] = np.float16

    @property
    def dtype(self) -> np.dtype[Any]:
        """One sample in the file."""
        return np.dtype((self.number, (self.classes,)))

    def pack(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Return ``[samples, classes]``, values beyond the number's range at its ends."""
        largest = np.finfo(self.number).max
        packed: NDArray[Any] = np.clip(logits, -largest, largest).astype(self.number)
        return packed

    def unpack(self, records: NDArray[Any], temperature: float) -> NDArray[np.float32]:  # noqa: ARG002
        """Return them as they were."""
        return np.asarray(records, dtype=np.float32)


@dataclass(frozen=True)
class TopK:
    """The ``k`` largest logits, ``k`` below ``classes``, and the levels of the others."""

    classes: int
    k: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """One sample in the file."""
        index = np.uint16 if self.classes <= 1 << 16 else np.uint32
        return np.dtype(
            [("values", np.float16, (self.k,)), ("classes", index, (self.k,)), ("levels", np.float32, (2,))]
        )

    def pack(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Return ``[samples]`` records; ``levels`` holds the mean and the log-sum-exp's level of the others."""
        records = np.zeros(len(logits), dtype=self.dtype)
        for start in range(0, len(logits), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            given = np.clip(logits[rows], -FP16_MAX, FP16_MAX).astype(np.float64)
            largest = np.argpartition(given, -self.k, axis=1)[:, -self.k :]
            largest.sort(axis=1)
            records["values"][rows] = np.take_along_axis(given, largest, axis=1)
            records["classes"][rows] = largest
            others = given.copy()
            np.put_along_axis(others, largest, -np.inf, axis=1)
            top = others.max(axis=1, keepdims=True)
            weight = np.exp(others - top).sum(axis=1)
            np.put_along_axis(others, largest, 0.0, axis=1)
            count = self.classes - self.k
            records["levels"][rows, 0] = others.sum(axis=1) / count
            records["levels"][rows, 1] = top[:, 0] + np.log(weight) - np.log(count)
        return records

    def unpack(self, records: NDArray[Any], temperature: float) -> NDArray[np.float32]:
        """Return ``[samples, classes]``: the largest where they were, the others at one level."""
        mean, level = records["levels"][:, 0], records["levels"][:, 1]
        logits = np.empty((len(records), self.classes), dtype=np.float32)
        logits[:] = (mean + (level - mean) / np.float32(temperature))[:, None]
        np.put_along_axis(logits, records["classes"].astype(np.int64), records["values"].astype(np.float32), axis=1)
        return logits


def packing_for(classes: int, top_k: int | None) -> Whole | TopK:
    """Return how logits of so many classes are kept.

    Args:
        classes: How many there are.
        top_k: ``distill.teacher_top_k``; None: whole up to 1,000 classes, above that the 128 largest.
    """
    wanted = top_k if top_k is not None else classes if classes <= WHOLE_UP_TO else TOP_K
    return Whole(classes) if wanted >= classes else TopK(classes, wanted)
