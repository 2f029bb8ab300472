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


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.astype(np.float32) / 255, r"test inputs are \[12, 6, 5, 3\] of float32, and those of train"),
        (lambda x: x[..., :1], r"test inputs are \[12, 6, 5, 1\] of uint8"),
        (lambda x: x.reshape(12, -1), r"test inputs are \[12, 90\] of uint8"),
    ],
)
def test_splits_of_another_form_are_refused(spoil, message, load, tmp_path):
    """Floats beside pictures went into the network as they were, and its score on them was that of noise."""
    x, y = np.random.default_rng(0).integers(0, 256, (60, 6, 5, 3), dtype=np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=spoil(x[:12]), y_test=y[:12])
    with pytest.raises(SourceError, match=message):
        load(f"npz:{tmp_path / 'd.npz'}")


@pytest.mark.parametrize("factor", [255, 1 / 255])
def test_a_split_of_another_scale_is_refused(factor, load, tmp_path):
    x, y = np.random.default_rng(0).random((60, 3, 6, 5), dtype=np.float32), np.arange(60) % 3
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x[:12] * factor, y_test=y[:12])
    with pytest.raises(SourceError, match=r"the test inputs go up to .*, those of train to 1"):
        load(f"npz:{tmp_path / 'd.npz'}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda y: np.eye(3)[y] * 0.9 + 0.1 / 3, "look like probabilities of classes"),
        (lambda y: np.where(np.eye(3)[y] + np.eye(3)[(y + 1) % 3] > 0, 1.0, -1.0), "are -1 and 1 in each column"),
    ],
)
def test_labels_that_may_be_amounts_or_classes_are_asked_about(make, message, load, tmp_path):
    y = np.arange(60) % 3
    np.savez(tmp_path / "d.npz", x_train=np.random.default_rng(0).random((60, 4)), y_train=make(y))
    with pytest.raises(SourceError, match=message) as caught:
        load(f"npz:{tmp_path / 'd.npz'}")
    assert "regression" in caught.value.hint


def test_pictures_of_wide_integers_are_refused(load, tmp_path):
    """They were fed as token ids."""
    np.savez(tmp_path / "d.npz", x_train=np.ones((60, 3, 6, 5), np.int64), y_train=np.arange(60) % 3)
    with pytest.raises(SourceError, match="int64") as caught:
        load(f"npz:{tmp_path / 'd.npz'}")
    assert "uint8" in caught.value.hint


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
        (lambda x, y: (x, y * 2.0), "labels are float64 and hold 3 different whole numbers, from 0 to 4"),
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


def test_a_new_kind_of_data_is_a_module_and_a_line(load, tmp_path, monkeypatch):
    """The line is the entry in SOURCES; the reference with its path is understood without another."""
    from kdexport.data import datasets
    from kdexport.recipe import Recipe

    (tmp_path / "toy_source.py").write_text(
        "import numpy as np\n"
        "from kdexport.data.samples import Source, Split\n"
        "from kdexport.references import parse\n"
        "def load(data, reading):\n"
        "    x = np.loadtxt(parse(data.source).target, dtype=np.float32)\n"
        "    return Source(Split((x,), np.arange(len(x)) % data.args['classes']), class_names=('a', 'b'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(datasets.SOURCES, "toy", datasets.DataSource("toy_source:load", "toy:FILE", ("args",)))
    np.savetxt(tmp_path / "rows.txt", np.arange(60.0).reshape(20, 3))
    sides = {"teacher": {"model": "a.py:B"}, "student": {"model": "a.py:B"}}
    recipe = Recipe.parse({"name": "x", "data": {"source": "toy:rows.txt"}, **sides}, base=tmp_path)
    assert recipe.data.source == f"toy:{tmp_path / 'rows.txt'}"
    data = load(recipe.data.source, args={"classes": 2})
    assert sorted(data.train.inputs[0][:, 0].tolist())[0] in (0, 3, 6)
    assert len(data.train) + len(data.val) + len(data.test) == 20
    with pytest.raises(RecipeError, match=r"data\.tokenizer would do nothing"):
        load(recipe.data.source, tokenizer="hf:x")
    with pytest.raises(SourceError, match="is no data that can be loaded") as caught:
        load("tyo:rows.txt")
    assert "toy" in caught.value.hint


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_one_hot_labels_are_classes_and_said(load, tmp_path):
    x, y = arrays()
    table = np.eye(3)[y]
    data = load(write_npz(tmp_path / "d.npz", x_train=x, y_train=table, x_test=x[:9], y_test=table[:9]))
    assert data.task.name == "classification"
    assert np.array_equal(data.test.labels, y[:9])
    assert data.notes == ("every sample has exactly one of the 3 labels: they are taken as classes, not as several",)
    table[4] = (1, 1, 0)
    several = load(write_npz(tmp_path / "e.npz", x_train=x, y_train=table, x_test=x[:9], y_test=np.eye(3)[y][:9]))
    assert several.task.name == "multilabel"


@pytest.mark.parametrize(
    ("labels", "notes"),
    [
        (
            lambda y: y + 1,
            ["no train sample is of the class 0: the labels begin at 1; the networks have outputs for"],
        ),
        (lambda y: y * 2, ["no train sample is of the classes 1, 3; the networks have outputs for 5 classes"]),
        (lambda y: y, []),
    ],
)
def test_labels_from_1_and_with_gaps_are_said(labels, notes, load, tmp_path):
    x, y = arrays()
    found = load(write_npz(tmp_path / "d.npz", x_train=x, y_train=labels(y), x_test=x, y_test=labels(y))).notes
    found = [note for note in found if note.startswith("no train")]
    assert [note.startswith(expected) for note, expected in zip(found, notes, strict=True)] == [True] * len(notes)


def test_a_label_of_millions_is_a_slip_and_takes_no_memory(load, tmp_path):
    x, y = arrays()
    y[3] = 30_000_000
    with pytest.raises(SourceError, match="the largest label is 30,000,000, and there are 60 samples"):
        load(write_npz(tmp_path / "d.npz", x_train=x, y_train=y))


def test_deep_images_and_names_given_twice_are_refused(load, tmp_path):
    x, y = arrays()
    with pytest.raises(SourceError, match=r"inputs are uint16 of shape \[60, 6, 5, 3\]") as caught:
        load(write_npz(tmp_path / "d.npz", x_train=x.astype(np.uint16), y_train=y))
    assert "uint8" in caught.value.hint
    with pytest.raises(SourceError, match="two classes have one name"):
        load(write_npz(tmp_path / "d.npz", x_train=x, y_train=y, class_names=np.array(["a", "b", "a"])))


def test_a_validation_split_alone_becomes_the_test_split(load, tmp_path):
    x, y = arrays()
    data = load(write_npz(tmp_path / "d.npz", x_train=x, y_train=y, x_val=x[:12], y_val=y[:12]))
    assert np.array_equal(data.test.inputs[0], x[:12])
    assert data.splits_made_by["test"] == "source: its validation split"
    assert data.splits_made_by["val"] == "stratified 0.1 of train, seed 0"
    assert len(data.train) + len(data.val) == 60


def test_a_split_that_is_cut_has_two_samples(load, tmp_path):
    for samples, classes in ((8, 4), (6, 6), (40, 2)):
        x, y = arrays(samples, classes)
        data = load(write_npz(tmp_path / "d.npz", x_train=x, y_train=y), val_fraction=0.01, test_fraction=0.01)
        assert min(len(data.train), len(data.val), len(data.test)) >= 2


def test_balanced_takes_unlabelled_samples_for_no_class():
    from kdexport.data.splits import balanced_order

    labels = np.array([0] * 90 + [1] * 10 + [-1] * 50)
    order = balanced_order(labels, np.random.default_rng(0))
    assert len(order) == 150
    assert np.bincount(labels[order] + 1).tolist() == [50, 50, 50]
    assert sorted(order[labels[order] == -1]) == list(range(100, 150))


def test_features_that_are_fed_as_they_are_are_said(load, tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 3)) * (1, 100, 5)
    assert "not standardized" in load(write_npz(tmp_path / "d.npz", x_train=x, y_train=np.arange(60) % 2)).notes[0]
    assert load(write_npz(tmp_path / "e.npz", x_train=x / (1, 100, 5), y_train=np.arange(60) % 2)).notes == ()


def test_a_damaged_npz_is_a_message_wherever_it_is_cut_or_changed(load, tmp_path):
    x, y = arrays(samples=12)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "d.npz", x_train=x, y_train=y)
        whole = (tmp_path / "d.npz").read_bytes()
        generator = np.random.default_rng(1)
        for trial in range(40):
            spoilt = bytearray(whole)
            spoilt[int(generator.integers(len(whole)))] ^= int(generator.integers(1, 256))
            cut = int(generator.integers(len(whole))) if trial % 2 else len(whole)
            (tmp_path / "spoilt.npz").write_bytes(bytes(spoilt[:cut]))
            try:
                load(f"npz:{tmp_path / 'spoilt.npz'}")
            except SourceError as error:
                assert "pickle" not in error.message + error.hint  # noqa: PT017 some are whole enough to load


def test_npz_files_that_claim_more_than_they_hold(load, tmp_path, monkeypatch):
    import io
    import zipfile

    from kdexport.data import npz_files as module

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**10,)})
    with zipfile.ZipFile(tmp_path / "claims.npz", "w") as archive:
        archive.writestr("x_train.npy", header.getvalue())
    with pytest.raises(SourceError, match=r"x_train claims the shape \[10000000000\] and is shorter"):
        load(f"npz:{tmp_path / 'claims.npz'}")
    monkeypatch.setattr(module, "SPARE_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "bomb.npz", x_train=np.zeros(4 << 20, np.uint8))
    with pytest.raises(SourceError, match="would unpack from"):
        load(f"npz:{tmp_path / 'bomb.npz'}")
    np.savez_compressed(tmp_path / "many.npz", **{f"x{number}": np.zeros(1 << 19, np.uint8) for number in range(8)})
    with pytest.raises(SourceError, match="it would unpack from"):
        load(f"npz:{tmp_path / 'many.npz'}")
    np.savez(tmp_path / "objects.npz", x_train=np.array([[1], [1, 2]], dtype=object), y_train=np.zeros(2))
    with pytest.raises(SourceError, match="x_train holds Python objects") as caught:
        load(f"npz:{tmp_path / 'objects.npz'}")
    assert "pickle" not in caught.value.message + caught.value.hint


def test_samples_without_labels_are_told_as_that(load, tmp_path):
    (tmp_path / "data.py").write_text("import numpy as np\ndef bare(): return {'train': (np.zeros((9, 3)), None)}\n")
    with pytest.raises(SourceError, match="train has no labels") as caught:
        load(f"{tmp_path / 'data.py'}:bare")
    assert "--input" in caught.value.hint
