"""Test samples that are also in train, found by their content: a score on them shows what was learnt by heart.

Copies alone are found, to the last byte of what was read: not a picture that was saved again, nor a text with another
comma. Of data that would take long, a seeded part is looked at, and the message says so.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdexport.data.samples import Split

BYTES, SAMPLES = 256 << 20, 200_000  # that are looked at: half a second
CHUNK_BYTES = 16 << 20
TEST_SHARE = 4  # a fourth of them are test samples, where not all can be
NOTEWORTHY = 0.1  # share of train that is there several times: such data repeat by nature


def copied(test: Split, train: Sequence[Split]) -> str | None:
    """Say how many test samples are among the training samples, too; None where none is.

    Rows of numbers count where their target is the same as well: few columns of few values repeat without being copies.

    Args:
        test: The test split.
        train: What training uses: the train split, and a validation split that was cut from it.
    """
    in_train = sum(map(len, train))
    most = max(TEST_SHARE, min(SAMPLES, BYTES // max(1, _bytes_per_sample(test))))
    of_test = min(len(test), max(most // TEST_SHARE, most - in_train))
    of_train = min(in_train, most - of_test)
    known: Counter[bytes] = Counter()
    for split in train:
        known.update(_digests(split, round(of_train * len(split) / in_train)))
    found = sum(digest in known for digest in _digests(test, of_test))
    if not found:
        return None
    repeats = 1 - len(known) / max(1, sum(known.values()))
    by_nature = f"; within train, {100 * repeats:.0f} % repeat another" if repeats >= NOTEWORTHY else ""
    part = "" if of_train == in_train else f" (looked for among {of_train:,} of the {in_train:,})"
    drawn = "" if of_test == len(test) else f" (of {len(test):,}, drawn with a fixed seed)"
    return (
        f"{found:,} of {of_test:,} test samples{drawn} are also in train{part}, with the same {_what(test)}{by_nature}"
        ": the score on test shows in part what was learnt by heart; take them out of one of the two splits"
    )


def _numbers(split: Split) -> bool:
    return split.texts is None and len(split.inputs) == 1 and split.inputs[0].ndim == 2


def _what(split: Split) -> str:
    if split.texts is not None:
        return "text"
    if _numbers(split):
        return "numbers and target"
    return "pixels" if split.inputs[0].dtype == np.uint8 and split.inputs[0].ndim == 4 else "values"


def _bytes_per_sample(split: Split) -> int:
    return sum(int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.itemsize for array in split.inputs)


def _digests(split: Split, count: int) -> Iterator[bytes]:
    """Yield what stands for the content of some samples, drawn with a fixed seed where they are not all."""
    rows = np.arange(len(split))
    if count < len(rows):
        rows = np.sort(np.random.default_rng(0).choice(rows, count, replace=False))
    step = max(1, CHUNK_BYTES // max(1, _bytes_per_sample(split)))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        for contents in zip(*_contents(split, part), strict=True):
            digest = hashlib.blake2b(digest_size=16)
            for content in contents:
                digest.update(content)
            yield digest.digest()


def _contents(split: Split, rows: NDArray[Any]) -> Iterator[list[bytes]]:
    """Yield the parts of some samples that are compared, a list of bytes each."""
    if split.texts is not None:
        texts = np.asarray(split.texts[rows], dtype=object).reshape(len(rows), -1)
        yield ["\0".join(map(str, text)).encode("utf-8", "surrogatepass") for text in texts]
        return
    arrays = [np.asarray(array[rows]) for array in split.inputs]
    if _numbers(split) and split.labels is not None:
        arrays.append(np.asarray(split.labels[rows]))
    for array in arrays:
        whole = np.ascontiguousarray(array)
        yield [row.tobytes() for row in whole]
