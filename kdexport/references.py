"""How the outside world is named: ``torchvision:resnet18``, ``nets.py:Student``, ``imagefolder:photos``.

Pure text: nothing is imported or opened here. A path in a reference is relative to the recipe (or the working
directory for a flag) until ``absolute`` makes it whole.
"""

import os
from dataclasses import dataclass
from pathlib import Path

PATH_SCHEMES = ("imagefolder", "npz", "csv", "table", "masks", "coco", "yolo")  # what follows the colon is a path
SCHEMES = ("torchvision", "timm", "hf", *PATH_SCHEMES)
_WITHOUT_PATH = ("torchvision", "timm", "hf", "module", "builtin")


@dataclass(frozen=True)
class Reference:
    """A parsed reference.

    ``kind`` is a scheme of ``SCHEMES``, or any other word before a colon and a path (``scheme:rows.txt``), or
    ``"file"`` (``file.py:Name``), ``"module"`` (``package.module:Name``), ``"path"`` (a file of its own: ``model.pt2``,
    ``model.onnx``) or ``"builtin"`` (``digits``).
    """

    kind: str
    target: str  # name in the scheme, path, or module
    name: str = ""  # what to take from a file or module

    def __str__(self) -> str:
        if self.kind in ("path", "builtin"):
            return self.target
        if self.kind in ("file", "module"):
            return f"{self.target}:{self.name}"
        return f"{self.kind}:{self.target}"


def parse(text: str) -> Reference:
    """Parse a reference. Every text has a reading; whether the thing exists shows when it is loaded."""
    head, colon, tail = text.rpartition(":")
    scheme, scheme_colon, rest = text.partition(":")
    if scheme_colon and scheme in SCHEMES:
        return Reference(scheme, rest)
    if len(scheme) > 1 and scheme.isidentifier() and _is_path(rest) and not head.endswith(".py"):
        return Reference(scheme, rest)
    if colon and head.endswith(".py"):
        return Reference("file", head, tail)
    if colon and tail.isidentifier() and "/" not in head and os.sep not in head:
        return Reference("module", head, tail)
    if _is_path(text):
        return Reference("path", text)
    return Reference("builtin", text)


def _is_path(text: str) -> bool:
    return "/" in text or os.sep in text or bool(Path(text).suffix)


def path_of(reference: Reference) -> Path | None:
    """Return the file or folder that a reference names, or None where it names none.

    ``hf:`` is a path only where such a folder exists; otherwise it is a name on the hub.
    """
    if reference.kind not in _WITHOUT_PATH:
        return Path(reference.target)
    if reference.kind == "hf" and Path(reference.target).is_dir():
        return Path(reference.target)
    return None


def absolute(text: str, base: Path) -> str:
    """Return the reference with its path, if it has one, made absolute against ``base``."""
    reference = parse(text)
    if reference.kind == "hf" and not (base / reference.target).is_dir():
        return text
    if reference.kind == "hf" or reference.kind not in _WITHOUT_PATH:
        whole = os.path.normpath(base / Path(reference.target).expanduser())
        return str(Reference(reference.kind, whole, reference.name))
    return text


def relative(text: str, base: Path) -> str:
    """Return the reference with its path, if it has one, relative to ``base``: the form that a moved folder keeps."""
    reference = parse(text)
    path = path_of(reference)
    if path is None or not path.is_absolute():
        return text
    return str(Reference(reference.kind, os.path.relpath(path, base), reference.name))
