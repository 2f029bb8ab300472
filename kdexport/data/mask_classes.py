"""What a mask's pixels mean: the list of classes beside the masks, and a mask file's pixels as class ids."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdexport.errors import SourceError, whole_number
from kdexport.tasks.masks import MOST_CLASSES, VOID

# classes.txt; CVAT's, Roboflow's, Kaggle's and CamVid's names for the same.
FILES = ("classes.txt", "labelmap.txt", "_classes.csv", "class_dict.csv", "label_colors.txt", "labels.txt")
VOID_NAMES = ("void", "unlabelled", "unlabeled", "ignore", "ignored", "unknown")
_NUMBER = r"(\d{1,3})"
_COLOR_FIRST = re.compile(rf"{_NUMBER}[\s,;]+{_NUMBER}[\s,;]+{_NUMBER}[\s,;:]+(\S.*)")
_COLOR_LAST = re.compile(rf"(\S.*?)[\s,;:]+{_NUMBER}[\s,;]+{_NUMBER}[\s,;]+{_NUMBER}[\s,;:]*")
_NUMBERED = re.compile(r"(\d+)[\s,;:]+(\S.*)")
_HEADER = re.compile(r"name\b.*\br\b.*\bg\b.*\bb|r\b.*\bg\b.*\bb\b.*name|pixel value.*class", re.IGNORECASE)
Color = tuple[int, int, int]


@dataclass(frozen=True)
class MaskClasses:
    """The classes that masks may hold."""

    names: tuple[str, ...]  # empty: not said, a class's name is its number
    colors: tuple[tuple[Color, int], ...] = ()  # with the class id that each stands for; empty: pixels are class ids
    file: str = ""  # that says so
    warning: str = ""


class _BeyondError(ValueError):
    """A mask holds what the list of classes does not."""


def read_classes(folders: Sequence[Path]) -> MaskClasses:
    """Return the classes that a list beside the masks names; a line each, with or without its number or color.

    A class called void (or unlabelled, ignore) that has a color is none: its pixels count nowhere.

    Args:
        folders: Where the list may lie, the likeliest first.

    Raises:
        SourceError: The list cannot be read, or names a class or a color twice.
    """
    path = next((folder / name for folder in folders for name in FILES if (folder / name).is_file()), None)
    if path is None:
        return MaskClasses(())
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read: {error}", hint="write it as UTF-8, a class per line") from None
    lines = [line for line in lines if line and not line.startswith("#")]
    if lines and _HEADER.match(lines[0]):
        lines = lines[1:]
    if not lines:
        raise SourceError(f"{path} names no class", hint="write a class per line, that of number 0 first")
    colored = [_color_of(line) for line in lines]
    if all(found is not None for found in colored):
        return _with_colors([found for found in colored if found is not None], path)
    if any(found is not None for found in colored):
        line = lines[next(place for place, found in enumerate(colored) if found is None)]
        raise SourceError(
            f"{path}: '{line}' has no color, and other lines have one", hint="write each line as: R G B name"
        )
    names = _unnumbered(lines, path)
    _check_names(names, path)
    void = [name for name in names if name.casefold() in VOID_NAMES]
    warning = (
        f"the class '{void[0]}' of {path.name} is scored like any other; where its pixels are to count nowhere, take "
        f"it off the end of the list and give them {VOID}"
        if void
        else ""
    )
    return MaskClasses(tuple(names), file=path.name, warning=warning)


def class_ids(picture: Image.Image, classes: MaskClasses) -> NDArray[np.int64]:
    """Return a mask's class ids int64 ``[h, w]``, 255 for void.

    A palette's or a grey mask's pixels are class ids as they are, unless the list gives colors and these are its own.

    Raises:
        ValueError: It holds a number or a color that the list does not, or is no mask.
    """
    if classes.colors:
        return _by_color(picture, classes)
    if picture.mode in ("RGB", "RGBA", "LA"):
        channels = np.asarray(picture)[..., : -1 if picture.mode != "RGB" else None]
        if not (channels == channels[..., :1]).all():
            colors = {tuple(map(int, color)) for color in channels.reshape(-1, 3)[:: max(1, channels.size // 3000)]}
            shown = ", ".join(str(color) for color in sorted(colors)[:4])
            raise _BeyondError(
                f"it is a color picture ({shown}, ...), and no list says which color is which class: "
                "write classes.txt with a line 'R G B name' for each"
            )
        found = channels[..., 0]
    elif picture.mode in ("P", "L", "1", "I") or picture.mode.startswith("I;16"):
        found = np.asarray(picture)
    else:
        raise _BeyondError(f"its pixels are of the kind '{picture.mode}': write it as PNG, a byte a pixel")
    ids = found.astype(np.int64)
    count = len(classes.names) or MOST_CLASSES
    wrong = ids[(ids != VOID) & ((ids < 0) | (ids >= count))]
    if wrong.size:
        known = f"the {count} classes of {classes.file} count from 0 to {count - 1}" if classes.names else "255 is void"
        raise _BeyondError(f"it holds the class number {int(wrong[0])}; {known}")
    return ids


def _by_color(picture: Image.Image, classes: MaskClasses) -> NDArray[np.int64]:
    codes = np.array([_code(color) for color, _ in classes.colors], dtype=np.int64)
    ids = np.array([number for _, number in classes.colors], dtype=np.int64)
    order = np.argsort(codes)
    codes, ids = codes[order], ids[order]
    rgb = np.asarray(picture.convert("RGB"), dtype=np.int64)
    found = (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]
    places = np.searchsorted(codes, found).clip(max=len(codes) - 1)
    unknown = codes[places] != found
    if not unknown.any():
        return np.asarray(ids[places])
    if picture.mode in ("P", "L", "1"):  # class ids, although the list has colors too
        plain = np.asarray(picture).astype(np.int64)
        if ((plain == VOID) | (plain < len(classes.names))).all():
            return plain
    row, column = np.argwhere(unknown)[0]
    color = tuple(int(value) for value in rgb[row, column])
    raise _BeyondError(f"its color {color} at row {row}, column {column} is no class of {classes.file}")


def _color_of(line: str) -> tuple[str, Color] | None:
    first, last = _COLOR_FIRST.fullmatch(line), _COLOR_LAST.fullmatch(line)
    if first is not None:
        values, name = first.groups()[:3], first.group(4)
    elif last is not None:
        values, name = last.groups()[1:4], last.group(1)
    else:
        return None
    color = tuple(int(value) for value in values)
    return (name.strip(), (color[0], color[1], color[2])) if max(color) <= 255 else None


def _with_colors(lines: Sequence[tuple[str, Color]], path: Path) -> MaskClasses:
    names = [name for name, _ in lines if name.casefold() not in VOID_NAMES]
    _check_names(names, path)
    codes = [color for _, color in lines]
    if len(set(codes)) < len(codes):
        twice = next(color for color in codes if codes.count(color) > 1)
        raise SourceError(f"{path} gives the color {twice} to two classes", hint="give each class a color of its own")
    number = {name: place for place, name in enumerate(names)}
    return MaskClasses(tuple(names), tuple((color, number.get(name, VOID)) for name, color in lines), path.name)


def _unnumbered(lines: Sequence[str], path: Path) -> list[str]:
    """Return the names without the numbers before them, where every line has one."""
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    found = [match for match in numbered if match is not None]
    if len(found) < len(lines):
        return [line.rstrip(",;") for line in lines]
    numbers = [whole_number(match.group(1)) for match in found]
    if numbers != list(range(len(lines))):
        missing = next(place for place in range(len(lines)) if numbers[place] != place)
        raise SourceError(
            f"{path} numbers its classes, and the number {missing} is not in its place ('{lines[missing]}')",
            hint="number them from 0 on without gaps, in order; pixels of no class are 255 and stand in no line",
        )
    return [match.group(2).rstrip(",;") for match in found]


def _check_names(names: Sequence[str], path: Path) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SourceError(f"{path} names '{twice}' twice", hint="give each class a name of its own, a line each")
    if len(names) > MOST_CLASSES:
        raise SourceError(f"{path} names {len(names)} classes", hint=f"a mask holds {MOST_CLASSES} and void (255)")


def _code(color: Color) -> int:
    return (color[0] << 16) | (color[1] << 8) | color[2]
