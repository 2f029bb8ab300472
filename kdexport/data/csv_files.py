"""CSV files as rows of cells, each with the line that it ends on: what texts and tables are read from.

The delimiter is a comma, semicolon, tab or bar, the encoding UTF-8 or (with its mark) UTF-16 or UTF-32; blank lines are
left out. What a cell means is left to who reads it.
"""

import codecs
import csv
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
from numpy.typing import NDArray

from kdexport.data.splits import SPLIT_NAMES, split_of
from kdexport.errors import SourceError, did_you_mean

SPLIT_COLUMN = "split"
DELIMITERS = (",", ";", "\t", "|")
ENCODINGS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)  # by what a file begins with
SEPARATOR_LINE = re.compile(r"sep=(.)\s*$")  # Excel's first line
LINES_SHOWN = 10
LONGEST = 1 << 24  # characters of a header or a cell: a book is shorter


def read_rows(path: Path, wanted: Sequence[tuple[str, str]]) -> tuple[list[dict[str, str]], list[int], list[str]]:
    """Return a CSV file's rows by column, the lines that they end on, and what is to be said; see ``read_csv``."""
    found = read_csv(path, wanted)
    rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    return rows, list(found.lines), list(found.notes)


@dataclass(frozen=True)
class CsvRows:
    """A file's cells."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]  # one cell a column
    lines: Sequence[int]  # on which each row ends
    notes: tuple[str, ...]  # what is to be said of how it was read


def read_csv(path: Path, wanted: Sequence[tuple[str, str]]) -> CsvRows:
    """Read a CSV file with a header.

    Args:
        path: The file.
        wanted: Columns that it must have, each with the key of [data] that names it: (key, column).

    Raises:
        SourceError: It has not, a row is of another length, or there is none.
    """
    if not path.is_file():
        raise SourceError(f"there is no file {path}", hint="check the path; in a recipe it is relative to the recipe")
    with path.open("rb") as handle:
        start = handle.read(4)
    encoding = next((name for mark, name in ENCODINGS if start.startswith(mark)), "utf-8-sig")
    names, notes = [column for _, column in wanted], []
    try:
        with path.open(newline="", encoding=encoding) as handle:
            head = first_line(handle, path)
            if "\0" in head:
                raise SourceError(
                    f"{path} has NUL bytes in its first line: it is damaged, or UTF-16 without the mark that says so",
                    hint="save it as UTF-8",
                )
            mark = SEPARATOR_LINE.match(head)
            skipped = 1 if mark else 0
            head = next((line for line in itertools.chain([head], handle) if line.strip()), "")
            delimiter = mark[1] if mark else max(DELIMITERS, key=lambda each: _columns_found(head, each, names))
            columns, records = _records(handle, skipped, delimiter, csv.QUOTE_MINIMAL)
            if not columns:
                raise SourceError(
                    f"{path} is empty: it has no header and no rows",
                    hint="give a header and rows below it, one a sample; was it written to the end?",
                )
            _check_columns(columns, wanted, path)
            fault = _quote_fault(columns, records, delimiter, names[-1]) if names else ""
            if fault and delimiter == "\t":  # tables divided by tabs are often written without any quoting
                columns, records = _records(handle, skipped, delimiter, csv.QUOTE_NONE)
                notes.append("a quote is not closed where its text ends: quotes are taken as characters of the texts")
            elif fault:
                raise SourceError(
                    f"{path}: {fault}",
                    hint='write a quote within a quoted text twice (""), and a text that begins with one in quotes',
                )
    except UnicodeError as error:
        raise SourceError(f"{path} is not UTF-8: {error}", hint="save it as UTF-8") from None
    except csv.Error as error:
        raise SourceError(f"{path} cannot be read as CSV: {error}", hint="save it as comma-separated values") from None
    _check_lengths(columns, records, path)
    if not records:
        raise SourceError(f"{path} has a header and no rows", hint="give rows below it, one a sample")
    marks = {";": "semicolons", "\t": "tabs", "|": "bars"}
    notes = [f"columns are divided by {marks[delimiter]}", *notes] if delimiter in marks else notes
    return CsvRows(
        tuple(columns), [record.cells for record in records], [record.last for record in records], tuple(notes)
    )


def first_line(handle: TextIO, path: Path) -> str:
    """Return the line that should be the header, and set how long a cell may be.

    Raises:
        SourceError: It does not end.
    """
    csv.field_size_limit(LONGEST)
    line = handle.readline(LONGEST)
    if len(line) == LONGEST:
        raise SourceError(
            f"{path} has a first line of more than {LONGEST:,} characters", hint="give a header of column names"
        )
    return line


@dataclass(frozen=True)
class _Record:
    """One row: its cells, and the lines that it begins and ends on."""

    cells: list[str]
    first: int
    last: int
    fault: str = ""  # of its quotes


def _records(handle: TextIO, skipped: int, delimiter: str, quoting: Literal[0, 3]) -> tuple[list[str], list[_Record]]:
    """Return the header's columns and every row that is not blank."""
    handle.seek(0)
    for _ in range(skipped):
        handle.readline()
    reader = csv.reader(handle, delimiter=delimiter, quoting=quoting, strict=True, skipinitialspace=delimiter != "\t")
    header = next((row for row in reader if any(cell.strip() for cell in row)), [])
    columns = [column.strip() for column in header]
    records: list[_Record] = []
    while True:
        first = reader.line_num + skipped + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if quoting == csv.QUOTE_MINIMAL and ("expected after" in str(error) or "unexpected end" in str(error)):
                records.append(_Record([], first, reader.line_num + skipped, str(error)))
                return columns, records
            raise
        if cells is None:
            return columns, records
        if any(cell.strip() for cell in cells):
            records.append(_Record(cells, first, reader.line_num + skipped))


def _quote_fault(columns: list[str], records: list[_Record], delimiter: str, label_column: str) -> str:
    """Say where a quote that was never meant to open a text has taken other rows into it; empty where none has.

    A text may span lines. One of whose lines is by itself a row, with a label that other rows have, may not.
    """
    place = columns.index(label_column)
    labels = {record.cells[place] for record in records if record.first == record.last and len(record.cells) > place}
    for record in records:
        if record.fault:
            return f"the quote on line {record.first} is not closed where its text ends, on line {record.last}"
        for number, cell in enumerate(record.cells) if record.first < record.last else ():
            lines = cell.splitlines()
            rows = [[*record.cells[:number], *lines[0].split(delimiter)]] if len(lines) > 1 else []
            rows += [line.split(delimiter) for line in lines[1:-1]]
            if any(len(row) == len(columns) and row[place] in labels for row in rows):
                return f"the quote that opens on line {record.first} takes in whole rows, to line {record.last}"
    return ""


def _check_columns(columns: list[str], wanted: Sequence[tuple[str, str]], path: Path) -> None:
    for key, column in wanted:
        check_column(column, columns, key, str(path))
        if columns.count(column) > 1:
            raise SourceError(f"{path} has {columns.count(column)} columns '{column}'", hint="rename all but one")


def _check_lengths(columns: list[str], records: list[_Record], path: Path) -> None:
    wrong = [f"line {record.last} has {len(record.cells)}" for record in records if len(record.cells) != len(columns)]
    if wrong:
        more = f" and {len(wrong) - LINES_SHOWN} more" if len(wrong) > LINES_SHOWN else ""
        raise SourceError(
            f"{path} has {len(columns)} columns, and {', '.join(wrong[:LINES_SHOWN])}{more}",
            hint='put a text that holds the delimiter into quotes ("a, b"), and give every row all its cells',
        )


def _columns_found(head: str, delimiter: str, wanted: list[str]) -> int:
    columns = [column.strip() for column in next(csv.reader([head], delimiter=delimiter), [])]
    return 1000 * sum(column in columns for column in wanted) + len(columns)


def check_column(column: str, columns: Sequence[str], key: str, where: str) -> None:
    """Hold that there is a column.

    Raises:
        SourceError: There is not, with what there is.
    """
    if column not in columns:
        near = did_you_mean(column, columns) or f"it has: {', '.join(columns) or 'nothing'}; "
        raise SourceError(f"{where} has no column '{column}'", hint=f"{near}set data.{key}")


def split_of_rows(said: Sequence[str | None], lines: Sequence[int], path: Path) -> tuple[NDArray[Any], str | None]:
    """Return the split of each row, and what is to be said of rows that name none.

    Raises:
        SourceError: A row is of an unknown split, names none while others do, or none is of train.
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
