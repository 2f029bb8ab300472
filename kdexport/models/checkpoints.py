"""Checkpoint files as trainers write them: read without running what is in them, and taken apart into state dicts.

PyTorch's own restricted unpickler does the reading (``weights_only=True``). It is told a fixed list of harmless types
that trainers put beside the weights: none of them runs code of the file's choosing.

An ONNX model as a network is here too; torch.export programs are ``programs``'s.
"""

import argparse
import collections
import contextlib
import datetime
import pathlib
import re
import tarfile
import types
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from kdexport.errors import SourceError, check_readable
from kdexport.onnx.isolated import IsolatedSession
from kdexport.onnx.sessions import OnnxSession

DAMAGED_ZIP = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError)  # torch's reader tells it in words
SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".ckpt", ".bin", ".tar")
MOST_SEARCHED = 4000  # characters of an error message
MAX_DEPTH = 4  # of the nests that are looked into
MAX_LISTED = 64  # entries of a list that are looked into
MAX_ALIASES = 8  # places at which one and the same nest is named: a nest may hold itself
EXPANSION, SPARE_BYTES = 10, 64 << 20  # an archive that claims more than this many times its size is no checkpoint
NOT_WEIGHTS = re.compile(r"optim|sched|scaler|callbacks|loops|rng", re.IGNORECASE)  # a trainer's other nests


def read(path: Path) -> Any:
    """Return what a weights file holds; of a safetensors file its tensors by name.

    Raises:
        SourceError: Absent, no weights file, or a pickle that would run code; it is not run.
    """
    if path.is_dir():
        inside = sorted(item.name for item in path.iterdir() if item.suffix in SUFFIXES)
        raise SourceError(
            f"{path} is a folder, not a file of weights",
            hint=f"name a file in it: {', '.join(inside[:8])}" if inside else "it holds none: give the file itself",
        )
    if not path.is_file():
        raise SourceError(
            f"there is no weights file {path}", hint="check the path; in a recipe it is relative to the recipe"
        )
    check_readable(path)
    _check_no_web_page(path)
    _check_no_other_format(path)
    if path.suffix == ".safetensors":
        try:
            return dict(safetensors.torch.load_file(str(path)))
        except Exception as error:
            raise SourceError(
                f"{path} is no whole safetensors file: {error}", hint="download or save it again"
            ) from error
    _check_no_bomb(path)
    try:
        with warnings.catch_warnings(), _short_messages(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore", UserWarning)  # an unusual pickle protocol: it loads, or says why not
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files end in a dozen kinds, MemoryError and RecursionError among them
        raise _refused(path, error) from error
    if found is None:
        raise SourceError(f"no weights are found in {path}: it holds None", hint="save network.state_dict() into it")
    return found


def state_dicts(
    document: Any, place: str = "", depth: int = MAX_DEPTH, met: Counter[int] | None = None
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield every mapping that holds tensors, with its place: ``""``, ``"state_dict"``, ``"ema.model"``.

    What stands at several places is looked into once: ``met`` counts how often each was met.
    """
    met = Counter() if met is None else met
    nest = id(document)
    met[nest] += 1
    if met[nest] > MAX_ALIASES:
        return
    if isinstance(document, list | tuple):
        document = {str(number): item for number, item in enumerate(document[:MAX_LISTED])}
    if not isinstance(document, Mapping) or depth < 0:
        return
    if any(isinstance(value, Tensor) for value in document.values()):
        yield place, document
    for key, value in document.items() if met[nest] == 1 else ():
        if isinstance(value, Mapping | list | tuple) and not NOT_WEIGHTS.search(str(key)):
            yield from state_dicts(value, f"{place}.{key}" if place else str(key), depth - 1, met)


def _harmless() -> list[Any]:
    """Return the types that a checkpoint may hold beside tensors; ``(stand-in, "name in the file")`` for some.

    None of their constructors and state setters runs code of the file's choosing. Dictionaries with a class of their
    own, of libraries that may not be here, become plain ones.
    """
    scalar = np.float64(0).__reduce__()[0]  # numpy's own maker of scalars
    array = np.zeros(0).__reduce__()[0]
    known: list[Any] = [
        *(argparse.Namespace, types.SimpleNamespace, collections.OrderedDict, collections.Counter),
        *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone),
        *(int, float, complex, bool, str, bytes, list, dict, tuple, set, frozenset, slice),
        *(np.dtype, np.ndarray, *{type(np.dtype(code)) for code in np.typecodes["All"] if code != "O"}),
        (_plain_dict, "collections.defaultdict"),
    ]
    for core in ("numpy.core", "numpy._core"):
        known += [(scalar, f"{core}.multiarray.scalar"), (array, f"{core}.multiarray._reconstruct")]
    for module in ("pathlib", "pathlib._local"):
        known += [(pathlib.PurePosixPath, f"{module}.{name}") for name in ("PosixPath", "PurePosixPath", "Path")]
        known += [(pathlib.PureWindowsPath, f"{module}.{name}") for name in ("WindowsPath", "PureWindowsPath")]
    for name in (
        "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "yacs.config.CfgNode",
        "easydict.EasyDict",
    ):
        known.append((dict, name))
    return known


@contextlib.contextmanager
def _short_messages() -> Iterator[None]:
    """Let PyTorch search the beginning of its own error message alone: of a name without end that takes minutes."""
    shortened = types.SimpleNamespace(**vars(re))
    shortened.search = lambda pattern, text: re.search(pattern, text[:MOST_SEARCHED])
    serialization: Any = torch.serialization
    before, serialization.re = serialization.re, shortened
    try:
        yield
    finally:
        serialization.re = before


def _plain_dict(*_factory: Any) -> dict[Any, Any]:
    return {}


def _refused(path: Path, error: Exception) -> SourceError:
    text = str(error)[:MOST_SEARCHED]
    by_hand = "where you trust it, load it yourself and save network.state_dict() alone"
    names = sorted(set(re.findall(r"GLOBAL ([\w.]+)", text) + re.findall(r"GLOBAL (\S+) whose module", text)))
    if "TorchScript" in text:
        names = ["a TorchScript program"]
    if names:
        return SourceError(
            f"{path} holds code besides weights ({', '.join(name[:80] for name in names[:20])}) and was not loaded: "
            "nothing in it was run",
            hint=f"{by_hand}, e.g. with safetensors.torch.save_file",
        )
    if "legacy .tar format" in text:  # PyTorch's own advice is to load it without any check
        return SourceError(
            f"{path} is in the form that PyTorch wrote before version 0.2, which it does not load safely: nothing in "
            "it was run",
            hint=f"{by_hand}, with torch.save or safetensors.torch.save_file",
        )
    if "Unsupported operand" in text:  # an opcode of pickle protocol 4 and newer; torch writes 2
        return SourceError(
            f"{path} is pickled in a way that PyTorch does not load safely (torch.save writes protocol 2): nothing "
            "in it was run",
            hint=f"{by_hand}, with torch.save or safetensors.torch.save_file",
        )
    if isinstance(error, torch.serialization.pickle.UnpicklingError):  # type: ignore[attr-defined]
        return SourceError(
            f"{path} is no weights file that can be loaded safely",
            hint=f"{by_hand}, with torch.save or safetensors.torch.save_file",
        )
    reason = next(iter(text.splitlines()), "") or type(error).__name__
    return SourceError(f"{path} is no whole weights file: {reason}", hint="download or save it again")


def _check_no_bomb(path: Path) -> None:
    """Hold what an archive claims to unpack to against its size; torch stores tensors as they are."""
    with contextlib.suppress(*DAMAGED_ZIP), zipfile.ZipFile(path) as it:
        claimed = sum(entry.file_size for entry in it.infolist())
        if claimed > EXPANSION * path.stat().st_size + SPARE_BYTES:
            raise SourceError(
                f"{path} would unpack to {claimed >> 20:,} MiB from {path.stat().st_size >> 10:,} KiB: no weights do",
                hint="save network.state_dict() again, with torch.save",
            )


def _check_no_other_format(path: Path) -> None:
    """Name what a file is by how it begins, where that is no form of PyTorch's."""
    with path.open("rb") as handle:
        start = handle.read(512)
    names: list[str] = []
    with contextlib.suppress(*DAMAGED_ZIP), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if names and not any(name.endswith((".pkl", ".json")) for name in names):
        kind = "numpy's arrays" if all(name.endswith(".npy") for name in names) else "an archive"
        raise SourceError(
            f"{path} is {kind} ({', '.join(names[:4])}), not a file of weights",
            hint="give a file that torch.save or safetensors has written"
            + (": unpack it first" if kind == "an archive" else ""),
        )
    inside = [name for name in _tar_members(path) if name.endswith(SUFFIXES)] if start[257:262] == b"ustar" else []
    if inside:
        raise SourceError(
            f"{path} is an archive that holds {', '.join(inside[:4])}", hint="unpack it, and give the file"
        )
    known = {b"\x89HDF": "an HDF5 file, as Keras writes it", b"\x1f\x8b": "packed by gzip", b"BZh": "packed by bzip2"}
    known |= {b"{": "JSON, not weights", b"GGUF": "a GGUF file, as llama.cpp reads it"}
    what = next((text for mark, text in known.items() if start.startswith(mark)), None)
    if path.suffix == ".onnx":
        what = "an ONNX file, which holds a network and not weights by PyTorch's names"
    if what is not None and path.suffix != ".safetensors":
        raise SourceError(f"{path} is {what}", hint="give a file that torch.save or safetensors has written")


def _tar_members(path: Path) -> list[str]:
    with contextlib.suppress(tarfile.TarError, OSError), tarfile.open(path) as archive:
        return archive.getnames()
    return []


def _check_no_web_page(path: Path) -> None:
    with path.open("rb") as handle:
        start = handle.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise SourceError(
            f"{path} is a web page, not weights: the download went to a page about the file",
            hint="open the address in a browser, and download the file itself (the raw link)",
        )
    if start.startswith(b"version https://git-lfs"):
        raise SourceError(f"{path} is a Git LFS pointer, not weights", hint="fetch the file itself: git lfs pull")


class OnnxNetwork(nn.Module):
    """An ONNX file as a teacher: run by ONNX Runtime on the CPU, without gradients.

    It takes what the file takes; the preprocessing that it needs is ``preprocessing``. It is loaded, and its first
    batch run, in a child process before: what crashes ONNX Runtime is an error there, and would end a training here.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.onnx = OnnxSession(path, open_with=IsolatedSession)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return logits ``[batch, classes]``."""
        arrays = tuple(np.asarray(item.detach().cpu()) for item in inputs)
        logits = self.onnx.predict(arrays)
        if isinstance(self.onnx.session, IsolatedSession):  # it has not crashed: the rest is faster in this process
            self.onnx.session = OnnxSession(self.path).session
        return torch.from_numpy(logits).to(inputs[0].device)
