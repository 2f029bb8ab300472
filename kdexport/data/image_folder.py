"""``imagefolder:DIR``: a folder per class, with or without ``train/``, ``val/`` and ``test/`` around them."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdexport.data.image_cache import Pictures, Stored, decode_once
from kdexport.data.samples import Source, Split
from kdexport.errors import SourceError
from kdexport.progress import Progress
from kdexport.recipe import Data
from kdexport.references import parse

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def image_folder(data: Data, cache: Path, progress: Progress) -> Source:
    """Return the pictures under a folder, decoded once into ``cache``.

    Classes are the folders of ``train`` in the order of their names, as torchvision has them.

    Raises:
        SourceError: No such folder, an empty class folder, a class that train doesn't have, a damaged picture.
    """
    root = _existing(Path(parse(data.source).target))
    folders = {split: root / name for split, names in SPLITS.items() for name in names if (root / name).is_dir()}
    if "train" not in folders:
        folders = {"train": root}
    classes = _class_names(folders["train"])
    listed = {split: _labelled(root, folder, classes) for split, folder in folders.items()}
    files = _Files.of(root, [name for names, _ in listed.values() for name in names])
    stored = _store(files, data, cache / "images.u8", progress)
    labels = np.concatenate([labels for _, labels in listed.values()])[stored.kept]
    origin = np.repeat(np.arange(len(listed)), [len(names) for names, _ in listed.values()])[stored.kept]
    whole = Split((stored.images,), labels)
    splits = {split: whole.select(np.flatnonzero(origin == index)) for index, split in enumerate(listed)}
    return Source(
        train=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        class_names=classes,
        skipped=stored.skipped,
        notes=(stored.note,),
    )


def unlabelled_folder(root: Path, data: Data, cache: Path, size: tuple[int, int], progress: Progress) -> Stored:
    """Return every picture under a folder, at any depth, decoded once to ``size``."""
    files = _Files.of(_existing(root), _pictures(root, root))
    if not files.names:
        raise SourceError(f"{root} holds no pictures", hint=f"known are: {', '.join(SUFFIXES)}")
    return _store(files, data.model_copy(update={"image_size": size}), cache / "unlabelled.u8", progress)


@dataclass(frozen=True)
class _Files:
    root: str
    names: Sequence[str]  # relative to root

    @classmethod
    def of(cls, root: Path, names: Sequence[str]) -> "_Files":
        return cls(str(root), names)

    def open(self, index: int) -> Image.Image:
        return Image.open(f"{self.root}/{self.names[index]}")

    def key(self) -> str:
        """Stands for their content: names, sizes and times, one by one, so that a long list takes no memory."""
        digest = hashlib.sha256()
        for name in self.names:
            status = os.stat(f"{self.root}/{name}")  # noqa: PTH116 a Path for each of a million files is slow
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        return digest.hexdigest()


def _store(files: _Files, data: Data, path: Path, progress: Progress) -> Stored:
    return decode_once(
        Pictures(files.names, files.open),
        path,
        files.key(),
        size=data.image_size,
        skip_bad=data.on_bad_sample == "skip",
        progress=progress,
    )


def _existing(root: Path) -> Path:
    if not root.is_dir():
        raise SourceError(f"there is no folder {root}", hint="check the path; in a recipe it is relative to the recipe")
    return root


def _class_names(folder: Path, least: int = 2) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not _hidden(entry.name)))
    if len(names) < least:
        raise SourceError(
            f"{folder} holds {len(names)} class folders",
            hint="give a folder per class, at least two, with pictures inside",
        )
    return names


def _labelled(root: Path, folder: Path, classes: tuple[str, ...]) -> tuple[list[str], NDArray[np.int64]]:
    names: list[str] = []
    counts = [0] * len(classes)
    for class_name in _class_names(folder, least=1):
        if class_name not in classes:
            raise SourceError(
                f"{folder / class_name} is a class that the training samples do not have",
                hint=f"classes are the folders of train: {', '.join(classes[:10])}",
            )
        found = _pictures(root, folder / class_name)
        if not found:
            raise SourceError(
                f"the class folder {folder / class_name} holds no pictures",
                hint=f"delete it, or put pictures into it; known are: {', '.join(SUFFIXES)}",
            )
        names += found
        counts[classes.index(class_name)] = len(found)
    return names, np.repeat(np.arange(len(classes)), counts)


def _pictures(root: Path, folder: Path) -> list[str]:
    """Return the pictures under a folder, at any depth, as sorted names relative to ``root``."""
    prefix = len(str(root)) + 1
    return sorted(
        f"{place}/{name}"[prefix:]
        for place, folders, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(SUFFIXES) and not _hidden(name) and not any(map(_hidden, place[prefix:].split("/")))
    )


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
