"""``masks:DIR``: images, and beside each a mask of the same size that says which class each pixel is; decoded once.

Where they lie is ``mask_layout``'s, what a mask's pixels mean ``mask_classes``'s, how they are kept ``mask_cache``'s.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from kdexport.data.image_cache import Pictures, decode_once
from kdexport.data.image_files import open_picture
from kdexport.data.mask_cache import NOT_LOSSLESS, Masks, source_of
from kdexport.data.mask_classes import read_classes
from kdexport.data.mask_layout import LOSSY, pairs_of, shown
from kdexport.data.samples import Reading, Source
from kdexport.errors import SourceError
from kdexport.recipe import Data
from kdexport.references import parse


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

    def opened(index: int) -> Image.Image:
        return open_picture(root / listed[index][0])

    def mask(index: int) -> Image.Image:
        if listed[index][1].lower().endswith(LOSSY):
            raise ValueError(NOT_LOSSLESS)
        return open_picture(root / listed[index][1])

    stored = decode_once(
        Pictures([image for image, _ in listed], opened),
        reading.cache / "images.u8",
        _key(root, [image for image, _ in listed]),
        size=data.image_size,
        needed=reading.needed,
        skip_bad=skip_bad,
        progress=reading.progress,
    )
    masks = Masks(listed, opened, mask, classes, str(root), _key(root, [name for pair in listed for name in pair]))
    splits = [name for name, split in pairs.items() for _ in split]
    source = source_of(stored, masks, splits, reading, skip_bad=skip_bad, notes=notes)
    return replace(source, skipped=(*(f"{name}: it has no mask" for name in missing), *source.skipped))


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
