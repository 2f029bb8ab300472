"""The one cache rule: a result is reused if it was made from the same content, and its files are still whole.

``cache_key`` stands for all that a result depends on and nothing else: settings by value, files by their bytes,
never by where they lie. ``mark_done`` writes the key and the files' digests beside the result, and a seal of all that;
``is_done`` compares them: what was damaged or edited since is made again. Every stage, phase and cache of a run goes by
these three.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from kdexport import __version__, results
from kdexport.artifacts import key_of, read_json, sha256, write_json
from kdexport.recipe import Data
from kdexport.recipe.text import PRETRAINED
from kdexport.references import Reference, local_sources, parse, path_of

T = TypeVar("T")
SEAL = "seal"
STAMPED = ("key", "files", SEAL)
HASHED_BELOW = 1 << 30  # bytes: a larger file is known by its size alone, for its digest would take longer than its use


def cache_key(kind: str, **depends_on: Any) -> str:
    """Return the key of a result: a hash of what it is and of all that it depends on, this version of kdexport too.

    Args:
        kind: What is made: ``"bench"``, ``"student"``, ``"teacher logits"``.
        depends_on: JSON-able values by name.

    Raises:
        ValueError: One of them holds an absolute path: a run directory that was moved would be made again. Take the
            file's content (``fingerprint``, ``artifacts.sha256``) instead; for what a user wrote, ``as_written``.
    """
    for name, value in depends_on.items():
        for text in _texts(value):
            if any(Path(part).is_absolute() and Path(part).exists() for part in _parts(text)):
                raise ValueError(f"the key of {kind} holds the place of a file: {name} = {text}")
    return key_of(kind, __version__, depends_on)


def as_written(value: Any) -> str:
    """Return what stands in a key for a user's own words, which may be or look like a place: the browser
    ``/usr/bin/chromium``, an argument ``folder = "/data"``, a class named ``/``.
    """
    return key_of(value)


def mark_done(record: Path, key: str, result: Any, files: Iterable[Path] = ()) -> None:
    """Write a result's JSON with the key that it was made from and the digests of its files.

    Args:
        record: The JSON file.
        key: From ``cache_key``; empty for a result that is not finished.
        result: A dataclass of ``kdexport.results``, or a JSON object.
        files: What the result stands for; a large one is known by its size alone, see ``HASHED_BELOW``.
    """
    write_json(record, stamped(results.to_json(result), record.parent, key, files))


def stamped(document: dict[str, Any], folder: Path, key: str, files: Iterable[Path] = ()) -> dict[str, Any]:
    """Return a result's document with what ``is_done`` compares; for a record in ``folder`` in a form of its own."""
    digests = {os.path.relpath(file, folder): _digest(file) for file in files}
    whole = {**document, "key": key, "files": digests}
    return {**whole, SEAL: _seal(whole)}


def read_sealed(record: Path) -> dict[str, Any] | None:
    """Return a record's document; None where there is none, or where it is not what was written.

    One without a seal, as earlier versions wrote them, is taken at its word.
    """
    document = read_json(record)
    return document if document is None or document.get(SEAL, _seal(document)) == _seal(document) else None


def result_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's document without what ``stamped`` has added."""
    return {name: value for name, value in document.items() if name not in STAMPED}


def is_done(record: Path, key: str, moved: Mapping[str, Path] | None = None) -> dict[str, Any] | None:
    """Return a record's document if it was made from ``key`` and its files are whole, else None.

    Args:
        record: The JSON file.
        key: From ``cache_key``.
        moved: Where files lie now that the record knows under another name, by that name.
    """
    document = read_sealed(record)
    if document is None or not key or document.get("key") != key:
        return None
    files = document.get("files")
    if not isinstance(files, dict):
        return None
    places = {name: (moved or {}).get(name, record.parent / name) for name in files}
    return document if all(_is_whole(place, files[name]) for name, place in places.items()) else None


def done(record: Path, key: str, kind: type[T]) -> T | None:
    """Return the result that a record holds, as ``is_done``; None too where another version of kdexport wrote it."""
    document = is_done(record, key)
    if document is None:
        return None
    try:
        return results.from_json(kind, result_of(document))
    except ValidationError:
        return None


def _seal(document: Mapping[str, Any]) -> str:
    """Return a hash of a document as JSON gives it back, whose keys are text."""
    return key_of(json.loads(json.dumps({name: value for name, value in document.items() if name != SEAL})))


def _digest(file: Path) -> list[Any]:
    size = file.stat().st_size
    return [size, sha256(file) if size < HASHED_BELOW else None]


def _is_whole(file: Path, was: Any) -> bool:
    if not (isinstance(was, list) and len(was) == 2 and file.is_file()):
        return False
    return [file.stat().st_size, None if was[1] is None else sha256(file)] == was


def _parts(text: str) -> tuple[str, str, str]:
    """Return a text and what it may hold beside a scheme or a name: ``npz:PATH``, ``PATH:Name``."""
    return text, text.partition(":")[2], text.rpartition(":")[0]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


_LIBRARIES = {"torchvision": "torchvision", "timm": "timm", "hf": "transformers", "builtin": "scikit-learn"}


def fingerprint(reference: str, args: Mapping[str, Any] | None = None) -> str:
    """Return a hash of what a model or data reference stands for.

    A file counts by its bytes (with the files beside it that it imports, or ONNX's external data), a folder by the
    names, sizes and times of its files, a library's name by the library's version. The place of a file doesn't count: a
    moved run stays the same run. An argument that names a file or folder counts by its content too.
    """
    parsed = parse(reference)
    path = path_of(parsed)
    base = path.resolve().parent if path is not None else Path.cwd()
    arguments = {key: [value, _argument(value, base)] for key, value in sorted((args or {}).items())}
    return key_of(parsed.kind, parsed.name, _content(parsed, path), arguments)


def data_fingerprint(data: Data) -> list[Any]:
    """Return what stands for all that a recipe's [data] gives: contents instead of places, and every other key."""
    places = {"source", "root", "args", "unlabelled", "tokenizer"}
    others = [data.unlabelled, data.tokenizer]
    contents = [fingerprint(data.source, data.args), *(fingerprint(other) if other else None for other in others)]
    return [*contents, as_written(data.model_dump(mode="json", exclude=places))]


def weights_fingerprint(weights: str | None) -> str | None:
    """Return a hash of the weights that a recipe names: a file's bytes, or the library's own."""
    if weights is None or weights == PRETRAINED:
        return weights
    path = Path(weights)
    return sha256(path) if path.is_file() else None  # an absent file is said when it is loaded


def _content(reference: Reference, path: Path | None) -> Any:
    if path is not None:
        if path.is_dir():
            return _listing(path)
        if not path.is_file():
            return None
        files = local_sources(path) if reference.kind == "file" else [path, *_external_data(path)]
        return [sha256(file) for file in files]
    if reference.kind == "module":
        return _module(reference.target)
    return [reference.target, _version(_LIBRARIES.get(reference.kind, ""))]


def _listing(folder: Path) -> str:
    """Return a hash of the names, sizes and times under a folder; a million files take no memory."""
    digest = hashlib.sha256()
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            status = os.stat(f"{place}/{name}")  # noqa: PTH116 a Path for each of a million files is slow
            digest.update(f"{place[len(str(folder)) :]}/{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _external_data(path: Path) -> list[Path]:
    """Return the weights that ONNX keeps beside the file, under the names that exporters use."""
    return [file for file in (path.with_name(path.name + ".data"), path.with_suffix(".data")) if file.is_file()]


def _module(name: str) -> list[Any]:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # said when it is loaded
        found = None
    origin = Path(found.origin) if found is not None and found.origin else None
    return [name, sha256(origin) if origin is not None and origin.is_file() else None, _version(name.partition(".")[0])]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution) if distribution else None
    except metadata.PackageNotFoundError:
        return None


def _argument(value: Any, base: Path) -> Any:
    if not isinstance(value, str) or not value or "\n" in value or len(value) > 1000:
        return None
    for path in (base / value, Path(value)):
        if path.is_file():
            return sha256(path)
        if path.is_dir():
            return _listing(path)
    return None
