"""Inputs for a network that no data are given for: drawn at random, in types and ranges that the network takes."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdexport.errors import KDExportError
from kdexport.export.input_shape import InputShape
from kdexport.export.target import ExportTarget
from kdexport.onnx.sessions import Arrays

SAMPLES = 10  # batches of 1, 2 and 7
FLOATS: dict[torch.dtype, str] = {torch.float16: "float16", torch.float64: "float64"}
LARGEST_TOKEN = 100  # of random integer inputs: most vocabularies have that many
SMALLER_LIMITS = (64, 32, 16, 10, 8, 5, 4, 3, 2, 1)  # tried in turn where the network does not take them


def drawn(target: ExportTarget, shapes: Sequence[InputShape], *, seed: int, pixels: bool) -> ExportTarget:
    """Return a target with random samples that its network takes, and notes on what had to be found out.

    Where no type is given, floats are float32, or what the network's weights are if it takes nothing else. Integers lie
    below 100, or below less if the network takes nothing else; of a mask they are 0 and 1.

    Args:
        target: Without samples.
        shapes: Of each input.
        seed: Of the generator.
        pixels: Whether the first input is an image, given as uint8 NHWC.
    """
    kinds = [item.type or "float32" for item in shapes]
    limits = [_limit(item, kind) for item, kind in zip(shapes, kinds, strict=True)]

    def samples(with_kinds: list[str], with_limits: list[int]) -> Arrays:
        generator = np.random.default_rng(seed)
        arrays = [
            _draw(generator, item, kind, limit)
            for item, kind, limit in zip(shapes, with_kinds, with_limits, strict=True)
        ]
        if pixels:
            channels, height, width = shapes[0].dims
            arrays[0] = generator.integers(0, 256, (SAMPLES, height, width, channels), dtype=np.uint8)
        return tuple(arrays)

    def tried(found: ExportTarget, with_kinds: list[str], with_limits: list[int]) -> ExportTarget | None:
        found = dataclasses.replace(found, samples=samples(with_kinds, with_limits))
        return found if _runs(found) else None

    first = dataclasses.replace(target, samples=samples(kinds, limits))
    if _runs(first):
        return first
    open_limits = [k for k, item in enumerate(shapes) if _is_integer(kinds[k]) and item.limit is None]
    for candidate, its_kinds, note in _in_other_types(target, shapes, kinds):
        noted = dataclasses.replace(candidate, notes=(*candidate.notes, *note))
        if found := tried(noted, its_kinds, limits):
            return found
        if not open_limits:
            continue
        zeros = [1 if k in open_limits else limit for k, limit in enumerate(limits)]
        if tried(noted, its_kinds, zeros) is None:
            continue
        settled = zeros
        for k in open_limits:
            for limit in (limits[k], *SMALLER_LIMITS):
                attempt = [limit if number == k else other for number, other in enumerate(settled)]
                if tried(noted, its_kinds, attempt):
                    settled = attempt
                    break
        found = tried(noted, its_kinds, settled)
        if found is not None:
            smaller = [f"{shapes[k].name} below {settled[k]}" for k in open_limits if settled[k] < limits[k]]
            said = f"tried with {' and '.join(smaller)}, for it takes no more; NAME:SIZES:int64<LIMIT sets the limit"
            return dataclasses.replace(found, notes=(*found.notes, said))
    return first  # its error is told where it is exported


def _in_other_types(
    target: ExportTarget, shapes: Sequence[InputShape], kinds: list[str]
) -> list[tuple[ExportTarget, list[str], tuple[str, ...]]]:
    """Return the ways to try: as it is; its inputs in its own type; itself in float32, where that holds its weights."""
    ways: list[tuple[ExportTarget, list[str], tuple[str, ...]]] = [(target, kinds, ())]
    own = {tensor.dtype for tensor in target.network.parameters() if tensor.is_floating_point()}
    if len(own) != 1 or not any(item.type is None for item in shapes):
        return ways
    kind = own.pop()
    if kind in FLOATS:
        ways.append(
            (target, [FLOATS[kind] if item.type is None else old for item, old in zip(shapes, kinds, strict=True)], ())
        )
    if kind is torch.bfloat16:  # ONNX Runtime's CPU has no kernels for it
        widened = dataclasses.replace(target, network=copy.deepcopy(target.network).float())
        ways.append((widened, kinds, ("its bfloat16 weights are written in float32, which holds them exactly",)))
    return ways


def _runs(target: ExportTarget) -> bool:
    try:
        with torch.no_grad():
            target.call(target.tensors(tuple(array[:2] for array in target.samples)))
            # the largest values of all samples, not of two
            target.call(target.tensors(target.samples))
    except KDExportError:
        raise
    except Exception:  # noqa: BLE001 the user's own code may raise anything
        return False
    return True


def _is_integer(kind: str) -> bool:
    return kind in ("int64", "int32", "int8", "uint8")


def _is_mask(item: InputShape, kind: str) -> bool:
    return "mask" in item.name and _is_integer(kind)


def _limit(item: InputShape, kind: str) -> int:
    if item.limit is not None:
        return item.limit
    return 2 if kind == "bool" or _is_mask(item, kind) else 256 if kind == "uint8" else LARGEST_TOKEN


def _draw(generator: np.random.Generator, item: InputShape, kind: str, limit: int) -> NDArray[Any]:
    shape = (SAMPLES, *item.dims)
    if kind.startswith("float"):
        return generator.standard_normal(shape, dtype=np.float32).astype(kind)
    values = generator.integers(0, limit, shape)
    values.flat[-1] = limit - 1  # the largest one occurs
    if _is_mask(item, kind) and values.ndim > 1:
        values[..., 0] = 1
    return values.astype(kind)
