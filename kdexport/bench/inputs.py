"""What is fed to a model: shapes from its graph, values that are right for its types. Needs numpy alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np

from kdexport.bench import host
from kdexport.data.npz_files import read_arrays
from kdexport.errors import KDExportError, SourceError, did_you_mean, whole_number

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}
PATTERN = 65_521  # values before they repeat: a prime, so that rows of a usual width differ

Shape = Sequence[Union[str, int, None]]  # a dynamic axis by its name; "?", None or a number below 1 where it has none

# Names that exporters and people give to the axis of the samples, and to axes that look like it and are not.
BATCH_NAMES = (
    re.compile(r"[a-z_]*batch(_?(size|dim|axis|sz|n|num|[0-9]+))?", re.IGNORECASE),
    re.compile(r"n|b|bs|num_samples|samples|n_samples", re.IGNORECASE),
)
OTHER_NAMES = re.compile(
    r"(seq|time|step|token|frame|len|length|height|width|depth|channel|feature|point|node|edge)s?([_ ].*)?"
    r"|.*(sequence|seq_?len|length|time_?steps?|past|num_frames)[a-z_]*|t|l|h|w|c|s|d",
    re.IGNORECASE,
)


def batch_axes(
    inputs: Mapping[str, Shape], batch_axis: str | None = None, *, model: str = "the model"
) -> dict[str, tuple[int, ...]]:
    """Return, for each input, which of its axes hold the samples; none for an input that has no such axis.

    Asked for, it is ``batch_axis``. Else it is the dynamic axis that is called like one (batch, batch_size, N, ...)
    wherever it stands; else each input's first axis, where that is dynamic and not called otherwise (seq_len), and
    every axis of the same name; else, where nothing is dynamic, the first axis of every input with two axes or more.

    Args:
        inputs: Name -> shape of each input.
        batch_axis: The name of a dynamic axis, a position in every input ("1"), or one input's ("state:1", several
            separated by commas).
        model: Its name, for messages.

    Raises:
        KDExportError: No axis is ``batch_axis``.
    """
    if batch_axis is not None:
        return _requested_axes(inputs, batch_axis, model)
    names = {axis for shape in inputs.values() for axis in shape if _named(axis)}
    chosen: set[str | int | None] = set()
    for pattern in BATCH_NAMES:
        chosen = chosen or {name for name in names if pattern.fullmatch(str(name))}
    firsts = [shape[0] for shape in inputs.values() if shape]
    if not chosen:
        chosen = {axis for axis in firsts if _named(axis) and not OTHER_NAMES.fullmatch(str(axis))}
        unnamed = any(_dynamic(axis) and not _named(axis) for axis in firsts)
        if not chosen and not unnamed and not any(_dynamic(axis) for axis in firsts):
            return {name: (0,) if len(shape) > 1 else () for name, shape in inputs.items()}
    return {
        name: tuple(
            position
            for position, axis in enumerate(shape)
            if axis in chosen or (position == 0 and _dynamic(axis) and not _named(axis))
        )
        for name, shape in inputs.items()
    }


def _requested_axes(inputs: Mapping[str, Shape], batch_axis: str, model: str) -> dict[str, tuple[int, ...]]:
    if any(batch_axis in shape for shape in inputs.values()):
        return {
            name: tuple(position for position, axis in enumerate(shape) if axis == batch_axis)
            for name, shape in inputs.items()
        }
    if (everywhere := whole_number(batch_axis)) is not None:
        wanted = {name: everywhere for name, shape in inputs.items() if len(shape) > everywhere}
    else:
        pairs = [part.strip().rpartition(":") for part in batch_axis.split(",")]
        wanted = {name: at for name, _, position in pairs if (at := whole_number(position)) is not None}
        if len(wanted) < len(pairs):
            wanted = {}
    if not wanted or any(name not in inputs or len(inputs[name]) <= position for name, position in wanted.items()):
        known = sorted({str(axis) for shape in inputs.values() for axis in shape if _named(axis)})
        raise KDExportError(
            f"--batch-axis {batch_axis}: {model} has no such axis; its inputs are {_written(inputs)}",
            hint=f"give the name of an axis ({', '.join(known) or 'none is named here'}), its position in every input, "
            "e.g. --batch-axis 1, or in one, e.g. --batch-axis " + f"{next(iter(inputs), 'x')}:0",
        )
    return {name: (wanted[name],) if name in wanted else () for name in inputs}


def resolve_shapes(
    inputs: Mapping[str, Shape],
    batch_size: int,
    dims: Mapping[str, int],
    *,
    model: str,
    batch_axis: str | None = None,
) -> dict[str, tuple[int, ...]]:
    """Give every dynamic axis a value.

    Args:
        inputs: Name -> shape of each input, a dynamic axis by its name (or ``"?"``).
        batch_size: Samples per call: the size of the ``batch_axes``.
        dims: Values of other dynamic axes by name, or as ``input:position``.
        model: The model's name, for messages.
        batch_axis: As ``batch_axes`` takes it.

    Raises:
        KDExportError: An axis has no value, the batch is fixed to another size, or there is none to be sized.
    """
    check_batch(inputs, batch_size, model=model, batch_axis=batch_axis)
    batches = batch_axes(inputs, batch_axis, model=model)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in inputs.items():
        sizes = []
        for position, axis in enumerate(shape):
            label = str(axis) if _named(axis) else f"{name}:{position}"
            if isinstance(axis, int) and not _dynamic(axis):
                sizes.append(axis)
            elif position in batches[name]:
                sizes.append(batch_size)
            elif label in dims or f"{name}:{position}" in dims:
                sizes.append(dims.get(label, dims.get(f"{name}:{position}", 1)))
            else:
                shown = f" ('{axis}')" if _named(axis) else ""
                flag = f"'{label}=64'" if " " in label else f"{label}=64"
                raise KDExportError(
                    f"{model}: axis {position} of input '{name}' is dynamic{shown} and has no value",
                    hint=f"give one with --dim {flag}"
                    + f' (in a recipe: [bench] dims = {{ "{label}" = 64 }})'
                    + ("" if any(batches.values()) else f"; if that is the batch: --batch-axis {label}"),
                )
        shapes[name] = tuple(sizes)
    return shapes


def check_batch(inputs: Mapping[str, Shape], batch_size: int, *, model: str, batch_axis: str | None = None) -> None:
    """Refuse a batch size that the model cannot take; raises as ``resolve_shapes``, whose arguments these are."""
    axes = batch_axes(inputs, batch_axis, model=model)
    found = {name: [inputs[name][position] for position in positions] for name, positions in axes.items() if positions}
    sizes = {
        name: [axis for axis in own if isinstance(axis, int) and not _dynamic(axis)] for name, own in found.items()
    }
    fixed = {name: own[0] for name, own in sizes.items() if own}
    unknown = any(not shape for shape in inputs.values())  # of no known shape, or a scalar
    if not found and batch_size != 1 and not unknown:
        raise KDExportError(
            f"{model} has no axis for a batch (its inputs are {_written(inputs)}): "
            f"batch size {batch_size} cannot be measured",
            hint="give --batch-size 1, or say which axis holds the samples with --batch-axis",
        )
    if fixed and len(fixed) == len(found) and batch_size not in fixed.values():
        name, size = next(iter(fixed.items()))
        raise KDExportError(
            f"{model}: the batch of input '{name}' is fixed to {size}; batch size {batch_size} cannot be measured",
            hint=f"give --batch-size {size}, export the model with a dynamic batch, or say with --batch-axis "
            "which other axis holds the samples",
        )


def check_dims(models: Sequence[Mapping[str, Shape]], dims: Mapping[str, int], batch_axis: str | None = None) -> None:
    """Refuse a value for an axis that no model has, or that is the batch.

    Raises:
        KDExportError: Such a name is in ``dims``.
    """
    batch: set[str] = set()
    known: set[str] = set()
    for inputs in models:
        axes = batch_axes(inputs, batch_axis)
        for name, shape in inputs.items():
            for position, axis in enumerate(shape):
                if _dynamic(axis):
                    labels = {f"{name}:{position}", *([str(axis)] if _named(axis) else [])}
                    (batch if position in axes[name] else known).update(labels)
    shown = sorted(label for label in known if ":" not in label) or sorted(known)
    for name in dims:
        if name in batch and name not in known:
            raise KDExportError(
                f"--dim {name}: that axis is the batch",
                hint=f"give --batch-size {dims[name]}; if another axis is the batch, --batch-axis NAME",
            )
        if name not in known:
            raise KDExportError(
                f"--dim {name}: no model has a dynamic axis of that name",
                hint=did_you_mean(name, shown) or f"there are: {', '.join(shown) or 'none'}",
            )


def _dynamic(axis: str | int | None) -> bool:
    """Return whether an axis has no size of its own: a name, nothing, or what some exporters write for it (0, -1)."""
    return not isinstance(axis, int) or axis < 1


def _named(axis: str | int | None) -> bool:
    return isinstance(axis, str) and axis not in ("", "?")


def _written(inputs: Mapping[str, Shape]) -> str:
    """Write shapes for a message: ``x [seq_len, batch, 8]``."""
    shown = [
        f"{name} [{', '.join('?' if axis is None else str(axis) for axis in shape)}]" for name, shape in inputs.items()
    ]
    return ", ".join(shown) or "none"


def check_fits(shapes: Mapping[str, Sequence[int]], kinds: Mapping[str, str], available_mib: float | None) -> None:
    """Refuse inputs that are larger than the memory that is left, before the machine begins to swap.

    Raises:
        MemoryError: They are.
    """
    needed = 0
    for name, kind in kinds.items():
        count = 1
        for size in shapes[name]:
            count *= size
        needed += count * np.dtype(DTYPES.get(kind, np.float32)).itemsize
    if available_mib is not None and needed / 2**20 > available_mib:
        raise MemoryError(f"the inputs alone need {needed / 2**30:.1f} GiB, {available_mib / 1024:.1f} GiB are free")


def feeds(task: Mapping[str, Any], kinds: Mapping[str, str], shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    """Return what is fed to a model: the user's own arrays, or made-up ones.

    Args:
        task: As ``worker_group.worker_task`` writes it.
        kinds: Name -> type of each input, as ONNX Runtime names it.
        shapes: Name -> shape of each input as the graph has it.

    Raises:
        KDExportError: As ``from_file`` and ``values``.
        MemoryError: They are larger than the memory that is left.
    """
    if task["file"]:
        return from_file(task["file"], kinds, shapes, task["batch_size"], task.get("batch_axis"))
    check_fits(task["shapes"], kinds, host.available_mib())
    return {name: values(task["shapes"][name], kind, task["below"].get(name)) for name, kind in kinds.items()}


def values(shape: Sequence[int], kind: str, below: int | None) -> np.ndarray:
    """Return values for one input: the same on every machine, dense, of unit scale, never denormal.

    Integers stay below ``below``; where that is unknown they are 1 (pixels, uint8, use their whole range). Latency
    hardly depends on values, but denormals and out-of-range ids are traps.

    Raises:
        KDExportError: The type is not one that can be fed.
    """
    _check_kind(kind)
    dtype = DTYPES[kind]
    integer = not np.issubdtype(dtype, np.floating)
    if integer and below is None and dtype is not np.uint8:  # 1 is a valid id, position and mask alike
        return np.ones(shape, dtype)
    made: np.ndarray = np.empty(shape, dtype)
    flat = made.reshape(-1)
    # Weyl sequence: multiples of the golden ratio modulo 1 are spread evenly. Not numpy.random, and not in one piece:
    # both would show in the peak memory that is measured here.
    spread = np.arange(1, min(flat.size, PATTERN) + 1, dtype=np.float64) * 0.6180339887498949 % 1.0
    scaled = spread * (below or 256) if integer else (spread - 0.5) * 3.4641  # variance 1
    pattern: np.ndarray = scaled.astype(dtype)
    for start in range(0, flat.size, PATTERN):
        part = flat[start : start + PATTERN]
        part[:] = pattern[: part.size]
    return made


def from_file(
    path: str, kinds: Mapping[str, str], shapes: Mapping[str, Shape], batch_size: int, batch_axis: str | None = None
) -> dict[str, np.ndarray]:
    """Take the inputs from an .npz file: one array per input of the model.

    The batch axes are cut or repeated to ``batch_size``; all else is fed as it lies in the file.

    Args:
        path: The file.
        kinds: Name -> type of each input, as ONNX Runtime names it.
        shapes: Name -> shape of each input as the graph has it.
        batch_size: Samples per call.
        batch_axis: As ``batch_axes`` takes it.

    Raises:
        KDExportError: The file holds no arrays, or an input is missing from it or has another type or shape.
    """
    batches = batch_axes(shapes, batch_axis)
    try:
        arrays = read_arrays(Path(path))
    except SourceError as error:
        raise KDExportError(
            f"{path} is not an .npz file with arrays of numbers: {error.message}",
            hint="write it with numpy.savez(FILE, NAME=ARRAY, ...), an array per input",
        ) from None
    return {
        name: _fitted(path, name, _typed(path, name, kind, arrays), shapes[name], batches[name], batch_size)
        for name, kind in kinds.items()
    }


def _typed(path: str, name: str, kind: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    if name not in arrays:
        raise KDExportError(
            f"{path} holds no array '{name}', which the model needs",
            hint=f"it holds: {', '.join(arrays) or 'nothing'}; name the arrays as the model's inputs",
        )
    _check_kind(kind)
    array = arrays[name]
    if array.dtype != DTYPES[kind]:
        raise KDExportError(
            f"{path}: '{name}' is {array.dtype}, but the model takes {kind}",
            hint=f"save it as numpy.{np.dtype(DTYPES[kind]).name}",
        )
    return array


def _fitted(
    path: str, name: str, array: np.ndarray, shape: Shape, batches: Sequence[int], batch_size: int
) -> np.ndarray:
    """Return the array with its batch axes cut or repeated to the batch size; refuse what the graph does not take."""
    if not shape and array.ndim:  # a graph that says nothing of the shape
        shape, batches = ("?",) * array.ndim, (0,)
    fits = array.ndim == len(shape) and all(_dynamic(axis) or axis == size for axis, size in zip(shape, array.shape))
    if not fits:
        takes = ", ".join("?" if axis is None else str(axis) for axis in shape)
        raise KDExportError(
            f"{path}: '{name}' has the shape {list(array.shape)}, but the model takes [{takes}]",
            hint="save it in the model's shape; only a dynamic batch is cut or repeated to --batch-size",
        )
    for position, axis in enumerate(shape):
        if position not in batches or not _dynamic(axis) or array.shape[position] == batch_size:
            continue
        if not array.shape[position]:
            raise KDExportError(f"{path}: '{name}' holds no samples", hint="save one sample at least")
        array = np.take(array, np.arange(batch_size) % array.shape[position], axis=position)
    return np.asarray(array, order="C")  # ascontiguousarray would give a scalar an axis


def _check_kind(kind: str) -> None:
    """Refuse what ONNX Runtime does not bind: text, sequences, types that numpy lacks. No file of inputs fixes that."""
    if kind not in DTYPES:
        raise KDExportError(
            f"an input of type {kind} cannot be measured: ONNX Runtime binds tensors of numbers and bools only",
            hint="measure the part of the model that takes numbers, e.g. what comes after the tokenizer",
        )
