"""Decode once: pictures of any kind become one file of uint8 samples, so that an epoch does no JPEG work."""

import contextlib
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import EpsImagePlugin, Image, ImageOps

from kdexport import memory
from kdexport.artifacts import write_atomically
from kdexport.data.samples import PicturesNeeded, open_rows
from kdexport.errors import SourceError
from kdexport.machine import parallel
from kdexport.progress import Progress, Silent
from kdexport.stage_cache import cache_key, is_done, mark_done

LARGEST_SIDE = 256  # of pictures of differing sizes as stored, unless a network or the recipe needs more: ImageNet's
DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras, scanners and detectors give
FAULTS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    EOFError,
    struct.error,
    MemoryError,
    Image.DecompressionBombError,
)
EpsImagePlugin.gs_binary = False  # Ghostscript would run what a stranger's picture says, also one that `datasets` opens
CHUNK_BYTES = 8 << 20
LARGE = 1 << 25  # pixels of a picture that is decoded alone and made smaller in parts: of several at once, or of its
# copies in other modes, a small file takes many gigabytes
PART = 1 << 20  # pixels of such a part
EXIF_ORIENTATION = 0x0112
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
    levels: tuple[float, float] | None = None  # of deep pictures: what was scaled to 0..255
    warnings: tuple[str, ...] = ()  # what of the pictures was not read


def decode_once(
    pictures: Pictures,
    path: Path,
    key: str,
    *,
    size: tuple[int, int] | None = None,
    needed: PicturesNeeded | None = None,
    levels: tuple[float, float] | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Stored:
    """Return pictures decoded into ``path``, from an earlier time if they were made from the same ``key``.

    A picture is turned as its EXIF data say, made RGB (what is transparent becomes white) and, where sizes differ,
    scaled to cover ``size`` and cut to its middle. Pictures of more than 8 bits are scaled to 0..255 alike, by what the
    deepest of them holds.

    Args:
        pictures: What to decode.
        path: The file of samples; a description goes beside it.
        key: Stands for the pictures' content.
        size: Height and width to store; None: their own where all have the same, else a square of the usual short side,
            at most 256 or what the networks need.
        needed: What the networks need.
        levels: Of deep pictures: which values become 0 and 255; None: found.
        skip_bad: Whether a damaged picture is left out, else it is an error.
        progress: Where the decoding shows.

    Raises:
        SourceError: A picture is damaged (its name is said), or all are.
    """
    description = path.with_suffix(".json")
    needed = needed or PicturesNeeded()
    whole_key = cache_key("pictures", content=key, size=list(size) if size else needed.key, levels=levels)
    found = is_done(description, whole_key)
    if found is None:
        description.unlink(missing_ok=True)  # from here to its writing, the file of samples is not to be trusted
        progress = progress or Silent()
        with silent():
            stored, smaller = (size, None) if size else _common_size(pictures, skip_bad, needed)
            try:
                found = _decode(pictures, path, stored, levels, skip_bad, progress)
            except _Deep:
                levels = _levels(pictures, progress)
                found = _decode(pictures, path, stored, levels, skip_bad, progress)
        found.update(levels=list(levels) if levels else None, smaller=smaller)
        mark_done(description, whole_key, found, [path])
    skipped = cast(list[list[Any]], found["skipped"])
    if skipped and not skip_bad:
        raise _damaged(skipped[0][1])
    shape = tuple(found["shape"])
    kept = np.delete(np.arange(len(pictures.names)), [index for index, _ in skipped])
    note = f"{shape[0]} pictures decoded to {shape[1]}x{shape[2]}"
    low, high = found.get("levels") or (0, 255)
    if (low, high) != (0, 255):
        note += f", those of more than 8 bits scaled alike from {low:g}..{high:g} to 0..255"
    if found.get("smaller"):
        note += f"; a network takes {found['smaller']}x{found['smaller']}, which most of them do not have"
    used = (low, high) if found.get("levels") else None
    several = [pictures.names[index] for index in found.get("several") or ()]
    warnings = (_firstalone(several, len(kept)),) if several else ()
    return Stored(open_rows(path, shape), kept, tuple(reason for _, reason in skipped), note, used, warnings)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep what Pillow warns of, a large size or damaged EXIF data, from the terminal; enter it before any thread."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def holds_several(picture: Image.Image) -> bool:
    """Whether a file holds several pages or frames; a JPEG with a preview or a second view behind it counts as one."""
    return bool(getattr(picture, "is_animated", False)) and picture.format != "MPO"


def _firstalone(several: list[str], pictures: int) -> str:
    has = "picture has" if len(several) == 1 else "pictures have"
    return (
        f"{len(several)} of {pictures} {has} several pages or frames, of which the first alone is read, e.g. "
        f"{several[0]}; save the others as files of their own if they are samples, too"
    )


class _Deep(Exception):  # noqa: N818 not an error: the pictures' levels are still to be found
    """A picture of more than 8 bits came up, and what the deepest of them holds is not known yet."""


def is_deep(picture: Image.Image) -> bool:
    """Whether a picture's single channel has more than 8 bits."""
    return picture.mode.startswith("I") or picture.mode == "F"


def to_rgb(picture: Image.Image, levels: tuple[float, float] = (0, 255)) -> Image.Image:
    """Return a picture upright and in RGB; what is transparent becomes white, deep greys go from ``levels`` to 0..255.

    Raises:
        ValueError: A deep picture holds NaN or infinity.
    """
    return _opaque(ImageOps.exif_transpose(picture), levels)


def to_rgb_near(picture: Image.Image, size: tuple[int, int], levels: tuple[float, float] = (0, 255)) -> Image.Image:
    """Return a picture as ``to_rgb``; a large one smaller, by a whole factor, but at least twice ``size``."""
    factor = min(picture.size) // (2 * max(size))
    if not is_large(picture) or factor < 2:
        return to_rgb(picture, levels)
    orientation = picture.getexif().get(EXIF_ORIENTATION, 1)
    rows = factor * max(1, PART // (picture.width * factor))
    small = Image.new("RGB", (-(-picture.width // factor), -(-picture.height // factor)))
    for number, part in enumerate(_parts(picture, rows)):
        small.paste(_opaque(part, levels).reduce(factor), (0, number * rows // factor))
    small.getexif()[EXIF_ORIENTATION] = orientation
    return ImageOps.exif_transpose(small)


def _opaque(picture: Image.Image, levels: tuple[float, float]) -> Image.Image:
    if is_deep(picture):
        wide = np.asarray(picture, dtype=np.float64)
        if not np.isfinite(wide).all():
            raise ValueError("it holds NaN or infinity")
        low, high = levels
        grey = np.rint((wide - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


_ALONE = threading.Lock()


@contextlib.contextmanager
def _alone(picture: Image.Image) -> Iterator[None]:
    """Let one large picture be in memory at a time: afterwards its pixels are gone."""
    if not is_large(picture):
        yield
        return
    with _ALONE:
        try:
            yield
        finally:
            picture.close()


def is_large(picture: Image.Image) -> bool:
    """Whether a picture in another mode, or several of it, would fill the memory."""
    return picture.width * picture.height > LARGE


def _parts(picture: Image.Image, rows: int) -> Iterator[Image.Image]:
    """Yield a picture's rows, some at a time."""
    for top in range(0, picture.height, rows):
        yield picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def _extremes(picture: Image.Image) -> tuple[float, float, bool]:
    """Return a deep picture's lowest and highest value, or 0 beyond them, and whether all are whole numbers."""
    lowest, highest, whole = 0.0, 0.0, True
    for part in _parts(picture, max(1, PART // picture.width)):
        values = np.asarray(part, dtype=np.float64)
        values = values[np.isfinite(values)]
        if values.size:
            lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
            whole = whole and bool((values == np.rint(values)).all())
    return lowest, highest, whole


def _levels(pictures: Pictures, progress: Progress) -> tuple[float, float]:
    """Return what the deep pictures' values go from and to.

    Whole numbers from 0 on are of the fewest bits that a sensor gives and that hold the largest: the same for a part of
    the pictures as for all, mostly. Fractions up to 1 go from 0 to 1; others, and negative ones, to what there is.
    """
    lowest, highest, whole = 0.0, 0.0, True

    def extremes(index: int) -> tuple[float, float, bool]:
        try:
            with pictures.open(index) as picture, _alone(picture):
                return _extremes(picture) if is_deep(picture) else (0.0, 0.0, True)
        except FAULTS:  # said when it is decoded
            return 0.0, 0.0, True

    with (
        ThreadPoolExecutor(parallel()) as pool,
        progress.task("find the range of deep pictures", len(pictures.names)) as task,
    ):
        for low, high, integers in pool.map(extremes, range(len(pictures.names))):
            lowest, highest, whole = min(lowest, low), max(highest, high), whole and integers
            task.advance(1)
    if lowest < 0:
        return lowest, max(highest, lowest + 1)
    if whole:
        fitting = [2**bits - 1 for bits in DEPTHS if highest < 2**bits]
        return 0.0, float(fitting[0] if fitting else highest)
    return 0.0, 1.0 if highest <= 1 else 255.0 if highest <= 255 else highest


def _decode(
    pictures: Pictures,
    path: Path,
    size: tuple[int, int],
    levels: tuple[float, float] | None,
    skip_bad: bool,
    progress: Progress,
) -> dict[str, Any]:
    skipped: list[tuple[int, str]] = []
    several: list[int] = []

    def decode(index: int) -> NDArray[np.uint8] | str:
        try:
            with pictures.open(index) as picture, _alone(picture):
                more = holds_several(picture)
                if picture.format == "JPEG":
                    picture.draft("RGB", (2 * size[1], 2 * size[0]))  # a large one is decoded at a fraction of its size
                if levels is None and is_deep(picture):
                    raise _Deep
                upright = to_rgb_near(picture, size, levels or (0, 255))
            if upright.size != (size[1], size[0]):
                upright = ImageOps.fit(upright, (size[1], size[0]), Image.Resampling.BILINEAR)
            if more:
                several.append(index)
            return np.asarray(upright)
        except FAULTS as error:
            return f"{pictures.names[index]}: {reason(error)}"

    def write(temporary: Path) -> None:
        chunk = max(16, CHUNK_BYTES // (size[0] * size[1] * 3))
        total = len(pictures.names)
        with (
            temporary.open("wb") as handle,
            ThreadPoolExecutor(parallel()) as pool,
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
    return {"shape": [len(pictures.names) - len(skipped), *size, 3], "skipped": skipped, "several": sorted(several)}


def reason(error: BaseException) -> str:
    """Return why a picture cannot be decoded, in words."""
    return memory.message() if isinstance(error, MemoryError) else str(error) or type(error).__name__


def _damaged(why: str) -> SourceError:
    large = "give it smaller or more memory; or " if memory.TOLD.search(why) else ""
    return SourceError(
        f"a picture cannot be decoded: {why}",
        hint=f'{large}replace or delete it, or set on_bad_sample = "skip" under [data] to leave out and list such '
        "pictures",
    )


def _common_size(pictures: Pictures, skip_bad: bool, needed: PicturesNeeded) -> tuple[tuple[int, int], int | None]:
    """Return the size to store, and the side that a network takes where the pictures are smaller than that."""
    sizes = []
    uniform = True
    step = max(1, len(pictures.names) // SIZE_SAMPLE)
    for index in [*range(0, len(pictures.names), step), *range(len(pictures.names))]:
        try:
            with pictures.open(index) as picture:
                turned = picture.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)  # EXIF orientation: a quarter turn
                width, height = reversed(picture.size) if turned else picture.size
        except FAULTS as error:
            if skip_bad:
                continue
            raise _damaged(f"{pictures.names[index]}: {reason(error)}") from None
        sizes.append((height, width))
        uniform = uniform and sizes[-1] == sizes[0]
        if not uniform and len(sizes) >= min(SIZE_SAMPLE, len(pictures.names)):
            break
    if not sizes:
        raise SourceError("no picture can be opened", hint="give JPEG, PNG or other files that Pillow can read")
    if uniform:
        return sizes[0], None
    usual = round(float(np.median([min(size) for size in sizes])))
    taken = needed.side()
    side = min(max(LARGEST_SIDE, taken), usual)
    return (side, side), taken if usual < taken else None
