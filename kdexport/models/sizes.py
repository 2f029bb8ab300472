"""What a network with smaller layers must be told: sizes that its modules keep as numbers, weights that are one."""

import math
import re

import torch
from torch import nn

PROJECTION = re.compile(r"(to_)?(qkv|kv|q|k|v|query|key|value)(_?(proj|lin|linear))?")  # of attention, by its name
HEADS = ("num_heads", "num_attention_heads", "n_heads", "heads", "nhead", "n_head")
HEAD_SIZES = ("head_dim", "attention_head_size", "dim_head", "d_head", "head_size")
WIDTHS = ("attn_dim", "all_head_size", "inner_dim", "hidden_dim", "hidden_size", "embed_dim", "dim")
SCALES = ("scale", "scaling")


def projections(network: nn.Module) -> dict[nn.Module, int]:
    """Return the projections of attention, with the number of heads that each has."""
    found: dict[nn.Module, int] = {}
    for module in network.modules():
        heads = next((value for name in HEADS if isinstance(value := getattr(module, name, None), int)), None)
        if heads and not isinstance(module, nn.MultiheadAttention):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear) and PROJECTION.fullmatch(name) and child.out_features % heads == 0:
                    found[child] = heads
    return found


def resize(whole: nn.Module, cut: nn.Module) -> None:
    """Let modules know the new sizes that they keep as numbers: of a head, of all heads, of their own layers."""
    heads, before = projections(whole), dict(whole.named_modules())
    for path, module in cut.named_modules():
        old = before[path]
        for name, child in module.named_children():
            first = getattr(old, name)
            if first in heads:
                parts = {"qkv": 3, "kv": 2}.get(PROJECTION.fullmatch(name)[2], 1)  # type: ignore[index]
                each = heads[first] * parts
                _resize_head(module, old, first.out_features // each, int(child.out_features) // each, heads[first])
        for attribute in WIDTHS:
            value = vars(old).get(attribute)
            if isinstance(value, int) and vars(module).get(attribute) == value:
                sizes = {
                    _width(getattr(module, name)) for name, first in old.named_children() if _width(first) == value
                }
                if len(sizes) == 1:
                    setattr(module, attribute, sizes.pop())


def _resize_head(module: nn.Module, old: nn.Module, before: int, after: int, heads: int) -> None:
    for name in HEAD_SIZES:
        if vars(old).get(name) == before:
            setattr(module, name, after)
    for name in WIDTHS:
        if vars(old).get(name) == before * heads:
            setattr(module, name, after * heads)
    for name in SCALES:
        value = vars(old).get(name)
        if isinstance(value, float) and math.isclose(value, before**-0.5):
            setattr(module, name, after**-0.5)


def _width(module: nn.Module) -> int | None:
    """Return how many channels a layer gives, None for what is none."""
    for name in ("out_channels", "out_features", "embedding_dim", "embed_dim"):
        value = vars(module).get(name)
        if isinstance(value, int):
            return value
    return None


def tie_again(whole: nn.Module, cut: nn.Module) -> tuple[str, str] | None:
    """Let weights that were one tensor be one again; return the names of two that have become different, or None."""
    shared: dict[int, list[str]] = {}
    for name, parameter in whole.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
    for names in shared.values():
        first = cut.get_parameter(names[0])
        for name in names[1:]:
            other = cut.get_parameter(name)
            if other is first:
                continue
            if other.shape != first.shape or not torch.equal(other, first):
                return names[0], name
            path, _, own = name.rpartition(".")
            cut.get_submodule(path)._parameters[own] = first
    return None
