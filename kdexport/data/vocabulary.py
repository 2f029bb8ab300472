"""A tokenizer cut to a corpus: what its texts use and what that is spelled with, under new ids.

It works on the text of a ``tokenizer.json``, the form of Hugging Face's ``tokenizers`` library, so that the cut one
ships as a file of the same form and needs nothing else. That each text of the corpus keeps its tokens is proved each
time, not assumed.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdexport.data.tokenizer_json import SLICE, encoded, ids_of, in_slices, of_its_form, parsed, tokenized, tokenizer_of
from kdexport.errors import SourceError

WITHOUT_CUT = "take vocabulary out of [student]: the student then keeps the teacher's whole vocabulary"
Keeping = Callable[[dict[str, Any], set[str], bool], set[str]]


@dataclass(frozen=True)
class Vocabulary:
    """Some tokens of a larger vocabulary.

    Attributes:
        kept: Their ids in the whole vocabulary, int64 ascending; the place of an id is the token's new id.
        whole: How many tokens the whole vocabulary has.
        tokenizer: The cut ``tokenizer.json``.
    """

    kept: NDArray[np.int64]
    whole: int
    tokenizer: str


@dataclass(frozen=True)
class Coverage:
    """How much of some texts a tokenizer knows; special tokens that it adds itself do not count."""

    texts: int
    tokens: int
    unknown: int

    @property
    def unknown_share(self) -> float:
        """Share of the tokens that stand for something unknown."""
        return self.unknown / self.tokens if self.tokens else 0.0

    @property
    def length(self) -> float:
        """Mean number of tokens a text."""
        return self.tokens / self.texts if self.texts else 0.0


def cut(tokenizer: str, texts: Sequence[str]) -> Vocabulary:
    """Cut a tokenizer to the tokens that texts use.

    Kept are: every token of the texts, the characters (or bytes) that these are spelled with, so that a word the texts
    lack is spelled and not unknown, and every added or special token. Of byte-pair encodings the merges that lead to a
    kept token are kept with all that they join. All texts keep their tokens: it is tried.

    Args:
        tokenizer: A whole ``tokenizer.json``.
        texts: The corpus.

    Raises:
        SourceError: There are no texts, the tokenizer is of a kind that cannot be cut, or a text would change.
    """
    if not texts:
        raise SourceError("there are no texts to cut the vocabulary to", hint=WITHOUT_CUT)
    document = parsed(tokenizer)
    model = document["model"]
    kinds: dict[str, Keeping] = {
        "WordPiece": _spelled, "WordLevel": _as_they_are, "BPE": _merged, "Unigram": _spelled,
    }  # fmt: skip
    if model.get("type") not in kinds:
        raise SourceError(
            f"a tokenizer of the kind {model.get('type')} cannot be cut (known are: {', '.join(kinds)})",
            hint=WITHOUT_CUT,
        )
    with of_its_form():
        return _cut(tokenizer, document, texts, kinds[model["type"]])


def _cut(tokenizer: str, document: dict[str, Any], texts: Sequence[str], kind: Keeping) -> Vocabulary:
    model, ids = document["model"], ids_of(document)
    names = {number: name for name, number in ids.items()}
    whole_ids = [row for rows in encoded(tokenizer, texts) for row, _ in rows]
    used = {names[number] for row in whole_ids for number in set(row) if number in names}
    added = {str(token["content"]) for token in document.get("added_tokens") or ()}
    kept = kind(model, used - added, _in_bytes(document))
    kept |= used | added | {name for name in (_unknown(model),) if name is not None}
    kept |= {names[number] for number in _special_ids(document.get("post_processor")) if number in names}
    chosen = np.array(sorted(ids[name] for name in kept if name in ids), dtype=np.int64)
    new = {int(old): place for place, old in enumerate(chosen)}
    made = json.dumps(_cut_document(document, kept, new), ensure_ascii=False)
    for start, rows in zip(range(0, len(texts), SLICE), encoded(made, texts), strict=True):
        for place, (row, _) in enumerate(rows):
            if [int(chosen[number]) for number in row] != whole_ids[start + place]:
                text = texts[start + place]
                raise SourceError(
                    f"the tokenizer cannot be cut: {text[:60]!r} would get other tokens than before", hint=WITHOUT_CUT
                )
    return Vocabulary(chosen, max(names, default=-1) + 1, made)


def vocabulary_of(tokenizer: str, part: str) -> Vocabulary:
    """Return which tokens of a tokenizer an already cut one has: both ``tokenizer.json``, told by their names.

    Raises:
        SourceError: The cut one has tokens that the other lacks.
    """
    whole, own = ids_of(parsed(tokenizer)), ids_of(parsed(part))
    foreign = sorted(set(own) - set(whole))
    if foreign:
        raise SourceError(
            f"the cut tokenizer has {len(foreign)} tokens that the whole one lacks, e.g. {foreign[0]!r}",
            hint="give the tokenizer.json that was cut from the student's own model",
        )
    names = sorted(own, key=own.__getitem__)
    return Vocabulary(np.array([whole[name] for name in names], dtype=np.int64), max(whole.values()) + 1, part)


def ready(tokenizer: str, length: int, pad: str | None = None) -> str:
    """Return a tokenizer.json that cuts texts at ``length`` tokens and pads a batch of them, as the student is fed.

    The padding token is ``pad``, else the file's own; a tokenizer without one pads with the id 0.
    """
    made = tokenizer_of(tokenizer)
    made.enable_truncation(length)
    pad = pad or (made.padding or {}).get("pad_token")
    number = made.token_to_id(pad) if pad is not None else None
    made.enable_padding(pad_id=number or 0, pad_token=pad if pad is not None and number is not None else "[PAD]")
    return str(made.to_str())


def ids_and_mask(tokenizer: str, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return token ids and attention mask, int64 ``[texts, longest]``, by a tokenizer.json that is ``ready``."""
    whole = tokenizer_of(tokenizer)
    padding = whole.padding or {}
    whole.no_padding()
    rows = [
        np.asarray(item.ids, dtype=np.int64)
        for part in in_slices(texts)
        for item in tokenized(whole.encode_batch, part)
    ]
    longest = max((len(row) for row in rows), default=1)
    ids = np.full((len(rows), longest), int(padding.get("pad_id", 0)), dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = row, 1
    return ids, mask


def coverage(tokenizer: str, texts: Sequence[str]) -> Coverage:
    """Return how much of texts a tokenizer.json knows, however long they are."""
    document = parsed(tokenizer)
    name = _unknown(document["model"])
    number = -1 if name is None else ids_of(document).get(name, -1)
    tokens = unknown = 0
    for rows in encoded(tokenizer, texts):
        for row, special in rows:
            own = [one for one, is_special in zip(row, special, strict=True) if not is_special]
            tokens += len(own)
            unknown += own.count(number)
    return Coverage(len(texts), tokens, unknown)


def _spelled(model: dict[str, Any], used: set[str], in_bytes: bool) -> set[str]:
    """Return tokens and the single characters that spell them, where the vocabulary has these."""
    prefix = str(model.get("continuing_subword_prefix") or "")
    known = set(_names(model))
    letters = {letter for name in used for letter in (name.removeprefix(prefix) if prefix else name)}
    spelled = {form for letter in letters for form in (letter, prefix + letter) if form in known}
    return used | spelled | (_bytes(model) if in_bytes else set())


def _as_they_are(model: dict[str, Any], used: set[str], in_bytes: bool) -> set[str]:  # noqa: ARG001 as the others
    return set(used)


def _merged(model: dict[str, Any], used: set[str], in_bytes: bool) -> set[str]:
    """Return tokens and all that byte-pair merges make them of."""
    prefix = str(model.get("continuing_subword_prefix") or "")
    parts: dict[str, list[tuple[str, str]]] = {}
    for left, right in _merges(model):
        parts.setdefault(left + right.removeprefix(prefix), []).append((left, right))
    suffix = str(model.get("end_of_word_suffix") or "")
    known = set(_names(model))
    letters = {letter for name in used for letter in name.removeprefix(prefix).removesuffix(suffix)}
    found = used | {form for letter in letters for form in (letter, letter + suffix, prefix + letter) if form in known}
    found |= _bytes(model) if in_bytes else set()
    waiting = list(found)
    while waiting:
        new = {name for pair in parts.get(waiting.pop(), ()) for name in pair} - found
        found |= new
        waiting += new
    return found


def _cut_document(document: dict[str, Any], kept: set[str], new: Mapping[int, int]) -> dict[str, Any]:
    model, ids = dict(document["model"]), ids_of(document)
    if isinstance(model["vocab"], dict):
        chosen = sorted((number, name) for name, number in model["vocab"].items() if name in kept)
        model["vocab"] = {name: new[number] for number, name in chosen}
    else:
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[int(model["unk_id"])]
    if model.get("merges"):
        prefix = str(model.get("continuing_subword_prefix") or "")
        model["merges"] = [
            [left, right] for left, right in _merges(model) if {left, right, left + right.removeprefix(prefix)} <= kept
        ]
    added = [{**token, "id": new[int(token["id"])]} for token in document.get("added_tokens") or ()]
    padding = document.get("padding")
    if padding:
        padding = {**padding, "pad_id": new.get(int(padding["pad_id"]), new.get(ids.get(padding["pad_token"], -1), 0))}
    post = _with_new_ids(document.get("post_processor"), new)
    return {**document, "model": model, "added_tokens": added, "post_processor": post, "padding": padding}


def _with_new_ids(processor: Any, new: Mapping[int, int]) -> Any:
    """Return a post-processor with its special tokens' ids replaced."""
    if not isinstance(processor, dict):
        return processor
    made = dict(processor)
    if "processors" in made:
        made["processors"] = [_with_new_ids(item, new) for item in made["processors"]]
    for key in ("sep", "cls"):
        if isinstance(made.get(key), list):
            made[key] = [made[key][0], new[int(made[key][1])]]
    if isinstance(made.get("special_tokens"), dict):
        made["special_tokens"] = {
            name: {**token, "ids": [new[int(number)] for number in token["ids"]]}
            for name, token in made["special_tokens"].items()
        }
    return made


def _special_ids(processor: Any) -> Iterator[int]:
    if not isinstance(processor, dict):
        return
    for item in processor.get("processors", ()):
        yield from _special_ids(item)
    for key in ("sep", "cls"):
        if isinstance(processor.get(key), list):
            yield int(processor[key][1])
    for token in (processor.get("special_tokens") or {}).values():
        yield from (int(number) for number in token["ids"])


def _names(model: Mapping[str, Any]) -> Iterable[str]:
    vocabulary = model["vocab"]
    return vocabulary if isinstance(vocabulary, dict) else (str(entry[0]) for entry in vocabulary)


def _merges(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for merge in model.get("merges") or ():
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield left, right


def _unknown(model: Mapping[str, Any]) -> str | None:
    """Return the token that stands for what the vocabulary lacks."""
    if model.get("unk_id") is not None:
        return str(model["vocab"][int(model["unk_id"])][0])
    name = model.get("unk_token")
    return None if name is None else str(name)


def _in_bytes(document: Mapping[str, Any]) -> bool:
    """Whether texts are spelled in bytes: nothing is unknown then, as long as the 256 are kept."""
    return bool(document["model"].get("byte_fallback")) or '"ByteLevel"' in json.dumps(document.get("pre_tokenizer"))


def _bytes(model: Mapping[str, Any]) -> set[str]:
    if model.get("byte_fallback"):
        return {name for name in _names(model) if len(name) == 6 and name.startswith("<0x")}
    return {name for name in _names(model) if len(name) == 1}
