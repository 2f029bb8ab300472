"""``imagefolder:DIR`` whose pictures are listed in a CSV file with what is to be estimated of each.

The file is called ``metadata.csv``, as Hugging Face's image folders have it, or ``labels.csv``, and lies in DIR or in
each of its ``train``, ``val`` and ``test``. It names a picture per row, its place relative to the file's own folder,
and one number or several; or the class. In DIR, a column ``split`` or the pictures' first folder can say the split.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from kdexport.data.csv_files import SPLIT_COLUMN, check_column, read_csv, split_of_rows
from kdexport.data.image_files import SUFFIXES, Files, store
from kdexport.data.samples import Reading, Source, Split
from kdexport.data.splits import split_folders, split_of
from kdexport.data.table_files import Cells, Table
from kdexport.data.tables import Missing, targets_of, without_missing
from kdexport.errors import SourceError
from kdexport.recipe import Data

LISTS = ("metadata.csv", "labels.csv")
FILE_COLUMNS = ("file_name", "filename", "file", "image", "image_name", "path", "name")  # of a picture, in lower case
SHOWN = 8


def lists_in(root: Path, data: Data, task: str | None) -> dict[str, Path]:
    """Return the lists of a folder by their split ("": of all), or none where its classes are its folders.

    A list beside folders of classes counts where the recipe asks for numbers: by its task, or by ``label_columns``.
    """
    folders = sorted(item.name for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
    whole = _list_of(root)
    named = split_folders(folders, str(root))
    found = {"": whole} if whole else {split: at for split, name in named.items() if (at := _list_of(root / name))}
    asked = bool(data.label_columns) or task == "regression"
    if not found:
        if asked:
            raise SourceError(
                f"{root} holds no {' or '.join(LISTS)}, which says the numbers of its pictures",
                hint="write one with a column file_name and a column for each number, beside the pictures",
            )
        return {}
    classes = root / named["train"] if "train" in named else root
    inside = [item for item in classes.iterdir() if item.is_dir() and split_of(item.name) is None]
    return found if asked or len(inside) < 2 else {}  # one folder holds the pictures, two are classes


def listed_images(root: Path, lists: dict[str, Path], data: Data, reading: Reading) -> Source:
    """Return the pictures that lists name, decoded once into ``cache``, with their targets.

    Raises:
        SourceError: A list lacks a column or a value, a picture is not there or named twice, a split is not known.
    """
    tables = {split: _table(path, data) for split, path in lists.items()}
    first = next(iter(tables.values()))
    file_column = _file_column(first)
    columns = tuple(data.label_columns) or tuple(
        name for name in first.columns if name not in (file_column, SPLIT_COLUMN)
    )
    for key, names in (("label_columns", columns), ("label_columns", (file_column,))):
        for table in tables.values():
            for name in names:
                check_column(name, list(table.columns), key, str(table.path))
    if not columns:
        raise SourceError(
            f"{first.path} has no column beside {file_column}", hint="give the numbers as further columns"
        )
    whole = _together(tables, (file_column, *columns, SPLIT_COLUMN))
    missing = Missing()
    targets, names, notes = targets_of(whole, columns, reading.task, missing)
    kept, skipped = without_missing(whole, missing, data)
    pictures = _pictures(root, tables, file_column)
    _check_pictures(root, pictures, whole)
    splits, said = _splits(tables, whole, pictures, root)
    files = Files.of(root, [pictures[row] for row in kept])
    stored = store(files, data, reading, "images.u8", data.image_size, None)
    rows = kept[stored.kept]
    samples = Split((stored.images,), targets[rows])
    origin = splits[rows]
    parts = {name: samples.select(np.flatnonzero(origin == name)) for name in dict.fromkeys(origin.tolist())}
    if "train" not in parts:
        raise SourceError(f"{root}: no picture is listed for train", hint="name the splits train, val and test")
    return Source(
        train=parts["train"],
        val=parts.get("val"),
        test=parts.get("test"),
        class_names=names,
        skipped=(*skipped, *stored.skipped),
        notes=(stored.note, *first.notes, *notes, *said, *_unlisted(root, pictures)),
        warnings=stored.warnings,
        levels=stored.levels,
    )


def _list_of(folder: Path) -> Path | None:
    return next((folder / name for name in LISTS if (folder / name).is_file()), None)


def _table(path: Path, data: Data) -> Table:
    found = read_csv(path, [("label_columns", column) for column in data.label_columns])
    columns: dict[str, Cells] = {name: [row[at] for row in found.rows] for at, name in enumerate(found.columns)}
    return Table(path, columns, found.lines, found.notes)


def _file_column(table: Table) -> str:
    for wanted in FILE_COLUMNS:
        for name in table.columns:
            if name.casefold() == wanted:
                return name
    raise SourceError(
        f"{table.path} has no column that names the pictures; it has {', '.join(table.columns)}",
        hint="call it file_name; the places are relative to this file's folder",
    )


def _together(tables: dict[str, Table], wanted: Sequence[str]) -> Table:
    """Return several lists as one table, each row with its line; of one list itself."""
    if len(tables) == 1:
        return next(iter(tables.values()))
    first = next(iter(tables.values()))
    columns: dict[str, Cells] = {}
    for name in wanted:
        if all(name in table.columns for table in tables.values()):
            columns[name] = [str(cell) for table in tables.values() for cell in table.columns[name]]
    places = [f"{table.place(row)} of {table.path.parent.name}/{table.path.name}"
              for table in tables.values() for row in range(len(table.lines))]  # fmt: skip
    return replace(first, path=first.path.parent.parent, columns=columns, lines=(), places=tuple(places))


def _pictures(root: Path, tables: dict[str, Table], column: str) -> list[str]:
    """Return each row's picture, its place relative to the root."""
    return [
        os.path.normpath(PurePosixPath(table.path.parent.relative_to(root)) / str(cell).strip().replace("\\", "/"))
        for table in tables.values()
        for cell in table.columns[column]
    ]


def _check_pictures(root: Path, pictures: Sequence[str], table: Table) -> None:
    absent = [row for row, name in enumerate(pictures) if not os.path.isfile(root / name)]  # noqa: PTH113 a name without end is none
    if absent:
        more = f"; so are {len(absent) - 1} more" if len(absent) > 1 else ""
        first = str(root / pictures[absent[0]])[:300]
        raise SourceError(
            f"{table.path}: there is no picture {first} ({table.place(absent[0])}){more}",
            hint="the places in the list are relative to the folder that the list lies in",
        )
    seen: dict[str, int] = {}
    for row, name in enumerate(pictures):
        if name in seen:
            raise SourceError(
                f"{table.path}: {name} is listed twice, {table.place(seen[name])} and {table.place(row)}",
                hint="keep one of them: several numbers of a picture are columns",
            )
        seen[name] = row


def _splits(
    tables: dict[str, Table], whole: Table, pictures: Sequence[str], root: Path
) -> tuple[NDArray[np.object_], list[str]]:
    """Return each row's split: its list's folder, its ``split`` column, its picture's first folder, else train."""
    if "" not in tables:
        return np.array([split for split, table in tables.items() for _ in table.lines], dtype=object), []
    if SPLIT_COLUMN in whole.columns:
        found, note = split_of_rows(list(map(str, whole.columns[SPLIT_COLUMN])), whole.lines, whole.path)
        return found, [note] if note else []
    first = [name.partition("/")[0] if "/" in name else "" for name in pictures]
    by_folder = {name: split_of(name) for name in set(first)}
    if None not in by_folder.values() and len(by_folder) > 1:
        return np.array([by_folder[name] for name in first], dtype=object), [
            f"the splits are the pictures' folders in {root.name}"
        ]
    return np.full(len(pictures), "train", dtype=object), []


def _unlisted(root: Path, pictures: Sequence[str]) -> list[str]:
    listed = set(pictures)
    left = 0
    for folder, _, names in os.walk(root):
        inside = os.path.relpath(folder, root)
        left += sum(
            name.lower().endswith(SUFFIXES) and os.path.normpath(os.path.join(inside, name)) not in listed  # noqa: PTH118
            for name in names
        )
    return [f"left out, for no list names them: {left} pictures"] if left else []
