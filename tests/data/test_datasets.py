"""Data by reference: arrays, files and functions; the splits made of them; what is wrong with them."""

import numpy as np
import pytest

from kdexport.errors import RecipeError, SourceError


def arrays(samples=60, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 255, (samples, 6, 5, 3), dtype=np.uint8), np.arange(samples) % classes


def rows(split):
    return {sample.tobytes() for sample in split.inputs[0]}


def test_digits_are_the_real_ones_stretched_to_bytes(load):
    from sklearn.datasets import load_digits

    data = load("digits")
    assert (len(data.train), len(data.val), len(data.test)) == (1295, 143, 359)
    whole = sorted(sample.tobytes() for split in (data.train, data.val, data.test) for sample in split.inputs[0])
    assert whole == sorted(np.round(image * 255 / 16).astype(np.uint8).tobytes() for image in load_digits().images)
    assert data.preprocessing.kind == "image"
    pixels = data.preprocessing.apply(data.train.inputs)[0]
    assert pixels.shape == (1295, 1, 8, 8)
    assert abs(float(pixels.mean())) < 0.02
    assert abs(float(pixels.std()) - 1) < 0.02


def test_splits_are_stratified_disjoint_and_seeded_with_the_test_split_fixed(load):
    first, again, other = load("digits", seed=3), load("digits", seed=3), load("digits", seed=4)
    assert np.array_equal(first.train.inputs[0], again.train.inputs[0])
    assert not np.array_equal(first.val.inputs[0], other.val.inputs[0])
    assert np.array_equal(first.test.inputs[0], other.test.inputs[0])
    assert not rows(first.train) & rows(first.test)
    assert not rows(first.train) & rows(first.val)
    shares = np.bincount(first.test.labels) / np.bincount(
        np.concatenate([first.train.labels, first.val.labels, first.test.labels])
    )
    assert np.allclose(shares, 0.2, atol=0.01)
    assert first.splits_made_by["test"] == "stratified 0.2 of all, seed 0"
    assert first.splits_made_by["val"] == "stratified 0.1 of train, seed 3"


def test_a_fraction_thins_the_training_split_alone(load):
    whole, part = load("digits"), load("digits", fraction=0.25)
    assert len(part.train) == pytest.approx(len(whole.train) / 4, abs=5)
    assert np.bincount(part.train.labels).min() > 25
    assert rows(part.train) < rows(whole.train)
    assert np.array_equal(part.test.inputs[0], whole.test.inputs[0])


def test_npz_keeps_the_splits_that_it_gives(load, tmp_path):
    x, y = arrays()
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x[:12], y_test=y[:12], x_unlabelled=x[:5])
    data = load(f"npz:{tmp_path / 'd.npz'}")
    assert np.array_equal(data.test.inputs[0], x[:12])
    assert len(data.train) + len(data.val) == 60
    assert data.splits_made_by["test"] == "source"
    assert data.class_names == ("0", "1", "2")
    assert len(data.unlabelled) == 5
    assert np.allclose(data.preprocessing.mean, x.mean(axis=(0, 1, 2)) / 255, atol=0.03)


@pytest.mark.parametrize(
    ("shape", "dtype", "stored"),
    [
        ((60, 6, 5), np.uint8, (6, 5, 1)),
        ((60, 3, 6, 5), np.uint8, (6, 5, 3)),
        ((60, 6, 5, 3), np.uint8, (6, 5, 3)),
        ((60, 9), np.float64, (9,)),
        ((60, 4), np.int32, (4,)),
    ],
)
def test_arrays_get_the_form_that_networks_take(shape, dtype, stored, load, tmp_path):
    np.savez(tmp_path / "d.npz", x_train=np.ones(shape, dtype), y_train=np.arange(60) % 2)
    first = load(f"npz:{tmp_path / 'd.npz'}").train.inputs[0]
    assert first.shape[1:] == stored
    assert first.dtype in (np.uint8, np.float32, np.int64)


CALLABLE = """
import numpy as np
from helper import CLASSES

def load(samples=40, several=False):
    x = np.random.default_rng(0).normal(size=(samples, 4)).astype("float32")
    if several:
        labels = (x[:, :CLASSES] > 0).astype(int)
    else:
        labels = np.arange(samples) % CLASSES
    return {"train": ({"left": x, "right": 2 * x}, labels), "class_names": ["a", "b", "c"]}

def broken():
    raise KeyError("no such thing")

def odd():
    return [1, 2]

NUMBER = 3
"""


@pytest.fixture
def source(tmp_path):
    (tmp_path / "helper.py").write_text("CLASSES = 3\n")
    (tmp_path / "data.py").write_text(CALLABLE)
    return tmp_path / "data.py"


def test_a_function_gives_several_inputs_and_takes_arguments(source, load):
    data = load(f"{source}:load", args={"samples": 50})
    assert data.input_names == ("left", "right")
    assert data.class_names == ("a", "b", "c")
    assert len(data.train) + len(data.val) + len(data.test) == 50
    assert np.array_equal(data.train.inputs[1], 2 * data.train.inputs[0])
    assert data.preprocessing.kind == "none"


def test_several_labels_a_sample(source, load):
    data = load(f"{source}:load", args={"several": True})
    assert data.multi_label
    assert data.train.labels.shape == (len(data.train), 3)
    assert data.train.labels.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "args", "message", "hint"),
    [
        ("nope", {}, "has no 'nope'", "it has"),
        ("laod", {}, "has no 'laod'", "did you mean 'load'"),
        ("broken", {}, r"raises KeyError: 'no such thing' \(data.py, line 14\)", "fix the code"),
        ("load", {"many": 3}, "unexpected keyword argument 'many'", "args in the recipe"),
        ("odd", {}, "gives a list, not splits", "train"),
        ("NUMBER", {}, "is a int, not a function", "returns splits"),
    ],
)
def test_a_function_that_does_not_work(name, args, message, hint, source, load):
    with pytest.raises(SourceError, match=message) as caught:
        load(f"{source}:{name}", args=args)
    assert hint in caught.value.hint


def test_a_changed_file_is_read_again(source, load):
    assert len(load(f"{source}:load").train.inputs[0][0]) == 4
    source.write_text(CALLABLE.replace("(samples, 4)", "(samples, 7)"))
    assert len(load(f"{source}:load").train.inputs[0][0]) == 7


def keep(x, y):
    return x, y


def nan(x, y):
    x = x.astype(np.float32)
    x[7, 0, 0, 0] = np.nan
    return x, y


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (nan, "1 samples hold NaN or infinity, the first is number 7"),
        (lambda x, y: (x, y - 1), "the label -1 is out of range for 2 classes"),
        (lambda x, y: (x, y * 0), "all of one class"),
        (lambda x, y: (x, y[:-1]), "60 samples and 59 labels"),
        (lambda x, y: (x, y + 0.5), "labels are float64"),
        (lambda x, y: (x[:0], y[:0]), "all of one class|no sample is left"),
    ],
)
def test_samples_that_cannot_be_learned_from(spoil, message, load, tmp_path):
    x, y = spoil(*arrays())
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y)
    with pytest.raises(SourceError, match=message):
        load(f"npz:{tmp_path / 'd.npz'}")


def test_a_test_label_that_train_does_not_have(load, tmp_path):
    x, y = arrays()
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y + 1)
    with pytest.raises(SourceError, match="test: the label 3 is out of range for 3 classes"):
        load(f"npz:{tmp_path / 'd.npz'}")


def test_an_npz_without_the_keys_or_that_is_none(load, tmp_path):
    np.savez(tmp_path / "d.npz", images=np.ones(3), x_test=np.ones(3))
    with pytest.raises(SourceError, match=r"has no x_train and no y_train and no y_test; it holds images, x_test"):
        load(f"npz:{tmp_path / 'd.npz'}")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(SourceError, match="cannot be read as an npz file"):
        load(f"npz:{tmp_path / 'text.npz'}")
    with pytest.raises(SourceError, match="there is no file"):
        load(f"npz:{tmp_path / 'absent.npz'}")


def test_an_npz_with_pickled_objects_is_not_unpickled(load, tmp_path):
    np.savez(tmp_path / "d.npz", x_train=np.array([{"a": 1}], dtype=object), y_train=np.zeros(1))
    with pytest.raises(SourceError, match="cannot be read as an npz file"):
        load(f"npz:{tmp_path / 'd.npz'}")


def test_a_reference_that_is_nearly_right(load):
    with pytest.raises(SourceError, match="'digts' is no data") as caught:
        load("digts")
    assert "did you mean 'digits'" in caught.value.hint


def test_balanced_order_makes_every_class_as_frequent():
    from kdexport.data.splits import balanced_order

    labels = np.array([0] * 90 + [1] * 9 + [2] * 1)
    order = balanced_order(labels, np.random.default_rng(0))
    assert len(order) == 100
    assert sorted(np.bincount(labels[order])) == [33, 33, 34]
    common = order[labels[order] == 0]
    assert len(set(common.tolist())) == len(common)  # no repetition where there are enough
    assert np.bincount(order[labels[order] == 1], minlength=99)[90:].min() >= 3  # and evenly where there aren't
    assert not np.array_equal(order, balanced_order(labels, np.random.default_rng(1)))


def test_unlabelled_samples_come_after_the_labelled(load, tmp_path):
    x, y = arrays()
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_unlabelled=x[:5])
    data = load(f"npz:{tmp_path / 'd.npz'}")
    both = data.with_unlabelled
    assert len(both) == len(data.train) + 5
    assert np.array_equal(both.labels, [*data.train.labels, *[-1] * 5])
    assert np.array_equal(both.inputs[0][-5:], x[:5])


def test_a_key_that_would_do_nothing_is_an_error(load, source):
    with pytest.raises(RecipeError, match=r"data\.tokenizer, data\.image_size would do nothing: the source is digits"):
        load("digits", tokenizer="hf:x", image_size=(4, 4))
    with pytest.raises(RecipeError, match=r"data\.download would do nothing"):
        load(f"{source}:load", download=True)


def test_places_in_a_recipe_are_relative_to_it(tmp_path):
    from kdexport.recipe import Recipe

    (tmp_path / "bert").mkdir()
    keys = {"source": "csv:rows.csv", "tokenizer": "hf:bert", "unlabelled": "imagefolder:more"}
    sides = {"teacher": {"model": "a.py:B"}, "student": {"model": "a.py:B"}}
    data = Recipe.parse({"name": "x", "data": keys, **sides}, base=tmp_path).data
    assert data.tokenizer == f"hf:{tmp_path / 'bert'}"
    assert data.unlabelled == f"imagefolder:{tmp_path / 'more'}"
    absent = Recipe.parse({"name": "x", "data": {**keys, "tokenizer": "hf:on/the-hub"}, **sides}, base=tmp_path).data
    assert absent.tokenizer == "hf:on/the-hub"
