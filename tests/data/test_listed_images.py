"""Pictures listed with numbers: where the list lies, which columns count, and what a list gets wrong."""

import numpy as np
import pytest
from PIL import Image

from kdexport.data.datasets import load_data
from kdexport.errors import SourceError
from kdexport.recipe import Data

LEVELS = [10, 40, 70, 100, 130, 160, 190, 220, 250, 5, 25, 55]


def picture(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), (level,) * 3).save(path)


@pytest.fixture
def load(tmp_path):
    def loaded(task=None, **keys):
        return load_data(Data(source=f"imagefolder:{tmp_path / 'd'}", **keys), 0, tmp_path / "cache", task=task)

    return loaded


@pytest.fixture
def folder(tmp_path):
    """Return a folder of grey pictures, and a function that lists them with a column of how bright they are."""
    root = tmp_path / "d"
    for level in LEVELS:
        picture(root / "pictures" / f"{level}.png", level)

    def listed(name="labels.csv", head="file,brightness", row="pictures/{level}.png,{share}", levels=LEVELS):
        lines = [row.format(level=level, share=level / 255, split=("train", "test")[level > 180]) for level in levels]
        (root / name).write_text("\n".join([head, *lines]) + "\n")
        return root

    return listed


def matches(*splits):
    for split in splits:
        np.testing.assert_allclose(split.inputs[0][:, 0, 0, 0] / 255, split.labels[:, 0], atol=1e-6)


@pytest.mark.parametrize("name", ["labels.csv", "metadata.csv"])
@pytest.mark.parametrize("column", ["file", "file_name", "Image"])
def test_a_list_says_the_number_of_each_picture(folder, load, name, column):
    folder(name, f"{column},brightness")
    data = load()
    assert (data.task.name, data.class_names) == ("regression", ("brightness",))
    assert sum(map(len, (data.train, data.val, data.test))) == len(LEVELS)
    matches(data.train, data.val, data.test)
    assert data.preprocessing.kind == "image"


def test_splits_by_a_column(folder, load):
    folder(head="file,brightness,split", row="pictures/{level}.png,{share},{split}")
    data = load()
    assert sorted(data.test.labels[:, 0] * 255) == pytest.approx([190, 220, 250])
    matches(data.train, data.test)


def test_splits_by_the_folders_of_the_pictures_or_of_the_lists(load, tmp_path):
    root = tmp_path / "d"
    lines = []
    for level in LEVELS:
        split = "test" if level > 180 else "train"
        picture(root / split / f"{level}.png", level)
        lines.append((split, f"{level}.png,{level / 255}"))
    (root / "labels.csv").write_text("file,x\n" + "".join(f"{split}/{line}\n" for split, line in lines))
    whole = load()
    (root / "labels.csv").unlink()
    for split in ("train", "test"):
        rows = "".join(f"{line}\n" for which, line in lines if which == split)
        (root / split / "metadata.csv").write_text("file_name,x\n" + rows)
    apart = load()
    for data in (whole, apart):
        assert sorted(data.test.labels[:, 0] * 255) == pytest.approx([190, 220, 250])
        matches(data.train, data.val, data.test)


def test_several_columns_and_some_of_them(folder, load):
    folder(head="file,a,b", row="pictures/{level}.png,{share},{level}.5")
    assert load().class_names == ("a", "b")
    data = load(label_columns=("b",))
    assert data.class_names == ("b",)
    np.testing.assert_allclose(data.train.labels[:, 0], data.train.inputs[0][:, 0, 0, 0] + 0.5)


def test_whole_numbers_and_names_as_in_a_table(folder, load):
    folder(row="pictures/{level}.png,{level}", levels=[10, 40, *LEVELS[4:]])
    assert load("regression").task.name == "regression"
    with pytest.raises(SourceError, match="classes or amounts"):
        load()
    root = folder(head="file,kind", row="pictures/{level}.png,{split}")
    assert load().class_names == ("test", "train")
    assert load().task.name == "classification"
    picture(root / "more.png", 3)
    assert any("no list names them: 1 pictures" in note for note in load().notes)


def test_folders_of_classes_stay_classes_unless_numbers_are_asked_for(load, tmp_path):
    root = tmp_path / "d"
    for level in LEVELS:
        picture(root / ("bright" if level > 100 else "dark") / f"{level}.png", level)
    rows = [f"{'bright' if level > 100 else 'dark'}/{level}.png,{level / 255}" for level in LEVELS]
    (root / "metadata.csv").write_text("\n".join(["file_name,x", *rows]) + "\n")
    assert load().class_names == ("bright", "dark")
    for data in (load("regression"), load(label_columns=("x",))):
        assert (data.task.name, data.class_names) == ("regression", ("x",))
        matches(data.train)


@pytest.mark.parametrize(
    ("head", "row", "told", "hint"),
    [
        (
            "file,x",
            "pictures/{level}7.png,1.5",
            "there is no picture .*107.png .line 2.; so are 11 more",
            "relative",
        ),
        ("file,x", "pictures/10.png,{share}", "pictures/10.png is listed twice, line 2 and line 3", "columns"),
        ("file,x", "pictures/{level}.png,", "12 of 12 rows lack a value, the first is line 2", "on_bad_sample"),
        ("file,x", "pictures/{level}.png,big{level}", "holds 'big10' on line 2", "number"),
        ("where,x", "pictures/{level}.png,{share}", "no column that names the pictures; it has where, x", "file_name"),
        ("file", "pictures/{level}.png", "no column beside file", "numbers"),
    ],
)
def test_lists_that_cannot_be_used(folder, load, head, row, told, hint):
    folder(head=head, row=row)
    with pytest.raises(SourceError, match=told) as caught:
        load("regression")
    assert hint in caught.value.hint


def test_no_list_where_numbers_are_asked_for(load, tmp_path):
    picture(tmp_path / "d" / "a" / "1.png", 3)
    with pytest.raises(SourceError, match=r"holds no metadata\.csv or labels\.csv") as caught:
        load("regression")
    assert "file_name" in caught.value.hint
    (tmp_path / "d" / "labels.csv").write_text("file,x\na/1.png,2.0\n")
    with pytest.raises(SourceError, match="no column 'y'"):
        load(label_columns=("y",))


def test_a_damaged_picture_is_left_out_with_its_number(folder, load):
    root = folder()
    (root / "pictures" / "40.png").write_bytes(b"no picture")
    data = load(on_bad_sample="skip")
    assert sum(map(len, (data.train, data.val, data.test))) == len(LEVELS) - 1
    matches(data.train, data.val, data.test)
