"""``csv:FILE``: texts with labels, or pairs of texts with a score, which this module reads.

A network sees one text at a time: the two of a pair are two samples, one behind the other (``tasks.similarity``). A
folder with train.csv, dev.csv and test.csv is read as one file with a ``split`` column.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdexport.data.csv_files import DELIMITERS, SPLIT_COLUMN, first_line, read_rows, split_of_rows
from kdexport.data.samples import Reading, Source, Split
from kdexport.data.splits import split_folders
from kdexport.data.text import INPUT_NAMES, csv_text, encode, token_preprocessing
from kdexport.errors import SourceError, did_you_mean
from kdexport.recipe import Data
from kdexport.references import parse
from kdexport.tasks.similarity import Similarity, pair_targets

SHOWN = 10


def csv_data(data: Data, reading: Reading) -> Source:
    """Return a CSV file's texts: pairs where it has two texts and a score, else as ``text.csv_text`` reads them.

    Raises:
        SourceError: As ``csv_text``; or a score that is missing or no number.
    """
    path = Path(parse(data.source).target)
    files = _files(path)
    if not all(file.is_file() for file in files.values()):
        return csv_text(data, reading)  # which says so
    if pair_columns(_header(next(iter(files.values()))), data, str(path)) is None:
        return csv_text(data, reading)
    rows: list[dict[str, str]] = []
    lines: list[str] = []
    notes: list[str] = []
    for split, file in files.items():
        found, places, said = read_rows(file, (("score_column", data.score_column),))
        columns = pair_columns(tuple(found[0]), data, str(file))
        if columns is None:
            raise SourceError(f"{file} has other columns than the files beside it", hint="give all the same header")
        first, second = columns
        for row, line in zip(found, places, strict=True):
            rows.append({"first": row[first], "second": row[second], "score": row[data.score_column],
                         SPLIT_COLUMN: split or row.get(SPLIT_COLUMN, "")})  # fmt: skip
            lines.append(f"{line} of {file.name}" if len(files) > 1 else f"{line}")
        notes += said
    texts, targets = texts_and_targets(rows, lines, data, str(path))
    given = [row[SPLIT_COLUMN] for row in rows]
    origin, note = split_of_rows(given if any(given) else [None] * len(rows), list(range(len(rows))), path)
    origin = np.repeat(origin, 2)
    tokens = encode(texts, data)
    whole = Split(tokens, targets, Similarity(), texts=np.array(texts, dtype=object))
    parts = {name: whole.select(np.flatnonzero(origin == name)) for name in dict.fromkeys(origin.tolist())}
    empty = sum(not text.strip() for text in texts)
    notes += [note] if note else []
    notes += [f"{empty} of {len(texts)} texts are empty"] if empty else []
    return Source(
        train=parts["train"],
        val=parts.get("val"),
        test=parts.get("test"),
        class_names=(),
        input_names=INPUT_NAMES,
        preprocessing=token_preprocessing(data),
        notes=(*notes, *shared_texts(texts, origin)),
    )


def _files(path: Path) -> dict[str, Path]:
    """Return the CSV files by the split that their names stand for; one file by itself stands for none."""
    if not path.is_dir():
        return {"": path}
    names = {file.stem: file for file in sorted(path.glob("*.csv"))}
    found = {split: names[name] for split, name in split_folders(list(names), str(path)).items()}
    if "train" not in found:
        raise SourceError(
            f"{path} holds no train.csv; it has {', '.join(file.name for file in names.values()) or 'no CSV file'}",
            hint="name a file, or a folder with train.csv and, where they are, dev.csv and test.csv",
        )
    return found


def _header(path: Path) -> tuple[str, ...]:
    """Return the columns of a CSV file, by the delimiter that gives most of them."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as handle:
        head = first_line(handle, path)
    rows = (next(csv.reader([head], delimiter=mark), []) for mark in DELIMITERS)
    return tuple(column.strip() for column in max(rows, key=len))


def pair_columns(columns: Sequence[str], data: Data, name: str) -> tuple[str, str] | None:
    """Return the two text columns of a table of pairs, or None where it is one of texts with labels.

    It is one of pairs where the recipe names ``text_columns``, or where it has a score column, no text column, and two
    columns beside (``split`` left out).

    Raises:
        SourceError: The recipe names a column that is not there, or it is not clear which are the texts.
    """
    if data.text_columns is not None:
        for key, column in (("text_columns", data.text_columns[0]), ("text_columns", data.text_columns[1]),
                            ("score_column", data.score_column)):  # fmt: skip
            if column not in columns:
                near = did_you_mean(column, columns) or f"it has: {', '.join(columns) or 'nothing'}; "
                raise SourceError(f"{name} has no column '{column}'", hint=f"{near}set data.{key}")
        return data.text_columns
    if data.score_column not in columns or data.text_column in columns or data.label_column in columns:
        return None
    others = [column for column in columns if column not in (data.score_column, SPLIT_COLUMN)]
    if len(others) != 2:
        raise SourceError(
            f"{name} has beside '{data.score_column}' the columns {', '.join(others) or 'none'}: it is not clear which "
            "two hold the texts",
            hint='set text_columns under [data], e.g. text_columns = ["sentence1", "sentence2"]',
        )
    return others[0], others[1]


def texts_and_targets(
    rows: Sequence[Mapping[str, str]], lines: Sequence[str], data: Data, name: str
) -> tuple[list[str], NDArray[np.float64]]:
    """Return the texts of all pairs, one behind the other, and their targets ``[2 * rows, 2]``.

    Args:
        rows: With ``first``, ``second`` and ``score``.
        lines: Where each row stands, for messages.
        data: Names the score column.
        name: What messages call the table.

    Raises:
        SourceError: A score is missing or no number.
    """
    scores, faults = np.zeros(len(rows)), []
    for number, (row, line) in enumerate(zip(rows, lines, strict=True)):
        cell = row["score"].strip()
        try:
            scores[number] = float(cell)
        except ValueError:
            scores[number] = math.nan
        if not math.isfinite(scores[number]):
            faults.append(f"line {line} has {cell!r}" if cell else f"line {line} has none")
    if faults:
        more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise SourceError(
            f"{name}: a pair's score is a number, and {', '.join(faults[:SHOWN])}{more}",
            hint=f"fix the rows, or name the scores' column as data.score_column (now {data.score_column})",
        )
    texts = [row[side] for row in rows for side in ("first", "second")]
    return texts, pair_targets(scores)


def shared_texts(texts: Sequence[str], origin: NDArray[np.object_]) -> tuple[str, ...]:
    """Say how many of the test texts are among the training texts: they are then no new ones."""
    found = {
        split: {text.strip() for text in np.asarray(texts, dtype=object)[origin == split]} for split in set(origin)
    }
    shared = found.get("test", set()) & found.get("train", set())
    if not shared:
        return ()
    return (f"{len(shared)} of the {len(found['test'])} different test texts are among the training texts too",)
