"""Hugging Face data with a label image for each image: which columns they are, and that masks come through whole."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from kdexport.data.datasets import load_data
from kdexport.errors import SourceError
from kdexport.recipe import Data
from kdexport.tasks.masks import VOID

datasets = pytest.importorskip("datasets", reason="it is an extra: pip install 'kdexport[text]'")
HEIGHT, WIDTH = 6, 8


def drawn(count, classes=3):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (count, HEIGHT, WIDTH, 3)).astype(np.uint8)
    masks = draw.integers(0, classes, (count, HEIGHT, WIDTH)).astype(np.uint8)
    masks[:, 0, 0] = VOID
    return images, masks


def split_of(images, masks, *, columns=("image", "annotation"), mask_kind=None, **more):
    kinds = {columns[0]: datasets.Image(), columns[1]: mask_kind or datasets.Image()}
    kinds.update({name: datasets.Value("string") for name in more})
    pictures = [item if isinstance(item, dict) else Image.fromarray(item) for item in images]
    labels = [Image.fromarray(item) if isinstance(item, np.ndarray) and mask_kind is None else item for item in masks]
    return datasets.Dataset.from_dict(
        {columns[0]: pictures, columns[1]: labels, **more}, datasets.Features(kinds)
    )  # fmt: skip


@pytest.fixture
def load(tmp_path):
    def saved(parts, task=None, names=None, **keys):
        folder = tmp_path / "d"
        datasets.DatasetDict(parts).save_to_disk(folder)
        if names is not None:
            (folder / names[0]).write_text(names[1])
        return load_data(Data(source=f"hf:{folder}", **keys), 0, tmp_path / "cache", task=task)

    return saved


def encoded(array, kind):
    held = io.BytesIO()
    Image.fromarray(array).save(held, kind)
    return {"bytes": held.getvalue(), "path": None}


def test_images_and_their_masks_are_read_as_they_are(load):
    images, masks = drawn(16)
    parts = {"train": split_of(images[:10], masks[:10]), "validation": split_of(images[10:13], masks[10:13])}
    parts["test"] = split_of(images[13:], masks[13:])
    data = load(parts, names=("id2label.json", json.dumps({"0": "road", "1": "sky", "2": "tree", "255": "void"})))
    assert data.task.name == "segmentation"
    assert data.class_names == ("road", "sky", "tree")
    for split, chosen in (("train", slice(0, 10)), ("val", slice(10, 13)), ("test", slice(13, 16))):
        np.testing.assert_array_equal(getattr(data, split).inputs[0][:], images[chosen])
        np.testing.assert_array_equal(getattr(data, split).labels[:], masks[chosen])
    assert "masks are the column 'annotation', of the images in 'image'" in data.notes
    small = load(parts, image_size=(3, 4))
    assert small.train.inputs[0].shape[1:] == (3, 4, 3)
    assert set(np.unique(small.train.labels[:])) <= {0, 1, 2, VOID}  # by the nearest pixel: no class between two
    assert small.class_names == ("road", "sky", "tree")


@pytest.mark.parametrize("column", ["label", "semantic_segmentation", "gt"])
def test_the_masks_column_is_found_by_its_name(load, column):
    images, masks = drawn(12)
    data = load({"train": split_of(images, masks, columns=("pixel_values", column), caption=["x"] * 12)})
    assert data.task.name == "segmentation"
    assert data.class_names == ("0", "1", "2")
    assert len(data.train) + len(data.val) + len(data.test) == 12


def test_the_masks_column_is_named_and_numbers_in_a_table_of_two_axes_are_masks_too(load):
    images, masks = drawn(12)
    kind = datasets.Array2D((HEIGHT, WIDTH), "uint8")
    parts = {"train": split_of(images, list(masks), columns=("image", "what"), mask_kind=kind)}
    data = load(parts, label_column="what", names=("classes.txt", "a\nb\nc\n"))
    assert data.class_names == ("a", "b", "c")
    order = [int(np.flatnonzero((images == image).all(axis=(1, 2, 3)))[0]) for image in data.train.inputs[0][:]]
    np.testing.assert_array_equal(data.train.labels[:], masks[order])
    with pytest.raises(SourceError, match="no column of images beside one of masks") as caught:
        load(parts, task="segmentation")
    assert "what (Array2D)" in caught.value.hint


def test_a_split_without_masks_is_left_out_and_a_lone_missing_one_is_told(load):
    images, masks = drawn(14)
    parts = {"train": split_of(images[:11], [*masks[:10], None]), "test": split_of(images[12:], [None, None])}
    with pytest.raises(SourceError, match=r"mask 10 of hf:.*: it has no mask"):
        load(parts)
    data = load(parts, on_bad_sample="skip")
    assert any("mask 10" in reason for reason in data.skipped)
    assert "the test split has no masks and is left out" in data.notes
    assert len(data.train) + len(data.val) + len(data.test) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images, masks: (images, [masks[0][:3], *masks[1:]]), r"mask 0 of .* is 8x3, and its image image 0"),
        (lambda images, masks: (images, [encoded(masks[0], "JPEG"), *masks[1:]]), "JPEG changes pixels"),
        (lambda images, masks: (images, [np.full_like(item, VOID) for item in masks]), "every pixel of every mask is"),
        (lambda images, masks: (images, [masks[0] + np.uint8(7), *masks[1:]]), "it holds the class number"),
        (lambda images, masks: (images, [images[0], *masks[1:]]), "it is a color picture"),
        (lambda images, masks: ([{"bytes": b"no picture", "path": None}, *images[1:]], masks), "cannot be decoded"),
    ],
)
def test_what_is_wrong_with_a_mask_is_told(load, change, message):
    images, masks = change(*drawn(9))
    with pytest.raises(SourceError, match=message) as caught:
        load({"train": split_of(images, masks)}, names=("classes.txt", "a\nb\nc\n"))
    assert caught.value.hint


def test_a_task_that_does_not_fit_the_columns_is_told(load):
    images, masks = drawn(9)
    parts = {"train": split_of(images, masks, columns=("image", "label"))}
    with pytest.raises(SourceError, match="holds pictures, and the task is classification"):
        load(parts, task="classification")
    with pytest.raises(SourceError, match="no column of images beside one of masks"):
        load({"train": datasets.Dataset.from_dict({"text": ["x"], "label": [0]})}, task="segmentation")
    with pytest.raises(SourceError, match="numbers its classes with gaps"):
        load(parts, names=("id2label.json", json.dumps({"0": "a", "2": "b"})))
