"""Arrays from .npz and .npy files of strangers: nothing is unpickled, nothing claims more than it is.

numpy's reader raises a dozen kinds of error on a damaged file, and takes what an archive claims to unpack to.
"""

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kdexport.errors import SourceError, check_readable

EXPANSION, SPARE_BYTES = 200, 256 << 20  # a larger array that was compressed further than this is no data
MAGIC = b"\x93NUMPY"


def read_arrays(path: Path, *, single: bool = False) -> dict[str, NDArray[Any]]:
    """Return the arrays of an npz file, after its headers have been held against its size.

    Args:
        path: The file.
        single: Whether an .npy file is taken too; its array is called "".

    Raises:
        SourceError: There is no such file, it is damaged, or holds Python objects.
    """
    if not path.is_file():
        raise SourceError(f"there is no file {path}", hint="check the path; in a recipe it is relative to the recipe")
    check_readable(path)
    hint = "write it with numpy.savez(path, x_train=..., y_train=...)"
    try:
        with path.open("rb") as file:
            if single and file.read(len(MAGIC)) == MAGIC:
                file.seek(0)
                _check_header(file, path.stat().st_size, path.name, path)
                file.seek(0)
                return {"": np.load(file, allow_pickle=False)}
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_expansion(sum(entry.compress_size for entry in entries), sum(e.file_size for e in entries), "", path)
            for entry in entries:
                _check_entry(archive, entry, path)
        with np.load(path, allow_pickle=False) as loaded:
            return {key: loaded[key] for key in loaded.files}
    except SourceError:
        raise
    except Exception as error:  # noqa: BLE001 zipfile, zlib, numpy and tokenize have a dozen kinds for a damaged file
        reason = type(error).__name__ if "pickle" in str(error) or not str(error) else str(error).splitlines()[0][:200]
        raise SourceError(f"{path} cannot be read as an npz file: {reason}", hint=hint) from None


def _check_expansion(stored: int, claimed: int, name: str, path: Path) -> None:
    if claimed > EXPANSION * max(stored, 1) and claimed > SPARE_BYTES:
        raise SourceError(
            f"{path} cannot be read as an npz file: {name or 'it '}would unpack from {stored >> 10:,} KiB to "
            f"{claimed >> 20:,} MiB",
            hint="write it with numpy.savez, which does not compress",
        )


def _check_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    name = entry.filename.removesuffix(".npy")
    _check_expansion(entry.compress_size, entry.file_size, f"{name} ", path)
    with archive.open(entry) as stream:
        _check_header(stream, entry.file_size, name, path)


def _check_header(stream: IO[bytes], size: int, name: str, path: Path) -> None:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise SourceError(
            f"{path} cannot be read as an npz file: {name} holds Python objects, which are not loaded",
            hint="give numbers in arrays of one shape: a table of 0 and 1 for several labels, texts as csv:FILE",
        )
    if math.prod(shape) * dtype.itemsize > size:
        raise SourceError(
            f"{path} cannot be read as an npz file: {name} claims the shape {list(shape)} and is shorter",
            hint="write it again, or copy it whole",
        )
