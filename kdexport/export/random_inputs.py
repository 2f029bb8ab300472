"""Inputs to prove a network on: drawn at random where no data are given, and hard ones in any case.

Random inputs have the types and ranges that the network takes; ``--input-shape`` is what one looks like, written
without the batch.

Hard samples are those that real data seldom hold and a wrong file gives away: blank, flat, faint, at the ends of the
value range.

A guard lost in a division, a logarithm or a root shows on a blank sample alone; a size taken for a constant shows at
another size alone.
"""

import copy
import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdexport.errors import KDExportError, did_you_mean
from kdexport.export.target import ExportTarget
from kdexport.onnx.sessions import Arrays

BATCH = "batch"
SHAPE = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*):)?(?P<dims>(?:(?:\d+|batch)(?:[,x](?:\d+|batch))*)?)"
    r"(?::(?P<type>[a-z]+\d*)(?:<(?P<limit>\d+))?)?"
)
TYPES = ("float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool")  # numpy's names
INTEGERS = tuple(kind for kind in TYPES if "int" in kind)
SHAPES_HELP = (
    "[NAME:]SIZES[:TYPE[<LIMIT]], sizes without the batch, e.g. 3,224,224, ids:128:int64<30000, t::int64 for one "
    "number a sample, h:2,batch,64 where the batch is not first"
)


@dataclass(frozen=True)
class InputShape:
    """One input of a network: its sizes without the batch, and where the batch goes."""

    name: str
    dims: tuple[int, ...]
    type: str | None = None  # of TYPES; None: float32, or what the network's weights are
    limit: int | None = None  # integers are drawn below it; None: as large as the network takes, up to 100
    batch_axis: int = 0
    named: bool = False  # by the user: then it is a parameter of forward


def parse_shape(text: str, number: int) -> InputShape:
    """Parse one ``--input-shape``.

    Args:
        text: ``3,224,224``, ``pixels:3x224x224``, ``ids:128:int64<30000``, ``t::int64`` for an input of shape [batch],
            ``h:2,batch,64`` where the batch is not the first axis; elsewhere the batch is left out.
        number: Which input it is, counted from 0: names an input that has no name.

    Raises:
        KDExportError: It has another form.
    """
    match = SHAPE.fullmatch(text.strip())
    types = ", ".join(TYPES)
    if match is None or not text.strip(" :"):
        raise KDExportError(f"--input-shape {text!r} is no shape", hint=f"it is {SHAPES_HELP}; types: {types}")
    if match["type"] is not None and match["type"] not in TYPES:
        near = did_you_mean(match["type"], TYPES)
        if match["type"] == "bfloat16":
            near = "ONNX Runtime's CPU takes no bfloat16: leave the type out, and the network is written in float32; "
        raise KDExportError(f"--input-shape {text!r} has no known type", hint=f"{near}types: {types}")
    sizes = re.split("[,x]", match["dims"]) if match["dims"] else []
    counts = [size for size in sizes if size != BATCH]
    if len(sizes) >= MAX_AXES or any(len(size) > 12 for size in counts) or math.prod(map(int, counts)) > MAX_NUMBERS:
        raise KDExportError(
            f"--input-shape {text[:40]!r} is larger than any network's input",
            hint=f"give fewer than {MAX_AXES} axes, and at most {MAX_NUMBERS:,} numbers a sample",
        )
    kind = match["type"] if match["type"] in INTEGERS else "int64"
    if (limit := match["limit"]) is not None and (len(limit) > 19 or not 0 < int(limit) <= np.iinfo(kind).max + 1):
        raise KDExportError(
            f"--input-shape {text[:40]!r}: whole numbers of {kind} from 0 on do not end below that limit",
            hint="e.g. ids:128:int64<30000",
        )
    dims = tuple(int(size) for size in sizes if size != BATCH)
    if 0 in dims or sizes.count(BATCH) > 1:
        raise KDExportError(
            f"--input-shape {text!r} has {'an axis of size 0' if 0 in dims else 'two batch axes'}",
            hint="an input with one number a sample has no sizes: e.g. timestep::int64",
        )
    return InputShape(
        match["name"] or ("input" if number == 0 else f"input_{number}"),
        dims,
        match["type"],
        None if match["limit"] is None else int(match["limit"]),
        sizes.index(BATCH) if BATCH in sizes else 0,
        named=match["name"] is not None,
    )


MAX_AXES, MAX_NUMBERS = 32, 1 << 31  # of an input
SAMPLES = 10  # batches of 1, 2 and 7
ENDING = 3  # of them, the batches of 1 and 2, have masks that end: texts with padding behind them
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
            limited = f"tried with {' and '.join(smaller)}, for it takes no more; NAME:SIZES:int64<LIMIT sets the limit"
            return dataclasses.replace(found, notes=(*found.notes, limited))
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
    if "mask" in item.name and len(item.dims) == 1 and item.dims[0] > 1 and limit == 2:
        # The first ones as of texts that are padded at their end, a boolean one as PyTorch's key_padding_mask: PyTorch
        # takes other ways for those (nested tensors) than for masks with holes.
        lengths = generator.integers(1, item.dims[0], (ENDING, 1))
        words = np.arange(item.dims[0]) < lengths
        values[:ENDING] = ~words if kind == "bool" else words
    return values.astype(kind)


FAINT = 1e-4  # times a real sample: where an epsilon is as large as what it is added to

# Other sizes of a dynamic axis, in the order in which they are tried: as multiples, then as steps of a stride.
TIMES = (1.5, 0.5, 2.0, 3.0)
PLUS = (1, -1, 8, -8, 32, -32)


def hard(inputs: Arrays, names: Sequence[str]) -> Arrays:
    """Return hard samples, one array per input, first axis samples.

    Args:
        inputs: Real or random samples in the same form; at least one.
        names: Of the inputs: a mask keeps its first element, for a text without a word is none.
    """
    return tuple(_of_one(array, name) for array, name in zip(inputs, names, strict=True))


def _of_one(array: np.ndarray, name: str) -> np.ndarray:
    low, high, one = array.min(), array.max(), array[len(array) // 2]
    if "mask" in name and array.dtype.kind in "biu":
        first = np.zeros_like(one)
        if first.ndim:
            first[..., 0] = high
        rows = [first, np.full_like(one, high), first, np.full_like(one, high), one, one]
    else:
        half = one.copy()
        if half.ndim:
            half[len(half) // 2 :] = 0
        flat = one.dtype.type(0.5) if one.dtype.kind == "f" else one.dtype.type(int(high) // 2)
        faint = one * one.dtype.type(FAINT) if one.dtype.kind == "f" else one
        rows = [np.full_like(one, value) for value in (0, flat, low, high)] + [half, faint]
    return np.stack(rows).astype(array.dtype)


def other_sizes(size: int) -> list[int]:
    """Return sizes to try an axis at besides ``size``, the most telling first."""
    wanted = [*(int(size * times) for times in TIMES), *(size + step for step in PLUS)]
    return [item for item in dict.fromkeys(wanted) if item > 0 and item != size]


def with_size(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Return samples cut or repeated along an axis to another size."""
    index = np.arange(size) % array.shape[axis]
    return np.ascontiguousarray(array.take(index, axis=axis))
