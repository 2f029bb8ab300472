"""A tokenizer cut to a corpus: the four kinds of ``tokenizers``, each trained here on a few sentences."""

import json

import numpy as np
import pytest

from kdexport.data.vocabulary import Coverage, coverage, cut, ids_and_mask, ready, vocabulary_of
from kdexport.errors import SourceError

tokenizers = pytest.importorskip("tokenizers", reason="it comes with an extra: pip install 'kdexport[text]'")

WHOLE = ["the old man walks his dog", "a dog barks at the moon", "unbelievable walking weather", "women walk to work",
         "he is playing a large flute", "xylophones and zithers play 42 tunes"] * 3  # fmt: skip
CORPUS = ["the dog walks", "a man is walking"]


def whole(kind):
    """Return a trained tokenizer.json with special tokens and a template that adds them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
        made.pre_tokenizer = pre_tokenizers.Whitespace()
    elif kind == "wordlevel":
        made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
        made.pre_tokenizer = pre_tokenizers.Whitespace()
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=100, special_tokens=special, unk_token="[UNK]", show_progress=False
        )
        made.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    made.train_from_iterator(WHOLE, trainer)
    ends = [("[CLS]", made.token_to_id("[CLS]")), ("[SEP]", made.token_to_id("[SEP]"))]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return made.to_str()


def tokens_of(tokenizer, text):
    return tokenizers.Tokenizer.from_str(tokenizer).encode(text).tokens


@pytest.mark.parametrize("kind", ["wordpiece", "wordlevel", "unigram", "bpe"])
def test_the_corpus_keeps_its_tokens_and_others_go(kind):
    before = whole(kind)
    made = cut(before, CORPUS)
    assert len(made.kept) < made.whole == tokenizers.Tokenizer.from_str(before).get_vocab_size()
    full, part = tokenizers.Tokenizer.from_str(before), tokenizers.Tokenizer.from_str(made.tokenizer)
    for text in CORPUS:
        assert part.encode(text).tokens == full.encode(text).tokens
        assert made.kept[part.encode(text).ids].tolist() == full.encode(text).ids
    # A token's new id is the place of its old one, so that rows of an embedding are taken by ``kept``.
    assert [full.id_to_token(int(old)) for old in made.kept] == [part.id_to_token(i) for i in range(len(made.kept))]
    assert set(part.get_vocab()) >= {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    assert part.encode("flute").tokens[0] == "[CLS]"  # the template's own ids are new ones, too
    assert np.array_equal(vocabulary_of(before, made.tokenizer).kept, made.kept)


def test_words_that_the_corpus_lacks_are_spelled_where_they_can_be():
    made = cut(whole("wordpiece"), CORPUS)
    assert "[UNK]" not in tokens_of(made.tokenizer, "the nod")  # n, ##o, ##d are letters of the corpus
    assert tokens_of(made.tokenizer, "the flute") == ["[CLS]", "the", "[UNK]", "[SEP]"]  # f, u are not
    assert coverage(made.tokenizer, ["the flute", "the dog"]) == Coverage(texts=2, tokens=4, unknown=1)
    assert coverage(made.tokenizer, ["the flute"]).unknown_share == 0.5
    bytes_ = cut(whole("bpe"), CORPUS)
    assert coverage(bytes_.tokenizer, ["zithers ü 漢"]).unknown == 0  # any text is spelled in bytes


def test_a_tokenizer_that_ships_cuts_and_pads_by_itself():
    made = ready(whole("wordlevel"), 5, "[PAD]")
    both = tokenizers.Tokenizer.from_str(made).encode_batch(["the old man walks his dog", "a dog"])
    ids, mask = ids_and_mask(made, ["the old man walks his dog", "a dog"])
    assert ids.shape == (2, 5)
    assert ids.dtype == mask.dtype == np.int64
    assert ids.tolist() == [item.ids for item in both]
    assert mask.tolist() == [item.attention_mask for item in both] == [[1] * 5, [1, 1, 1, 1, 0]]
    assert (ids[mask == 0] == tokenizers.Tokenizer.from_str(made).token_to_id("[PAD]")).all()


def test_merges_of_byte_pairs_and_ids_of_every_processor_follow():
    document = json.loads(whole("bpe"))
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]  # as older files have them
    ids = {token["content"]: token["id"] for token in document["added_tokens"]}
    document["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            {"type": "RobertaProcessing", "sep": ["[SEP]", ids["[SEP]"]], "cls": ["[CLS]", ids["[CLS]"]],
             "trim_offsets": True, "add_prefix_space": False},
        ],
    }  # fmt: skip
    before = json.dumps(document)
    made = cut(before, CORPUS)
    assert tokens_of(made.tokenizer, "the dog") == tokens_of(before, "the dog")
    own = json.loads(made.tokenizer)["model"]
    assert {left + right for left, right in own["merges"]} <= set(own["vocab"])
    assert 0 < len(own["merges"]) < len(document["model"]["merges"])


def test_a_tokenizer_without_a_token_for_the_unknown_names_the_text_that_it_cannot_read():
    document = json.loads(whole("unigram"))
    document["model"]["unk_id"] = None  # as tokenizers' own trainer leaves it where none is named
    made = cut(json.dumps(document), CORPUS)
    assert coverage(made.tokenizer, CORPUS).unknown == 0
    for read in (
        lambda: coverage(made.tokenizer, [*CORPUS, "the 日 dog"]),
        lambda: ids_and_mask(ready(made.tokenizer, 8), [*CORPUS, "the 日 dog"]),
        lambda: cut(json.dumps(document), ["the 日 dog"]),
    ):
        with pytest.raises(SourceError, match="cannot read 'the 日 dog'") as caught:
            read()
        assert "unk_id" in caught.value.hint


def test_one_token_may_be_unknown_padding_and_end_as_in_clip():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    end, options = "<|endoftext|>", {"end_of_word_suffix": "</w>"}
    given = Tokenizer(models.BPE(unk_token=end, **options))
    given.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"special_tokens": ["<|startoftext|>", end], "show_progress": False}
    given.train_from_iterator(WHOLE, trainers.BpeTrainer(vocab_size=120, **special, **options))
    pair = [("<|startoftext|>", 0), (end, 1)]
    given.post_processor = processors.TemplateProcessing(single=f"<|startoftext|> $A {end}", special_tokens=pair)
    given.enable_padding(pad_id=1, pad_token=end)
    made = cut(given.to_str(), CORPUS)
    for text in CORPUS:
        assert tokens_of(made.tokenizer, text) == tokens_of(given.to_str(), text)
    ids, mask = ids_and_mask(ready(made.tokenizer, 12), [*CORPUS, "日"])
    assert set(ids[mask == 0]) <= {1}
    assert (mask.sum(axis=1) == [len(tokens_of(made.tokenizer, text)) for text in [*CORPUS, "日"]]).all()
    assert coverage(made.tokenizer, ["日"]).unknown == 1


def test_what_cannot_be_cut_says_what_to_change():
    with pytest.raises(SourceError, match="no texts") as caught:
        cut(whole("wordlevel"), [])
    assert "take vocabulary out" in caught.value.hint
    for text in ("{}", "not json", '{"model": {"vocab": {}}}', '{"model": null}'):
        with pytest.raises(SourceError, match=r"tokenizer\.json holds no model"):
            cut(text, CORPUS)
    odd = json.loads(whole("wordlevel"))
    odd["model"]["type"] = "Morse"
    with pytest.raises(SourceError, match="of the kind Morse cannot be cut"):
        cut(json.dumps(odd), CORPUS)
    damaged = json.loads(whole("wordlevel"))
    damaged["pre_tokenizer"] = {"type": "NoSuchThing"}
    with pytest.raises(SourceError, match="cannot be read"):
        cut(json.dumps(damaged), CORPUS)
    with pytest.raises(SourceError, match="tokens that the whole one lacks"):
        vocabulary_of(cut(whole("wordlevel"), CORPUS).tokenizer, whole("wordlevel"))


def test_a_panic_of_the_library_is_an_error():
    document = json.loads(whole("wordlevel"))
    document["post_processor"]["single"][0]["SpecialToken"]["id"] = "[NONE]"  # of no token: Rust ends in a panic
    with pytest.raises(SourceError, match="the tokenizer cannot read 'the dog walks'"):
        coverage(json.dumps(document), CORPUS)


@pytest.mark.parametrize("number", [2**31, -1, float("inf")])
def test_a_number_far_beyond_all_tokens_is_refused(number):
    document = json.loads(whole("wordlevel"))
    document["model"]["vocab"]["dog"] = number  # the library would go through all that lack
    document["added_tokens"][0]["id"] = number
    with pytest.raises(SourceError, match="not of its form"):
        ready(json.dumps(document), 8)


def test_a_tokenizer_whose_parts_name_other_tokens_is_refused():
    document = json.loads(whole("wordlevel"))
    document["added_tokens"][0]["id"] = 9999
    with pytest.raises(SourceError, match=r"not of its form|cannot be (cut|read)"):
        cut(json.dumps(document), CORPUS)


def test_a_normalizer_that_multiplies_texts_is_refused():
    """Six replacements behind one another made 21 GB of a word."""
    document = json.loads(whole("unigram"))
    replace = {"type": "Replace", "pattern": {"String": "w"}, "content": "w" * 40}
    for count, refused in ((1, False), (2, True), (6, True)):
        document["normalizer"] = {"type": "Sequence", "normalizers": [replace] * count}
        if refused:
            with pytest.raises(SourceError, match=f"{40**count:,} times as long"):
                cut(json.dumps(document), CORPUS)
        else:
            assert cut(json.dumps(document), CORPUS).tokenizer
