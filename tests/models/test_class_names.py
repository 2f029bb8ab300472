"""Whose output is which class: by the names that a model carries, in whatever it carries them."""

import argparse

import numpy as np
import pytest
import torch
from torch import nn

from kdexport.errors import SourceError
from kdexport.models.class_names import names_in, order_of
from kdexport.models.fitted_data import in_order, load_fitted_data
from kdexport.models.predictors import load_predictor
from kdexport.recipe import Data, Student, Teacher, Training
from kdexport.scoring import evaluate

WORDS = ("one", "three", "two", "zero")  # as folders would have them
OWN = ("zero", "one", "two", "three")


@pytest.mark.parametrize(
    ("own", "data", "outputs"),
    [
        (OWN, WORDS, (1, 3, 2, 0)),
        (OWN, OWN, None),
        (None, WORDS, None),
        (("Zero", "ONE", "two", "three"), OWN, None),  # written otherwise alone
        (("ice cream", "cake"), ("cake", "ice_cream"), (1, 0)),
        (("positive", "negative"), ("neg", "pos"), (1, 0)),
        (("negative", "positive"), ("neg", "pos"), None),
        (("cat", "cats"), ("cats", "cat"), (1, 0)),
        (("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"), WORDS, None),  # placeholders
        (("0", "1", "2", "3"), WORDS, None),
        (OWN, ("0", "1", "2", "3"), None),  # the data have no names
        (("0", "1", "10", "2"), ("0", "1", "2", "10"), (0, 1, 3, 2)),  # sorted as text by whoever trained it
        (("1.0", "2.0", "10.0"), ("1", "2", "10"), None),
        (OWN, ("zero", "one"), None),  # another number: the width is held elsewhere
    ],
)
def test_which_output_is_which_class(own, data, outputs):
    assert order_of(own, data, "the model").outputs == outputs


@pytest.mark.parametrize(
    ("own", "data"),
    [
        (("cat", "dog"), ("cat", "horse")),
        (("negative", "positive"), ("no", "yes")),
        (("cat", "cats"), ("ca", "cat")),
        (("1", "2", "3"), ("0", "1", "2")),
        (("a", "A"), ("a", "b")),
    ],
)
def test_other_classes_are_an_error_with_both_lists(own, data):
    with pytest.raises(SourceError, match=f"{', '.join(own)} against {', '.join(data)}") as caught:
        order_of(own, data, "the model")
    assert "by_position" in caught.value.hint


def test_what_is_matched_or_cannot_be_is_reported():
    assert "as zero, one, two, three: they are matched by name" in order_of(OWN, WORDS, "the teacher").note
    assert "share no class names" in order_of(OWN, ("0", "1", "2", "3"), "the teacher").note
    assert order_of(OWN, OWN, "the teacher").note is None


@pytest.mark.parametrize(
    "document",
    [
        {"class_names": list(OWN)},
        {"state_dict": {}, "classes": OWN},
        {"class_to_idx": {name: index for index, name in enumerate(OWN)}},
        {"id2label": {str(index): name for index, name in enumerate(OWN)}},
        {"names": dict(enumerate(OWN))},
        {"meta": {"CLASSES": None, "classes": list(OWN)}},
        {"meta": {"dataset_meta": {"classes": OWN}}},
        {"hyper_parameters": {"class_names": OWN}},
        {"args": argparse.Namespace(lr=0.1, class_names=list(OWN))},
    ],
)
def test_names_in_checkpoints(document):
    assert names_in({"epoch": 3, **document}) == OWN


@pytest.mark.parametrize(
    "document",
    [{}, {"classes": 10}, {"names": {0: "a", 2: "b"}}, {"labels": [1, 2]}, {"args": {"names": "x"}}, [1, 2], None],
)
def test_what_is_no_list_of_names(document):
    assert names_in(document) is None


@pytest.fixture
def source(tmp_path):
    """Four classes that one pixel tells apart, and a network that knows them in its own order."""
    generator = np.random.default_rng(0)
    y = np.arange(80) % 4
    x = generator.integers(0, 40, (80, 2, 2, 1), dtype=np.uint8)
    for index, label in enumerate(y):
        x[index].reshape(4)[label] = 250
    labels = np.array([WORDS.index(OWN[label]) for label in y])
    other = x + 1  # no test sample is in train
    np.savez(tmp_path / "d.npz", x_train=x, y_train=labels, x_test=other, y_test=labels, class_names=np.array(WORDS))
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def net(num_classes=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(4, num_classes))\n"
    )
    state = {"1.weight": torch.eye(4), "1.bias": torch.zeros(4)}
    torch.save({"model": state, "class_names": list(OWN)}, tmp_path / "named.pt")
    torch.save({"model": state}, tmp_path / "nameless.pt")
    return tmp_path


def accuracy(spec, source, data="d.npz"):
    dataset = load_fitted_data(Data(source=f"npz:{source / data}"), (spec,), 0, source)
    found = evaluate(load_predictor(spec, dataset).predict, dataset.test, dataset.class_names)[0]
    return found.score.value, dataset


def test_a_checkpoint_with_names_scores_by_them(source):
    spec = Student(model=f"{source / 'nets.py'}:net", weights=str(source / "named.pt"))
    score, dataset = accuracy(spec, source)
    assert score == 1
    assert dataset.class_names == OWN
    assert any("matched by name" in note for note in dataset.notes)
    assert accuracy(spec.model_copy(update={"class_order": "by_position"}), source)[0] == 0.25  # two alone stays
    assert accuracy(spec.model_copy(update={"weights": str(source / "nameless.pt")}), source)[0] == 0.25


def test_a_hugging_face_folder_scores_by_its_id2label(source):
    transformers = pytest.importorskip("transformers", reason="it is an extra: pip install 'kdexport[text]'")
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], id2label=dict(enumerate(OWN)))
    transformers.ResNetForImageClassification(config).save_pretrained(source / "hf")
    from kdexport.models.class_names import names_of

    assert names_of(Student(model=f"hf:{source / 'hf'}")) == OWN
    assert names_of(Student(model=f"hf:{source / 'hf'}", args={"pretrained": False})) is None


@pytest.mark.parametrize("key", ["kdexport.labels", "names"])
def test_an_onnx_file_scores_by_its_metadata(key, source):
    import json

    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("Flatten", ["x"], ["y"]), helper.make_node("MatMul", ["y", "w"], ["logits"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    names = json.dumps(OWN) if key == "kdexport.labels" else repr(dict(enumerate(OWN)))  # as Ultralytics writes them
    helper.set_model_props(model, {key: names})
    onnx.save(model, source / "net.onnx")
    assert accuracy(Student(model=str(source / "net.onnx")), source)[0] == 1


def test_samples_keep_their_names_when_the_order_changes(source):
    from kdexport.data.datasets import load_data

    before = load_data(Data(source=f"npz:{source / 'd.npz'}"), 0, source)
    after = in_order(before, order_of(OWN, WORDS, "x").outputs)
    named = [[data.class_names[label] for label in data.test.labels] for data in (before, after)]
    assert named[0] == named[1]
    assert after.class_names == OWN


def test_teachers_of_different_orders_are_refused(source):
    named = Teacher(model=f"{source / 'nets.py'}:net", weights=str(source / "named.pt"))
    torch.save({"model": nn.Linear(4, 4).state_dict(), "class_names": list(WORDS)}, source / "other.pt")
    other = named.model_copy(update={"weights": str(source / "other.pt")})
    with pytest.raises(SourceError, match=r"teacher-2 .* in another order than the teachers before it"):
        load_fitted_data(Data(source=f"npz:{source / 'd.npz'}"), (named, other, Student(model="x.py:y")), 0, source)


def test_a_test_split_that_a_given_teacher_may_know_is_told(source):
    given = Teacher(model=f"{source / 'nets.py'}:net", weights=str(source / "nameless.pt"))
    student = Student(model=f"{source / 'nets.py'}:net")
    x, y = np.arange(160, dtype=np.uint8).reshape(40, 2, 2, 1), np.arange(40) % 4
    np.savez(source / "whole.npz", x_train=x, y_train=y)
    whole, split = Data(source=f"npz:{source / 'whole.npz'}"), Data(source=f"npz:{source / 'd.npz'}")
    told = load_fitted_data(whole, (given, student), 0, source)
    assert "may have been trained on these samples" in told.splits_made_by["test"]
    assert "its score is then too high" in told.warnings[0]
    half = load_fitted_data(split, (given, student), 0, source)  # train and test are the source's, val is cut
    assert "may have been trained on these samples" in half.splits_made_by["val"]
    assert half.splits_made_by["test"] == "source"
    assert any("its score on test is the one to go by" in note for note in half.notes)
    fitted = given.model_copy(update={"train": Training()})
    assert not any("trained on" in text for text in load_fitted_data(split, (fitted, student), 0, source).notes)
    for data, networks in ((split, (given, student)), (whole, (fitted, student)), (whole, (student,))):
        assert load_fitted_data(data, networks, 0, source).warnings == ()
