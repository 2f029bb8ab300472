"""Decode once: pictures of any kind become one file of uint8 samples, so that an epoch does no JPEG work."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kdexport.artifacts import read_json, write_atomically, write_text
from kdexport.data.disk_arrays import open_rows
from kdexport.errors import SourceError
from kdexport.machine import usable_cores
from kdexport.progress import Progress, Silent

LARGEST_SIDE = 256  # that pictures of differing sizes are stored with, unless the recipe says otherwise: ImageNet's 256
CHUNK_BYTES = 8 << 20
SIZE_SAMPLE = 200  # pictures whose sizes are looked at for the common size


@dataclass(frozen=True)
class Pictures:
    """Pictures that can be opened one by one, from any thread."""

    names: Sequence[str]  # for messages
    open: Callable[[int], Image.Image]


@dataclass(frozen=True)
class Stored:
    """Decoded pictures on disk."""

    images: NDArray[Any]  # uint8 [pictures, height, width, 3], read when indexed
    kept: NDArray[np.int64]  # which of the pictures these are
    skipped: tuple[str, ...]  # name and reason of each damaged one
    note: str


def decode_once(
    pictures: Pictures,
    path: Path,
    key: str,
    *,
    size: tuple[int, int] | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Stored:
    """Return pictures decoded into ``path``, from an earlier time if they were made from the same ``key``.

    A picture is turned as its EXIF data say, made RGB (what is transparent becomes white) and, where sizes differ,
    scaled to cover ``size`` and cut to its middle.

    Args:
        pictures: What to decode.
        path: The file of samples; a description goes beside it.
        key: Stands for the pictures' content.
        size: Height and width to store; None: their own where all have the same, else a square of the usual short side,
            at most 256.
        skip_bad: Whether a damaged picture is left out, else it is an error.
        progress: Where the decoding shows.

    Raises:
        SourceError: A picture is damaged (its name is said), or all are.
    """
    description = path.with_suffix(".json")
    found = read_json(description)
    wanted = [key, list(size) if size else None]
    if found is None or found.get("made_from") != wanted or not _whole(path, found):
        description.unlink(missing_ok=True)  # from here to its writing, the file of samples is not to be trusted
        found = _decode(pictures, path, size or _common_size(pictures, skip_bad), skip_bad, progress or Silent())
        found["made_from"] = wanted
        write_text(description, json.dumps(found))
    skipped = cast(list[list[Any]], found["skipped"])
    if skipped and not skip_bad:
        raise _damaged(skipped[0][1])
    shape = tuple(found["shape"])
    kept = np.delete(np.arange(len(pictures.names)), [index for index, _ in skipped])
    note = f"{shape[0]} pictures decoded to {shape[1]}x{shape[2]}"
    return Stored(open_rows(path, shape), kept, tuple(reason for _, reason in skipped), note)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture upright and in RGB; what is transparent becomes white, 16-bit grey keeps its upper 8 bits."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        wide = np.asarray(picture, dtype=np.int64)
        return Image.fromarray((wide // 256 if wide.max(initial=0) > 255 else wide).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _decode(
    pictures: Pictures, path: Path, size: tuple[int, int], skip_bad: bool, progress: Progress
) -> dict[str, Any]:
    skipped: list[tuple[int, str]] = []

    def decode(index: int) -> NDArray[np.uint8] | str:
        try:
            with pictures.open(index) as picture:
                if picture.format == "JPEG":
                    picture.draft("RGB", (2 * size[1], 2 * size[0]))  # a large one is decoded at a fraction of its size
                upright = to_rgb(picture)
            if upright.size != (size[1], size[0]):
                upright = ImageOps.fit(upright, (size[1], size[0]), Image.Resampling.BILINEAR)
            return np.asarray(upright)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f"{pictures.names[index]}: {error}"

    def write(temporary: Path) -> None:
        chunk = max(16, CHUNK_BYTES // (size[0] * size[1] * 3))
        total = len(pictures.names)
        with (
            temporary.open("wb") as handle,
            ThreadPoolExecutor(usable_cores()) as pool,
            progress.task("decode pictures", total) as task,
        ):
            for start in range(0, total, chunk):
                indices = range(start, min(start + chunk, total))
                for index, decoded in zip(indices, pool.map(decode, indices), strict=True):
                    if isinstance(decoded, str):
                        if not skip_bad:
                            raise _damaged(decoded)
                        skipped.append((index, decoded))
                    else:
                        handle.write(decoded.tobytes())
                task.advance(len(indices))
        if len(skipped) == total:
            raise _damaged(skipped[0][1])

    write_atomically(path, write)
    return {"shape": [len(pictures.names) - len(skipped), *size, 3], "skipped": skipped}


def _damaged(reason: str) -> SourceError:
    return SourceError(
        f"a picture cannot be decoded: {reason}",
        hint='replace or delete it, or set on_bad_sample = "skip" under [data] to leave out and list such pictures',
    )


def _whole(path: Path, description: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == int(np.prod(description["shape"], dtype=np.int64))


def _common_size(pictures: Pictures, skip_bad: bool) -> tuple[int, int]:
    sizes = []
    uniform = True
    step = max(1, len(pictures.names) // SIZE_SAMPLE)
    for index in [*range(0, len(pictures.names), step), *range(len(pictures.names))]:
        try:
            with pictures.open(index) as picture:
                turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientation: a quarter turn
                width, height = reversed(picture.size) if turned else picture.size
        except (OSError, ValueError, SyntaxError) as error:
            if skip_bad:
                continue
            raise _damaged(f"{pictures.names[index]}: {error}") from None
        sizes.append((height, width))
        uniform = uniform and sizes[-1] == sizes[0]
        if not uniform and len(sizes) >= min(SIZE_SAMPLE, len(pictures.names)):
            break
    if not sizes:
        raise SourceError("no picture can be opened", hint="give JPEG, PNG or other files that Pillow can read")
    if uniform:
        return sizes[0]
    side = min(LARGEST_SIDE, round(float(np.median([min(size) for size in sizes]))))
    return side, side
