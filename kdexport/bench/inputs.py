"""What is fed to a model: shapes from its graph, values that are right for its types. Needs numpy alone."""

import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from kdexport.errors import KDExportError, did_you_mean

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

Shape = Sequence[str | int | None]  # a dynamic axis by its name; "?" or None where it has none


def resolve_shapes(
    inputs: Mapping[str, Sequence[str | int]], batch_size: int, dims: Mapping[str, int], *, model: str
) -> dict[str, tuple[int, ...]]:
    """Give every dynamic axis a value.

    The first axis is the batch where it is dynamic, and so is every axis of the same name; the others take theirs from
    ``dims``.

    Args:
        inputs: Name -> shape of each input, a dynamic axis by its name (or ``"?"``).
        batch_size: Samples per call.
        dims: Values of dynamic axes by name.
        model: The model's name, for messages.

    Raises:
        KDExportError: An axis has no value, the batch is fixed to another size, or ``dims`` names an unknown axis.
    """
    check_batch(inputs, batch_size, model=model)
    batches = _batch_names(inputs)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in inputs.items():
        sizes = []
        for position, axis in enumerate(shape):
            if isinstance(axis, int):
                sizes.append(axis)
            elif position == 0 or axis in batches:
                sizes.append(batch_size)
            elif axis in dims:
                sizes.append(dims[axis])
            else:
                raise KDExportError(
                    f"{model}: axis {position} of input '{name}' is dynamic ('{axis}') and has no value",
                    hint=f"give one with --dim {axis}=64",
                )
        shapes[name] = tuple(sizes)
    return shapes


def check_batch(inputs: Mapping[str, Shape], batch_size: int, *, model: str) -> None:
    """Refuse a batch size that the model cannot take; raises as ``resolve_shapes``, whose arguments these are."""
    batches = {name: shape[0] for name, shape in inputs.items() if len(shape) > 1}
    fixed = {name: size for name, size in batches.items() if isinstance(size, int)}
    if fixed and len(fixed) == len(batches) and batch_size not in fixed.values():
        name, size = next(iter(fixed.items()))
        raise KDExportError(
            f"{model}: the batch of input '{name}' is fixed to {size}; batch size {batch_size} cannot be measured",
            hint=f"give --batch-size {size}, or export the model with a dynamic batch",
        )


def check_dims(models: Sequence[Mapping[str, Sequence[str | int]]], dims: Mapping[str, int]) -> None:
    """Refuse a value for an axis that no model has, or that is the batch.

    Raises:
        KDExportError: Such a name is in ``dims``.
    """
    batch = {name for inputs in models for name in _batch_names(inputs)}
    known = sorted(
        {
            axis
            for inputs in models
            for shape in inputs.values()
            for axis in shape[1:]
            if isinstance(axis, str) and axis not in _batch_names(inputs)
        }
    )
    for name in dims:
        if name in batch and name not in known:
            raise KDExportError(f"--dim {name}: that axis is the batch", hint=f"give --batch-size {dims[name]}")
        if name not in known:
            raise KDExportError(
                f"--dim {name}: no model has a dynamic axis of that name",
                hint=did_you_mean(name, known) or f"there are: {', '.join(known) or 'none'}",
            )


def _batch_names(inputs: Mapping[str, Shape]) -> set[str]:
    """Return the names of the axes that are some input's first: ``batch`` of an RNN's state [2, batch, 64] too."""
    return {shape[0] for shape in inputs.values() if shape and isinstance(shape[0], str) and shape[0] != "?"}


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
    path: str, kinds: Mapping[str, str], shapes: Mapping[str, Shape], batch_size: int
) -> dict[str, np.ndarray]:
    """Take the inputs from an .npz file: one array per input of the model.

    The batch axes are cut or repeated to ``batch_size``; all else is fed as it lies in the file.

    Args:
        path: The file.
        kinds: Name -> type of each input, as ONNX Runtime names it.
        shapes: Name -> shape of each input as the graph has it.
        batch_size: Samples per call.

    Raises:
        KDExportError: The file holds no arrays, or an input is missing from it or has another type or shape.
    """
    batches = _batch_names(shapes)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {
                name: _fitted(path, name, _typed(path, name, kind, archive), shapes[name], batches, batch_size)
                for name, kind in kinds.items()
            }
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise KDExportError(
            f"{path} is not an .npz file with arrays of numbers: {error}",
            hint="write it with numpy.savez(FILE, NAME=ARRAY, ...), an array per input",
        ) from None


def _typed(path: str, name: str, kind: str, archive: "np.lib.npyio.NpzFile") -> np.ndarray:
    if name not in archive:
        raise KDExportError(
            f"{path} holds no array '{name}', which the model needs",
            hint=f"it holds: {', '.join(archive.files) or 'nothing'}; name the arrays as the model's inputs",
        )
    _check_kind(kind)
    array: np.ndarray = archive[name]
    if array.dtype != DTYPES[kind]:
        raise KDExportError(
            f"{path}: '{name}' is {array.dtype}, but the model takes {kind}",
            hint=f"save it as numpy.{np.dtype(DTYPES[kind]).name}",
        )
    return array


def _fitted(path: str, name: str, array: np.ndarray, shape: Shape, batches: set[str], batch_size: int) -> np.ndarray:
    """Return the array with its batch axes cut or repeated to the batch size; refuse what the graph does not take."""
    if not shape and array.ndim:  # a graph that says nothing of the shape
        shape = ("?",) * array.ndim
    fits = array.ndim == len(shape) and all(
        not isinstance(axis, int) or axis == size for axis, size in zip(shape, array.shape, strict=True)
    )
    if not fits:
        takes = ", ".join("?" if axis is None else str(axis) for axis in shape)
        raise KDExportError(
            f"{path}: '{name}' has the shape {list(array.shape)}, but the model takes [{takes}]",
            hint="save it in the model's shape; only a dynamic batch is cut or repeated to --batch-size",
        )
    for position, axis in enumerate(shape):
        batch = axis in batches or (position == 0 and not isinstance(axis, int))
        if not batch or array.shape[position] == batch_size:
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
