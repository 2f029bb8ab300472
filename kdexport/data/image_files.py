"""Picture files by their places, decoded once."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from kdexport.data.image_cache import Pictures, Stored, decode_once
from kdexport.data.samples import Reading
from kdexport.recipe import Data

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
    *(".jp2", ".avif"),
)
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")  # Pillow's names of these


def open_picture(path: str | Path) -> Image.Image:
    """Open a picture in one of the known formats, whatever its name says.

    Pillow knows others, and takes what begins like one under any name: for an EPS file it starts Ghostscript.
    """
    return Image.open(path, formats=_formats())


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # an older Pillow has no AVIF


@dataclass(frozen=True)
class Files:
    """Pictures by their places."""

    root: str
    names: Sequence[str]  # relative to root

    @classmethod
    def of(cls, root: Path, names: Sequence[str]) -> "Files":
        """Return those under a folder."""
        return cls(str(root), names)

    def open(self, index: int) -> Image.Image:
        """Open one."""
        return open_picture(os.path.join(self.root, self.names[index]))  # noqa: PTH118 - a name may be a whole path

    def key(self) -> str:
        """Stands for their content: names, sizes and times, one by one, so that a long list takes no memory."""
        digest = hashlib.sha256()
        for name in self.names:
            place = os.path.join(self.root, name)  # noqa: PTH118
            try:
                status = os.stat(place)  # noqa: PTH116 a Path for each of a million files is slow
            except OSError:  # a link to nothing, which is said when it is opened
                status = os.lstat(place)
            digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0"))
        return digest.hexdigest()


def store(
    files: Files,
    data: Data,
    reading: Reading,
    name: str,
    size: tuple[int, int] | None,
    levels: tuple[float, float] | None,
) -> Stored:
    """Return pictures decoded once into the file ``name`` of the cache, as [data] says."""
    return decode_once(
        Pictures(files.names, files.open),
        reading.cache / name,
        files.key(),
        size=size,
        needed=reading.needed,
        levels=levels,
        skip_bad=data.on_bad_sample == "skip",
        progress=reading.progress,
    )
