"""Python objects where a recipe takes references: a network, samples, a function of the user's own.

An object is kept in this process under ``object:NAME-HASH``. The hash is that of its content (code, weights, samples),
so that a run made again with equal objects is the same run. No file can name an object: a recipe that was written with
one runs from the Python that makes it.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kdexport.errors import RecipeError, SourceError

SCHEME = "object"
_KEPT: dict[str, Any] = {}


def refer(value: Any) -> str:
    """Keep an object and return the reference that stands for it."""
    name = getattr(value, "__name__", None) or type(value).__name__
    target = f"{''.join(letter for letter in name if letter.isalnum() or letter == '_')}-{_hash(value)}"
    _KEPT[target] = value
    return f"{SCHEME}:{target}"


def kept(target: str) -> Any:
    """Return what ``object:target`` stands for.

    Raises:
        SourceError: It was an object of another process, or is another than it was: its results would be mistaken for
            those of what it was.
    """
    if target in _KEPT and not target.endswith(_hash(_KEPT[target])):
        raise SourceError(
            f"{target.partition('-')[0]} has changed since the recipe was made from it", hint="make the recipe again"
        )
    if target not in _KEPT:
        raise SourceError(
            f"{SCHEME}:{target} was a Python object, and is not in this process",
            hint="run the recipe from the Python that makes the object, or give it as file.py:Name",
        )
    return _KEPT[target]


def network_reference(value: Any) -> Any:
    """Return a reference to a module, or to a function or class that makes one; anything else as it is."""
    return refer(value) if hasattr(value, "state_dict") or callable(value) else value


def splits_reference(value: Any) -> Any:
    """Return a reference to samples; anything else as it is.

    Args:
        value: ``(train, val, test)``, ``(train, test)`` or ``train`` alone, or a mapping of these names. Each is a
            ``torch.utils.data.Dataset``, a list of samples ``(input, target)``, or a pair of arrays. A function
            that returns a mapping is called when the data are read.

    Raises:
        RecipeError: Samples of one split differ in shape.
    """
    if isinstance(value, str | Mapping) and (isinstance(value, str) or "train" not in value):
        return value
    if callable(value):
        return refer(value)
    if not hasattr(value, "__len__"):  # a number or a date of a file: refused where it stands
        return value
    if isinstance(value, Mapping):
        splits = dict(value)
    elif isinstance(value, tuple) and not _is_pair(value):
        names = {1: ("train",), 2: ("train", "test"), 3: ("train", "val", "test")}.get(len(value))
        if names is None:
            raise RecipeError(
                f"data has {len(value)} parts", hint="give (train, val, test), (train, test), or one to be cut"
            )
        splits = dict(zip(names, value, strict=True))
    else:
        splits = {"train": value}
    named = ("train", "val", "test")
    return refer({name: _arrays(split, name) if name in named else split for name, split in splits.items()})


def _is_pair(value: Sequence[Any]) -> bool:
    """Whether something is ``(inputs, targets)``: two arrays, or a mapping of arrays and one."""
    if len(value) != 2:
        return False
    inputs = next(iter(value[0].values()), None) if isinstance(value[0], Mapping) else value[0]
    return all(hasattr(part, "shape") for part in (inputs, value[1])) and not isinstance(value[0], tuple)


def _arrays(split: Any, name: str) -> Any:
    """Return a split as ``(inputs, targets)``, read sample by sample where it is a data set."""
    if isinstance(split, tuple | list) and _is_pair(split):
        return tuple(_array(part) for part in split)
    if not hasattr(split, "__len__") and not hasattr(split, "__iter__"):
        raise RecipeError(f"data: {name} is a {type(split).__name__}, not samples", hint="give (inputs, targets)")
    samples = [split[index] for index in range(len(split))] if hasattr(split, "__getitem__") else list(split)
    if not all(isinstance(sample, tuple | list) and len(sample) == 2 for sample in samples):
        raise RecipeError(
            f"data: a sample of {name} is a {type(samples[0]).__name__}, not a pair" if samples else f"{name} is empty",
            hint="each sample is (input, target)",
        )
    inputs, targets = zip(*samples, strict=True)
    if isinstance(inputs[0], Mapping):
        return {key: _stacked([sample[key] for sample in inputs], name) for key in inputs[0]}, _stacked(targets, name)
    return _stacked(inputs, name), _stacked(targets, name)


def _stacked(values: Iterable[Any], name: str) -> Any:
    arrays = [_array(value) for value in values]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1:
        raise RecipeError(
            f"data: samples of {name} have different shapes: {list(shapes[0])}, {list(shapes[1])}",
            hint="bring them to one shape in the data set's transform",
        )
    return np.stack(arrays)


def _array(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _array(part) for key, part in value.items()}
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value)


def _hash(value: Any) -> str:
    digest = hashlib.sha256()
    _feed(value, digest.update)
    return digest.hexdigest()[:16]


def _feed(value: Any, update: Callable[[bytes], Any]) -> None:
    """Add an object's content to a hash."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            update(f"{key}:".encode())
            _feed(part, update)
    elif isinstance(value, tuple | list):
        for part in value:
            _feed(part, update)
    elif isinstance(value, np.ndarray):
        update(f"{value.dtype}{value.shape}".encode())
        update(np.ascontiguousarray(value).tobytes())
    elif hasattr(value, "state_dict") and not isinstance(value, type):  # a network, and no class of networks
        update(repr(value).encode())
        _feed_code(type(value), update)
        for key, part in value.state_dict().items():
            update(key.encode())
            if hasattr(part, "detach"):
                tensor = part.detach().cpu()
                _feed(tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy(), update)
    elif callable(value):
        _feed_code(value, update)
    else:
        update(repr(value).encode())


def _feed_code(value: Any, update: Callable[[bytes], Any]) -> None:
    """Add the source of a class or function, and what a function has closed over; its name where there is none."""
    try:
        update(inspect.getsource(value).encode())
    except (OSError, TypeError):
        code = getattr(value, "__code__", None)
        update(f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}".encode())
        if code is not None:
            update(code.co_code)
    for cell in getattr(value, "__closure__", None) or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        if isinstance(content, str | int | float | bool | tuple | list | np.ndarray):
            _feed(content, update)
