"""Numbers to estimate, as arrays and as what a function returns: which targets are amounts, and how they are called."""

import numpy as np
import pytest

from kdexport.data.datasets import load_data
from kdexport.errors import SourceError
from kdexport.recipe import Data

RNG = np.random.default_rng(4)
X = RNG.normal(size=(90, 3)).astype(np.float32)


@pytest.fixture
def load_npz(tmp_path):
    """Return a function that loads arrays from an npz file, for a task."""

    def loaded(task=None, **arrays):
        np.savez(tmp_path / "d.npz", **arrays)
        return load_data(Data(source=f"npz:{tmp_path / 'd.npz'}"), 0, tmp_path / "cache", task=task)

    return loaded


@pytest.mark.parametrize("shape", [(90,), (90, 1), (90, 3)])
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16])
def test_float_targets_are_amounts(load_npz, shape, kind):
    y = RNG.normal(100, 10, size=shape).astype(kind)
    data = load_npz(x_train=X[:60], y_train=y[:60], x_test=X[60:], y_test=y[60:])
    assert data.task.name == "regression"
    assert data.class_names == (("target_0", "target_1", "target_2") if shape[1:] == (3,) else ("target",))
    assert (data.test.labels.dtype, data.test.labels.shape) == (np.float32, (30, shape[1] if shape[1:] else 1))
    np.testing.assert_array_equal(data.test.labels, y[60:].reshape(30, -1).astype(np.float32))
    train = np.asarray(data.train.labels, np.float64)
    assert data.task.mean == data.val.task.mean == pytest.approx(train.mean(0))
    assert data.task.std == data.test.task.std == pytest.approx(train.std(0))


def test_targets_can_have_names(load_npz):
    y = RNG.normal(size=(90, 2))
    assert load_npz(x_train=X, y_train=y, target_names=["width", "height"]).class_names == ("width", "height")
    with pytest.raises(SourceError, match=r"for 3 names .a, b, c."):
        load_npz(x_train=X, y_train=y, target_names=["a", "b", "c"])
    with pytest.raises(SourceError, match="two targets have one name"):
        load_npz(x_train=X, y_train=y, target_names=["a", "a"])


def test_whole_numbers_are_amounts_where_the_task_says_so(load_npz):
    y = np.arange(90) % 7
    assert load_npz(x_train=X, y_train=y).task.name == "classification"
    data = load_npz("regression", x_train=X, y_train=y)
    assert (data.task.name, data.train.labels.dtype, data.class_names) == ("regression", np.float32, ("target",))
    one_hot = np.eye(7)[y]
    assert load_npz("regression", x_train=X, y_train=one_hot).train.labels.shape[1] == 7


def test_floats_that_are_whole_numbers(load_npz):
    y = np.arange(90) % 7.0
    with pytest.raises(SourceError, match="7 different whole numbers, from 0 to 6: they may be classes or amounts"):
        load_npz(x_train=X, y_train=y)
    assert load_npz("regression", x_train=X, y_train=y).task.name == "regression"
    assert load_npz("classification", x_train=X, y_train=y).train.labels.dtype == np.int64
    counts = np.arange(90.0)  # too many to be classes; the test split alone would be taken for some
    data = load_npz(x_train=X, y_train=counts, x_test=X[:3], y_test=np.array([1.0, 2.0, 2.0]))
    assert data.task.name == "regression"


@pytest.mark.parametrize(
    ("task", "targets", "told"),
    [
        (None, np.where(np.arange(90) == 5, np.nan, RNG.normal(size=90)), "1 samples have NaN or infinity as target"),
        (None, np.full(90, 2.5), r"the target is 2\.5 in every training sample|may be classes"),
        ("regression", np.full(90, 3), "the target is 3 in every training sample"),
        ("regression", np.array(["a"] * 90), "targets are <U1 of shape"),
        ("classification", RNG.normal(size=90), "targets of shape .90, 1. and type float32 are not those of classific"),
        ("multilabel", RNG.normal(size=(90, 2)), "not those of multilabel"),
        ("regression", RNG.normal(size=(90, 2, 2)), "of shape .90, 2, 2."),
        (None, RNG.normal(size=80), "90 samples and 80 labels"),
    ],
)
def test_targets_that_do_not_fit(load_npz, task, targets, told):
    with pytest.raises(SourceError, match=told) as error:
        load_npz(task, x_train=X, y_train=targets)
    assert error.value.hint


def test_a_function_returns_numbers(load, tmp_path):
    (tmp_path / "made.py").write_text(
        "import numpy as np\n"
        "def made(scale=1.0):\n"
        "    x = np.random.default_rng(0).normal(size=(80, 2))\n"
        "    return {'train': (x, scale * x.sum(1)), 'target_names': ['sum'], 'feature_names': ['a', 'b'],\n"
        "            'unlabelled': x[:10]}\n"
    )
    data = load(f"{tmp_path / 'made.py'}:made", args={"scale": 3.0}, standardize=True)
    assert (data.task.name, data.class_names, data.feature_names) == ("regression", ("sum",), ("a", "b"))
    np.testing.assert_allclose(data.test.labels[:, 0], 3 * data.test.inputs[0].sum(1), rtol=1e-5)
    both = data.with_unlabelled
    assert np.isnan(both.labels[-10:]).all()
    assert np.isfinite(both.labels[:-10]).all()
