"""Masks as people have them: folders, palettes, color lists; what does not fit is named with what to change."""

import os

import numpy as np
import pytest
from PIL import Image

from kdexport.data.samples import Rows
from kdexport.errors import SourceError

ROAD, SKY = (128, 64, 128), (70, 130, 180)
SIZE = (8, 6)  # width, height


def ids(number, size=SIZE):
    """A mask that differs from image to image: class 0, a row of 1, a pixel of void."""
    mask = np.zeros(size[::-1], dtype=np.uint8)
    mask[number % size[1]] = 1
    mask[-1, -1] = 255
    return mask


def shown(mask):
    """The image of a mask: each class in its color."""
    return np.array([ROAD, SKY, *([(0, 0, 0)] * 254)], dtype=np.uint8)[mask]


def put(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)


def made(
    root, images="{split}/images/{n}.png", masks="{split}/masks/{n}.png", counts=(6, 3, 3), draw=ids, classes=True
):
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        for n in range(count):
            put(root / images.format(split=split, n=n), shown(ids(n)))
            put(root / masks.format(split=split, n=n), draw(n))
    if classes:
        (root / "classes.txt").write_text("road\nsky\n")
    return root


def check(data, counts=(6, 3, 3)):
    """Hold that each image has its own mask."""
    assert data.task.name == "segmentation"
    assert data.class_names == ("road", "sky")
    assert (len(data.train), len(data.val), len(data.test)) == counts
    for split in (data.train, data.val, data.test):
        for image, mask in zip(split.inputs[0][:], split.labels[:], strict=True):
            assert np.array_equal(image, shown(mask))
            assert sorted(np.unique(mask)) == [0, 1, 255]


def palette(mask):
    picture = Image.fromarray(mask, mode="P")
    picture.putpalette([*ROAD, *SKY, *([0] * 759), 224, 224, 192])
    return picture


def test_a_folder_is_read_once_into_files(tmp_path, load):
    data = load(f"masks:{made(tmp_path / 'd')}")
    check(data)
    assert isinstance(data.train.labels, Rows)
    assert data.splits_made_by["test"] == "source"
    assert np.array_equal(data.train.labels[2], ids(2))


LAYOUTS = [
    ("images/{split}/{n}.png", "masks/{split}/{n}.png"),
    ("{split}/{n}.png", "{split}annot/{n}.png"),  # CamVid as SegNet's tutorial has it
    ("images/training/{split}{n}.png", "annotations/training/{split}{n}.png"),
    ("leftImg8bit/{split}/city/{n}_leftImg8bit.png", "gtFine/{split}/city/{n}_gtFine_labelIds.png"),
    ("{split}/{n}.png", "{split}/{n}_mask.png"),  # Roboflow
    ("{split}/Images/{n}_image.png", "{split}/Labels/{n}_label.png"),
    ("JPEGImages/{split}{n}.png", "SegmentationClass/{split}{n}.png"),
]


@pytest.mark.parametrize(("images", "masks"), LAYOUTS)
def test_usual_layouts(tmp_path, load, images, masks):
    root = made(tmp_path / "d", images, masks)
    if "gtFine" in masks:  # Cityscapes' other files are no masks
        for n in range(6):
            put(root / f"gtFine/train/city/{n}_gtFine_color.png", shown(ids(n)))
            put(root / f"gtFine/train/city/{n}_gtFine_instanceIds.png", ids(n + 1))
    data = load(f"masks:{root}", val_fraction=0.25, test_fraction=0.25)
    check(data, (len(data.train), len(data.val), len(data.test)))
    assert len(data.train) + len(data.val) + len(data.test) == 12


def test_vocs_lists_make_the_splits(tmp_path, load):
    root = made(
        tmp_path / "d", "JPEGImages/{split}{n}.png", "SegmentationClass/{split}{n}.png", draw=lambda n: palette(ids(n))
    )
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    put(root / "JPEGImages" / "extra.png", shown(ids(0)))  # VOC segments some of its images only
    for name in ("JPEGImages/train0.png", "SegmentationClass/train0.png"):
        (root / name).rename((root / name).with_name(os.fsdecode(b"caf\xe9.png")))  # no UTF-8: an old disk's
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        names = b"".join(b"%s%d\n" % (split.encode(), n) for n in range(count))
        (lists / f"{split}.txt").write_bytes(names.replace(b"train0", b"caf\xe9"))
    check(load(f"masks:{root}", on_bad_sample="skip"))


FORMS = {
    "a palette": (lambda n: palette(ids(n)), "road\nsky\n"),
    "grey of 16 bits": (lambda n: Image.fromarray(ids(n).astype(np.uint16)), "0 road\n1 sky\n"),
    "equal channels": (lambda n: np.repeat(ids(n)[..., None], 3, axis=2), "0: road\n1: sky\n"),
    "colors, CamVid's list": (lambda n: shown(ids(n)), "128 64 128\troad\n70 130 180\tsky\n0 0 0\tVoid\n"),
    "colors, CVAT's list": (
        lambda n: shown(ids(n)),
        "# label:color_rgb:parts:actions\nroad:128,64,128::\nsky:70,130,180::\nunlabelled:0,0,0::\n",
    ),
    "colors with alpha, Kaggle's list": (
        lambda n: Image.fromarray(shown(ids(n))).convert("RGBA"),
        "name,r,g,b\nroad,128,64,128\nsky,70,130,180\nVoid,0,0,0\n",
    ),
    "class ids beside colors": (ids, "128 64 128 road\n70 130 180 sky\n"),
    "a palette of the list's colors in another order": (
        lambda n: Image.fromarray(shown(ids(n))).quantize(8, dither=Image.Dither.NONE),
        "road,128,64,128\nsky,70,130,180\nvoid,0,0,0\n",
    ),
}


# As people report them (Pytorch-UNet 291 and 375, taming-transformers 8, DIGITS 1676, albumentations 81).
FORMS |= {
    "grey and alpha, as an editor saves it": (
        lambda n: Image.merge("LA", [Image.fromarray(ids(n)), Image.new("L", SIZE, 255)]),
        "road\nsky\n",
    ),
    "grey levels with a list of them": (
        lambda n: np.array([0, 192, *([255] * 254)], dtype=np.uint8)[ids(n)],
        "0 0 0 road\n192 192 192 sky\n255 255 255 void\n",
    ),
    "green objects on black, with alpha": (
        lambda n: Image.fromarray(
            np.array([[0, 0, 0], [0, 255, 0], *([[9, 9, 9]] * 254)], dtype=np.uint8)[ids(n)]
        ).convert("RGBA"),
        "0 0 0 road\n0 255 0 sky\n9 9 9 ignore\n",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_masks_and_lists_of_every_kind(tmp_path, load, form):
    draw, classes = FORMS[form]
    root = made(tmp_path / "d", draw=draw)
    (root / "classes.txt").write_text(classes)
    check(load(f"masks:{root}"))


def test_two_greys_are_classes_once_the_list_says_so(tmp_path, load):
    root = made(tmp_path / "d", draw=lambda n: np.where(ids(n) == 1, 255, 0).astype(np.uint8))
    with pytest.raises(SourceError, match="of one class") as caught:
        load(f"masks:{root}")
    assert "255" in caught.value.hint
    (root / "classes.txt").write_text("0 0 0 road\n255 255 255 sky\n")
    data = load(f"masks:{root}")
    assert sorted(np.unique(data.train.labels[:])) == [0, 1]


def test_without_a_list_classes_are_called_by_their_numbers(tmp_path, load):
    data = load(f"masks:{made(tmp_path / 'd', classes=False)}")
    assert data.class_names == ("0", "1")
    assert any("no classes.txt" in note for note in data.notes)


def test_grey_levels_without_a_list_are_no_class_numbers(tmp_path, load):
    root = made(tmp_path / "d", classes=False, draw=lambda n: np.where(ids(n) == 1, 192, ids(n)).astype(np.uint8))
    with pytest.raises(SourceError, match="the masks hold the numbers 0, 192") as caught:
        load(f"masks:{root}")
    assert "192 192 192 object" in caught.value.hint
    (root / "classes.txt").write_text("road\nsky\n")  # ADE20K's kind of fault: numbers that begin elsewhere
    with pytest.raises(SourceError, match="the class number 192; the 2 classes"):
        load(f"masks:{root}")


def test_image_size_scales_images_smoothly_and_masks_to_the_nearest(tmp_path, load):
    data = load(f"masks:{made(tmp_path / 'd')}", image_size=(3, 4))
    assert data.train.inputs[0].shape[1:] == (3, 4, 3)
    assert data.train.labels.shape[1:] == (3, 4)
    assert set(np.unique(data.train.labels[:])) <= {0, 1, 255}
    assert len(np.unique(data.train.inputs[0][:].reshape(-1, 3), axis=0)) > 3  # colors between


def test_images_of_differing_sizes_are_cut_as_their_masks(tmp_path, load):
    root = tmp_path / "d"
    for n, size in enumerate([(16, 12), (12, 16), (20, 12), (12, 12)] * 2):
        mask = np.zeros(size[::-1], dtype=np.uint8)
        mask[size[1] // 2 :] = 1
        put(root / f"images/{n}.png", shown(mask))
        put(root / f"masks/{n}.png", mask)
    (root / "classes.txt").write_text("road\nsky\n")
    data = load(f"masks:{root}", test_fraction=0.25, val_fraction=0.25)
    assert data.train.labels.shape[1:] == data.train.inputs[0].shape[1:3] == (12, 12)
    for image, mask in zip(data.train.inputs[0][:], data.train.labels[:], strict=True):
        assert (image != shown(mask)).any(axis=2).mean() < 0.1  # but for the border


def faulty(root, change):
    change(made(root))
    return f"masks:{root}"


FAULTS = {
    "another size": (
        lambda r: put(r / "train/masks/2.png", ids(2, (4, 4))),
        r"2.png is 4x4, and its image .* is 8x6",
        "skip",
    ),
    "a class beyond the list": (
        lambda r: put(r / "val/masks/1.png", np.full((6, 8), 7, np.uint8)),
        r"1.png: it holds the class number 7; the 2 classes of classes.txt count from 0 to 1",
        "255",
    ),
    "an image without a mask": (
        lambda r: (r / "test/masks/0.png").unlink(),
        "1 image without a mask: test/images/0.png",
        "skip",
    ),
    "all void": (
        lambda r: [put(p, np.full((6, 8), 255, np.uint8)) for p in r.glob("*/masks/*.png")],
        "every pixel of every mask is void",
        "classes.txt",
    ),
    "a split that is void": (
        lambda r: [put(p, np.full((6, 8), 255, np.uint8)) for p in r.glob("test/masks/*.png")],
        "test: every pixel of every mask is void",
        "255",
    ),
    "a color picture without a list of colors": (
        lambda r: put(r / "train/masks/0.png", shown(ids(0))),
        r"0.png: it is a color picture .*R G B name",
        "add",
    ),
    "a color that the list does not have": (
        lambda r: (
            (r / "classes.txt").write_text("1 2 3 road\n4 5 6 sky\n"),
            put(r / "train/masks/0.png", shown(ids(0))),
        ),
        r"its color \(128, 64, 128\) at row 1, column 0|its color .* is no class of classes.txt",
        "void",
    ),
    "a damaged mask": (lambda r: (r / "train/masks/3.png").write_bytes(b"\x89PNG broken"), "masks/3.png", "skip"),
    "a mask as JPEG": (
        lambda r: ((r / "train/masks/3.png").unlink(), put(r / "train/masks/3.jpg", ids(3))),
        "3.jpg: JPEG changes pixels",
        "correct",
    ),
    "folders of unknown names": (
        lambda r: (r / "train/masks").rename(r / "train/abc"),
        "train holds abc, images",
        "train/images",
    ),
    "a list with a gap": (
        lambda r: (r / "classes.txt").write_text("0 road\n2 sky\n"),
        "the number 1 is not in its place",
        "gaps",
    ),
    "a number without end": (
        lambda r: (r / "classes.txt").write_text(f"0 road\n{'9' * 5000} sky\n"),
        "the number 1 is not in its place",
        "gaps",
    ),
    "a name twice": (lambda r: (r / "classes.txt").write_text("road\nroad\n"), "names 'road' twice", "own"),
    "a list of nothing": (lambda r: (r / "classes.txt").write_text("\n"), "names no class", "line"),
    "no folder": (lambda r: r.rename(r.parent / "e"), "there is no folder", "path"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_with_what_to_change(tmp_path, load, fault):
    change, message, hint = FAULTS[fault]
    with pytest.raises(SourceError, match=message) as caught:
        load(faulty(tmp_path / "d", change))
    assert hint in caught.value.hint


def test_pairs_that_cannot_be_used_are_left_out_where_asked(tmp_path, load):
    root = made(tmp_path / "d")
    put(root / "train/masks/2.png", ids(2, (4, 4)))
    (root / "train/images/4.png").write_bytes(b"no picture")
    (root / "val/masks/0.png").unlink()
    data = load(f"masks:{root}", on_bad_sample="skip")
    check(data, (4, 2, 3))
    assert len(data.skipped) == 3


def test_a_list_that_names_void_as_a_class_is_doubted(tmp_path, load):
    root = made(tmp_path / "d")
    (root / "classes.txt").write_text("road\nsky\nvoid\n")
    assert any("'void'" in warning and "scored like any other" in warning for warning in load(f"masks:{root}").warnings)


def test_changed_masks_are_read_again(tmp_path, load):
    root = made(tmp_path / "d")
    load(f"masks:{root}")
    put(root / "train/masks/0.png", ids(1))
    assert np.array_equal(load(f"masks:{root}").train.labels[0], ids(1))


def test_a_callables_masks_are_read_in_every_usual_form(tmp_path, load):
    images = np.stack([shown(ids(n)) for n in range(10)])
    masks = np.stack([ids(n) for n in range(10)])
    for form in (masks, masks.astype(np.int64), masks[..., None], masks[:, None].astype(np.int32)):
        np.savez(tmp_path / "d.npz", x_train=images, y_train=form, x_test=images, y_test=form)
        data = load(f"npz:{tmp_path / 'd.npz'}")
        assert (data.task.name, data.class_names) == ("segmentation", ("0", "1"))
        assert data.test.labels.dtype == np.uint8
        assert np.array_equal(data.test.labels, masks)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=np.where(masks == 255, -1, masks.astype(np.int64)))
    with pytest.raises(SourceError, match="a mask holds the class -1") as caught:
        load(f"npz:{tmp_path / 'd.npz'}")
    assert "255" in caught.value.hint
    np.savez(tmp_path / "d.npz", x_train=images, y_train=masks[:, :4])
    with pytest.raises(SourceError, match=r"masks of 4x8 pixels, and images \[6, 8, 3\]"):
        load(f"npz:{tmp_path / 'd.npz'}")


def test_a_mask_of_several_pages_is_refused(tmp_path, load):
    root = made(tmp_path / "d", "{split}/{n}.png", "{split}/{n}_mask.tif")
    pages = [Image.fromarray(ids(n)) for n in range(2)]
    pages[0].save(root / "train" / "2_mask.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(SourceError, match=r"2_mask\.tif has several pages or frames; a mask is one"):
        load(f"masks:{root}")
