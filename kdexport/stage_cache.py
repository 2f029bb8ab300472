"""What a reference stands for, as a short hash: how a stage knows that the world has not changed under it."""

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from kdexport.artifacts import key_of, sha256
from kdexport.recipe import PRETRAINED, Data
from kdexport.references import Reference, parse, path_of
from kdexport.user_code import local_sources

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
    return [*contents, data.model_dump(mode="json", exclude=places)]


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
