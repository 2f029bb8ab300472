"""What is exported, and in which form: the two things that every writer of a file is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx.sessions import Arrays
from kdexport.tasks.base import Activation

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class ExportTarget:
    """A network with what is needed to prove its file."""

    name: str  # "teacher", "student", ...
    network: nn.Module  # eval, on the CPU
    preprocessing: Preprocessing
    input_names: tuple[str, ...]
    samples: Arrays  # raw, one array per input, first axis samples
    samples_are: str = "real"  # or "random", where no data were given
    class_names: tuple[str, ...] = ()
    activation: Activation = "softmax"  # of the task: what makes probabilities of the network's outputs
    parameters: int | None = None
    macs: int | None = None
    recipe: str | None = None  # hash of what it was trained by
    license: str | None = None  # of the weights, SPDX or in words
    val_score: float | None = None  # of the network in PyTorch, on the validation split
    parameter_names: tuple[str, ...] | None = None  # of forward: inputs are passed by them; None: by position
    batch_axes: tuple[int, ...] | None = None  # of each input as the network takes it; None: the first of each
    notes: tuple[str, ...] = ()  # what the user should know of how the samples were made

    def tensors(self, raw: Arrays) -> tuple[Tensor, ...]:
        """Return raw samples, first axis the batch, as the network takes them."""
        tensors = self.preprocessing.apply(tuple(np.ascontiguousarray(array) for array in raw))
        axes = self.batch_axes or (0,) * len(tensors)
        return tuple(
            item.movedim(0, axis).contiguous() if axis else item for item, axis in zip(tensors, axes, strict=True)
        )

    def call(self, inputs: Sequence[Tensor], network: nn.Module | None = None) -> Any:
        """Return what the network (or another in its place) gives for inputs as it takes them."""
        network = self.network if network is None else network
        args, kwargs = self.arguments(tuple(inputs))
        return network(*args, **kwargs)

    def arguments(self, values: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a value per input as positional and keyword arguments of ``forward``."""
        if self.parameter_names is None:
            return values, {}
        return (), dict(zip(self.parameter_names, values, strict=True))

    @property
    def lowest_precision(self) -> torch.dtype:
        """The coarsest type that the network computes in: float32, or one of half its size."""
        kinds = {tensor.dtype for tensor in (*self.network.parameters(), *self.network.buffers())}
        kinds |= {torch.from_numpy(array[:1]).dtype for array in self.samples}
        return next((kind for kind in reversed(HALF) if kind in kinds), torch.float32)


@dataclass(frozen=True)
class Form:
    """What the file is to look like."""

    opset: int
    ir: int
    tolerance: float
    bake: bool = False  # uint8 NHWC in
    any_image_size: bool = False  # with bake: resized inside
    softmax: bool = False
    top_k: int = 0
    output_names: tuple[str, ...] | None = None  # None: logits, or output_0, ... where there are several
    dynamic: tuple[dict[int, str], ...] | None = None  # per input, axis -> name; None: the first, and a text's length
    static: bool = False  # no dynamic axis; the batch is 1


def tensors_of(output: Any) -> tuple[Tensor, ...] | None:
    """Return the tensors that a forward gives, tuples within tuples laid flat and None left out, or None for others."""
    if isinstance(output, Tensor):
        return (output,)
    if output is None:
        return ()
    if not isinstance(output, tuple | list):
        return None
    found: list[Tensor] = []
    for item in output:
        inside = tensors_of(item)
        if inside is None:
            return None
        found += inside
    return tuple(found)
