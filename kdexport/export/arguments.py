"""What ``forward`` is passed and what it gives, by name: inputs go to the parameters that they are named after."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn

from kdexport.errors import KDExportError, did_you_mean

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
