"""Whole blocks of a network that can be left out: those whose output has the shape of their input.

A block is an entry of a list of layers (``nn.Sequential``, ``nn.ModuleList``) with layers of its own and a ``forward``
of its own: a residual block of a ResNet, a layer of a transformer. What is a plain ``nn.Sequential`` has no way around
it and is no block. Where blocks lie within blocks (the stages of timm's networks), the inner ones count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kdexport.errors import SourceError, did_you_mean
from kdexport.models.transformer_cut import EVERY_OTHER, chosen_layers

SHOWN = 12


@dataclass(frozen=True)
class _Shape:
    """What a module was called with and what it gave, on one run."""

    before: tuple[int, ...]
    after: tuple[int, ...] | None
    outputs: int  # 0 for a lone tensor
    calls: int

    @property
    def kept(self) -> bool:
        return self.before == self.after and self.calls == 1


def chosen_blocks(
    network: nn.Module, wanted: str | Sequence[int | str], inputs: tuple[Tensor, ...], model: str
) -> dict[str, int]:
    """Return the blocks to take out: path -> how many outputs it gives, 0 for a lone tensor.

    Args:
        network: The whole one.
        wanted: ``"every-other"``: of each list of blocks half, as ``transformer_cut.chosen_layers`` spreads them; or
            paths of blocks, and places in the list of all blocks, counted from 0.
        inputs: As the network takes them.
        model: What messages call it.

    Raises:
        SourceError: It has no such block, or one that gives another shape than it takes.
    """
    shapes = _shapes(network, inputs)
    stages = _stages(network, shapes)
    blocks = [path for stage in stages.values() for path in stage]
    if isinstance(wanted, str):
        chosen = []
        for stage in stages.values():
            kept = chosen_layers(EVERY_OTHER, len(stage), model)
            chosen += [path for place, path in enumerate(stage) if place not in kept]
        if not chosen:
            raise SourceError(
                f'{model} has no list of blocks of which every other could be taken out: layers = "{EVERY_OTHER}"',
                hint="name blocks by their paths, or take layers out of [student.prune] and give keep",
            )
        return {path: shapes[path].outputs for path in chosen}
    return {path: shapes[path].outputs for path in (_block(item, blocks, shapes, model) for item in wanted)}


def _block(item: int | str, blocks: list[str], shapes: dict[str, _Shape], model: str) -> str:
    known = ", ".join(f"{place} {path}" for place, path in enumerate(blocks[:SHOWN]))
    known += f", ... ({len(blocks)} in all)" if len(blocks) > SHOWN else ""
    listed = f"its blocks are: {known}" if blocks else "it has no block that gives what it takes"
    if isinstance(item, int):
        if not 0 <= item < len(blocks):
            raise SourceError(
                f"student.prune.layers names the block {item} of {model}, which is not there", hint=listed
            )
        return blocks[item]
    if item not in shapes:
        near = did_you_mean(item, [*blocks, *shapes])
        raise SourceError(f"student.prune.layers names '{item}', which {model} has not", hint=f"{near}{listed}")
    shape = shapes[item]
    if not shape.kept:
        changes = f"makes {list(shape.after or ())} of {list(shape.before)}"
        why = changes if shape.calls == 1 else "runs several times"
        raise SourceError(f"{item} of {model} cannot be taken out: it {why}", hint=listed)
    return item


def _stages(network: nn.Module, shapes: dict[str, _Shape]) -> dict[str, list[str]]:
    """Return the blocks of each list of layers, in the order of the network."""
    found: dict[str, list[str]] = {}
    for path, module in network.named_modules():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            prefix = f"{path}." if path else ""
            children = {f"{prefix}{name}": child for name, child in module.named_children()}
            blocks = [name for name, child in children.items() if _is_block(child) and _kept(shapes, name)]
            if blocks:
                found[path] = blocks
    outer = {
        name for name in (name for stage in found.values() for name in stage) if _holds_stage(network, name, found)
    }
    found = {path: [name for name in stage if name not in outer] for path, stage in found.items()}
    whole = {name for stage in found.values() for name in stage}
    return {path: stage for path, stage in found.items() if stage and not _within(path, whole)}


def _holds_stage(network: nn.Module, name: str, found: dict[str, list[str]]) -> bool:
    """Whether a block is a stage: it holds a list of blocks of one class and nothing else."""
    for path in found:
        if path.startswith(f"{name}."):
            kinds = {type(child) for child in network.get_submodule(path).children()}
            if len(kinds) == 1:
                return True
    return False


def _within(path: str, blocks: set[str]) -> bool:
    return any(path.startswith(f"{block}.") for block in blocks)


def _kept(shapes: dict[str, _Shape], name: str) -> bool:
    return name in shapes and shapes[name].kept


def _is_block(module: nn.Module) -> bool:
    plain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    layers = sum(bool(part._parameters) for part in module.modules())
    return not plain and not isinstance(module, nn.ModuleList) and layers > 1


def _shapes(network: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, _Shape]:
    found: dict[str, _Shape] = {}

    def hook(path: str) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ARG001
            first = next((item for item in (*args, *kwargs.values()) if isinstance(item, Tensor)), None)
            several = isinstance(output, tuple)
            given = output[0] if several and output else output
            after = tuple(given.shape) if isinstance(given, Tensor) else None
            calls = found[path].calls + 1 if path in found else 1
            before = () if first is None else tuple(first.shape)
            found[path] = _Shape(before, after, len(output) if several else 0, calls)

        return note

    hooks = [
        module.register_forward_hook(hook(path), with_kwargs=True) for path, module in network.named_modules() if path
    ]
    try:
        network(*inputs)
    finally:
        for handle in hooks:
            handle.remove()
    return found
