"""What is done to a network's output before anyone sees it; part of the network in every stage and in its ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdexport.errors import SourceError

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

SHORTEST = 1e-6  # length of a vector that is brought to 1; fp16 still holds it
Kind = Literal["scale", "column", "resize", "normalize"]


@dataclass(frozen=True)
class Postprocessing:
    """How a network's output becomes what the data speak of.

    ``scale``: ``x * std + mean`` for each of the last axis, where a network learns targets of mean 0 and standard
    deviation 1. ``column``: one number a sample ``[batch]`` becomes ``[batch, 1]``, as ``scale`` has it too.
    ``resize``: maps ``[batch, channels, h, w]`` to ``size``, bilinear (``align_corners=False``).
    ``normalize``: vectors of length 1.
    """

    kind: Kind
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: tuple[int, int] | None = None  # height, width

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; what does not apply is left out."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in values.items() if value not in (None, [])}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Build one from JSON values.

        Raises:
            SourceError: They are of no ``Postprocessing``.
        """
        try:
            values: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
            }
            made = cls(**values)
        except (TypeError, AttributeError) as error:
            raise _unreadable(str(error)) from None
        if fault := made.fault():
            raise _unreadable(fault)
        return made

    def fault(self) -> str | None:
        """Return what is wrong with the values, or None."""
        if self.kind not in Kind.__args__:  # type: ignore[attr-defined]
            return f"kind is {self.kind!r}"
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if not isinstance(numbers, tuple) or not all(isinstance(number, (int, float)) for number in numbers):
                return f"{name} is {numbers!r}, not numbers"
            if not np.isfinite(np.array(numbers, dtype=np.float64)).all():
                return f"{name} is {numbers!r}, not finite"
        if self.kind == "scale" and (not self.mean or len(self.mean) != len(self.std)):
            return "mean and std are to have one value for each output"
        size = self.size
        if self.kind == "resize" and not (
            isinstance(size, tuple) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
        ):
            return f"size is {size!r}, not two whole numbers above 0"
        return None

    def apply(self, output: Tensor) -> Tensor:
        """Return the output as the data speak of it; it can be traced.

        Args:
            output: ``[batch, ...]``, floating point.
        """
        import torch
        import torch.nn.functional as F

        if self.kind in ("scale", "column") and output.ndim == 1:
            output = output[:, None]
        if self.kind == "column":
            return output
        if self.kind == "scale" and output.shape[-1] != len(self.std):
            return output  # of another width: it is refused, and must not be made to fit
        if self.kind == "scale":
            # Not in half precision, where a price of 70,000 is infinite and one of 700 is known to 2 or so.
            output = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
            return output * output.new_tensor(self.std) + output.new_tensor(self.mean)
        if self.kind == "normalize":
            return F.normalize(output, dim=-1, eps=SHORTEST)
        if tuple(output.shape[2:]) == self.size:
            return output
        return F.interpolate(output, self.size, mode="bilinear", align_corners=False)


def _unreadable(why: str) -> SourceError:
    return SourceError(
        f"the weights' postprocessing cannot be used: {why}", hint="train the network again with this kdexport"
    )
