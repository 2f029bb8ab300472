"""CSV files as rows of cells, each with the line that it ends on: what texts and tables are read from.

The delimiter is a comma, semicolon, tab or bar, the encoding UTF-8 or (with its mark) UTF-16 or UTF-32; blank lines are
left out. What a cell means is left to who reads it.
"""

import codecs
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdexport.data.splits import SPLIT_NAMES, split_of
from kdexport.errors import SourceError, did_you_mean

DELIMITERS = (",", ";", "\t", "|")
ENCODINGS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)  # by what a file begins with
LINES_SHOWN = 10
SPLIT_COLUMN = "split"


@dataclass(frozen=True)
class CsvRows:
    """A file's cells."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]  # one cell a column
    lines: Sequence[int]  # on which each row ends
    notes: tuple[str, ...]  # what is to be said of how it was read
    delimiter: str

    def column(self, name: str) -> list[str]:
        """Return a column's cells."""
        place = self.columns.index(name)
        return [row[place] for row in self.rows]


def read_csv(path: Path, wanted: Mapping[str, str], rows_are: str = "rows") -> CsvRows:
    """Read a CSV file with a header.

    Args:
        path: The file.
        wanted: Columns that it must have: column -> the recipe's key that names it.
        rows_are: What a message says the file should hold.

    Raises:
        SourceError: No such file or columns, a row of another length, no row at all.
    """
    if not path.is_file():
        raise SourceError(f"there is no file {path}", hint="check the path; in a recipe it is relative to the recipe")
    csv.field_size_limit(sys.maxsize)
    with path.open("rb") as handle:
        start = handle.read(4)
    encoding = next((name for mark, name in ENCODINGS if start.startswith(mark)), "utf-8-sig")
    rows, lines, wrong = [], [], []
    try:
        with path.open(newline="", encoding=encoding) as handle:
            head = handle.readline()
            delimiter = max(DELIMITERS, key=lambda mark: _columns_found(head, mark, wanted))
            handle.seek(0)
            reader = csv.reader(handle, delimiter=delimiter)
            columns = tuple(column.strip() for column in next(reader, []))
            for column, key in wanted.items():
                check_column(column, columns, key, str(path))
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(columns):
                    wrong.append(f"line {reader.line_num} has {len(cells)}")
                rows.append(cells)
                lines.append(reader.line_num)
    except UnicodeError as error:
        raise SourceError(f"{path} is not UTF-8: {error}", hint="save it as UTF-8") from None
    except csv.Error as error:
        raise SourceError(f"{path} cannot be read as CSV: {error}", hint="save it as comma-separated values") from None
    if wrong:
        more = f" and {len(wrong) - LINES_SHOWN} more" if len(wrong) > LINES_SHOWN else ""
        raise SourceError(
            f"{path} has {len(columns)} columns, and {', '.join(wrong[:LINES_SHOWN])}{more}",
            hint='put a text that holds the delimiter into quotes ("a, b"), and give every row all its cells',
        )
    if not rows:
        raise SourceError(f"{path} has a header and no rows", hint=f"give {rows_are}")
    names = {";": "semicolons", "\t": "tabs", "|": "bars"}
    notes = (f"columns are divided by {names[delimiter]}",) if delimiter in names else ()
    return CsvRows(columns, rows, lines, notes, delimiter)


def check_column(column: str, columns: Sequence[str], key: str, where: str) -> None:
    """Hold that there is a column, once.

    Raises:
        SourceError: There is not, with what there is.
    """
    if column not in columns:
        near = did_you_mean(column, columns) or f"it has: {', '.join(columns) or 'nothing'}; "
        raise SourceError(f"{where} has no column '{column}'", hint=f"{near}set data.{key}")


def split_of_rows(said: Sequence[str | None], lines: Sequence[int], path: Path) -> tuple[NDArray[Any], str | None]:
    """Return the split of each row by what its split column says, and what is to be said of rows that name none.

    Raises:
        SourceError: A name of no split, rows without a name beside train's, or no row of train.
    """
    if all(name is None for name in said):
        return np.full(len(said), "train", dtype=object), None
    names = [(name or "").strip() for name in said]
    blank = [index for index, name in enumerate(names) if not name]
    found = []
    for index, name in enumerate(names):
        split = split_of(name) if name else "train"
        if split is None:
            known = ", ".join(known for group in SPLIT_NAMES.values() for known in group[:3])
            raise SourceError(
                f"{path}: row {index + 1} is of the split '{name}' (line {lines[index]})", hint=f"known are: {known}"
            )
        found.append(split)
    named = {split for split, name in zip(found, names, strict=True) if name}
    if blank and "train" in named:
        raise SourceError(
            f"{path}: {places(blank, 'names no split', lines)}, and others do",
            hint=f"fill in the column {SPLIT_COLUMN}, or take the rows out",
        )
    if "train" not in found:
        raise SourceError(f"{path} has no row whose split is train", hint="name the splits train, val and test")
    note = f"{len(blank)} rows name no split and are taken as train" if blank else None
    return np.array(found, dtype=object), note


def places(indices: Sequence[int], fault: str, lines: Sequence[int] | None) -> str:
    """Return which sample has a fault, on which line, and how many more have."""
    place = f", on line {lines[indices[0]]}" if lines else ""
    more = f"; so do {len(indices) - 1} more" if len(indices) > 1 else ""
    return f"sample {indices[0]} {fault}{place}{more}"


def _columns_found(head: str, delimiter: str, wanted: Mapping[str, str]) -> int:
    columns = [column.strip() for column in next(csv.reader([head], delimiter=delimiter), [])]
    return 1000 * sum(column in columns for column in wanted) + len(columns)
