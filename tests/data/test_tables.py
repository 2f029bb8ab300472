"""Tables of numbers, CSV and Parquet: what becomes features and targets, and what is refused with its place."""

from types import SimpleNamespace

import numpy as np
import pandas
import pyarrow.parquet
import pytest
from sklearn.datasets import load_diabetes

from kdexport.data import table_files
from kdexport.data.datasets import load_data
from kdexport.data.table_files import _claimed_bytes
from kdexport.errors import RecipeError, SourceError
from kdexport.recipe import Data

RNG = np.random.default_rng(2)
ROWS = 80


@pytest.fixture
def frame():
    return pandas.DataFrame(
        {"age": RNG.integers(18, 90, ROWS), "size": RNG.normal(170, 9, ROWS), "price": RNG.gamma(2, 50, ROWS)}
    )


@pytest.fixture
def table(tmp_path):
    """Return a function that loads a table, given as a frame or as text."""

    def loaded(given, suffix=".csv", task=None, label_columns=("price",), save=None, **keys):
        path = tmp_path / f"table{suffix}"
        if isinstance(given, str | bytes):
            path.write_bytes(given if isinstance(given, bytes) else given.encode())
        elif suffix == ".parquet":
            given.to_parquet(path, **(save or {}))
        else:
            given.to_csv(path, **{"index": False, **(save or {})})
        data = Data(source=f"table:{path}", label_columns=label_columns, **keys)
        return load_data(data, 0, tmp_path / "cache", task=task)

    return loaded


def whole(data):
    parts = (data.train, data.val, data.test)
    return np.concatenate([part.inputs[0] for part in parts]), np.concatenate([part.labels for part in parts])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_become_features_and_targets(table, frame, suffix):
    data = table(frame, suffix)
    assert data.task.name == "regression"
    assert (data.class_names, data.feature_names, data.input_names) == (("price",), ("age", "size"), ("features",))
    inputs, targets = whole(data)
    assert (inputs.dtype, targets.dtype, targets.shape) == (np.float32, np.float32, (ROWS, 1))
    order, expected = np.argsort(targets[:, 0]), frame.sort_values("price")
    np.testing.assert_array_equal(inputs[order], expected[["age", "size"]].to_numpy(np.float32))
    np.testing.assert_array_equal(targets[order, 0], expected["price"].to_numpy(np.float32))
    assert data.preprocessing.kind == "features"
    train = data.train.inputs[0].astype(np.float64)
    assert data.preprocessing.mean == pytest.approx(train.mean(0))
    assert data.preprocessing.std == pytest.approx(train.std(0))
    assert data.train.task.std == pytest.approx(data.train.labels.astype(np.float64).std(0))
    assert data.test.task.std == data.train.task.std


def test_several_targets_chosen_features_and_no_scaling(table, frame):
    data = table(frame, label_columns=("price", "size"), feature_columns=("age",), standardize=False)
    assert (data.class_names, data.feature_names) == (("price", "size"), ("age",))
    assert data.train.labels.shape[1] == 2
    assert data.preprocessing.kind == "none"


def test_a_split_column_is_followed(table, frame):
    frame["split"] = ["train"] * 50 + ["dev"] * 10 + ["test"] * 20
    data = table(frame)
    assert [len(part) for part in (data.train, data.val, data.test)] == [50, 10, 20]
    assert "split" not in data.feature_names
    np.testing.assert_array_equal(data.test.labels[:, 0], frame["price"][60:].to_numpy(np.float32))


def test_the_index_that_pandas_writes_is_no_feature(table, frame):
    for suffix, save in ((".csv", {"index": True}), (".parquet", {"index": True})):
        data = table(frame.set_index(pandas.RangeIndex(ROWS)), suffix, save=save)
        assert data.feature_names == ("age", "size")
    assert any("numbers the rows" in note for note in table(frame, save={"index": True}).notes)
    frame[""] = RNG.normal(size=ROWS)  # without a name, and no index
    assert table(frame).feature_names == ("age", "size", "")


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-8"])
def test_other_delimiters_and_encodings(table, frame, codec):
    text = frame.rename(columns={"size": "größe"}).to_csv(index=False, sep=";")
    data = table(text.encode(codec))
    assert data.feature_names == ("age", "größe")
    assert any("semicolons" in note for note in data.notes)


@pytest.mark.parametrize(
    ("values", "task", "found", "names"),
    [
        (["cat", "dog", "cat", "emu"] * 20, None, "classification", ("cat", "dog", "emu")),
        ([0, 1, 2, 1] * 20, None, "classification", ("0", "1", "2")),
        ([3, 5, 8, 5] * 20, "classification", "classification", ("3", "5", "8")),
        ([3.0, 5.0, 8.0, 5.0] * 20, "classification", "classification", ("3", "5", "8")),
        ([3, 5, 8, 5] * 20, "regression", "regression", ("price",)),
        ([0, 1, 2, 1] * 20, "regression", "regression", ("price",)),
        (list(range(100, 180)), None, "regression", ("price",)),
        ([0.5, 1.0, 2.0, 1.0] * 20, None, "regression", ("price",)),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_what_the_targets_are(table, frame, values, task, found, names, suffix):
    frame["price"] = values
    data = table(frame, suffix, task)
    assert (data.task.name, data.class_names) == (found, names)
    _, targets = whole(data)
    expected = [names.index(str(value).removesuffix(".0")) for value in values] if found == "classification" else values
    assert sorted(targets.reshape(-1).tolist()) == sorted(expected)


def test_whole_numbers_that_may_be_either_are_asked_about(table, frame):
    frame["price"] = [3, 5, 8, 5] * 20
    with pytest.raises(
        SourceError, match="3 different whole numbers, from 3 to 8: they may be classes or amounts"
    ) as told:
        table(frame)
    assert "task" in told.value.hint


def test_columns_of_zero_and_one_are_several_labels(table, frame):
    frame["a"], frame["b"] = [0, 1] * 40, [1, 1, 0, 0] * 20
    data = table(frame, label_columns=("a", "b"))
    assert (data.task.name, data.class_names) == ("multilabel", ("a", "b"))
    assert table(frame, label_columns=("a", "b"), task="regression").task.name == "regression"
    with pytest.raises(SourceError, match="2 label_columns"):
        table(frame, label_columns=("a", "b"), task="classification")


def with_cell(frame, column, cell, row=4):
    changed = frame.astype(object)
    changed.loc[row, column] = cell
    return changed


@pytest.mark.parametrize(
    ("column", "cell", "told", "hint"),
    [
        ("age", "old", "the column 'age' holds 'old' on line 6, which is no number", "feature_columns"),
        ("price", "cheap", "the column 'price' holds 'cheap' on line 6", 'task = "classification"'),
        ("age", "2020-01-31", "'2020-01-31' on line 6", "feature_columns"),
        ("price", "1,234.5", "'1,234.5' on line 6", "thousands"),
        ("price", "1.299,99", "'1.299,99' on line 6", "with a point"),
        ("price", "12,5", "'12,5' on line 6", "with a point"),
        ("age", "inf", "'inf' on line 6", "fill in"),
        ("age", "-Infinity", "'-Infinity' on line 6", "fill in"),
        ("age", "1e39", "beyond what float32 holds", "scale"),
        ("price", "1e39", "beyond what float32 holds", "scale"),
    ],
)
def test_a_cell_that_is_no_number_is_named_with_its_line(table, frame, column, cell, told, hint):
    with pytest.raises(SourceError) as error:
        table(with_cell(frame, column, cell))
    assert told in error.value.message
    assert hint in error.value.hint


def test_several_wrong_cells_are_counted(table, frame):
    with pytest.raises(SourceError, match="'old' on line 6, which is no number; so do 1 more rows"):
        table(with_cell(with_cell(frame, "age", "old"), "age", "new", 9))


@pytest.mark.parametrize("cell", ["", "NA", "nan", "?", "NULL", "#N/A", "None"])
def test_missing_values_are_refused_or_left_out(table, frame, cell):
    holed = with_cell(with_cell(frame, "age", cell), "price", cell, 7)
    with pytest.raises(SourceError, match=r"2 of 80 rows lack a value, the first is line 6 .'age'; in all: age, price"):
        table(holed)
    data = table(holed, on_bad_sample="skip")
    assert len(whole(data)[0]) == ROWS - 2
    assert data.skipped == ("line 6: no value for 'age'", "line 9: no value for 'price'")


def test_missing_values_of_parquet(table, frame):
    frame["age"] = frame["age"].astype("Int64")
    frame.loc[3, "age"] = pandas.NA
    with pytest.raises(SourceError, match=r"1 of 80 rows lack a value, the first is row 3 .'age'"):
        table(frame, ".parquet")
    assert len(whole(table(frame, ".parquet", on_bad_sample="skip"))[0]) == ROWS - 1


def test_classes_without_a_value_are_left_out_too(table, frame):
    frame["price"] = ["cat", "dog", "", "dog"] * 20
    with pytest.raises(SourceError, match="20 of 80 rows lack a value"):
        table(frame)
    data = table(frame, on_bad_sample="skip")
    assert (data.class_names, len(whole(data)[0])) == (("cat", "dog"), 60)


def test_true_and_false_are_numbers(table, frame):
    frame["age"] = RNG.integers(0, 2, ROWS).astype(bool)
    for suffix in (".csv", ".parquet"):
        assert set(np.unique(whole(table(frame, suffix))[0][:, 0])) == {0.0, 1.0}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_that_are_not_there(table, frame, suffix):
    with pytest.raises(SourceError, match="does not say which column") as told:
        table(frame, suffix, label_columns=())
    assert 'label_columns = ["price"]' in told.value.hint
    with pytest.raises(SourceError, match="no column 'prize'") as told:
        table(frame, suffix, label_columns=("prize",))
    assert "did you mean 'price'" in told.value.hint
    with pytest.raises(SourceError, match="no column 'aeg'"):
        table(frame, suffix, feature_columns=("aeg",))
    with pytest.raises(SourceError, match="price is in label_columns and in feature_columns"):
        table(frame, suffix, feature_columns=("age", "price"))
    with pytest.raises(SourceError, match="no column beside price"):
        table(frame[["price"]], suffix)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1.5,2.5,3.5\n4,5,6\n", "has no header: its first line holds 3 numbers"),
        ("a,b,price\n", "a header and no rows"),
        ("a,b,price\n1,2\n", "line 2 has 2"),
        ("a,a,price\n1,2,3\n", "two columns 'a'"),
        ("", "is empty: it has no header"),
        ("\n \n", "is empty: it has no header"),
        (b"a,price\n\xff\xfe,1\n", "not UTF-8"),
    ],
)
def test_files_that_are_no_tables(table, text, told):
    with pytest.raises(SourceError, match=told):
        table(text, label_columns=() if "header: its" in told else ("price",))


def test_a_damaged_or_absent_parquet_file(table, tmp_path):
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        table("no such thing", ".parquet")
    for name in ("none.parquet", "none.csv"):
        with pytest.raises(SourceError, match="there is no file"):
            load_data(Data(source=f"table:{tmp_path / name}", label_columns=("a",)), 0, tmp_path)
    with pytest.raises(SourceError, match="there is no file"):
        load_data(Data(source=f"table:{tmp_path}", label_columns=("a",)), 0, tmp_path)


def test_parquet_without_pyarrow_says_what_to_install(table, frame, monkeypatch, tmp_path):
    frame.to_parquet(tmp_path / "t.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(SourceError, match="pyarrow, which reads it, is not installed") as told:
        load_data(Data(source=f"table:{tmp_path / 't.parquet'}", label_columns=("price",)), 0, tmp_path)
    assert "kdexport[parquet]" in told.value.hint


def test_a_feature_that_says_the_target_is_doubted(table, frame):
    frame["in_cents"] = frame["price"] * 100
    frame["when"] = 1.7e9 + np.arange(ROWS)
    warnings = " / ".join(table(frame).warnings)
    assert "'in_cents' says the target 'price' exactly" in warnings
    assert "'when' lies within 1700000000 to 1700000079, which float32 hardly tells apart" in warnings


def test_keys_of_tables_do_nothing_elsewhere(load):
    with pytest.raises(RecipeError, match="label_columns would do nothing"):
        load("digits", label_columns=("price",))


def test_a_target_that_is_constant_or_a_task_that_does_not_fit(table, frame):
    with pytest.raises(SourceError, match=r"the target is 2\.5 in every training sample"):
        table(frame.assign(price=2.5))
    with pytest.raises(SourceError, match=r"measurements|classes"):
        table(frame, task="classification")


def test_the_diabetes_table(table):
    found = load_diabetes(as_frame=True, scaled=False)
    data = table(found.frame, label_columns=("target",))
    assert data.task.name == "regression"
    assert data.feature_names == tuple(found.feature_names)
    assert (len(data.test), sum(map(len, (data.train, data.val, data.test)))) == (pytest.approx(88, abs=4), 442)


def test_parquet_that_unpacks_to_gigabytes_is_refused(table, frame, monkeypatch):
    """A run of equal values is a few bytes: 1.6 MB of them took 12.8 GB."""
    texts = pandas.Categorical.from_codes([0] * 10_000, ["a" * 100_000])
    with pytest.raises(SourceError, match=r"would unpack from \d+ KiB to 953 MiB"):
        table(pandas.DataFrame({"a": texts, "price": np.zeros(10_000)}), ".parquet")
    monkeypatch.setattr(table_files, "SPARE_BYTES", 0)
    with pytest.raises(SourceError, match=r"would unpack from \d+ KiB to 1 MiB"):
        table(pandas.DataFrame({"price": np.zeros(200_000)}), ".parquet")
    assert len(whole(table(frame, ".parquet"))[0]) == ROWS


def test_utf16_without_its_mark_is_named(table):
    with pytest.raises(SourceError, match="NUL bytes in its first line"):
        table("a,price\n1,2\n".encode("utf-16-le"))


def test_only_of_lists_the_columns_own_record_is_asked_for(tmp_path):
    """Where one is damaged, pyarrow ends the process; of lists nothing else tells how many values they hold."""
    frame = pandas.DataFrame({"a": np.arange(6.0), "b": [np.arange(50.0)] * 6})
    asked = []

    class Watched:
        def __init__(self, part):
            self.num_rows, self.total_byte_size, self._part = part.num_rows, part.total_byte_size, part

        def column(self, number):
            asked.append(number)
            return self._part.column(number)

    frame.to_parquet(tmp_path / "t.parquet", row_group_size=3)
    file = pyarrow.parquet.ParquetFile(tmp_path / "t.parquet")
    parts = [file.metadata.row_group(number) for number in range(2)]
    metadata = SimpleNamespace(num_columns=2, num_row_groups=2, row_group=lambda number: Watched(parts[number]))
    claimed = _claimed_bytes(SimpleNamespace(metadata=metadata, schema=file.schema))
    assert asked == [1, 1]
    assert 8 * 300 <= claimed < 3 * 8 * 300
