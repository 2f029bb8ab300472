"""Decode masks once: which class each pixel is, as one file of uint8 beside that of the images.

Masks come from files or from a data set's column; what their pixels mean is ``mask_classes``'s.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kdexport.artifacts import write_atomically
from kdexport.data.image_cache import EXIF_ORIENTATION, FAULTS, Stored, holds_several, is_large, reason, silent
from kdexport.data.mask_classes import MaskClasses, class_ids
from kdexport.data.mask_layout import Pair, shown
from kdexport.data.samples import Reading, Source, Split, open_rows, select
from kdexport.errors import SourceError
from kdexport.machine import parallel
from kdexport.stage_cache import cache_key, is_done, mark_done
from kdexport.tasks.masks import VOID

CHUNK = 64  # masks that are decoded before they are written
QUARTER_TURNS = 5, 6, 7, 8
NOT_LOSSLESS = "JPEG changes pixels, so that classes become others; write masks as PNG"


@dataclass(frozen=True)
class DecodedMasks:
    """Masks on disk."""

    ids: NDArray[Any]  # uint8 [masks, h, w], read when indexed
    kept: NDArray[np.int64]  # which of the masks these are
    skipped: dict[int, str]  # number of a mask -> why it is not
    seen: tuple[int, ...]  # class ids, ascending
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Masks:
    """Masks that can be opened one by one, from any thread, each with its image.

    Attributes:
        names: Of each image and its mask, for messages.
        image: Opens an image, by its number: for its size.
        mask: Opens a mask; a ``ValueError`` says why there is none.
        classes: That they may hold.
        where: What a message calls them all.
        content: Stands for what they hold.
    """

    names: Sequence[Pair]
    image: Callable[[int], Image.Image]
    mask: Callable[[int], Image.Image]
    classes: MaskClasses
    where: str
    content: str

    def decode_once(self, size: tuple[int, int], reading: Reading, *, skip_bad: bool) -> DecodedMasks:
        """Return them decoded at a height and width, from an earlier time if nothing has changed.

        Raises:
            SourceError: One is damaged or of another size and none is to be left out, or its class is not listed.
        """
        path, description = reading.cache / "masks.u8", reading.cache / "masks.json"
        key = cache_key("masks", content=self.content, size=list(size), classes=repr(self.classes))
        found = is_done(description, key)
        if found is None:
            description.unlink(missing_ok=True)
            found = {}

            def write(temporary: Path) -> None:
                found.update(self._write(temporary, size, reading, skip_bad=skip_bad))

            write_atomically(path, write)
            mark_done(description, key, found, [path])
        skipped, void = found["skipped"], found["void"]
        if skipped and not skip_bad:
            raise _unusable(skipped[0][1])
        kept = np.delete(np.arange(len(self.names)), [index for index, _ in skipped])
        note = (
            f"{void} mask{' is' if void == 1 else 's are'} void everywhere: these images teach nothing" if void else ""
        )
        return DecodedMasks(
            open_rows(path, (len(kept), *size)), kept, dict(skipped), tuple(found["seen"]), (note,) if note else ()
        )

    def _write(self, path: Path, size: tuple[int, int], reading: Reading, *, skip_bad: bool) -> dict[str, Any]:
        skipped: list[list[Any]] = []
        seen, void, total = np.zeros(VOID + 1, dtype=bool), 0, len(self.names)
        with (
            silent(),
            path.open("wb") as handle,
            ThreadPoolExecutor(parallel()) as pool,
            reading.progress.task("decode masks", total) as task,
        ):
            for start in range(0, total, CHUNK):
                indices = range(start, min(start + CHUNK, total))
                decoded = pool.map(lambda index: self._decode(index, size), indices)
                for index, mask in zip(indices, decoded, strict=True):
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
                f"{self.where}: every pixel of every mask is void ({VOID})",
                hint=f"give each pixel its class, from 0 on; where {VOID} is a class, write classes.txt with a line "
                "'R G B name' for each, e.g. 255 255 255 object",
            )
        return {"skipped": skipped, "seen": np.flatnonzero(seen).tolist(), "void": void}

    def _decode(self, index: int, size: tuple[int, int]) -> NDArray[np.uint8] | str:
        """Return a mask uint8 [h, w], or why it cannot be one.

        Raises:
            SourceError: It holds what the list of classes does not: no mask to leave out, but a list to correct.
        """
        image, mask = self.names[index]
        try:
            with self.image(index) as picture:
                turned = picture.getexif().get(EXIF_ORIENTATION, 1) in QUARTER_TURNS
                width, height = reversed(picture.size) if turned else picture.size
            with self.mask(index) as picture:
                if picture.size != (width, height):
                    own = f"{picture.size[0]}x{picture.size[1]}"
                    said = " (turned as its EXIF data say)" if turned else ""
                    return f"{mask} is {own}, and its image {image} is {width}x{height}{said}"
                if holds_several(picture):
                    return f"{mask} has several pages or frames; a mask is one"
                if is_large(picture):  # the same pixels, before they become numbers of 8 bytes
                    picture = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.NEAREST)
                picture.load()
        except FAULTS as error:
            return f"{mask}: {reason(error)}"
        try:
            ids = class_ids(picture, self.classes)
        except ValueError as error:
            raise SourceError(f"{mask}: {error}", hint=self._hint()) from None
        found = Image.fromarray(ids.astype(np.uint8))
        if found.size != (size[1], size[0]):
            found = ImageOps.fit(found, (size[1], size[0]), Image.Resampling.NEAREST)
        return np.asarray(found)

    def _hint(self) -> str:
        if self.classes.names:
            return f"add the class to {self.classes.file}, correct the mask, or give pixels of no class {VOID}" + (
                " or the color of a line called void" if self.classes.colors else ""
            )
        return "write masks whose pixels are class numbers from 0 on, 255 for none"


def source_of(
    stored: Stored, masks: Masks, splits: Sequence[str], reading: Reading, *, skip_bad: bool, notes: Sequence[str] = ()
) -> Source:
    """Return images that are decoded with their masks.

    Args:
        stored: The images.
        masks: As many.
        splits: To which split each belongs, by its name.
        reading: Where the decoded masks go.
        skip_bad: Whether a damaged mask is left out, else it is an error.
        notes: What is to be said beside.

    Raises:
        SourceError: As ``Masks.decode_once``.
    """
    size = (stored.images.shape[1], stored.images.shape[2])
    decoded = masks.decode_once(size, reading, skip_bad=skip_bad)
    told, names = [*notes], masks.classes.names or _numbered(decoded.seen, masks.where)
    if not masks.classes.names:
        told.append(f"there is no classes.txt: the classes are called by their numbers, 0 to {len(names) - 1}")
    both = np.intersect1d(stored.kept, decoded.kept)
    origin = np.array(splits)[both]
    made = {}
    for name in dict.fromkeys(splits):
        chosen = both[origin == name]
        images = select(stored.images, np.searchsorted(stored.kept, chosen))
        made[name] = Split((images,), select(decoded.ids, np.searchsorted(decoded.kept, chosen)))
    return Source(
        train=made["train"],
        val=made.get("val"),
        test=made.get("test"),
        class_names=names,
        skipped=(*stored.skipped, *(reason for index, reason in decoded.skipped.items() if index in stored.kept)),
        notes=(f"{stored.note}, masks by the nearest pixel", *told, *decoded.notes),
        warnings=(*stored.warnings, *((masks.classes.warning,) if masks.classes.warning else ())),
        levels=stored.levels,
    )


def _numbered(seen: Sequence[int], where: str) -> tuple[str, ...]:
    """Return the numbers of classes that no list names.

    Raises:
        SourceError: Most numbers up to the largest do not occur: these are grey levels, not class numbers.
    """
    if 2 * len(seen) < seen[-1] + 1:
        raise SourceError(
            f"{where}: the masks hold the numbers {shown(list(map(str, seen)))}, "
            "and no classes.txt says what they mean",
            hint=f"write classes.txt, a line 'R G B name' for each, e.g. {seen[-1]} {seen[-1]} {seen[-1]} object; or a "
            "class per line, the first that of number 0",
        )
    return tuple(str(number) for number in range(seen[-1] + 1))


def _unusable(reason: str) -> SourceError:
    return SourceError(
        f"a mask cannot be used: {reason}",
        hint='correct or delete it, or set on_bad_sample = "skip" under [data] to leave out and list such pairs',
    )
