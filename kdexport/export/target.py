"""What is exported, and in which form: the two things that every writer of a file is given.

What ``forward`` is passed and what it gives goes by name: inputs go to the parameters that they are named after.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdexport.errors import KDExportError, did_you_mean
from kdexport.export.fitted_entries import Stamp
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
    feature_names: tuple[str, ...] = ()  # of a table's columns, in the order in which they are fed
    task: str | None = None  # what the network is for, where that is known
    output_name: str = "logits"  # of the task: what a lone output is called
    activation: Activation = "softmax"  # of the task: what makes probabilities of the network's outputs
    parameters: int | None = None
    macs: int | None = None
    recipe: str | None = None  # hash of what it was trained by
    license: str | None = None  # of the weights, SPDX or in words
    val_score: float | None = None  # of the network in PyTorch, on the validation split
    parameter_names: tuple[str, ...] | None = None  # of forward: inputs are passed by them; None: by position
    batch_axes: tuple[int, ...] | None = None  # of each input as the network takes it; None: the first of each
    notes: tuple[str, ...] = ()  # what the user should know of how the samples were made
    stamp: Stamp | None = None  # puts into a file what is found by running it

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
    output_names: tuple[str, ...] | None = None  # None: the target's, or output_0, ... where there are several
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


POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def parameters_of(network: nn.Module) -> tuple[str, ...]:
    """Return the names of ``forward``'s parameters; empty where it takes ``*args`` or says nothing."""
    found = _parameters(network)
    if any(item.kind is inspect.Parameter.VAR_POSITIONAL for item in found):
        return ()
    return tuple(item.name for item in found if item.kind is not inspect.Parameter.VAR_KEYWORD)


def bind(network: nn.Module, names: Sequence[str], *, named: bool) -> tuple[str, ...] | None:
    """Return the parameter of ``forward`` that each input is passed to; None passes them by position.

    Args:
        network: Whose forward it is.
        names: Of the inputs, in their order.
        named: Whether the user gave them: then each is the name of a parameter, but for that of a single input.

    Raises:
        KDExportError: A name is no parameter's.
    """
    known = parameters_of(network)
    if not known:
        _check_order(network, names, named=named)
        return None
    by_position = [item.name for item in _parameters(network) if item.kind in POSITIONAL]
    if named and (len(names) > 1 or names[0] in known):
        unknown = [name for name in names if name not in known]
        if len(names) > len(known):  # forward(batch), with a dict or a tuple for all of them
            raise KDExportError(
                f"{type(network).__name__}'s forward takes {', '.join(known)} alone, and {len(names)} inputs are given",
                hint="ONNX inputs are tensors: wrap the network in a class with "
                f"forward(self, {', '.join(names)}) that calls it as it wants, and give that as file.py:Name",
            )
        if unknown:
            left = [name for name in known if name not in names]
            near = did_you_mean(unknown[0], left) or (f"did you mean '{left[0]}'? " if len(left) == 1 else "")
            raise KDExportError(
                f"{type(network).__name__}'s forward has no parameter {unknown[0]!r}",
                hint=f"{near}it takes {', '.join(known)}: name the inputs so, or give shapes without names, in order",
            )
        return tuple(names)
    if len(names) > len(by_position):  # forward(*, x)
        return known[: len(names)] if len(names) <= len(known) else None
    return None


def _check_order(network: nn.Module, names: Sequence[str], *, named: bool) -> None:
    """Hold that inputs passed by position are called as the network calls them, where it says how."""
    declared = getattr(network, "input_names", None)
    if named and len(names) > 1 and declared and tuple(names) != tuple(declared[: len(names)]):
        raise KDExportError(
            f"the network takes {', '.join(declared)}, in this order, and {', '.join(names)} are given",
            hint="give --input-shape once for each, in that order and by these names",
        )


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside of ``torch.compile``'s and ``DataParallel``'s wrappers: only it can be captured."""
    while True:
        inner = getattr(network, "_orig_mod", None)
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = network.module
        if not isinstance(inner, nn.Module):
            return network
        network = inner.eval()


def keys_of(output: Any) -> tuple[str, ...]:
    """Return the names of what a forward gives in a dict or a dataclass; empty for others."""
    if isinstance(output, Mapping):
        return tuple(str(key) for key in output)
    if is_dataclass(output):
        return tuple(item.name for item in fields(output) if getattr(output, item.name) is not None)
    return ()


def select_outputs(network: nn.Module, names: Sequence[str]) -> None:
    """Let a network that gives a dict or a dataclass give a tuple of some of its entries, in this order.

    Raises:
        KDExportError: When it is run, where it gives no such entry.
    """

    def choose(_: nn.Module, __: Any, output: Any) -> Any:
        keys = keys_of(output)
        if not keys:
            return output
        unknown = [name for name in names if name not in keys]
        if unknown:
            raise KDExportError(
                f"the network gives no output {unknown[0]!r}",
                hint=f"{did_you_mean(unknown[0], keys)}it gives {', '.join(keys)}",
            )
        return tuple(output[name] if isinstance(output, Mapping) else getattr(output, name) for name in names)

    network.register_forward_hook(choose)


def _parameters(network: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(network.forward).parameters.values())
    except (TypeError, ValueError):  # TorchScript
        return []
