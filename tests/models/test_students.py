"""Students that are a part of their teacher: the same texts by each one's own tokenizer, and weights that follow."""

import csv
import json

import numpy as np
import pytest
import torch

from kdexport.data.samples import Split
from kdexport.errors import RecipeError, SourceError
from kdexport.models.fitted_data import load_fitted_data
from kdexport.models.loading import load_model, preprocessing_of
from kdexport.models.own_vocabulary import data_for, with_own_vocabulary
from kdexport.recipe import Data, Recipe, Student, Teacher, Training

transformers = pytest.importorskip("transformers", reason="it is an extra: pip install 'kdexport[text]'")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["a", "the", "old", "man", "woman", "dog", "cat", "walks", "plays", "sings", "flute", "piano", "slowly",
         "loudly", "good", "bad", "xylophone"]  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with a BERT of three layers, weights too, and a word tokenizer with more words than any text has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=32, **size)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path):
    """A CSV file whose training texts use some of the words; one test text has a word that they lack."""
    path = tmp_path / "rows.csv"
    texts = ["a good old dog walks", "the bad cat sings loudly", "a man plays", "the woman sings"]
    with path.open("w", newline="", encoding="utf-8") as handle:
        write = csv.writer(handle)
        write.writerow(["text", "label", "split"])
        write.writerows([texts[i % 4], i % 2, "train"] for i in range(12))
        write.writerows([texts[i % 4], i % 2, "val"] for i in (2, 3, 2, 3))  # shorter than the others
        write.writerows([["a man plays the flute", 0, "test"], ["the old cat", 1, "test"]])
    return path


@pytest.fixture
def made(rows, bert, tmp_path):
    """Return a function that loads the data for a student and gives both."""

    def load(fraction=1.0, **student):
        data = Data(source=f"csv:{rows}", tokenizer=f"hf:{bert}", text_length=16, fraction=fraction)
        spec = Student(**{"model": f"hf:{bert}", **student})
        return load_fitted_data(data, (Teacher(model=f"hf:{bert}"), spec), 0, tmp_path), spec

    return load


def outputs(model, split):
    with torch.no_grad():
        return model.network(*model.preprocessing.apply(split.inputs))


def test_a_student_with_all_layers_and_a_cut_vocabulary_is_the_teacher_on_the_corpus(made, bert):
    data, spec = made(vocabulary="corpus", max_unknown=1.0)
    teacher, student = load_model("teacher", Teacher(model=f"hf:{bert}"), data), load_model("student", spec, data)
    assert len(data.train.inputs) == 4
    assert len(data.vocabulary.kept) == 4 + 13  # the special tokens and the words of the training texts
    assert student.network.model.get_input_embeddings().weight.shape == (17, 16)
    torch.testing.assert_close(outputs(student, data.train), outputs(teacher, data.train))
    own = tokenizers.Tokenizer.from_str(data.vocabulary.tokenizer).encode_batch(
        ["a man plays the flute", "the old cat"]
    )
    assert data.test.inputs[2].tolist() == [item.ids for item in own]
    assert own[0].tokens == ["[CLS]", "a", "man", "plays", "the", "[UNK]", "[SEP]"]
    assert student.preprocessing.first_input == 2


def test_what_the_cut_leaves_unknown_is_told_and_bounded(made):
    data, _ = made(vocabulary="corpus", max_unknown=0.2)
    assert data.coverage == (
        "vocabulary cut to 17 of 21 tokens: val 0.00% of the tokens unknown (0.00% with all), 3.0 tokens a text (3.0 "
        "with all); test 12.50% of the tokens unknown (0.00% with all), 4.0 tokens a text (4.0 with all)",
    )
    assert f"student: {data.coverage[0]}" in data.notes
    thinned, _ = made(fraction=0.25, vocabulary="corpus", max_unknown=0.2)
    assert len(thinned.train) < len(data.train)
    assert thinned.vocabulary.kept.tolist() == data.vocabulary.kept.tolist()
    with pytest.raises(SourceError, match=r"of the test texts 12\.5% of the tokens are unknown") as caught:
        made(vocabulary="corpus")
    assert "student.max_unknown = 0.13" in caught.value.hint


def test_layers_are_the_teachers_and_its_trained_weights_are_taken_where_there_are_some(made, bert, tmp_path):
    data, spec = made(layers=(0, 2), vocabulary="corpus", max_unknown=1.0)
    student = load_model("student", spec, data)
    assert "layers 0, 2 of 3 and 17 tokens" in student.notes[0]
    whole = transformers.BertForSequenceClassification.from_pretrained(bert)
    layers = student.network.model.bert.encoder.layer
    assert len(layers) == 2
    for ours, theirs in zip(layers, (0, 2), strict=True):
        torch.testing.assert_close(ours.state_dict(), whole.bert.encoder.layer[theirs].state_dict())
    rows = whole.bert.embeddings.word_embeddings.weight[torch.from_numpy(data.vocabulary.kept)]
    torch.testing.assert_close(student.network.model.bert.embeddings.word_embeddings.weight, rows)
    teacher = load_model("teacher", Teacher(model=f"hf:{bert}"), data)
    with torch.no_grad():
        teacher.network.model.classifier.bias.fill_(7.0)
    start = tmp_path / "teacher.pt"
    torch.save(teacher.network.state_dict(), start)
    begun = load_model("student", spec, data, start=start)
    assert begun.network.model.classifier.bias.tolist() == [7.0, 7.0]
    (tmp_path / "cut.pt").parent.mkdir(exist_ok=True)
    torch.save(begun.network.state_dict(), tmp_path / "cut.pt")  # a student that was cut before: taken as it is
    again = load_model("student", spec.model_copy(update={"weights": str(tmp_path / "cut.pt")}), data)
    torch.testing.assert_close(outputs(again, data.val), outputs(begun, data.val))


def test_a_trained_student_is_loaded_without_the_teachers_weights(made, bert, tmp_path):
    data, spec = made(layers="every-other", vocabulary="corpus", max_unknown=1.0)
    student = load_model("student", spec, data)
    torch.save(student.network.state_dict(), tmp_path / "student.pt")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((bert / "config.json").read_text())  # no weights, no tokenizer
    moved = spec.model_copy(update={"model": f"hf:{bare}"})
    again = load_model("student", moved, data, tmp_path / "student.pt")
    torch.testing.assert_close(outputs(again, data.test), outputs(student, data.test))


def test_a_cut_tokenizer_of_before_gives_the_same_student(made, bert, tmp_path):
    data, spec = made(vocabulary="corpus", max_unknown=1.0)
    (tmp_path / "cut.json").write_text(data.vocabulary.tokenizer)
    other, again = made(vocabulary=str(tmp_path / "cut.json"), max_unknown=1.0)
    assert other.vocabulary.kept.tolist() == data.vocabulary.kept.tolist()
    one, two = load_model("student", spec, data), load_model("student", again, other)
    torch.testing.assert_close(outputs(two, other.test), outputs(one, data.test))


def test_a_network_of_ones_own_learns_how_many_tokens_there_are(made, tmp_path):
    (tmp_path / "nets.py").write_text(
        "import torch\n"
        "class Bag(torch.nn.Module):\n"
        "    def __init__(self, vocab_size, num_classes=2):\n"
        "        super().__init__()\n"
        "        self.table = torch.nn.Embedding(vocab_size, num_classes)\n"
        "    def forward(self, input_ids, attention_mask):\n"
        "        return (self.table(input_ids) * attention_mask[..., None]).sum(1)\n"
    )
    data, spec = made(model=f"{tmp_path / 'nets.py'}:Bag", vocabulary="corpus", max_unknown=1.0)
    assert load_model("student", spec, data).network.table.weight.shape == (17, 2)
    with pytest.raises(SourceError, match="layers out of a transformer of transformers") as caught:
        load_model("student", spec.model_copy(update={"layers": 2}), data)
    assert 'model = "hf:NAME_OR_DIR"' in caught.value.hint


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"layers": (0, 5)}, "names the layer 5, and hf:.* has 3 layers"),
        ({"layers": 4}, "student.layers = 4, and hf:.* has 3 layers"),
    ],
)
def test_layers_beyond_the_teachers(student, message, made):
    data, spec = made(**student)
    with pytest.raises(SourceError, match=message):
        load_model("student", spec, data)


def test_recipes_that_do_not_fit_together(rows, bert, tmp_path):
    base = {"name": "x", "data": {"source": f"csv:{rows}"}, "teacher": {"model": f"hf:{bert}", "args": {"a": 1}}}
    parsed = Recipe.parse({**base, "student": {"model": "teacher", "layers": [0, 2]}}, base=tmp_path)
    assert (parsed.student.model, parsed.student.args, parsed.student.layers) == (f"hf:{bert}", {"a": 1}, (0, 2))
    with pytest.raises(RecipeError, match="says nothing of what is kept"):
        Recipe.parse({**base, "student": {"model": "teacher"}}, base=tmp_path)
    for wrong in ("first", 1.5, True, [], ["a"]):
        with pytest.raises(RecipeError, match=r'layers: is "every-other", a number of layers, or a list'):
            Recipe.parse({**base, "student": {"model": "teacher", "layers": wrong}}, base=tmp_path)
    with pytest.raises(RecipeError, match='vocabulary is "corpus" or the path'):
        Recipe.parse({**base, "student": {"model": "teacher", "vocabulary": "corpsu"}}, base=tmp_path)
    pictures = Data(source="digits")
    with pytest.raises(SourceError, match="is for texts, and digits gives none"):
        load_fitted_data(pictures, (Student(model=f"hf:{bert}", vocabulary="corpus"),), 0, tmp_path)


def test_a_tokenizer_of_python_code_cannot_be_cut(made, monkeypatch):
    from kdexport.data import text

    class Slow:
        pad_token = pad_token_id = None

        def __call__(self, texts, **_):
            return {"input_ids": [[1] for _ in texts]}

    monkeypatch.setattr(text, "_tokenizer", lambda _: Slow())
    with pytest.raises(SourceError, match=r"is Python code: it has no tokenizer\.json") as caught:
        made(vocabulary="corpus")
    assert "take vocabulary out" in caught.value.hint


def test_a_folder_without_a_tokenizer_says_so(rows, bert, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((bert / "config.json").read_text())
    refused = "cannot be loaded: Can't load tokenizer"
    if int(transformers.__version__.partition(".")[0]) >= 5:  # makes one of special tokens alone
        refused = "has no vocabulary: all words would be unknown"
    with pytest.raises(SourceError, match=refused):
        load_fitted_data(Data(source=f"csv:{rows}", tokenizer=f"hf:{bare}"), (), 0, tmp_path)
    with pytest.raises(SourceError, match="cannot be read"):
        load_fitted_data(
            Data(source=f"csv:{rows}", tokenizer=str(tmp_path / "none" / "tokenizer.json")), (), 0, tmp_path
        )


def embedding_file(path, tokenizer_file="tokenizer.json", first=2, tokens=17):
    """Write an ONNX file that sums a table's rows: what a student exported with its own tokenizer looks like."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    table = np.random.default_rng(0).normal(size=(tokens, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
         helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
         helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
         helper.make_node("Mul", ["rows", "wide"], ["kept"]),
         helper.make_node("ReduceSum", ["kept", "second"], ["logits"], keepdims=0)],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
         for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([2]), "last"),
         numpy_helper.from_array(np.array([1]), "second")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    prepare = {"kind": "tokens", "tokenizer": "bert", "length": 16, "tokenizer_file": tokenizer_file,
               "first_input": first}  # fmt: skip
    helper.set_model_props(
        model, {"kdexport.preprocessing": json.dumps(prepare), "kdexport.baked": "false", "kdexport.task": "embedding"}
    )
    onnx.save(model, path)
    return table


def test_a_file_is_fed_by_the_tokenizer_that_lies_beside_it(made, rows, bert, tmp_path):
    from kdexport.onnx.sessions import OnnxSession

    cut, _ = made(vocabulary="corpus", max_unknown=1.0)
    folder = tmp_path / "run"
    folder.mkdir()
    table = embedding_file(folder / "student.onnx")
    (folder / "tokenizer.json").write_text(cut.vocabulary.tokenizer)
    spec = Student(model=str(folder / "student.onnx"))
    chosen = data_for(Data(source=f"csv:{rows}"), [folder / "student.onnx"])
    assert (chosen.tokenizer, chosen.text_length) == (str(folder / "tokenizer.json"), 16)
    own = tokenizers.Tokenizer.from_str(cut.vocabulary.tokenizer).encode("the old cat")
    for tokenizer in (None, f"hf:{bert}"):  # none is needed, and another's changes nothing
        data = load_fitted_data(Data(source=f"csv:{rows}", tokenizer=tokenizer), (spec,), 0, tmp_path)
        session = OnnxSession(folder / "student.onnx", preprocessing_of(spec, data), expects="none")
        expected = table[[number for number, kept in zip(own.ids, own.attention_mask, strict=True) if kept]].sum(axis=0)
        np.testing.assert_allclose(session.predict(data.test.inputs)[1], expected, atol=1e-6)
    plain = load_fitted_data(Data(source=f"csv:{rows}", tokenizer=f"hf:{bert}"), (), 0, tmp_path)
    with pytest.raises(SourceError, match="a vocabulary of its own, and the data hold another tokenizer's"):
        OnnxSession(folder / "student.onnx", plain.preprocessing).predict(plain.test.inputs)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match="ids of a vocabulary of its own, and there is no"):
        load_fitted_data(Data(source=f"csv:{rows}", tokenizer=f"hf:{bert}"), (spec,), 0, tmp_path)
    without = Split(plain.train.inputs, plain.train.labels)
    assert without.texts is None
    other = tmp_path / "other"
    other.mkdir()
    for place, text in ((folder, cut.vocabulary.tokenizer), (other, cut.vocabulary.tokenizer.replace("cat", "cot"))):
        embedding_file(place / "student.onnx")
        (place / "tokenizer.json").write_text(text)
    with pytest.raises(SourceError, match="have different tokenizers beside them"):
        with_own_vocabulary(plain, Data(source="x"), (), [folder / "student.onnx", other / "student.onnx"])


def test_infer_py_reads_sentences_by_the_tokenizer_beside_the_file(made, tmp_path):
    import subprocess
    import sys

    from kdexport.onnx import example

    cut, _ = made(vocabulary="corpus", max_unknown=1.0)
    table = embedding_file(tmp_path / "student.onnx")
    (tmp_path / "tokenizer.json").write_text(cut.vocabulary.tokenizer)
    program = example.write(tmp_path / "student.onnx")
    assert "transformers" not in program.read_text()
    done = subprocess.run(
        [sys.executable, program, "a man plays the flute", "the old cat"], capture_output=True, text=True, check=True
    )
    ids = [item.ids for item in tokenizers.Tokenizer.from_str(cut.vocabulary.tokenizer).encode_batch(
        ["a man plays the flute", "the old cat"])]  # fmt: skip
    one, two = (table[[number for number in row if number]].sum(axis=0) for row in ids)
    cosine = float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
    assert "2 embeddings of 3 numbers" in done.stdout
    assert f"{cosine:.3f}".rstrip("0") in done.stdout


def test_training_starts_from_the_trained_teacher(made):
    recipe = {"name": "x", "data": {"source": "digits"}, "teacher": {"model": "hf:x", "train": {"epochs": 1}}}
    from kdexport.distill.context import DistillContext

    def start(**student):
        parsed = Recipe.parse({**recipe, "student": student})

        class Place:
            def weights(self, name):
                return f"{name}.safetensors"

        return DistillContext(parsed, Place(), None, None, None).student_starts_from

    assert start(model="teacher", layers=2) == "teacher.safetensors"
    assert start(model="hf:y", layers=2) is None
    assert start(model="hf:x") is None
    assert Training().epochs == 30


@pytest.fixture
def pairs(bert, tmp_path):
    """Return a function that loads pairs of texts with a score for a student of a BERT, and gives both."""
    with (tmp_path / "pairs.csv").open("w", newline="", encoding="utf-8") as handle:
        write = csv.writer(handle)
        write.writerow(["sentence1", "sentence2", "score", "split"])
        for split in ("train", "val", "test"):
            write.writerows(["a man walks", f"the {who} sings", number, split]
                            for number, who in enumerate(("man", "dog", "cat", "woman")))  # fmt: skip
    data = Data(source=f"csv:{tmp_path / 'pairs.csv'}", tokenizer=f"hf:{bert}", text_length=16)

    def load(**student):
        spec = Student(**{"model": f"hf:{bert}", "layers": (0, 2), "vocabulary": "corpus", **student})
        return load_fitted_data(data, (Teacher(model=f"hf:{bert}"), spec), 0, tmp_path), spec

    return load


def test_pairs_of_texts_are_embedded_by_a_cut_student(pairs, bert):
    dataset, spec = pairs()
    assert (dataset.task.name, len(dataset.train.inputs), len(dataset.vocabulary.kept)) == ("embedding", 4, 12)
    teacher, student = load_model("teacher", Teacher(model=f"hf:{bert}"), dataset), load_model("student", spec, dataset)
    assert "pooled by the mean over the mask (it has no modules.json that says otherwise)" in teacher.notes[0]
    whole = transformers.AutoModel.from_pretrained(bert).eval()
    ids, mask = (torch.from_numpy(array) for array in dataset.test.inputs[:2])
    with torch.no_grad():
        tokens = whole(input_ids=ids, attention_mask=mask)[0]
    mean = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    expected = mean / mean.norm(dim=1, keepdim=True)
    torch.testing.assert_close(outputs(teacher, dataset.test), expected)
    whole.encoder.layer = torch.nn.ModuleList([whole.encoder.layer[0], whole.encoder.layer[2]])
    with torch.no_grad():
        tokens = whole(input_ids=ids, attention_mask=mask)[0]
    mean = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(outputs(student, dataset.test), mean / mean.norm(dim=1, keepdim=True))


def test_a_cut_student_is_as_wide_as_it_is_asked_to_be(pairs, bert, tmp_path):
    """The layer stands behind the pooling, and belongs to the student's weights."""
    dataset, spec = pairs(embedding_dim=5)
    student = load_model("student", spec, dataset)
    narrow = load_model("student", pairs()[1], dataset)
    layer = student.network.embedding_projection
    with torch.no_grad():
        ids, mask = student.preprocessing.apply(dataset.test.inputs)
        tokens = student.network.model(input_ids=ids, attention_mask=mask)[0]
        pooled = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        expected = pooled @ layer.weight.T + layer.bias
    found = outputs(student, dataset.test)
    assert found.shape == (8, 5)
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))
    torch.testing.assert_close(outputs(narrow, dataset.test), pooled / pooled.norm(dim=1, keepdim=True))
    torch.save(student.network.state_dict(), tmp_path / "student.pt")
    for given in ({"weights": tmp_path / "student.pt"}, {"spec": {"weights": str(tmp_path / "student.pt")}}):
        again = load_model(
            "student", spec.model_copy(update=given.get("spec", {})), dataset, given.get("weights")
        )  # as a run loads what it has trained, and as a recipe names it
        torch.testing.assert_close(outputs(again, dataset.test), found)


def test_the_layer_of_a_teacher_as_wide_goes_to_the_cut_student(pairs, bert, tmp_path):
    dataset, spec = pairs(embedding_dim=5)
    teacher = load_model("teacher", Teacher(model=f"hf:{bert}", embedding_dim=5, train=Training()), dataset)
    start = tmp_path / "teacher.pt"
    torch.save(teacher.network.state_dict(), start)
    for student, same in ((spec, True), (pairs(embedding_dim=4)[1], False), (pairs()[1], False)):
        for built in (
            load_model("student", student, dataset, start=start),
            load_model("student", student.model_copy(update={"weights": str(start)}), dataset),
        ):
            layer = getattr(built.network, "embedding_projection", None)
            assert (layer is not None) == (student.embedding_dim is not None)
            whole = teacher.network.embedding_projection.weight
            assert (layer is not None and torch.equal(layer.weight, whole)) is same
            width = student.embedding_dim or 16
            assert outputs(built, dataset.test).shape == (8, width)


def test_a_network_of_ones_own_with_a_cut_vocabulary_gets_the_layer_too(pairs, tmp_path):
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "class Bag(nn.Module):\n"
        "    def __init__(self, vocab_size=99):\n"
        "        super().__init__()\n"
        "        self.table = nn.Embedding(vocab_size, 6)\n"
        "    def forward(self, ids, mask):\n"
        "        return (self.table(ids) * mask[..., None]).sum(1)\n"
    )
    dataset, spec = pairs(model=f"{tmp_path / 'own.py'}:Bag", layers=None, embedding_dim=3)
    student = load_model("student", spec, dataset)
    assert outputs(student, dataset.test).shape == (8, 3)
    assert student.network.embedding_projection.weight.shape == (3, 6)
