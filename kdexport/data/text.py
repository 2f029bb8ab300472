"""Text as token ids: ``csv:FILE``, and whatever else comes as strings with labels."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdexport.data.samples import Source, Split
from kdexport.errors import SourceError, did_you_mean
from kdexport.models.hub import import_transformers
from kdexport.models.preprocessing import Preprocessing
from kdexport.progress import Progress
from kdexport.recipe import Data
from kdexport.references import parse

INPUT_NAMES = ("input_ids", "attention_mask")
SPLIT_COLUMN = "split"
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}


def csv_text(data: Data, cache: Path, progress: Progress) -> Source:  # noqa: ARG001 every loader takes the same arguments
    """Return the rows of a CSV file with a header: a text column, a label column and, where it is, a ``split`` column.

    Raises:
        SourceError: No such file or columns, a row without a label, an unknown split.
    """
    path = Path(parse(data.source).target)
    if not path.is_file():
        raise SourceError(f"there is no file {path}", hint="check the path; in a recipe it is relative to the recipe")
    rows = _rows(path, data)
    texts = [row[data.text_column] or "" for row in rows]
    labels, class_names = label_numbers([row[data.label_column] for row in rows], str(path))
    origin = np.array([_split_of(row.get(SPLIT_COLUMN), number, path) for number, row in enumerate(rows)])
    tokens = encode(texts, data)
    parts = {
        name: Split(tuple(array[origin == name] for array in tokens), labels[origin == name])
        for name in dict.fromkeys(origin.tolist())
    }
    if "train" not in parts:
        raise SourceError(f"{path} has no row whose split is train", hint="name the splits train, val and test")
    return Source(
        train=parts["train"],
        val=parts.get("val"),
        test=parts.get("test"),
        class_names=class_names,
        input_names=INPUT_NAMES,
        preprocessing=token_preprocessing(data),
    )


def encode(texts: Sequence[str], data: Data) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return token ids and attention mask, int64 ``[texts, longest]``, cut at ``data.text_length``.

    Raises:
        SourceError: No tokenizer is named, or it cannot be had.
    """
    if data.tokenizer is None:
        raise SourceError(
            f"{data.source} is text, and the recipe names no tokenizer",
            hint='set tokenizer under [data], e.g. tokenizer = "hf:NAME_OR_DIR", the one of the teacher',
        )
    tokenizer = _tokenizer(data.tokenizer)
    encoded = tokenizer(list(texts), truncation=True, max_length=data.text_length, padding=False)
    longest = max((len(ids) for ids in encoded["input_ids"]), default=1)
    ids = np.full((len(texts), longest), tokenizer.pad_token_id or 0, dtype=np.int64)
    mask = np.zeros((len(texts), longest), dtype=np.int64)
    for row, tokens in enumerate(encoded["input_ids"]):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return ids, mask


def token_preprocessing(data: Data) -> Preprocessing:
    """Return what an ONNX file says of its text: which tokenizer (by name, not by place) and how many tokens at
    most.
    """
    reference = parse(data.tokenizer or "")
    name = Path(reference.target).name if Path(reference.target).is_absolute() else reference.target
    return Preprocessing("tokens", tokenizer=name, length=data.text_length)


def label_numbers(labels: Sequence[Any], name: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Number labels given as text: the classes are their sorted names, in number order where all are whole numbers.

    Raises:
        SourceError: A sample has no label.
    """
    texts = ["" if label is None else str(label).strip() for label in labels]
    if "" in texts:
        raise SourceError(f"{name}: sample {texts.index('')} has no label", hint="give it one, or take it out")
    found = set(texts)
    numeric = all(text.lstrip("-").isdigit() for text in found)
    class_names = tuple(sorted(found, key=int) if numeric else sorted(found))
    number = {class_name: index for index, class_name in enumerate(class_names)}
    return np.array([number[text] for text in texts], dtype=np.int64), class_names


def _rows(path: Path, data: Data) -> list[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            columns = list(reader.fieldnames or ())
            for key, column in (("text_column", data.text_column), ("label_column", data.label_column)):
                if column not in columns:
                    near = did_you_mean(column, columns) or f"it has: {', '.join(columns) or 'nothing'}; "
                    raise SourceError(f"{path} has no column '{column}'", hint=f"{near}set data.{key}")
            rows = list(reader)
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8: {error}", hint="save it as UTF-8") from None
    except csv.Error as error:
        raise SourceError(f"{path} cannot be read as CSV: {error}", hint="save it as comma-separated values") from None
    if not rows:
        raise SourceError(f"{path} has a header and no rows", hint="give rows with text and label")
    return rows


def _split_of(said: str | None, number: int, path: Path) -> str:
    if said is None:
        return "train"
    if said.strip().lower() not in SPLIT_NAMES:
        raise SourceError(
            f"{path}: row {number + 1} is of the split '{said}'", hint=f"known are: {', '.join(SPLIT_NAMES)}"
        )
    return SPLIT_NAMES[said.strip().lower()]


def _tokenizer(text: str) -> Any:
    reference = parse(text)
    transformers = import_transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(reference.target)
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(
            f"the tokenizer {text} cannot be loaded: {str(error).strip().splitlines()[0]}",
            hint="check the name; offline, give hf:DIR with its tokenizer.json",
        ) from error
