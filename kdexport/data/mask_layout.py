"""Which images and masks of a folder belong together, and to which split.

Known are ``train/images`` with ``train/masks``, ``images/train`` with ``masks/train``, ``images`` with ``masks`` (VOC's
lists of splits are read), ``train`` with ``trainannot``, and both in one folder; under the names that CamVid, VOC,
ADE20K, Cityscapes, CVAT and Roboflow have for these.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from kdexport.data.image_files import SUFFIXES
from kdexport.data.splits import SPLIT_NAMES, split_folders, split_of
from kdexport.errors import SourceError

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "inputs", "rgb", "pictures", "photos")
MASK_FOLDERS = (
    *("masks", "mask", "annotations", "annotation", "annots", "annot", "labels", "label", "segmentationclass"),
    *("segmentations", "segmentation", "gtfine", "gt", "groundtruth", "ground_truth", "targets", "target"),
)
IMAGE_MARKS = ("leftimg8bit", "image", "img", "rgb", "sat")  # after the name that image and mask share
MASK_MARKS = (
    *("gtfine_labeltrainids", "labeltrainids", "gtfine_labelids", "labelids", "mask", "masks", "label", "labels", "l"),
    *("gt", "seg", "segmentation", "annotation", "annot", "matte"),
)
OTHER_MARKS = ("gtfine_color", "color", "gtfine_instanceids", "instanceids", "gtfine_instancetrainids")  # no classes
LOSSY = (".jpg", ".jpeg", ".webp")  # a mask's pixels would become others
SHOWN = 4
Pair = tuple[str, str]  # image and mask, relative to the root


def pairs_of(root: Path) -> tuple[dict[str, list[Pair]], list[str], list[str]]:
    """Return each split's images with their masks, the images that have none, and what is to be said.

    Raises:
        SourceError: The folders have no known form.
    """
    pairs: dict[str, list[Pair]] = {}
    missing: list[str] = []
    idle: list[str] = []
    for split, (images, masks) in _folders(root).items():
        pairs[split], without, unused = _matched(root, images, masks)
        missing += without
        idle += unused
        if not pairs[split]:
            raise SourceError(
                f"{images} holds {len(without)} images, and {masks} no mask of one of them",
                hint="a mask has its image's name, with or without _mask behind it, as .png",
            )
    pairs = _by_lists(root, pairs) if list(pairs) == ["train"] else pairs
    listed = [image for split in pairs.values() for image, _ in split]
    if len(set(listed)) < len(listed):
        raise SourceError(f"{root}: an image is in two splits", hint="what is scored must not have been trained on")
    notes = [f"ignored, for they belong to no image: the masks {shown(idle)}"] if idle else []
    return pairs, missing, notes


def _folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return the folders of images and masks of each split; of all as train's, where there are no splits."""
    below = _children(root)
    named = split_folders(sorted(below), str(root))
    if "train" in named:
        found = {split: _side_by_side(root / name) for split, name in named.items()}
        if all(found.values()):
            return {split: pair for split, pair in found.items() if pair is not None}
        beside = {split: root / annot for split, name in named.items() if (annot := _annotated(name, below))}
        if set(beside) == set(named):
            return {split: (root / name, beside[split]) for split, name in named.items()}
        # Images and masks in one folder, told apart by what their names end in.
        if all(any(_is_mask(file) for file in _files(root / name)) for name in named.values()):
            return {split: (root / name, root / name) for split, name in named.items()}
        lacking = next(name for split, name in named.items() if found[split] is None)
        raise _unknown_form(root / lacking, _children(root / lacking))
    both = _side_by_side(root)
    if both is None:
        if any(_is_mask(file) for file in _files(root)):
            return {"train": (root, root)}
        raise _unknown_form(root, below)
    images, masks = both
    inside = split_folders(sorted(_children(images)), str(images))
    if "train" not in inside:
        return {"train": both}
    theirs = {split_of(name): name for name in _children(masks)}
    alone = [name for split, name in inside.items() if split not in theirs and split != "test"]
    if alone:
        raise SourceError(f"{masks} has no folder {alone[0]}", hint=f"{images / alone[0]} holds the images of it")
    return {split: (images / name, masks / theirs[split]) for split, name in inside.items() if split in theirs}


def _side_by_side(folder: Path) -> tuple[Path, Path] | None:
    """Return the folders of images and of masks in a folder, or None where there are no two such."""
    below = {name.casefold(): folder / name for name in _children(folder)}
    images = next((below[name] for name in IMAGE_FOLDERS if name in below), None)
    masks = next((below[name] for name in MASK_FOLDERS if name in below), None)
    return None if images is None or masks is None else (images, masks)


def _annotated(split: str, names: Sequence[str]) -> str | None:
    """Return the folder of a split's masks beside that of its images: trainannot, train_masks, train_labels."""
    ends = {f"{split}{joint}{mask}".casefold() for mask in MASK_FOLDERS for joint in ("", "_", "-")}
    return next((name for name in names if name.casefold() in ends), None)


def _matched(root: Path, images: Path, masks: Path) -> tuple[list[Pair], list[str], list[str]]:
    """Return images with their masks in the order of the names, images without one, and masks of no image."""
    one_folder = images == masks
    prefix = len(str(root)) + 1
    of_masks: dict[str, tuple[int, str]] = {}
    exact = {_bare(name): name for name in _files(masks) if not one_folder or _is_mask(name)}
    for name in exact.values():
        rank = _rank(name)
        if rank is None:
            continue
        stem = _stem(name, MASK_MARKS)
        if stem not in of_masks or rank < of_masks[stem][0]:
            of_masks[stem] = rank, name
    pairs, without, used = [], [], set()
    for name in _files(images):
        if one_folder and _is_mask(name):
            continue
        stem = _bare(name)
        mask = exact.get(stem) or of_masks.get(_stem(name, IMAGE_MARKS), (0, None))[1]
        whole = f"{images}/{name}"[prefix:]
        if mask is None:
            without.append(whole)
        else:
            used.add(_stem(mask, MASK_MARKS))
            pairs.append((whole, f"{masks}/{mask}"[prefix:]))
    unused = [f"{masks}/{name}"[prefix:] for stem, (_, name) in of_masks.items() if stem not in used]
    return pairs, without, unused


def _by_lists(root: Path, pairs: dict[str, list[Pair]]) -> dict[str, list[Pair]]:
    """Return pairs by split where ``ImageSets/Segmentation`` lists the names of each, as VOC has it."""
    lists = root / "ImageSets" / "Segmentation"
    named = {split: lists / f"{split}.txt" for split in SPLIT_NAMES if (lists / f"{split}.txt").is_file()}
    if "train" not in named:
        return pairs
    by_name = {Path(image).stem: (image, mask) for image, mask in pairs["train"]}
    found = {}
    for split, path in named.items():
        names = path.read_text(encoding="utf-8", errors="surrogateescape").split()  # as file names are
        lacking = [name for name in names if name not in by_name]
        if lacking:
            raise SourceError(
                f"{path} names {len(lacking)} images without a mask: {shown(lacking)}", hint="take them off the list"
            )
        found[split] = [by_name[name] for name in names]
    return found


def _rank(name: str) -> int | None:
    """Return how surely a mask's file holds class ids; None for one that holds something else."""
    end = Path(name).stem.casefold()
    if any(end.endswith(f"_{mark}") for mark in OTHER_MARKS):
        return None
    return next((place for place, mark in enumerate(MASK_MARKS) if re.search(rf"[_\-. ]{mark}$", end)), len(MASK_MARKS))


def _stem(name: str, marks: Sequence[str]) -> str:
    """Return a file's path without suffix and without what says that it is an image or a mask."""
    stem = _bare(name).casefold()
    for mark in sorted(marks, key=len, reverse=True):
        if (bare := re.sub(rf"[_\-. ]{mark}$", "", stem)) != stem:
            return bare
    return stem


def _bare(name: str) -> str:
    """Return a picture's path without its suffix; every one has one."""
    return name[: name.rindex(".")]


def _is_mask(name: str) -> bool:
    return _stem(name, MASK_MARKS[:8]) != _bare(name).casefold() and not name.lower().endswith(LOSSY)


def _files(folder: Path) -> list[str]:
    """Return the pictures under a folder at any depth, relative to it, in the order of their names."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        inside = os.path.relpath(place, folder)
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                found.append(name if inside == "." else f"{inside}/{name}")
    return sorted(found)


def _children(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__")))


def _unknown_form(folder: Path, below: Sequence[str]) -> SourceError:
    return SourceError(
        f"{folder} holds {shown(below) or 'no folders'}, and which are images and which masks cannot be told",
        hint="put them as train/images and train/masks (also val and test), with the classes in classes.txt",
    )


def shown(names: Sequence[str]) -> str:
    """Return the first few of some names."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
