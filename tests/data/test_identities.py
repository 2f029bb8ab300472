"""Identities: no split shares one, whoever made the splits; what cannot be told apart is refused."""

import numpy as np
import pytest
from PIL import Image

from kdexport.errors import SourceError


def pictures(folder, people, each=3):
    for number in people:
        place = folder / f"p{number}"
        place.mkdir(parents=True)
        for shot in range(each):
            pixels = np.random.default_rng([number, shot]).integers(0, 255, (8, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{shot}.png")


def numbers_of(data):
    return {name: set(getattr(data, name).labels.tolist()) for name in ("train", "val", "test")}


def test_one_folder_is_cut_by_identity_the_same_way_every_time(tmp_path, load):
    pictures(tmp_path / "faces", range(12))
    data = load(f"imagefolder:{tmp_path / 'faces'}", task="embedding", test_fraction=0.25, val_fraction=0.25)
    found = numbers_of(data)
    assert [len(found[name]) for name in ("train", "val", "test")] == [7, 2, 3]
    assert len(set.union(*found.values())) == 12  # none is in two
    assert [len(split) for split in (data.train, data.val, data.test)] == [21, 6, 9]
    assert data.splits_made_by["test"] == "whole identities, 0.25 of all, seed 0"
    assert data.test.calibration is data.val
    again = load(f"imagefolder:{tmp_path / 'faces'}", 1, "embedding", test_fraction=0.25, val_fraction=0.25)
    assert numbers_of(again)["test"] == found["test"]  # whatever the recipe's seed


def test_given_splits_have_identities_of_their_own(tmp_path, load):
    for split, people in (("train", range(6)), ("val", (6, 7)), ("test", (8, 9, 10))):
        pictures(tmp_path / split, people)
    data = load(f"imagefolder:{tmp_path}", task="embedding")
    assert len(data.class_names) == 11
    assert {data.class_names[number] for number in numbers_of(data)["test"]} == {"p8", "p9", "p10"}
    assert not any("no test sample" in note for note in data.notes)
    with pytest.raises(SourceError, match="a class that the training samples do not have"):
        load(f"imagefolder:{tmp_path}")
    pictures(tmp_path / "test", (4,))
    with pytest.raises(SourceError, match="1 identity is in both train and test: p4"):
        load(f"imagefolder:{tmp_path}", task="embedding")


def test_too_few_identities_are_called_so(tmp_path, load):
    pictures(tmp_path / "one", range(1))
    with pytest.raises(SourceError, match=r"holds 1 class folder$") as caught:
        load(f"imagefolder:{tmp_path / 'one'}", task="embedding")
    assert "per identity, at least two" in caught.value.hint
    pictures(tmp_path / "two", range(2))
    with pytest.raises(SourceError, match="no sample is left for the val split") as caught:
        load(f"imagefolder:{tmp_path / 'two'}", task="embedding")
    assert "give more identities, two for each split at least" in caught.value.hint


def arrays(path, **identities):
    made = {f"y_{split}": np.repeat(numbers, 3) for split, numbers in identities.items()}
    made |= {f"x_{key[2:]}": np.random.default_rng(0).normal(size=(len(y), 4)) for key, y in made.items()}
    np.savez(path, **made)
    return f"npz:{path}"


def test_arrays_may_number_the_identities_of_other_splits_beyond_those_of_train(tmp_path, load):
    data = load(arrays(tmp_path / "a.npz", train=[0, 1, 2, 3], val=[50, 60], test=[800_000, 900_000]), task="embedding")
    assert data.class_names == ("0", "1", "2", "3", "50", "60", "800000", "900000")
    assert numbers_of(data) == {"train": {0, 1, 2, 3}, "val": {4, 5}, "test": {6, 7}}
    with pytest.raises(SourceError, match="in both train and test: 1, 2"):
        load(arrays(tmp_path / "b.npz", train=[0, 1, 2, 3], test=[1, 2, 7]), task="embedding")
    with pytest.raises(SourceError, match="all of one identity"):
        load(arrays(tmp_path / "c.npz", train=[3], test=[7, 8]), task="embedding")
    with pytest.raises(SourceError, match="test: its samples are of 1 identity"):
        load(arrays(tmp_path / "d.npz", train=[0, 1], test=[8]), task="embedding")


def test_a_task_that_does_not_fit_is_told(tmp_path, load):
    np.savez(tmp_path / "a.npz", x_train=np.zeros((8, 2)), y_train=np.eye(2)[np.arange(8) % 2] * 0.5)
    with pytest.raises(SourceError):
        load(f"npz:{tmp_path / 'a.npz'}", task="embedding")


def test_pairs_from_a_function_are_two_samples_each(tmp_path, load):
    (tmp_path / "made.py").write_text(
        "import numpy as np\n"
        "def load(pairs=20, score=None):\n"
        "    draw = np.random.default_rng(0)\n"
        "    def split(count):\n"
        "        scores = draw.random(count) if score is None else np.full(count, score)\n"
        "        return (draw.normal(size=(count, 4)), draw.normal(size=(count, 4))), scores\n"
        "    return {'train': split(pairs), 'test': split(8)}\n"
    )
    source = f"{tmp_path / 'made.py'}:load"
    data = load(source, val_fraction=0.25)
    assert data.task.metric == "spearman"
    assert len(data.train) + len(data.val) == 40
    assert len(data.val) % 2 == 0
    assert len(data.test) == 16
    assert not set(data.train.labels[:, 0]) & set(data.test.labels[:, 0])
    with pytest.raises(SourceError, match="all 20 pairs have the score 2"):
        load(source, args={"score": 2.0})
