"""``imagefolder:DIR``: a folder per class, with or without ``train/``, ``val/`` and ``test/`` around them; or a list of
pictures with numbers, which ``listed_images`` reads.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdexport.data.image_cache import Stored
from kdexport.data.image_files import SUFFIXES, Files, store
from kdexport.data.listed_images import listed_images, lists_in
from kdexport.data.samples import Reading, Source, Split
from kdexport.data.splits import SPLIT_NAMES, split_folders, split_of
from kdexport.errors import SourceError, did_you_mean
from kdexport.recipe import Data
from kdexport.references import parse

# What lies beside pictures, and is none: of other files it is said that they are left out.
BESIDE = (".txt", ".csv", ".tsv", ".json", ".xml", ".md", ".html", ".yaml", ".yml", ".db", ".ini", ".py", ".ipynb")
SHOWN = 10
EMBEDDING = "embedding"
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)


def image_folder(data: Data, reading: Reading) -> Source:
    """Return the pictures under a folder, decoded once into ``cache``.

    Classes are the folders of ``train`` in the order of their names, as torchvision has them; in the order of the
    numbers where all are numbers, which torchvision has not.

    Raises:
        SourceError: No such folder, an empty class folder, a class that train doesn't have, a damaged picture.
    """
    root = _existing(Path(parse(data.source).target))
    if reading.task != EMBEDDING and (lists := lists_in(root, data, reading.task)):
        return listed_images(root, lists, data, reading)
    walk = _Walk(root)
    folders, notes = _layout(root, walk)
    classes = _class_names(folders["train"], walk)
    if reading.task == EMBEDDING:  # people that are scored are not among those that are learned from
        classes = _in_order({*classes, *(name for folder in folders.values() for name in _folders(folder, walk))})
    elif sorted(classes) != list(classes):
        notes.append(
            f"the class folders are numbers and are taken in their order ({_shown(classes)}), "
            f"not in that of their names as torchvision takes them ({_shown(sorted(classes))})"
        )
    listed = {split: _labelled(walk, folder, classes) for split, folder in folders.items()}
    stray = sum(_is_picture(item.name) for folder in folders.values() for item in folder.iterdir() if item.is_file())
    notes += [f"left out, for they lie in no class folder: {stray} pictures"] if stray else []
    notes += walk.notes(listed)
    files = Files.of(root, [name for names, _ in listed.values() for name in names])
    stored = store(files, data, reading, "images.u8", data.image_size, None)
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
        notes=(stored.note, *notes),
        warnings=stored.warnings,
        levels=stored.levels,
    )


def unlabelled_folder(
    root: Path, data: Data, reading: Reading, size: tuple[int, int], levels: tuple[float, float] | None
) -> Stored:
    """Return every picture under a folder, at any depth, decoded once to ``size``."""
    files = Files.of(_existing(root), sorted(_Walk(root).pictures(root)))
    if not files.names:
        raise SourceError(f"{root} holds no pictures", hint=f"known are: {', '.join(SUFFIXES)}")
    return store(files, data, reading, "unlabelled.u8", size, levels)


def _existing(root: Path) -> Path:
    if not root.is_dir():
        raise SourceError(f"there is no folder {root}", hint="check the path; in a recipe it is relative to the recipe")
    return root


def _layout(root: Path, walk: "_Walk") -> tuple[dict[str, Path], list[str]]:
    """Return the folder of each split, or the root as train's, and what is to be said of others beside them.

    Raises:
        SourceError: The folders look like splits, and which is which cannot be told.
    """
    inside = _folders(root, walk)
    named = {split: root / name for split, name in split_folders(inside, str(root)).items()}
    others = [name for name in inside if root / name not in named.values()]
    as_class = "train" in named and not _folders(named["train"], walk)  # beside bus, car and ship
    if as_class and all(any(walk.pictures(root / name)) for name in (named["train"].name, *others)) and others:
        walk.reset()
        return {"train": root}, [f"the folder {named['train'].name} holds pictures and is taken for a class"]
    if "train" in named:
        ignored = [name for name in inside if root / name not in named.values() and any(walk.pictures(root / name))]
        walk.reset()
        note = f"ignored, for they are no split: the folders {', '.join(ignored[:SHOWN])}"
        return named, [note] if ignored else []
    below = {name: frozenset(_folders(root / name, walk)) for name in inside}
    alike = [name for name in inside if len(below[name]) > 1 and list(below.values()).count(below[name]) > 1]
    called = {name: _split_in(name) for name in inside if below[name]}  # seg_train/seg_train/..., seg_test/seg_test/...
    by_words = [name for name, split in called.items() if split] if "train" in called.values() else []
    fault = ""
    if alike:
        fault = f"{', '.join(alike[:SHOWN])} with the same folders inside ({_shown(sorted(below[alike[0]]))}): splits, "
        fault += "of which none is called train"
    elif any(below[folder.name] for folder in named.values()):
        fault = f"{', '.join(folder.name for folder in named.values())} and no folder called train"
    elif len({called[name] for name in by_words}) > 1:
        fault = f"{', '.join(by_words[:SHOWN])}: splits by the words in their names, of which none is called train"
    if fault:
        raise SourceError(
            f"{root} holds {fault}",
            hint="name the folders train, val and test, and let each hold the class folders; also known: "
            f"{', '.join(SPLIT_NAMES['train'][1:3])}, {', '.join(SPLIT_NAMES['val'][1:6])}, "
            f"{', '.join(SPLIT_NAMES['test'][1:3])}",
        )
    return {"train": root}, []


def _split_in(name: str) -> str | None:
    """Return which split a word of a folder's name means: ``seg_train``, ``Testing Data``, ``01-val``."""
    return next(filter(None, map(split_of, re.split(r"[^A-Za-z]+", name))), None)


def _folders(folder: Path, walk: "_Walk") -> list[str]:
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not _hidden(entry.name) and entry.is_dir()]
        return sorted(entry.name for entry in found if not entry.is_symlink() or walk.leads_outside(entry.path))


def _class_names(folder: Path, walk: "_Walk", least: int = 2) -> tuple[str, ...]:
    names = _folders(folder, walk)
    if len(names) < least:
        only = folder / names[0] if len(names) == 1 else None
        inner = f"; did you mean {only}?" if only is not None and len(_folders(only, walk)) > 1 else ""
        if least == 1 and any(walk.pictures(folder)):
            inner = "; pictures without a class can be scored by nothing: move this folder elsewhere"
        raise SourceError(
            f"{folder} holds {len(names)} class folder{'' if len(names) == 1 else 's'}",
            hint=f"give a folder per class, or per identity, at least two, with pictures inside{inner}",
        )
    return _in_order(names)


def _in_order(names: Collection[str]) -> tuple[str, ...]:
    """Return names sorted, in the order of the numbers where all are numbers."""
    if all(NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))


def _labelled(walk: "_Walk", folder: Path, classes: tuple[str, ...]) -> tuple[list[str], NDArray[np.int64]]:
    names: list[str] = []
    counts = [0] * len(classes)
    order = {name: index for index, name in enumerate(classes)}
    for class_name in sorted(_class_names(folder, walk, least=1), key=lambda name: order.get(name, -1)):
        if class_name not in order:
            near = did_you_mean(class_name, classes)
            raise SourceError(
                f"{folder / class_name} is a class that the training samples do not have",
                hint=f"{near}classes are the folders of train: {', '.join(classes[:10])}; where they are identities, "
                "of which each is in one split alone, the task is embedding",
            )
        found = sorted(walk.pictures(folder / class_name))
        if not found:
            raise SourceError(
                f"the class folder {folder / class_name} holds no pictures",
                hint=f"delete it, or put pictures into it; known are: {', '.join(SUFFIXES)}",
            )
        names += found
        counts[order[class_name]] = len(found)
    return names, np.repeat(np.arange(len(classes)), counts)


class _Walk:
    """Finds pictures at any depth, and keeps watch over links.

    A link to a folder outside is followed, as people link to data elsewhere; one to a folder above or beside it would
    make the same pictures samples of several classes or splits, or never end, and is not.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real = os.path.realpath(root)
        self._visited: set[str] = set()  # real folders, of those that links lead to
        self._passed: list[str] = []  # what was not followed or is no file
        self._targets: dict[str, str] = {}  # picture that is a link -> the real file
        self._others: Counter[str] = Counter()  # files that are no known pictures, by how their names end

    def reset(self) -> None:
        """Forget what was seen in looking around."""
        self.__init__(self._root)  # type: ignore[misc]

    def pictures(self, folder: Path) -> Iterator[str]:
        """Yield the names of a folder's pictures, relative to the root; hidden ones are left out."""
        prefix = len(str(self._root)) + 1
        if folder.is_symlink() and folder != self._root and not self._may_follow(str(folder)):
            return
        waiting = [str(folder)]
        while waiting:
            place = waiting.pop()
            with os.scandir(place) as entries:
                for entry in entries:
                    if _hidden(entry.name):
                        continue
                    if entry.is_dir():
                        if not entry.is_symlink() or self._may_follow(entry.path):
                            waiting.append(entry.path)
                    elif entry.name.lower().endswith(SUFFIXES):
                        if entry.is_symlink():
                            self._targets[entry.path[prefix:]] = os.path.realpath(entry.path)
                        elif not entry.is_file():  # a pipe or a device, which would be waited for
                            self._passed.append(entry.path[prefix:])
                            continue
                        yield entry.path[prefix:]
                    elif not entry.name.lower().endswith(BESIDE):
                        self._others[os.path.splitext(entry.name)[1].lower() or "no ending"] += 1  # noqa: PTH122

    def leads_outside(self, place: str) -> bool:
        """Whether a link leads to a folder that is neither within the root nor above it."""
        real = os.path.realpath(place)
        outside = not f"{self._real}/".startswith(f"{real}/") and not real.startswith(f"{self._real}/")
        if not outside:
            self._passed.append(place[len(str(self._root)) + 1 :])
        return outside

    def _may_follow(self, place: str) -> bool:
        real = os.path.realpath(place)
        if real in self._visited or not self.leads_outside(place):
            return False
        self._visited.add(real)
        return True

    def notes(self, listed: dict[str, tuple[list[str], NDArray[np.int64]]]) -> list[str]:
        """Say what was passed over.

        Raises:
            SourceError: A picture is in two splits, by links.
        """
        split_by_file: dict[str, tuple[str, str]] = {}
        for split, (names, _) in listed.items():
            for name in names if self._targets else ():
                real = self._targets.get(name) or f"{self._real}/{name}"
                first = split_by_file.setdefault(real, (split, name))
                if first[0] != split:
                    raise SourceError(
                        f"{name} and {first[1]} are the same picture, by a link: {first[0]} and {split} share it",
                        hint="take the link out: what is scored must not have been trained on",
                    )
        said = []
        if self._others:
            kinds = _shown([f"{count} of {ending}" for ending, count in self._others.most_common()])
            said.append(f"left out, for their names do not end as those of pictures: {kinds}")
        if self._passed:
            shown = _shown(sorted(set(self._passed)))
            said.append(f"passed over, for they are links within the folder or no files: {shown}")
        return said


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not _hidden(name)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
