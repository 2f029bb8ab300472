"""``torchvision:NAME``: its classification data sets, from where they lie or downloaded."""

import inspect
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdexport.artifacts import key_of
from kdexport.data.image_cache import Pictures, decode_once
from kdexport.data.samples import Reading, Source, Split
from kdexport.errors import SourceError, did_you_mean
from kdexport.recipe import Data
from kdexport.references import parse

SPLIT_ARGUMENTS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


def torchvision_data(data: Data, reading: Reading) -> Source:
    """Return a torchvision data set; ``data.root`` says where its files lie, ``data.args`` goes to its class.

    Raises:
        SourceError: No such data set, its files aren't there, or its samples are no pictures with one label each.
    """
    name = parse(data.source).target
    kind = _class(name)
    sets = {split: found for split in SPLIT_ARGUMENTS if (found := _made(kind, name, data, split)) is not None}
    labels = {split: _labels(found, name) for split, found in sets.items()}
    pictures = {split: _in_memory(found, len(labels[split])) for split, found in sets.items()}
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    if any(images is None for images in pictures.values()):
        pictures, labels, skipped, notes = _decoded(sets, labels, name, data, reading)
    splits = {split: Split((images,), labels[split]) for split, images in pictures.items() if images is not None}
    classes = getattr(sets["train"], "classes", None) or range(int(max(found.max() for found in labels.values())) + 1)
    return Source(
        train=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        class_names=tuple(str(item) for item in classes),
        skipped=skipped,
        notes=notes,
    )


def _class(name: str) -> Any:
    from torchvision import datasets

    if name not in datasets.__all__:
        near = did_you_mean(name, datasets.__all__) or "torchvision.datasets names them all"
        raise SourceError(f"torchvision has no data set '{name}'", hint=near.strip())
    return getattr(datasets, name)


def _made(kind: Any, name: str, data: Data, split: str) -> Any:
    """Return one split, or None where the data set has no such split."""
    takes = inspect.signature(kind.__init__).parameters
    options = dict(data.args)
    if "root" in takes:
        if data.root is None:
            raise SourceError(
                f"{data.source}: where its files lie is not said", hint='set root under [data], e.g. root = "data"'
            )
        options["root"] = data.root
    if "download" in takes:
        options["download"] = data.download
    if "train" in takes:
        if split == "val":
            return None
        options["train"] = split == "train"
    elif "split" not in takes and split != "train":
        return None
    names = SPLIT_ARGUMENTS[split] if "split" in takes else ("",)
    for split_name in names:
        try:
            return kind(**options, **({"split": split_name} if split_name else {}))
        except ValueError:  # torchvision's answer to a split that there isn't
            if split == "train":
                raise
        except (RuntimeError, OSError, TypeError, ImportError) as error:
            hint = f"put its files under {data.root}, or set download = true under [data]"
            if data.download:
                hint = "go online, or put its files under data.root yourself"
            raise SourceError(f"torchvision:{name} cannot be had: {error}", hint=hint) from error
    return None


def _labels(found: Any, name: str) -> NDArray[np.int64]:
    said = next((getattr(found, key) for key in ("targets", "labels", "_labels") if hasattr(found, key)), None)
    try:
        labels = np.asarray(said if said is not None else [found[index][1] for index in range(len(found))])
    except (ValueError, TypeError):
        labels = np.empty(0)
    if labels.ndim != 1 or len(labels) != len(found) or labels.dtype.kind not in "iub":
        raise SourceError(
            f"torchvision:{name} does not give one class a sample",
            hint="name a data set for classification, or wrap it as file.py:Name",
        )
    return labels.astype(np.int64)


def _in_memory(found: Any, count: int) -> NDArray[Any] | None:
    """Return the pictures that a data set holds as one array, as uint8 NHWC; None where it decodes them one by one."""
    held = getattr(found, "data", None)
    images = np.asarray(held) if held is not None and not isinstance(held, list | tuple) else None
    if images is None or images.dtype != np.uint8 or len(images) != count:
        return None
    if images.ndim == 3:
        return images[..., None]
    return images if images.shape[3] in (1, 3) else np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def _decoded(
    sets: dict[str, Any], labels: dict[str, NDArray[np.int64]], name: str, data: Data, reading: Reading
) -> tuple[dict[str, NDArray[Any] | None], dict[str, NDArray[np.int64]], tuple[str, ...], tuple[str, ...]]:
    places = [(split, index) for split, found in sets.items() for index in range(len(found))]

    def opened(place: int) -> Image.Image:
        split, index = places[place]
        return sets[split][index][0]  # type: ignore[no-any-return]

    stored = decode_once(
        Pictures([f"{split} sample {index} of {name}" for split, index in places], opened),
        reading.cache / "images.u8",
        key_of(name, {split: [len(found), labels[split].tolist()] for split, found in sets.items()}, data.args),
        size=data.image_size,
        skip_bad=data.on_bad_sample == "skip",
        needed=reading.needed,
        progress=reading.progress,
    )
    whole = Split((stored.images,), np.concatenate([labels[split] for split in sets])[stored.kept])
    origin = np.repeat(np.arange(len(sets)), [len(found) for found in sets.values()])[stored.kept]
    parts = {split: whole.select(np.flatnonzero(origin == number)) for number, split in enumerate(sets)}
    return (
        {split: part.inputs[0] for split, part in parts.items()},
        {split: np.asarray(part.labels) for split, part in parts.items()},
        stored.skipped,
        (stored.note, *stored.warnings),
    )
