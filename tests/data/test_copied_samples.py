"""Test samples that are also in train are counted exactly; what only repeats by nature is told apart."""

import shutil

import numpy as np
import pytest
from PIL import Image

from kdexport.data import copied_samples
from kdexport.data.copied_samples import copied
from kdexport.data.samples import Split

RNG = np.random.default_rng(0)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def leak(data):
    return [line for line in data.warnings if "also in train" in line]


def test_copied_pictures_of_a_folder_are_counted_under_any_name(load, tmp_path):
    """The validation split is cut from train: copies of its pictures count as well."""
    for split, count in (("train", 20), ("test", 6)):
        for name in ("green", "red"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(RNG.integers(0, 255, (6, 5, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    assert leak(load(f"imagefolder:{tmp_path}")) == []
    for number in range(5):
        shutil.copy(tmp_path / "train" / "red" / f"{number}.png", tmp_path / "test" / "red" / f"again{number}.png")
    shutil.copy(tmp_path / "test" / "red" / "0.png", tmp_path / "train" / "green" / "other.png")  # under another class
    with Image.open(tmp_path / "train" / "red" / "9.png") as picture:
        picture.save(tmp_path / "test" / "red" / "bmp.bmp")  # another format of the same pixels
    (told,) = leak(load(f"imagefolder:{tmp_path}"))
    assert told.startswith("7 of 18 test samples are also in train, with the same pixels:")


def test_copied_rows_of_arrays_count_with_their_target(load, tmp_path):
    x, y = RNG.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3
    new, labels = RNG.normal(size=(12, 4)).astype(np.float32), np.arange(12) % 3
    assert leak(load(npz(tmp_path / "a.npz", x_train=x, y_train=y, x_test=new, y_test=labels))) == []
    new[:5], labels[:5] = x[7:12], y[7:12]
    labels[4] = (labels[4] + 1) % 3  # the same numbers, measured with another outcome
    (told,) = leak(load(npz(tmp_path / "b.npz", x_train=x, y_train=y, x_test=new, y_test=labels)))
    assert told.startswith("4 of 12 test samples are also in train, with the same numbers and target:")


def test_a_table_whose_rows_repeat_is_told_as_that(load, tmp_path):
    rows = "".join(f"{k % 4},{k % 3},{'yes' if k % 2 else 'no'}\n" for k in range(60))
    (tmp_path / "t.csv").write_text(f"a,b,bought\n{rows}")
    (told,) = leak(load(f"table:{tmp_path / 't.csv'}", label_columns=("bought",)))
    assert told.startswith("12 of 12 test samples are also in train, with the same numbers and target; within train, ")
    assert "% repeat another" in told


def test_texts_are_compared_whole():
    """Two that are alike where the network's tokens end are no copies."""
    tokens = np.zeros((4, 8), np.int64)
    texts = np.array(["one and more", "two", "three", "four"], dtype=object)
    others = np.array(["one and less", "two", "2", "4"], dtype=object)
    train, test = (Split((tokens,), np.zeros(4, np.int64), texts=found) for found in (texts, others))
    assert copied(test, [train]).startswith("1 of 4 test samples are also in train, with the same text:")
    pairs = [np.array([["a", "b"], ["c", text]], dtype=object) for text in ("d", "e")]
    train, test = (Split((tokens[:2],), np.zeros(2, np.int64), texts=found) for found in pairs)
    assert copied(test, [train]).startswith("1 of 2 test samples")


@pytest.mark.parametrize("most", [120, 250])
def test_of_data_too_large_a_seeded_part_is_looked_at_and_the_count_is_that_parts(most, monkeypatch):
    monkeypatch.setattr(copied_samples, "SAMPLES", most)
    images = RNG.integers(0, 255, (400, 4, 4, 1), dtype=np.uint8)
    train, test = Split((images,), np.zeros(400, np.int64)), Split((images[:60],), np.zeros(60, np.int64))
    told = copied(test, [train])
    of_test = min(60, most // 4)
    of_train = most - of_test
    seen = np.sort(np.random.default_rng(0).choice(400, of_train, replace=False))
    looked = np.sort(np.random.default_rng(0).choice(60, of_test, replace=False)) if of_test < 60 else np.arange(60)
    found = len(set(seen.tolist()) & set(looked.tolist()))
    assert found > 0
    assert told.startswith(f"{found} of {of_test} test samples")
    assert f"looked for among {of_train} of the 400" in told
    assert ("of 60, drawn with a fixed seed" in told) == (of_test < 60)
