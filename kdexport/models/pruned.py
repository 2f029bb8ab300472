"""A pruned network: what was cut out of it, and how a network of its class gets that shape again.

The plan of the cut stands in the metadata of the weights, so that ``student.safetensors`` beside the reference of the
whole network is all that any later stage needs: neither the teacher's weights, the data, nor torch-pruning.
``pruning`` makes the cut.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kdexport import results
from kdexport.errors import SourceError
from kdexport.results import Pruned, PrunedLayer

METADATA = "kdexport.pruned"  # of a safetensors file
PLAN = "_kdexport_pruned"  # the attribute of a network that holds its plan


@dataclass(frozen=True)
class Plan:
    """The shape of a pruned network.

    Attributes:
        removed: Blocks that are taken out, path -> how many outputs they gave; 0 stands for a lone tensor.
        shapes: Of the parameters and buffers that have become smaller, by name.
        attributes: What layers say of their own size (``out_channels``), by the layer's path.
        summary: The same for people.
    """

    removed: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    attributes: dict[str, dict[str, int | float | tuple[int, ...]]]
    summary: Pruned


class TakenOut(nn.Module):
    """Stands where a block was: gives its first input back."""

    def __init__(self, outputs: int = 0) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the first input, in the form of the block's output."""
        first = next(item for item in (*inputs, *named.values()) if isinstance(item, Tensor))
        return (first, *[None] * (self.outputs - 1)) if self.outputs else first


def plan_of(network: nn.Module) -> Plan | None:
    """Return what was cut out of a network, None for a whole one."""
    plan = getattr(network, PLAN, None)
    return plan if isinstance(plan, Plan) else None


def set_plan(network: nn.Module, plan: Plan) -> None:
    """Let a network say what was cut out of it."""
    setattr(network, PLAN, plan)


def metadata_of(network: nn.Module) -> dict[str, str]:
    """Return what a safetensors file says of its pruned network; nothing for a whole one."""
    plan = plan_of(network)
    return {} if plan is None else {METADATA: json.dumps(results.to_json(plan))}


def plan_in(path: Path) -> Plan | None:
    """Return the plan in the metadata of weights, or None where they are a whole network's.

    Raises:
        SourceError: It cannot be read.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            text = (file.metadata() or {}).get(METADATA)
    except (OSError, SafetensorError):  # told when the weights are read
        return None
    if text is None:
        return None
    try:
        return results.from_json(Plan, json.loads(text))
    except (ValueError, RecursionError) as error:  # pydantic's own is a ValueError
        raise SourceError(
            f"{path} says of a pruned network what cannot be read", hint="train it again with this version of kdexport"
        ) from error


def carve(network: nn.Module, plan: Plan, origin: str) -> None:
    """Give a whole network the shape of a pruned one, in place; its weights are zeros where they have shrunk.

    Args:
        network: Of the class and arguments that the plan was made for.
        plan: What is cut.
        origin: What messages call the plan's file.

    Raises:
        SourceError: It is another network.
    """
    try:
        for path, outputs in plan.removed.items():
            replace_module(network, path, TakenOut(outputs))
        _shrink(network, plan.shapes)
        for path, values in plan.attributes.items():
            module = network.get_submodule(path)
            for name, value in values.items():
                setattr(module, name, tuple(value) if isinstance(value, list | tuple) else value)
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise SourceError(
            f"{origin} holds the weights of a pruned network, and of another one than this: {error}",
            hint="name the network that was pruned: the teacher of the run that wrote the file, with its args",
        ) from error
    set_plan(network, plan)


def replace_module(network: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in place of the one at a path."""
    network.get_submodule(path)
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


def tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name; one that is used twice under both."""
    return {**dict(network.named_parameters(remove_duplicate=False)), **dict(network.named_buffers())}


def _shrink(network: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    made: dict[int, tuple[Tensor, Tensor]] = {}  # old and new: what stands under several names stays one

    for name, shape in shapes.items():
        path, _, own = name.rpartition(".")
        module = network.get_submodule(path)
        slots: Any = module._parameters if own in module._parameters else module._buffers
        old = slots[own]
        if id(old) not in made:
            zeros = torch.zeros(tuple(shape), dtype=old.dtype)
            new = nn.Parameter(zeros, old.requires_grad) if isinstance(old, nn.Parameter) else zeros
            made[id(old)] = (old, new)
        slots[own] = made[id(old)][1]


def plan_between(whole: nn.Module, cut: nn.Module, removed: dict[str, int], summary: Pruned) -> Plan:
    """Return what was cut, for a network as its class makes it: one that was pruned before is pruned by both plans."""
    shapes, attributes = _differences(whole, cut)
    earlier = plan_of(whole)
    if earlier is None:
        return Plan(removed, shapes, attributes, summary)
    there, paths = tensors(cut), {path for path, _ in cut.named_modules()}
    return Plan(
        {**{path: outputs for path, outputs in earlier.removed.items() if path in paths}, **removed},
        {name: shape for name, shape in {**earlier.shapes, **shapes}.items() if name in there},
        {
            path: {**earlier.attributes.get(path, {}), **attributes.get(path, {})}
            for path in {**earlier.attributes, **attributes}
            if path in paths
        },
        summary,
    )


def _differences(
    whole: nn.Module, cut: nn.Module
) -> tuple[dict[str, tuple[int, ...]], dict[str, dict[str, int | float | tuple[int, ...]]]]:
    """Return the shapes and the attributes in which a pruned network differs from the whole one."""
    before = tensors(whole)
    shapes = {name: tuple(item.shape) for name, item in tensors(cut).items() if item.shape != before[name].shape}
    attributes = {}
    for path, module in cut.named_modules():
        if not isinstance(module, TakenOut):
            old = vars(whole.get_submodule(path))
            changed = {name: value for name, value in vars(module).items() if _differs(old.get(name), value)}
            if changed:
                attributes[path] = changed
    return shapes, attributes


def _differs(old: Any, new: Any) -> bool:
    if isinstance(new, bool) or not isinstance(new, int | float | tuple) or type(old) is not type(new):
        return False
    return bool(old != new) and (not isinstance(new, tuple) or all(isinstance(item, int) for item in new))


def cut_layers(whole: nn.Module, cut: nn.Module, removed: Mapping[str, int]) -> tuple[PrunedLayer, ...]:
    """Return the layers of a whole network that have become smaller or are gone."""
    rows = []
    for path, module in whole.named_modules():
        kind = type(module).__name__
        if path in removed:
            rows.append(PrunedLayer(path, kind, (size(module),), None))
            continue
        if any(path.startswith(f"{block}.") for block in removed):
            continue
        own = {name: tuple(item.shape) for name, item in module.named_parameters(recurse=False)}
        new = {name: tuple(item.shape) for name, item in cut.get_submodule(path).named_parameters(recurse=False)}
        changed = [name for name, shape in own.items() if new[name] != shape]
        if changed:
            name = "weight" if "weight" in changed else changed[0]
            layer = path if name == "weight" else f"{path}.{name}".removeprefix(".")
            rows.append(PrunedLayer(layer, kind, own[name], new[name]))
    return tuple(rows)


def size(network: nn.Module) -> int:
    """Return how many parameters a network has."""
    return sum(parameter.numel() for parameter in network.parameters())
