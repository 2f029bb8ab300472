"""``table:FILE``: rows of numbers from CSV or Parquet, some columns the targets and the others the features.

Features are standardized by what the training rows hold, inside the ONNX file, so that who uses it feeds the numbers as
they stand in the table. Text is refused, never encoded by a guess.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdexport.data.csv_files import SPLIT_COLUMN, check_column, split_of_rows
from kdexport.data.samples import Reading, Source, Split
from kdexport.data.table_files import Cells, Table, read_table, shown
from kdexport.data.text import label_numbers
from kdexport.errors import SourceError
from kdexport.recipe import Data
from kdexport.references import parse
from kdexport.tasks.regression import MOST_CLASSES, RESOLUTION, as_targets

# What stands for no value: pandas' list, and the question mark of the UCI repository. Compared in lower case.
MISSING = {
    "", "#n/a", "#n/a n/a", "#na", "-1.#ind", "-1.#qnan", "-nan", "1.#ind", "1.#qnan", "<na>", "n/a", "na", "nan",
    "none", "null", "?",
}  # fmt: skip
TRUTH = {"true": 1.0, "false": 0.0}
DECIMAL_COMMA = re.compile(r"[+-]?\d+(\.\d{3})*,\d+", re.ASCII)
THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", re.ASCII)
INDEX = re.compile(r"|Unnamed: \d+|__index_level_\d+__")  # as pandas writes a frame's index
FEWEST, SHARE = 20, 0.5  # of that many rows, more than this share all different: no classes
SAYS_IT_ALL = 1 - 1e-9  # a feature's correlation with the target


@dataclass
class Missing:
    """Rows that lack a value, each with the first column that does."""

    rows: dict[int, str] = field(default_factory=dict)

    def add(self, name: str, values: NDArray[np.float64]) -> None:
        """Note a column's."""
        for row in np.flatnonzero(np.isnan(values)):
            self.rows.setdefault(int(row), name)


def table(data: Data, reading: Reading) -> Source:
    """Return a table's rows: ``data.label_columns`` as targets, ``data.feature_columns`` or all others as features.

    Targets are numbers where the task is regression, class names or ids where it is classification; without a task,
    text is classes and fractions are numbers. A column ``split`` says which rows are train, val and test.

    Raises:
        SourceError: No such file or columns, text in a column of numbers, a missing value, targets that may be either.
    """
    path = Path(parse(data.source).target)
    read = read_table(path, data)
    features, notes = _feature_columns(read, data)
    missing = Missing()
    inputs = np.stack([numbers_of(read, name, missing, _NO_FEATURE) for name in features], axis=1)
    targets, names, said = targets_of(read, data.label_columns, reading.task, missing)
    kept, skipped = without_missing(read, missing, data)
    origin = np.full(len(inputs), "train", dtype=object)
    if SPLIT_COLUMN in read.columns and SPLIT_COLUMN not in (*features, *data.label_columns):
        found, note = split_of_rows(list(map(str, read.columns[SPLIT_COLUMN])), read.lines or range(len(inputs)), path)
        origin, said = found, (*said, *([note] if note else []))
    with np.errstate(over="ignore"):
        narrowed = inputs.astype(np.float32)
    _check_range(narrowed, inputs, features, read, kept)
    splits = {
        name: Split((narrowed[rows],), targets[rows])
        for name in dict.fromkeys(origin[kept].tolist())
        for rows in [kept[origin[kept] == name]]
    }
    numeric = targets.dtype.kind == "f"
    return Source(
        train=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        class_names=names,
        input_names=("features",),
        standardize=True,
        feature_names=tuple(features),
        skipped=skipped,
        notes=(*read.notes, f"the features are {shown(features)}", *notes, *said),
        warnings=tuple(_doubts(inputs[kept], features, targets[kept] if numeric else None, names)),
    )


def targets_of(
    read: Table, columns: Sequence[str], task: str | None, missing: Missing
) -> tuple[NDArray[Any], tuple[str, ...], tuple[str, ...]]:
    """Return the targets of a table's rows, what they are called, and what is to be said of how they were read.

    Args:
        read: The table.
        columns: Which of them are the targets.
        task: What they are for; None: read off them.
        missing: Where rows without a target are noted.

    Returns:
        Class ids int64 ``[rows]`` with the classes' names, or float32 ``[rows, columns]`` with the columns'.

    Raises:
        SourceError: Text where numbers are needed, or whole numbers that may be classes.
    """
    one = columns[0]
    if task == "classification" and len(columns) > 1:
        raise SourceError(
            f"{read.path}: {len(columns)} label_columns ({shown(columns)}) for classification",
            hint='name the one that holds the class; task = "multilabel" takes several columns of 0 and 1',
        )
    text = len(columns) == 1 and task is None and _is_text(read.columns[one])
    if task == "classification" or text:
        cells = [str(_whole(cell)) for cell in read.columns[one]]
        lost = np.array([np.nan if cell.strip().casefold() in MISSING else 0.0 for cell in cells])
        missing.add(one, lost)
        labelled = np.flatnonzero(~np.isnan(lost)).tolist()
        ids = np.zeros(len(cells), dtype=np.int64)
        lines = [read.lines[row] for row in labelled] if read.lines else None
        ids[labelled], classes = label_numbers([cells[row] for row in labelled], str(read.path), lines)
        return ids, classes, ()
    values = np.stack([numbers_of(read, name, missing, _NO_TARGET) for name in columns], axis=1)
    filled = np.where(np.isnan(values), 0.0, values)
    known = values[~np.isnan(values).any(axis=1)]
    told: tuple[str, ...] = ()
    if task is None and len(known) and (known == np.round(known)).all():
        if len(columns) > 1:
            if np.isin(known, (0, 1)).all():
                return filled.astype(np.float32), tuple(columns), ()
        else:
            found = np.unique(known)
            if _are_class_ids(found, len(known)):
                note = f"'{one}' holds the class ids 0 to {len(found) - 1}; task = \"regression\" takes them as numbers"
                return filled[:, 0].astype(np.int64), tuple(str(index) for index in range(len(found))), (note,)
            if len(found) <= MOST_CLASSES and not (len(known) >= FEWEST and len(found) > SHARE * len(known)):
                raise SourceError(
                    f"{read.path}: '{one}' holds {len(found)} different whole numbers, from {found[0]:g} to "
                    f"{found[-1]:g}: they may be classes or amounts",
                    hint='set task = "regression" or task = "classification" (--set task=...)',
                )
            told = (f"'{one}' holds {len(found)} different whole numbers: taken as amounts, not as classes",)
    return as_targets(filled, str(read.path)), tuple(columns), told


def numbers_of(read: Table, name: str, missing: Missing, hint: str) -> NDArray[np.float64]:
    """Return a column as numbers, float64 ``[rows]``, NaN where there is no value.

    Raises:
        SourceError: A cell is no finite number, with its line.
    """
    cells = read.columns[name]
    wrong: list[int] = []
    if isinstance(cells, np.ndarray):
        values = cells.astype(np.float64)
    else:
        values = np.empty(len(cells))
        for row, cell in enumerate(cells):
            try:
                values[row] = float(cell)
            except ValueError:
                plain = cell.strip().casefold()
                values[row] = np.nan if plain in MISSING else TRUTH.get(plain, np.inf)
    wrong = [int(row) for row in np.flatnonzero(np.isinf(values))]
    if wrong:
        shown = f"'{str(cells[wrong[0]])[:40]}'"
        more = f"; so do {len(wrong) - 1} more rows" if len(wrong) > 1 else ""
        raise SourceError(
            f"{read.path}: the column '{name}' holds {shown} on {read.place(wrong[0])}, which is no number{more}",
            hint=_hint_for(str(cells[wrong[0]]).strip(), hint),
        )
    missing.add(name, values)
    return values


def _hint_for(cell: str, otherwise: str) -> str:
    if THOUSANDS.fullmatch(cell):
        return "take the thousands separators out: 1234.5, or a decimal comma: write decimals with a point"
    if DECIMAL_COMMA.fullmatch(cell):
        return "write decimals with a point and thousands without a separator: 1234.5"
    if cell.casefold().lstrip("+-") in ("inf", "infinity"):
        return "leave the row out, or fill in a number"
    return otherwise


_NO_FEATURE = (
    "name the columns of numbers to use as data.feature_columns; of a category make a column of 0 and 1 for each value"
)
_NO_TARGET = 'name the column of numbers to estimate as data.label_columns; for classes set task = "classification"'


def _is_text(cells: Cells) -> bool:
    """Whether a column holds words: most of what is there is no number."""
    if isinstance(cells, np.ndarray):
        return False
    known = [cell for cell in cells if cell.strip().casefold() not in MISSING]

    def is_number(cell: str) -> bool:
        try:
            float(cell)
        except ValueError:
            return False
        return True

    return bool(known) and sum(map(is_number, known)) <= len(known) / 2


def _are_class_ids(found: NDArray[np.float64], rows: int) -> bool:
    counts = 2 <= len(found) <= MOST_CLASSES and bool((found == np.arange(len(found))).all())
    return counts and not (rows >= FEWEST and len(found) > SHARE * rows)


def _whole(cell: Any) -> Any:
    """Return 3 for 3.0: a class id that a column with gaps, or a tool, has made a float."""
    if isinstance(cell, str):
        return re.sub(r"^(\d+)\.0+$", r"\1", cell.strip())
    return int(cell) if isinstance(cell, float | np.floating) and float(cell).is_integer() else cell


def _feature_columns(read: Table, data: Data) -> tuple[list[str], list[str]]:
    """Return the columns that are fed, and what is to be said of those that are not."""
    columns = list(read.columns)
    for name in data.feature_columns:
        check_column(name, columns, "feature_columns", str(read.path))
    both = [name for name in data.feature_columns if name in data.label_columns]
    if both:
        raise SourceError(
            f"{read.path}: {shown(both)} is in label_columns and in feature_columns", hint="name it in one of them"
        )
    if data.feature_columns:
        return list(data.feature_columns), []
    notes, features = [], []
    for name in columns:
        if name in data.label_columns or (name == SPLIT_COLUMN and _is_text(read.columns[name])):
            continue
        if INDEX.fullmatch(name) and _counts_rows(read.columns[name]):
            notes.append(f"the column '{name}' numbers the rows and is left out")
            continue
        features.append(name)
    if not features:
        raise SourceError(
            f"{read.path} has no column beside {shown(list(data.label_columns))}",
            hint="give the features as further columns of numbers",
        )
    return features, notes


def _counts_rows(cells: Cells) -> bool:
    try:
        values = np.asarray(cells, dtype=np.float64)
    except ValueError:
        return False
    return bool((np.diff(values) == 1).all())


def without_missing(read: Table, missing: Missing, data: Data) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the rows that have all their values, and a line for each that has not, where those may be left out."""
    count = len(next(iter(read.columns.values())))
    if missing.rows and data.on_bad_sample == "fail":
        row, name = min(missing.rows.items())
        columns = dict.fromkeys(missing.rows.values())
        raise SourceError(
            f"{read.path}: {len(missing.rows)} of {count} rows lack a value, the first is {read.place(row)} ('{name}'; "
            f"in all: {shown(list(columns))})",
            hint='fill them in, or leave these rows out: on_bad_sample = "skip" under [data]',
        )
    kept = np.setdiff1d(np.arange(count), list(missing.rows))
    if not len(kept):
        raise SourceError(
            f"{read.path}: every row lacks a value", hint="name the columns that are filled as data.feature_columns"
        )
    return kept, tuple(f"{read.place(row)}: no value for '{name}'" for row, name in sorted(missing.rows.items()))


def _check_range(
    narrowed: NDArray[np.float32],
    inputs: NDArray[np.float64],
    features: Sequence[str],
    read: Table,
    kept: NDArray[np.int64],
) -> None:
    beyond = np.argwhere(np.isinf(narrowed[kept]))
    if len(beyond):
        row, column = int(kept[beyond[0][0]]), int(beyond[0][1])
        raise SourceError(
            f"{read.path}: the column '{features[column]}' holds {inputs[row, column]:g} on {read.place(row)}, beyond "
            "what float32 holds",
            hint="scale the column, e.g. by its logarithm",
        )


def _doubts(
    inputs: NDArray[np.float64], features: Sequence[str], targets: NDArray[Any] | None, names: Sequence[str]
) -> list[str]:
    """Say what of the features is likely a slip: one that says the target, one that float32 cannot tell apart."""
    told = []
    spread = inputs.std(axis=0)
    for column, name in enumerate(features):
        largest = np.abs(inputs[:, column]).max()
        if 0 < spread[column] < 16 * RESOLUTION * largest:
            told.append(
                f"the feature '{name}' lies within {inputs[:, column].min():.10g} to {inputs[:, column].max():.10g}, "
                "which float32 hardly tells apart: subtract a constant from it"
            )
    if targets is None or len(inputs) < 3:
        return told
    for place, target in enumerate(names):
        theirs = targets[:, place].astype(np.float64)
        centred, others = inputs - inputs.mean(axis=0), theirs - theirs.mean()
        scale = np.sqrt(np.square(centred).sum(axis=0) * np.square(others).sum())
        says = np.abs(centred.T @ others) >= SAYS_IT_ALL * np.where(scale > 0, scale, np.inf)
        told += [
            f"the feature '{features[column]}' says the target '{target}' exactly: a network that is fed it learns "
            "nothing else; if it is another target, name it in label_columns"
            for column in np.flatnonzero(says).tolist()
        ]
    return told
