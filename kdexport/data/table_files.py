"""Tables in CSV and Parquet files: columns by their names, and where each row stands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdexport import memory
from kdexport.data.csv_files import check_column, read_csv
from kdexport.data.npz_files import EXPANSION, SPARE_BYTES
from kdexport.errors import SourceError
from kdexport.recipe import Data

PARQUET = (".parquet", ".pq", ".parq")
SHOWN = 8

Cells = list[str] | NDArray[Any]  # of a column: as a CSV file has them, or numbers


@dataclass(frozen=True)
class Table:
    """A table's columns."""

    path: Path
    columns: Mapping[str, Cells]
    lines: Sequence[int] = ()  # on which each row ends; empty: rows are counted from 0
    notes: tuple[str, ...] = ()
    places: Sequence[str] = ()  # of each row in words, where the lines alone do not say it

    def place(self, row: int) -> str:
        """Say where a row stands."""
        if self.places:
            return self.places[row]
        return f"line {self.lines[row]}" if self.lines else f"row {row}"


def read_table(path: Path, data: Data) -> Table:
    """Return a table whose header holds what the recipe calls labels.

    Raises:
        SourceError: No such file or column, no header, two columns of one name, or a file that cannot be read.
    """
    return _parquet(path, data) if path.suffix.lower() in PARQUET else _csv(path, data)


def _csv(path: Path, data: Data) -> Table:
    found = read_csv(path, [("label_columns", column) for column in data.label_columns])
    if not data.label_columns:
        raise _no_labels(path, found.columns)
    _check_header(path, found.columns)
    columns: dict[str, Cells] = {name: [row[place] for row in found.rows] for place, name in enumerate(found.columns)}
    return Table(path, columns, found.lines, found.notes)


def _check_header(path: Path, columns: Sequence[str]) -> None:
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise SourceError(f"{path} has two columns '{twice[0]}'", hint="give each column a name of its own")


def _no_labels(path: Path, columns: Sequence[str]) -> SourceError:
    try:
        numbers = [float(name) for name in columns]
    except ValueError:
        return SourceError(
            f"{path} is a table, and the recipe does not say which column is to be estimated",
            hint=f'set label_columns under [data], e.g. label_columns = ["{columns[-1]}"] (--set \'data.label_columns='
            f'["{columns[-1]}"]\'; export and bench: --label-column {columns[-1]}); it has: {shown(columns)}',
        )
    return SourceError(
        f"{path} has no header: its first line holds {len(numbers)} numbers",
        hint="put a line with a name for each column above it, and set label_columns under [data]",
    )


def _parquet(path: Path, data: Data) -> Table:
    if not path.is_file():
        raise SourceError(f"there is no file {path}", hint="check the path; in a recipe it is relative to the recipe")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise SourceError(
            f"{path} is Parquet, and pyarrow, which reads it, is not installed",
            hint="pip install 'kdexport[parquet]', or save the table as CSV",
        ) from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        _check_expansion(path, _claimed_bytes(file))
        texts = [
            field.name for field in file.schema_arrow if _is_text(field.type)
        ]  # each once, however often it stands
        found = pyarrow.parquet.read_table(path, read_dictionary=texts)
        _check_expansion(path, sum(map(_text_bytes, found.columns)))
        names = [str(name) for name in found.column_names]
        columns = [_arrow_cells(column) for column in found.columns]
    except (OSError, MemoryError, ValueError, pyarrow.ArrowException) as error:
        reason = memory.message() if memory.exhausted(error) else next(iter(str(error).strip().splitlines()), "")
        raise SourceError(
            f"{path} cannot be read as Parquet: {reason or type(error).__name__}", hint="save it again"
        ) from None
    if not data.label_columns:
        raise _no_labels(path, names)
    _check_header(path, names)
    for name in data.label_columns:
        check_column(name, names, "label_columns", str(path))
    if not found.num_rows:
        raise SourceError(f"{path} has columns and no rows", hint="give rows of numbers")
    return Table(path, dict(zip(names, columns, strict=True)))


def _claimed_bytes(file: Any) -> int:
    """Return what a Parquet file's values take: runs of equal ones are a few bytes in the file.

    A column's own record is asked for where rows do not tell how many values it has: where one is damaged, pyarrow (26)
    ends the process in place of raising.
    """
    metadata = file.metadata
    lists = [column for column in range(metadata.num_columns) if file.schema.column(column).max_repetition_level]
    parts = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows: int = sum(max(8 * part.num_rows * metadata.num_columns, part.total_byte_size) for part in parts)
    listed: int = sum(8 * part.column(column).num_values for part in parts for column in lists)
    return rows + listed


def _check_expansion(path: Path, claimed: int) -> None:
    if claimed > EXPANSION * path.stat().st_size + SPARE_BYTES:
        raise SourceError(
            f"{path} would unpack from {path.stat().st_size >> 10:,} KiB to {claimed >> 20:,} MiB: no data do",
            hint="take out the rows or cells that repeat one another",
        )


def _is_text(kind: Any) -> bool:
    import pyarrow

    return any(is_kind(kind) for is_kind in (pyarrow.types.is_string, pyarrow.types.is_large_string))


def _text_bytes(column: Any) -> int:
    """Return the bytes of all texts of a column that holds each once, or 0."""
    import pyarrow
    import pyarrow.compute

    if not (pyarrow.types.is_dictionary(column.type) and _is_text(column.type.value_type)):
        return 0
    lengths = [pyarrow.compute.binary_length(part.dictionary).take(part.indices) for part in column.chunks]
    return sum(pyarrow.compute.sum(part).as_py() or 0 for part in lengths)


def _arrow_cells(column: Any) -> Cells:
    """Return an Arrow column's cells: numbers as float64 with NaN for null, anything else as text."""
    import pyarrow

    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    numeric = (
        pyarrow.types.is_integer, pyarrow.types.is_floating, pyarrow.types.is_boolean, pyarrow.types.is_decimal,
    )  # fmt: skip
    if any(is_kind(kind) for is_kind in numeric):
        return np.array([np.nan if cell is None else float(cell) for cell in column.to_pylist()], dtype=np.float64)
    return ["" if cell is None else str(cell) for cell in column.to_pylist()]


def shown(names: Sequence[str]) -> str:
    """Return the first of some names, and how many there are."""
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")
