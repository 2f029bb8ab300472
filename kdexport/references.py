"""How the outside world is named: ``torchvision:resnet18``, ``nets.py:Student``, ``imagefolder:photos``.

A reference is pure text: nothing is imported or opened until ``load_object`` is asked for it. A path in a reference is
relative to the recipe (or the working directory for a flag) until ``absolute`` makes it whole.

``file.py:Name`` and ``package.module:Name`` are Python objects of the user's, found by name.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from kdexport import objects
from kdexport.errors import SourceError, did_you_mean

PATH_SCHEMES = ("imagefolder", "npz", "csv", "table", "masks", "coco", "yolo")  # what follows the colon is a path
SCHEMES = ("torchvision", "timm", "hf", objects.SCHEME, *PATH_SCHEMES)
_WITHOUT_PATH = ("torchvision", "timm", "hf", "module", "builtin", objects.SCHEME)


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
    if reference.kind == "hf" and os.path.isdir(reference.target):  # noqa: PTH112 - false for what is no path
        return Path(reference.target)
    return None


def absolute(text: str, base: Path) -> str:
    """Return the reference with its path, if it has one, made absolute against ``base``."""
    reference = parse(text)
    if reference.kind == "hf" and not os.path.isdir(base / reference.target):  # noqa: PTH112 - as above
        return text
    if reference.kind == "hf" or reference.kind not in _WITHOUT_PATH:
        whole = os.path.normpath(base / home(reference.target))
        return str(Reference(reference.kind, whole, reference.name))
    return text


def home(path: str) -> Path:
    """Return a path with ``~`` made whole; one of a user that this machine does not know stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def relative(text: str, base: Path) -> str:
    """Return the reference with its path, if it has one, relative to ``base``: the form that a moved folder keeps."""
    reference = parse(text)
    path = path_of(reference)
    if path is None or not path.is_absolute():
        return text
    return str(Reference(reference.kind, os.path.relpath(path, base), reference.name))


OWN = Path(__file__).parent  # the package: what fails in it is not the user's line


def load_object(reference: Reference) -> Any:
    """Return what a ``file``, ``module`` or ``object`` reference names.

    Raises:
        SourceError: No such object, file, module or name, or the code raises while it is imported.
    """
    if reference.kind == objects.SCHEME:
        return objects.kept(reference.target)
    module = _from_file(Path(reference.target)) if reference.kind == "file" else _from_package(reference)
    if not hasattr(module, reference.name):
        public = sorted(name for name, value in vars(module).items() if name[0] != "_" and not inspect.ismodule(value))
        near = did_you_mean(reference.name, public) or f"it has: {', '.join(public[:20]) or 'nothing'}"
        raise SourceError(f"{reference.target} has no '{reference.name}'", hint=near.strip())
    return getattr(module, reference.name)


def call(reference: Reference, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call the user's class or factory.

    Raises:
        SourceError: It raises, or doesn't take these arguments; the place in the user's code is named.
    """
    try:
        with _importable(reference):
            return function(**arguments)
    except SourceError:
        raise
    except (Exception, SystemExit) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise SourceError(
            f"{reference}({shown}) raises {type(error).__name__}: {error}{place(error)}",
            hint="fix the code, or the args in the recipe; --verbose shows the traceback",
        ) from error


def local_sources(path: Path) -> list[Path]:
    """Return a Python file and the files of its own folder that it imports, directly or not."""
    found: dict[Path, None] = {}
    waiting = [path.resolve()]
    while waiting:
        file = waiting.pop()
        if file in found or not file.is_file():
            continue
        found[file] = None
        for name in _imported(file):
            parts = name.split(".")
            base = path.resolve().parent.joinpath(*parts)
            waiting += [base.with_suffix(".py"), base / "__init__.py"]
    return sorted(found)


def _imported(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:  # said when it is imported
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module:
                yield node.module
            yield from (f"{node.module}.{alias.name}" if node.module else alias.name for alias in node.names)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise SourceError(f"there is no file {path}", hint="check the path; in a recipe it is relative to the recipe")
    # A name of its own for each content: two nets.py can live side by side, and a changed file is read again.
    digest = hashlib.sha256(str(path.resolve()).encode() + path.read_bytes()).hexdigest()[:12]
    name = f"kdexport_user_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise SourceError(f"{path} is no Python file", hint="a reference of this form is file.py:Name")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        with _importable(Reference("file", str(path))):
            specification.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception | SystemExit):
            raise
        raise SourceError(
            f"{path} cannot be imported: {type(error).__name__}: {error}{place(error)}",
            hint="fix the file, or install what it imports; --verbose shows the traceback",
        ) from error
    return module


def _from_package(reference: Reference) -> ModuleType:
    try:
        with _importable(reference):
            return importlib.import_module(reference.target)
    except (Exception, SystemExit) as error:
        raise SourceError(
            f"the module {reference.target} cannot be imported: {type(error).__name__}: {error}{place(error)}",
            hint="install its package into this environment, or give a file as path/to/file.py:Name",
        ) from error


@contextmanager
def _importable(reference: Reference) -> Iterator[None]:
    """Let the user's code import its neighbours: a file's own folder, or the working directory for a module.

    Code that parses arguments gets none: the command line is kdexport's.
    """
    folder = str(Path(reference.target).resolve().parent) if reference.kind == "file" else str(Path.cwd())
    sys.path.insert(0, folder)
    arguments, sys.argv = sys.argv, [reference.target]
    try:
        yield
    finally:
        sys.argv = arguments
        if folder in sys.path:  # the code may have changed it
            sys.path.remove(folder)


def place(error: BaseException) -> str:
    """Return where an error came from: the user's own line where there is one, else a library's."""
    if isinstance(error, SyntaxError):
        return ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if OWN not in Path(frame.filename).parents]
    frames = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    frames = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
