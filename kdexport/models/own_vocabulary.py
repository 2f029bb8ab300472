"""Texts for networks with a vocabulary of their own: each is fed the same texts by its own tokenizer.

A data set's ids are those of ``data.tokenizer``, the teacher's. A student whose vocabulary is cut, and an ONNX file
that has its tokenizer beside it, get theirs as two more inputs behind them (``Preprocessing.first_input``).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdexport.data.samples import Dataset
from kdexport.data.text import tokenizer_json
from kdexport.data.vocabulary import Vocabulary, coverage, cut, ids_and_mask, ready, vocabulary_of
from kdexport.errors import SourceError
from kdexport.models.preprocessing import TEXT_INPUTS, Preprocessing
from kdexport.recipe import CORPUS, Data, Student, TeacherSpec

TOKENIZER_FILE = "tokenizer.json"


def data_for(data: Data, files: Sequence[Path]) -> Data:
    """Return the data with the tokenizer that lies beside an ONNX file, where the recipe or the flags name none."""
    if data.tokenizer is not None:
        return data
    for file in files:
        beside = file.with_name(TOKENIZER_FILE)
        prepare = _stated(file) if beside.is_file() else None
        if prepare is not None and prepare.tokenizer_file:
            update: dict[str, Any] = {"tokenizer": str(beside.resolve())}
            if prepare.length and "text_length" not in data.model_fields_set:
                update["text_length"] = prepare.length
            return data.model_copy(update=update)
    return data


def with_own_vocabulary(
    dataset: Dataset, data: Data, networks: Sequence[TeacherSpec | Student], files: Sequence[Path] = ()
) -> Dataset:
    """Return a data set of texts with two more inputs, where a network has a tokenizer of its own.

    Args:
        dataset: Its splits hold texts.
        data: What it was loaded by.
        networks: Of the recipe: a student whose vocabulary is cut, ONNX files.
        files: More ONNX files.

    Raises:
        SourceError: The data are no text; the tokenizer cannot be cut; too much of val or test is unknown to it; a
            file's tokenizer is not beside it, or two files have different ones.
    """
    student = next((spec for spec in networks if isinstance(spec, Student) and spec.vocabulary is not None), None)
    if student is not None:
        return _with_cut(dataset, data, student)
    given = [Path(spec.model) for spec in networks if spec.model.endswith(".onnx")]
    found: dict[str, tuple[Path, Preprocessing]] = {}
    for file in (*given, *files) if dataset.preprocessing.kind == "tokens" else ():
        prepare = _stated(file)
        if prepare is not None and prepare.first_input:
            found.setdefault(_beside(file), (file, prepare))
    if not found:
        return dataset
    if len(found) > 1:
        raise SourceError(
            f"{' and '.join(str(file) for file, _ in found.values())} have different tokenizers beside them",
            hint="score them one at a time",
        )
    text, (_, prepare) = next(iter(found.items()))
    return _appended(dataset, ready(text, prepare.length or data.text_length))


def tokenizer_beside(reference: str, length: int) -> str | None:
    """Return the ``tokenizer.json`` that is shipped for a whole vocabulary; None for a tokenizer of Python code."""
    try:
        return ready(tokenizer_json(reference), length)
    except SourceError:
        return None


def _with_cut(dataset: Dataset, data: Data, student: Student) -> Dataset:
    if dataset.preprocessing.kind != "tokens" or dataset.train.texts is None or data.tokenizer is None:
        raise SourceError(
            f"student.vocabulary = '{student.vocabulary}' is for texts, and {data.source} gives none",
            hint="take vocabulary out of [student]; texts come from csv:FILE or hf:NAME with a tokenizer",
        )
    whole = tokenizer_json(data.tokenizer)
    if student.vocabulary == CORPUS:
        corpus = dataset.train.texts if dataset.corpus is None else dataset.corpus
        made = cut(whole, [str(text) for text in corpus])
    else:
        made = vocabulary_of(whole, tokenizer_json(str(student.vocabulary)))
    told = []
    for name in ("val", "test"):
        texts = [str(text) for text in getattr(dataset, name).texts]
        before, after = coverage(whole, texts), coverage(made.tokenizer, texts)
        line = f"{name} {after.unknown_share:.2%} of the tokens unknown"
        line += f" ({before.unknown_share:.2%} with all), {after.length:.1f} tokens a text"
        told.append(f"{line} ({before.length:.1f} with all)")
        if after.unknown_share - before.unknown_share > student.max_unknown:
            raise SourceError(
                f"of the {name} texts {after.unknown_share:.1%} of the tokens are unknown to the cut vocabulary of "
                f"{len(made.kept):,} tokens (student.max_unknown = {student.max_unknown:g})",
                hint="give training texts that are more like those, take vocabulary out of [student], or set "
                f"student.max_unknown = {min(1.0, np.ceil(after.unknown_share * 100) / 100):g}",
            )
    lines = (f"vocabulary cut to {len(made.kept):,} of {made.whole:,} tokens: {'; '.join(told)}",)
    text = ready(made.tokenizer, data.text_length)
    whole_dataset = _appended(dataset, text)
    return dataclasses.replace(
        whole_dataset,
        vocabulary=Vocabulary(made.kept, made.whole, text),
        coverage=lines,
        notes=(*dataset.notes, *(f"student: {line}" for line in lines)),
    )


def _appended(dataset: Dataset, tokenizer: str) -> Dataset:
    """Return a data set with its texts' ids and masks by another tokenizer behind its own, all splits of one width."""
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    if any(split.texts is None for split in splits.values()):
        raise SourceError(
            f"{dataset.name} holds token ids and not their texts: they cannot be tokenized again",
            hint="give the texts, e.g. as csv:FILE",
        )
    texts = [str(text) for split in splits.values() for text in split.texts]  # type: ignore[union-attr]
    arrays, start, made = ids_and_mask(tokenizer, texts), 0, {}
    for name, split in splits.items():
        rows = slice(start, start + len(split))
        own = tuple(array[rows] for array in arrays)
        made[name] = dataclasses.replace(split, inputs=(*split.inputs[:TEXT_INPUTS], *own))
        start += len(split)
    return dataclasses.replace(dataset, train=made["train"], val=made["val"], test=made["test"])


def _stated(file: Path) -> Preprocessing | None:
    """Return what an ONNX file says of its preprocessing; None where it says nothing, or there is no such file."""
    from kdexport.onnx.sessions import OnnxSession, Unloaded

    if file.suffix != ".onnx" or not file.is_file():
        return None
    return OnnxSession(file, session=Unloaded(file)).preprocessing


def _beside(file: Path) -> str:
    path = file.with_name(TOKENIZER_FILE)
    if not path.is_file():
        raise SourceError(
            f"{file} takes ids of a vocabulary of its own, and there is no {path}",
            hint=f"put the {TOKENIZER_FILE} that was exported with it beside it",
        )
    return tokenizer_json(str(path))
