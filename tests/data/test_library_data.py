"""Data of torchvision and of Hugging Face datasets, from files that the tests write."""

import numpy as np
import pytest

from kdexport.errors import SourceError

GENERATOR = np.random.default_rng(0)


def write_mnist(root, name, counts=(60, 20)):
    """Write MNIST's own format: big-endian counts, then bytes."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    written = {}
    for split, count in zip(("train", "t10k"), counts, strict=True):
        images = GENERATOR.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        head = [2051, count, 28, 28]
        (folder / f"{split}-images-idx3-ubyte").write_bytes(np.array(head, ">i4").tobytes() + images.tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(np.array([2049, count], ">i4").tobytes() + labels.tobytes())
        written[split] = images
    return written


def test_torchvision_that_holds_arrays(load, tmp_path):
    written = write_mnist(tmp_path / "root", "MNIST")
    data = load("torchvision:MNIST", root=str(tmp_path / "root"))
    assert (len(data.train), len(data.val), len(data.test)) == (50, 10, 20)
    assert np.array_equal(data.test.inputs[0], written["t10k"][..., None])
    assert data.class_names[7] == "7 - seven"
    assert data.splits_made_by["test"] == "source"


def test_torchvision_that_decodes_one_by_one(load, tmp_path):
    data = load("torchvision:FakeData", args={"size": 30, "image_size": [3, 12, 16], "num_classes": 3})
    images = data.train.inputs[0]
    assert images.shape[1:] == (12, 16, 3)
    assert len(data.train) + len(data.val) + len(data.test) == 30
    assert (tmp_path / "cache" / "images.u8").stat().st_size == 30 * 12 * 16 * 3
    assert "30 pictures decoded" in data.notes[0]


@pytest.mark.parametrize(
    ("source", "keys", "message", "hint"),
    [
        ("torchvision:CIFAR11", {"root": "r"}, "has no data set 'CIFAR11'", "did you mean 'CIFAR10'"),
        ("torchvision:CIFAR10", {}, "where its files lie is not said", "root = "),
        ("torchvision:CIFAR10", {"root": "absent"}, "cannot be had: Dataset not found", "set download = true"),
        ("torchvision:SVHN", {"root": "absent"}, "cannot be had: Dataset not found", "set download = true"),
    ],
)
def test_torchvision_data_that_is_not_there(source, keys, message, hint, load, tmp_path):
    keys = {key: str(tmp_path / value) for key, value in keys.items()}
    with pytest.raises(SourceError, match=message) as caught:
        load(source, **keys)
    assert hint in caught.value.hint


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets", reason="it is an extra: pip install 'kdexport[text]'")


def test_hugging_face_pictures(datasets, load, tmp_path):
    from PIL import Image

    def made(count):
        pictures = [Image.fromarray(np.full((6, 8, 3), 10 * index % 250, np.uint8)) for index in range(count)]
        features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})
        return datasets.Dataset.from_dict({"img": pictures, "kind": [i % 2 for i in range(count)]}, features)

    datasets.DatasetDict({"train": made(20), "validation": made(6)}).save_to_disk(tmp_path / "d")
    data = load(f"hf:{tmp_path / 'd'}", label_column="kind")
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 6)
    assert data.splits_made_by["test"] == "source: its validation split"
    for image, label in zip(data.test.inputs[0][:], data.test.labels, strict=True):
        assert image[0, 0, 0] // 10 % 2 == label
    with pytest.raises(SourceError, match="has no column 'label'") as caught:
        load(f"hf:{tmp_path / 'd'}")
    assert "img, kind" in caught.value.hint


def test_splits_that_are_left_out_and_labels_that_lack_are_told(datasets, load, tmp_path):
    from PIL import Image

    def made(labels):
        pictures = [Image.new("RGB", (8, 6), (number, 0, 0)) for number in range(len(labels))]
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
        return datasets.Dataset.from_dict({"img": pictures, "label": labels}, features)

    parts = {"train": made([0, 1] * 10), "validation": made([0, 1] * 3), "test": made([-1] * 5), "extra": made([-1])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    data = load(f"hf:{tmp_path / 'd'}")
    assert len(data.test) == 6
    assert data.notes[1:3] == (
        "the test split has no labels (-1 throughout) and is left out",
        "left out, for they are no split that is known: extra",
    )
    datasets.DatasetDict({"train": made([0, 1, None] * 10)}).save_to_disk(tmp_path / "n")
    with pytest.raises(SourceError, match="10 samples have no label"):
        load(f"hf:{tmp_path / 'n'}")


def test_a_split_with_secret_labels_counts_as_absent(datasets, load, tmp_path):
    def made(labels):
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])})
        return datasets.Dataset.from_dict({"text": ["x"] * len(labels), "label": labels}, features)

    datasets.DatasetDict({"train": made([0, 1] * 10), "test": made([-1] * 5)}).save_to_disk(tmp_path / "d")
    with pytest.raises(SourceError, match="names no tokenizer"):  # it got as far as the text
        load(f"hf:{tmp_path / 'd'}")


def test_a_hub_name_while_offline(datasets, load, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="hf:someone/nothing-of-that-name cannot be loaded") as caught:
        load("hf:someone/nothing-of-that-name")
    assert "offline, give a folder" in caught.value.hint
