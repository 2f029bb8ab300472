"""``masks:DIR``: images, and beside each a mask of the same size that says which class each pixel is; decoded once.

Where they lie is ``mask_layout``'s, what a mask's pixels mean ``mask_classes``'s.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kdexport.artifacts import write_atomically
from kdexport.data.image_cache import FAULTS, Pictures, decode_once, holds_several
from kdexport.data.mask_classes import MaskClasses, class_ids, read_classes
from kdexport.data.mask_layout import LOSSY, Pair, pairs_of, shown
from kdexport.data.samples import Reading, Source, Split, open_rows, select
from kdexport.errors import SourceError
from kdexport.machine import usable_cores
from kdexport.recipe import Data
from kdexport.references import parse
from kdexport.stage_cache import cache_key, is_done, mark_done
from kdexport.tasks.segmentation import VOID

CHUNK = 64  # masks that are decoded before they are written
EXIF_ORIENTATION, QUARTER_TURNS = 0x0112, (5, 6, 7, 8)


def mask_folder(data: Data, reading: Reading) -> Source:
    """Return the images under a folder with their masks, both decoded once into ``cache``.

    Images are scaled bilinearly, masks by the nearest pixel, where sizes differ or ``data.image_size`` asks for it.

    Raises:
        SourceError: No such folder, images without a mask, a mask of another size than its image, a class that the
            list does not hold, a damaged file.
    """
    root = Path(parse(data.source).target)
    if not root.is_dir():
        raise SourceError(f"there is no folder {root}", hint="check the path; in a recipe it is relative to the recipe")
    skip_bad = data.on_bad_sample == "skip"
    pairs, missing, notes = pairs_of(root)
    if missing and not skip_bad:
        raise SourceError(
            f"{len(missing)} image{'' if len(missing) == 1 else 's'} without a mask: {shown(missing)}",
            hint="a mask has its image's name, with or without _mask behind it, as .png; add it, delete the image, or "
            'set on_bad_sample = "skip" under [data] to leave out such images',
        )
    listed = [pair for split in pairs.values() for pair in split]
    classes = read_classes([root, root / next(iter(listed))[0].split("/")[0]])
    stored = decode_once(
        Pictures([image for image, _ in listed], lambda index: Image.open(root / listed[index][0])),
        reading.cache / "images.u8",
        _key(root, [image for image, _ in listed]),
        size=data.image_size,
        needed=reading.needed,
        skip_bad=skip_bad,
        progress=reading.progress,
    )
    size = (stored.images.shape[1], stored.images.shape[2])
    masks = _Masks(root, listed, classes, size).decode_once(reading, skip_bad=skip_bad)
    names = classes.names or _numbered(masks.seen, root)
    if not classes.names:
        notes.append(f"there is no classes.txt: the classes are called by their numbers, 0 to {len(names) - 1}")
    both = np.intersect1d(stored.kept, masks.kept)
    origin = np.repeat(np.arange(len(pairs)), [len(split) for split in pairs.values()])[both]
    splits = {}
    for number, name in enumerate(pairs):
        chosen = both[origin == number]
        images = select(stored.images, np.searchsorted(stored.kept, chosen))
        splits[name] = Split((images,), select(masks.ids, np.searchsorted(masks.kept, chosen)))
    of_masks = (reason for index, reason in masks.skipped.items() if index in stored.kept)
    skipped = (*(f"{name}: it has no mask" for name in missing), *stored.skipped, *of_masks)
    return Source(
        train=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        class_names=names,
        skipped=skipped,
        notes=(f"{stored.note}, masks by the nearest pixel", *notes, *masks.notes),
        warnings=(*stored.warnings, *((classes.warning,) if classes.warning else ())),
        levels=stored.levels,
    )


def _numbered(seen: Sequence[int], root: Path) -> tuple[str, ...]:
    """Return the numbers of classes that no list names.

    Raises:
        SourceError: Most numbers up to the largest do not occur: these are grey levels, not class numbers.
    """
    if 2 * len(seen) < seen[-1] + 1:
        raise SourceError(
            f"{root}: the masks hold the numbers {shown(list(map(str, seen)))}, and no classes.txt says what they mean",
            hint=f"write classes.txt, a line 'R G B name' for each, e.g. {seen[-1]} {seen[-1]} {seen[-1]} object; or a "
            "class per line, the first that of number 0",
        )
    return tuple(str(number) for number in range(seen[-1] + 1))


@dataclass(frozen=True)
class _Decoded:
    """Masks on disk."""

    ids: NDArray[Any]  # uint8 [masks, h, w], read when indexed
    kept: NDArray[np.int64]  # which of the masks these are
    skipped: dict[int, str]  # number of a mask -> why it is not
    seen: tuple[int, ...]  # class ids, ascending
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Masks:
    """The masks of some images, as files."""

    root: Path
    pairs: Sequence[Pair]
    classes: MaskClasses
    size: tuple[int, int]  # to store: height, width

    def decode_once(self, reading: Reading, *, skip_bad: bool) -> _Decoded:
        """Return them decoded, from an earlier time if nothing has changed.

        Raises:
            SourceError: One is damaged or of another size and none is to be left out, or its class is not listed.
        """
        path, description = reading.cache / "masks.u8", reading.cache / "masks.json"
        files = [name for pair in self.pairs for name in pair]
        key = cache_key("masks", content=_key(self.root, files), size=list(self.size), classes=repr(self.classes))
        found = is_done(description, key)
        if found is None:
            description.unlink(missing_ok=True)
            found = {}
            write_atomically(path, lambda temporary: found.update(self._write(temporary, reading, skip_bad=skip_bad)))
            mark_done(description, key, found, [path], hashed=False)
        skipped, void = found["skipped"], found["void"]
        if skipped and not skip_bad:
            raise _unusable(skipped[0][1])
        kept = np.delete(np.arange(len(self.pairs)), [index for index, _ in skipped])
        note = (
            f"{void} mask{' is' if void == 1 else 's are'} void everywhere: these images teach nothing" if void else ""
        )
        return _Decoded(
            open_rows(path, (len(kept), *self.size)),
            kept,
            dict(skipped),
            tuple(found["seen"]),
            (note,) if note else (),
        )

    def _write(self, path: Path, reading: Reading, *, skip_bad: bool) -> dict[str, Any]:
        skipped: list[list[Any]] = []
        seen, void, total = np.zeros(VOID + 1, dtype=bool), 0, len(self.pairs)
        with (
            path.open("wb") as handle,
            ThreadPoolExecutor(usable_cores()) as pool,
            reading.progress.task("decode masks", total) as task,
        ):
            for start in range(0, total, CHUNK):
                indices = range(start, min(start + CHUNK, total))
                for index, mask in zip(indices, pool.map(self._decode, indices), strict=True):
                    if isinstance(mask, str):
                        if not skip_bad:
                            raise _unusable(mask)
                        skipped.append([index, mask])
                        continue
                    seen[np.unique(mask)] = True
                    void += bool((mask == VOID).all())
                    handle.write(mask.tobytes())
                task.advance(len(indices))
        if len(skipped) == total:
            raise _unusable(skipped[0][1])
        seen[VOID] = False
        if not seen.any():
            raise SourceError(
                f"{self.root}: every pixel of every mask is void ({VOID})",
                hint=f"give each pixel its class, from 0 on; where {VOID} is a class, write classes.txt with a line "
                "'R G B name' for each, e.g. 255 255 255 object",
            )
        return {"skipped": skipped, "seen": np.flatnonzero(seen).tolist(), "void": void}

    def _decode(self, index: int) -> NDArray[np.uint8] | str:
        """Return a mask uint8 [h, w], or why it cannot be one.

        Raises:
            SourceError: It holds what the list of classes does not: no mask to leave out, but a list to correct.
        """
        image, mask = self.pairs[index]
        if mask.lower().endswith(LOSSY):
            return f"{mask}: JPEG changes pixels, so that classes become others; write masks as PNG"
        try:
            with Image.open(self.root / image) as picture:
                turned = picture.getexif().get(EXIF_ORIENTATION, 1) in QUARTER_TURNS
                width, height = reversed(picture.size) if turned else picture.size
            with Image.open(self.root / mask) as picture:
                if picture.size != (width, height):
                    own = f"{picture.size[0]}x{picture.size[1]}"
                    said = " (turned as its EXIF data say)" if turned else ""
                    return f"{mask} is {own}, and its image {image} is {width}x{height}{said}"
                if holds_several(picture):
                    return f"{mask} has several pages or frames; a mask is one"
                picture.load()
        except FAULTS as error:
            return f"{mask}: {error or type(error).__name__}"
        try:
            ids = class_ids(picture, self.classes)
        except ValueError as error:
            raise SourceError(f"{mask}: {error}", hint=self._hint()) from None
        found = Image.fromarray(ids.astype(np.uint8))
        if found.size != (self.size[1], self.size[0]):
            found = ImageOps.fit(found, (self.size[1], self.size[0]), Image.Resampling.NEAREST)
        return np.asarray(found)

    def _hint(self) -> str:
        if self.classes.names:
            return f"add the class to {self.classes.file}, correct the mask, or give pixels of no class {VOID}" + (
                " or the color of a line called void" if self.classes.colors else ""
            )
        return "write masks whose pixels are class numbers from 0 on, 255 for none"


def _key(root: Path, names: Sequence[str]) -> str:
    """Stand for files' content by their names, sizes and times."""
    digest = hashlib.sha256()
    for name in names:
        try:
            status = os.stat(f"{root}/{name}")  # noqa: PTH116 a Path for each of many files is slow
        except OSError:  # a link to nothing, which is said when it is opened
            status = os.lstat(f"{root}/{name}")
        digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0"))
    return digest.hexdigest()


def _unusable(reason: str) -> SourceError:
    return SourceError(
        f"a mask cannot be used: {reason}",
        hint='correct or delete it, or set on_bad_sample = "skip" under [data] to leave out and list such pairs',
    )
