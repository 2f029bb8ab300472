"""``hf:NAME_OR_DIR`` with masks: a Hugging Face data set of images with a label image for each in another column."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdexport.artifacts import key_of
from kdexport.data.image_cache import Pictures, decode_once
from kdexport.data.mask_cache import NOT_LOSSLESS, Masks, source_of
from kdexport.data.mask_classes import MaskClasses, read_classes
from kdexport.data.mask_layout import MASK_FOLDERS
from kdexport.data.samples import Reading, Source
from kdexport.errors import SourceError
from kdexport.recipe import Data
from kdexport.references import parse

SEGMENTATION = "segmentation"  # the task
NAMES = "id2label.json"  # that a data set's authors put beside it: class number -> name
PIXELS = ("Image", "Array2D")  # kinds of columns that can hold masks
LOSSY = ("JPEG", "MPO")  # as Pillow calls them


def mask_columns(features: Mapping[str, Any], data: Data, task: str | None) -> tuple[str, str] | None:
    """Return the columns of images and of masks; None where the data set has no masks, or is for another task.

    The masks' is ``data.label_column``, else the one that is called mask, annotation, label, ...

    Raises:
        SourceError: The task is segmentation and no column can hold masks, or the label column holds them and the task
            is another.
    """
    kinds = {name: type(item).__name__ for name, item in features.items()}
    able = [name for name, kind in kinds.items() if kind in PIXELS]
    chosen = data.label_column if data.label_column in able else None
    if chosen is not None and task not in (None, SEGMENTATION):
        raise SourceError(
            f"the column '{chosen}' of {data.source} holds pictures, and the task is {task}",
            hint="set data.label_column to the column of labels, or the task to segmentation",
        )
    if chosen is None and (task == SEGMENTATION or (task is None and data.label_column not in features)):
        named = [name for name in able if set(name.lower().split("_")) & set(MASK_FOLDERS)]
        chosen = named[0] if len(named) == 1 else None
    images = [name for name, kind in kinds.items() if kind == "Image" and name != chosen]
    if chosen is not None and images:
        return images[0], chosen
    if task == SEGMENTATION or chosen is not None:
        raise SourceError(
            f"{data.source} has no column of images beside one of masks",
            hint=f"set data.label_column to that of the masks; it has: "
            f"{', '.join(f'{name} ({kind})' for name, kind in kinds.items())}",
        )
    return None


def masks_of(
    parts: Mapping[str, Any], image: str, mask: str, data: Data, reading: Reading, notes: Sequence[str] = ()
) -> Source:
    """Return the splits of a data set with their masks, both decoded once.

    Args:
        parts: The splits, as ``datasets.Dataset``.
        image: The column of images.
        mask: The column of masks.
        data: What the recipe says.
        reading: Where decoded samples go.
        notes: What is to be said beside.

    Raises:
        SourceError: As ``masks.mask_folder``.
    """
    notes = [f"masks are the column '{mask}', of the images in '{image}'", *notes]
    unmasked = [split for split, found in parts.items() if split != "train" and _missing(found, mask) == len(found)]
    notes += [f"the {split} split has no masks and is left out" for split in unmasked]
    parts = {split: found for split, found in parts.items() if split not in unmasked}
    splits = [split for split, found in parts.items() for _ in range(len(found))]
    starts = np.cumsum([0, *(len(found) for found in parts.values())])
    columns = {name: [found.select_columns([name]) for found in parts.values()] for name in (image, mask)}

    def value(column: str, index: int) -> Any:
        part = int(np.searchsorted(starts, index, side="right")) - 1
        return columns[column][part][int(index - starts[part])][column]

    def opened(index: int) -> Image.Image:
        return value(image, index)  # type: ignore[no-any-return]

    def mask_opened(index: int) -> Image.Image:
        found = value(mask, index)
        if found is None:
            raise ValueError("it has no mask")
        if isinstance(found, Image.Image):
            if found.format in LOSSY:
                raise ValueError(NOT_LOSSLESS)
            return found
        numbers = np.asarray(found)
        if numbers.min(initial=0) < 0 or numbers.max(initial=0) > np.iinfo(np.uint16).max:
            raise ValueError(f"it holds the class number {int(numbers.min(initial=0)) or int(numbers.max(initial=0))}")
        return Image.fromarray(numbers.astype(np.uint16))

    skip_bad = data.on_bad_sample == "skip"
    folder = Path(parse(data.source).target)
    content = key_of([[found._fingerprint for found in parts.values()], image, mask])
    names = [(f"image {index} of {data.source}", f"mask {index} of {data.source}") for index in range(len(splits))]
    masks = Masks(names, opened, mask_opened, _classes(folder), data.source, content)
    stored = decode_once(
        Pictures([name for name, _ in names], opened),
        reading.cache / "images.u8",
        content,
        size=data.image_size,
        skip_bad=skip_bad,
        needed=reading.needed,
        progress=reading.progress,
    )
    return source_of(stored, masks, splits, reading, skip_bad=skip_bad, notes=notes)


def _missing(found: Any, column: str) -> int:
    return int(found.select_columns([column]).with_format("arrow")[:].column(0).null_count)


def _classes(folder: Path) -> MaskClasses:
    """Return the classes that a list beside a saved data set names.

    Raises:
        SourceError: The list cannot be read.
    """
    if not (folder / NAMES).is_file():
        return read_classes([folder])
    try:
        told = json.loads((folder / NAMES).read_text(encoding="utf-8"))
        names = {int(number): str(name) for number, name in told.items()}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"{folder / NAMES} cannot be read: {error}", hint='write it as {"0": "road", "1": "sky", ...}'
        ) from None
    names.pop(255, None)  # void
    if sorted(names) != list(range(len(names))):
        raise SourceError(
            f"{folder / NAMES} numbers its classes with gaps", hint="number them from 0 on, in order; 255 is void"
        )
    return MaskClasses(tuple(names[number] for number in range(len(names))), file=NAMES)
