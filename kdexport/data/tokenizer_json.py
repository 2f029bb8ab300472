"""A ``tokenizer.json`` that may be anybody's: read, held against its form, and run on texts."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kdexport.errors import SourceError

MOST_GROWTH = 1000  # of a text by what is put in place of its parts
MOST_IDS = 1 << 24  # sixty times the largest vocabulary
SLICE = 4096  # texts that are encoded at once: an Encoding takes kilobytes


def ids_of(document: Mapping[str, Any]) -> dict[str, int]:
    """Return every token's id, added ones too."""
    vocabulary = document["model"]["vocab"]
    own = vocabulary if isinstance(vocabulary, dict) else {name: i for i, (name, *_) in enumerate(vocabulary)}
    return {**own, **{str(token["content"]): int(token["id"]) for token in document.get("added_tokens") or ()}}


def encoded(tokenizer: str, texts: Sequence[str]) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Yield the ids and the marks of special tokens of texts, some thousand at a time, uncut and unpadded."""
    whole = tokenizer_of(tokenizer)
    whole.no_truncation()
    whole.no_padding()
    for part in in_slices(texts):
        yield [(item.ids, item.special_tokens_mask) for item in tokenized(whole.encode_batch, part)]


def tokenized(encode: Callable[[list[str]], Any], texts: list[str]) -> Any:
    """Return what a tokenizer makes of texts.

    Raises:
        SourceError: It cannot read one, which is named: it has no token for what it does not know, for one.
    """
    try:
        return encode(texts)
    except BaseException as error:  # noqa: BLE001 - what tokenizers raises has no class of its own
        fault = fault_of(error)
        wrong = next((text for text in texts if _fails(encode, text)), "")
        raise SourceError(
            f"the tokenizer cannot read {wrong[:60]!r}: {fault}",
            hint="where it has no token for what it does not know, write that one's id into its tokenizer.json (unk_id "
            "or unk_token of its model), or leave such texts out",
        ) from None


def _fails(encode: Callable[[list[str]], Any], text: str) -> bool:
    try:
        encode([text])
    except BaseException as error:  # noqa: BLE001 - as above
        fault_of(error)
        return True
    return False


def fault_of(error: BaseException) -> str:
    """Return a fault of the library's in a line; one of Rust's own (a panic) derives from BaseException alone."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return next(iter(str(error).strip().splitlines()), "it is damaged")


def in_slices(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield some texts at a time."""
    for start in range(0, len(texts), SLICE):
        yield [str(text) for text in texts[start : start + SLICE]]


def parsed(tokenizer: str) -> dict[str, Any]:
    """Return the document; a message where it holds no model with a vocabulary."""
    try:
        document = json.loads(tokenizer)
        if isinstance(document["model"], dict) and len(document["model"]["vocab"]):
            return dict(document)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise SourceError(
        "the tokenizer.json holds no model with a vocabulary",
        hint="save it again with tokenizer.save_pretrained(DIR) of transformers",
    )


def _check_ids(tokenizer: str) -> None:
    """Hold that no token has a number far beyond all tokens: the library goes through those that lack."""
    with of_its_form():
        if any(not 0 <= number < MOST_IDS for number in ids_of(parsed(tokenizer)).values()):
            raise ValueError("a token's id is none")


def check_growth(tokenizer: str) -> None:
    """Hold that no short text becomes gigabytes: replacements behind one another multiply its length.

    Raises:
        SourceError: One may become more than a thousand times as long.
    """
    with of_its_form():
        growth = _growth(json.loads(tokenizer).get("normalizer"))
        if growth > MOST_GROWTH:
            raise ValueError(f"its normalizer makes texts up to {growth:,} times as long")


def _growth(normalizer: Any) -> int:
    """Return how many times as long a text may become."""
    if not isinstance(normalizer, dict):
        return 1
    if "content" in normalizer:  # Replace: by a text, for each that is found
        pattern = normalizer["pattern"].get("String") or " "
        return max(1, -(-len(normalizer["content"]) // len(pattern)))
    return math.prod(map(_growth, normalizer.get("normalizers", ())))


@contextlib.contextmanager
def of_its_form() -> Iterator[None]:
    """Turn what a document of another form makes Python raise into a message."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise SourceError(
            f"the tokenizer.json is not of its form: {error!r}"[:300],
            hint="save it again with tokenizer.save_pretrained(DIR) of transformers",
        ) from None


def tokenizer_of(tokenizer: str) -> Any:
    """Return what runs it, once it is known to be of its form."""
    from tokenizers import Tokenizer

    _check_ids(tokenizer)
    check_growth(tokenizer)
    try:
        return Tokenizer.from_str(tokenizer)
    except BaseException as error:  # noqa: BLE001 - the library raises plain Exceptions
        raise SourceError(
            f"the tokenizer.json cannot be read: {fault_of(error)}",
            hint="save it again with tokenizer.save_pretrained(DIR) of transformers; a newer one needs a newer "
            "tokenizers: pip install -U tokenizers",
        ) from None
