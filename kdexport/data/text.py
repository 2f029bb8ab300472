"""Text as token ids: ``csv:FILE``, and whatever else comes as strings with labels."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdexport.artifacts import read_text
from kdexport.data.csv_files import LINES_SHOWN, SPLIT_COLUMN, places, read_rows, split_of_rows
from kdexport.data.samples import Reading, Source, Split
from kdexport.data.splits import split_of
from kdexport.data.tokenizer_json import check_growth, fault_of, tokenized
from kdexport.data.vocabulary import ids_and_mask, ready
from kdexport.errors import SourceError
from kdexport.models.preprocessing import Preprocessing
from kdexport.recipe import Data
from kdexport.references import parse
from kdexport.tasks.regression import as_targets

INPUT_NAMES = ("input_ids", "attention_mask")
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
MISSING = ("", "nan")  # what an empty cell becomes
LIKE_MISSING = ("na", "n/a", "null", "none", "-", "?", "unknown")  # what people write for one; it may be a class
FEWEST_TOKENS = 3  # beside the special ones: a tokenizer with fewer has lost its vocabulary
MOST = 1 << 20  # tokens: no cut that anyone would notice
REGRESSION = "regression"
FEWEST, SHARE = 20, 0.5  # of that many labels or more, more than this share all different: no classes


def csv_text(data: Data, reading: Reading) -> Source:
    """Return the rows of a CSV file with a header: a text column, a label column and, where it is, a ``split`` column.

    With task regression labels are numbers to estimate, else classes.

    The delimiter is a comma, semicolon, tab or bar, the encoding UTF-8 or (with its mark) UTF-16; blank lines are left
    out.

    Raises:
        SourceError: No such file or columns, a row of another length, one without a label, an unknown split.
    """
    path = Path(parse(data.source).target)
    if not path.is_file():
        raise SourceError(f"there is no file {path}", hint="check the path; in a recipe it is relative to the recipe")
    wanted = (("text_column", data.text_column), ("label_column", data.label_column))
    rows, lines, notes = read_rows(path, wanted)
    texts = [row[data.text_column] for row in rows]
    said = [row[data.label_column] for row in rows]
    labels: NDArray[Any]
    class_names: tuple[str, ...]
    if reading.task == REGRESSION:
        labels, class_names = label_amounts(said, str(path), lines), (data.label_column,)
    else:
        labels, class_names = label_numbers(said, str(path), lines)
    column = _split_column(rows, data)
    origin, note = split_of_rows([row.get(column) for row in rows], lines, path)
    if reading.task != REGRESSION:
        _check_learnable(labels, origin, class_names, path)
    tokens = encode(texts, data)
    whole = Split(tokens, labels, texts=np.array(texts, dtype=object))
    parts = {name: whole.select(np.flatnonzero(origin == name)) for name in dict.fromkeys(origin.tolist())}
    empty = sum(not text.strip() for text in texts)
    notes += [f"the column {column!r} names the splits"] if column != SPLIT_COLUMN else []
    notes += [note] if note else []
    notes += [f"{empty} of {len(texts)} texts are empty"] if empty else []
    return Source(
        train=parts["train"],
        val=parts.get("val"),
        test=parts.get("test"),
        class_names=class_names,
        input_names=INPUT_NAMES,
        preprocessing=token_preprocessing(data),
        notes=(*notes, *_nearly_alike(class_names)),
    )


def encode(texts: Sequence[str], data: Data) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return token ids and attention mask, int64 ``[texts, longest]``, cut at ``data.text_length``.

    Raises:
        SourceError: No tokenizer is named, or it cannot be had.
    """
    if data.tokenizer is not None and parse(data.tokenizer).kind == "path":
        return ids_and_mask(ready(tokenizer_json(data.tokenizer), data.text_length), texts)
    if data.tokenizer is None:
        raise SourceError(
            f"{data.source} is text, and the recipe names no tokenizer",
            hint='set tokenizer under [data], e.g. tokenizer = "hf:NAME_OR_DIR", the one of the teacher',
        )
    tokenizer = _tokenizer(data.tokenizer)
    options: dict[str, Any] = {"truncation": True, "max_length": data.text_length, "padding": False}
    encoded = tokenized(lambda part: tokenizer(part, **options), list(texts))
    longest = max((len(ids) for ids in encoded["input_ids"]), default=1)
    ids = np.full((len(texts), longest), tokenizer.pad_token_id or 0, dtype=np.int64)
    mask = np.zeros((len(texts), longest), dtype=np.int64)
    for row, tokens in enumerate(encoded["input_ids"]):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return ids, mask


def tokenizer_json(reference: str) -> str:
    """Return a tokenizer as ``tokenizer.json`` holds it, with the padding token noted.

    Args:
        reference: ``hf:NAME_OR_DIR``, or the file itself.

    Raises:
        SourceError: It cannot be had, or is one of Python code alone, which no such file can hold.
    """
    parsed = parse(reference)
    if parsed.kind == "path":
        try:
            return read_text(Path(parsed.target))
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(
                f"the tokenizer {parsed.target} cannot be read: {error}", hint="give the path of a tokenizer.json"
            ) from None
    loaded = _tokenizer(reference)
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise SourceError(
            f"the tokenizer {reference} is Python code: it has no tokenizer.json",
            hint="name a model whose tokenizer is a fast one (AutoTokenizer's is_fast), or take vocabulary out of "
            "[student]",
        )
    return ready(str(backend.to_str()), MOST, loaded.pad_token)


def token_preprocessing(data: Data) -> Preprocessing:
    """Return what an ONNX file says of its text: which tokenizer (by name, not by place) and how many tokens at
    most.
    """
    reference = parse(data.tokenizer or "")
    name = Path(reference.target).name if Path(reference.target).is_absolute() else reference.target
    return Preprocessing("tokens", tokenizer=name, length=data.text_length)


def label_numbers(
    labels: Sequence[Any], name: str, lines: Sequence[int] | None = None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Number labels given as text: the classes are their sorted names, in number order where all are numbers.

    Args:
        labels: One a sample.
        name: What messages call the data.
        lines: Of the file, one a sample, for messages.

    Raises:
        SourceError: A sample has no label; or nearly every label is another number or text: these are no classes.
    """
    texts = ["" if label is None else str(label).strip() for label in labels]
    missing = [index for index, text in enumerate(texts) if text.casefold() in MISSING]
    if missing:
        raise SourceError(f"{name}: {places(missing, 'has no label', lines)}", hint="give it one, or take it out")
    found = set(texts)
    if len(texts) >= FEWEST and len(found) > SHARE * len(texts):
        some = ", ".join(sorted(found)[:5])
        raise SourceError(
            f"{name}: {len(texts)} samples have {len(found)} different labels ({some}, ...): measurements, not classes",
            hint='name the column that holds the class as data.label_column; for numbers set task = "regression"',
        )
    numeric = all(NUMBER.fullmatch(text) for text in found)
    class_names = tuple(sorted(found, key=lambda text: (float(text), text)) if numeric else sorted(found))
    number = {class_name: index for index, class_name in enumerate(class_names)}
    return np.array([number[text] for text in texts], dtype=np.int64), class_names


def label_amounts(labels: Sequence[Any], name: str, lines: Sequence[int] | None = None) -> NDArray[np.float32]:
    """Return labels that are numbers to estimate, float32 ``[samples, 1]``; arguments as ``label_numbers``.

    Raises:
        SourceError: A label is missing or no number.
    """
    values = np.full(len(labels), np.nan)
    for index, label in enumerate(labels):
        with contextlib.suppress(TypeError, ValueError):
            values[index] = float(label)
    wrong = np.flatnonzero(~np.isfinite(values)).tolist()
    if wrong:
        raise SourceError(
            f"{name}: {places(wrong, f'has {str(labels[wrong[0]])[:40]!r} as label, which is no number', lines)}",
            hint="give a number, or take the sample out; for classes leave task out of the recipe",
        )
    return as_targets(values, name)


def _split_column(rows: Sequence[Mapping[str, str]], data: Data) -> str:
    """Return the column that names the splits: ``split``, else one in which every value is a split's name."""
    if SPLIT_COLUMN in rows[0]:
        return SPLIT_COLUMN
    for column in rows[0]:
        if column not in (data.text_column, data.label_column):
            found = {split_of(value) for value in {row[column] for row in rows}}
            if None not in found and "train" in found and len(found) > 1:
                return column
    return SPLIT_COLUMN


def _check_learnable(labels: NDArray[Any], origin: NDArray[Any], names: Sequence[str], path: Path) -> None:
    absent = sorted(set(range(len(names))) - set(labels[origin == "train"].tolist()))
    if absent:
        shown = ", ".join(names[index] for index in absent[:LINES_SHOWN])
        raise SourceError(
            f"{path}: no training row is of the class{'es' if len(absent) > 1 else ''} {shown}, others are",
            hint="put rows of it into train, or take it out of the others",
        )


def _nearly_alike(names: Sequence[str]) -> tuple[str, ...]:
    """Say which classes differ in case or spaces alone, and which look like a label that is missing."""
    groups: dict[str, list[str]] = {}
    for name in names:
        plain = f"{float(name):g}" if NUMBER.fullmatch(name) else re.sub(r"[\s_-]+", "", name.casefold())
        groups.setdefault(plain, []).append(name)
    alike = [" and ".join(group) for group in groups.values() if len(group) > 1]
    none = [name for name in names if name.casefold() in LIKE_MISSING]
    notes = [f"are taken as different classes though written nearly alike: {'; '.join(alike)}"] if alike else []
    notes += [f"taken as classes, though often written where there is no label: {', '.join(none)}"] if none else []
    return tuple(notes)


def _tokenizer(text: str) -> Any:
    from kdexport.models.hub import (
        OWN_CODE,
        import_transformers,
        own_code,
    )  # brings torch, which an ONNX file of pictures does not need

    reference = parse(text)
    transformers = import_transformers()
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(reference.target, trust_remote_code=False)
    except BaseException as error:
        if OWN_CODE.search(str(error)):
            raise own_code(f"the tokenizer {text}") from None
        raise SourceError(
            f"the tokenizer {text} cannot be loaded: {fault_of(error)}",
            hint="check the name; offline, give hf:DIR with its tokenizer.json",
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is not None:
        check_growth(str(backend.to_str()))
    # transformers 5 makes one of special tokens alone where a folder has a config.json and no vocabulary.
    if len(set(loaded.get_vocab()) - set(loaded.all_special_tokens)) < FEWEST_TOKENS:
        raise SourceError(
            f"the tokenizer {text} has no vocabulary: all words would be unknown to it",
            hint="put its tokenizer.json (or vocab.txt) beside its config.json, or name the model that it belongs to",
        )
    return loaded
