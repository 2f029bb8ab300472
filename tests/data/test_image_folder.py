"""Image folders as users have them: decoded once, right side up, read without growing; damaged ones named."""

import os

import numpy as np
import pytest
from PIL import Image

from kdexport.data import image_cache
from kdexport.data.datasets import load_data
from kdexport.data.samples import Rows
from kdexport.errors import SourceError
from kdexport.recipe import Data
from kdexport.stage_cache import fingerprint

RED, GREEN, BLUE = (200, 30, 20), (20, 180, 40), (10, 30, 220)


def save(path, color=RED, size=(12, 10), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """Two classes in train and test, 8 and 2 pictures each."""
    for split, count in (("train", 8), ("test", 2)):
        for name, color in (("green", GREEN), ("red", RED)):
            for number in range(count):
                save(tmp_path / "photos" / split / name / f"{number}.png", color)
    return tmp_path / "photos"


def test_classes_and_splits_come_from_the_folders(folder, load):
    data = load(f"imagefolder:{folder}")
    assert data.class_names == ("green", "red")
    assert (len(data.train), len(data.val), len(data.test)) == (14, 2, 4)
    assert data.splits_made_by["test"] == "source"
    assert isinstance(data.train.inputs[0], Rows)
    for split in (data.train, data.val, data.test):
        for image, label in zip(split.inputs[0][:], split.labels, strict=True):
            assert np.array_equal(image, np.broadcast_to((GREEN, RED)[label], (10, 12, 3)))


def test_a_folder_without_splits_gets_them(folder, load):
    data = load(f"imagefolder:{folder / 'train'}", test_fraction=0.25, val_fraction=0.2)
    assert (len(data.train), len(data.val), len(data.test)) == (10, 2, 4)
    assert np.array_equal(np.bincount(data.test.labels), [2, 2])


def test_every_kind_of_picture_becomes_upright_rgb(tmp_path, load):
    place = tmp_path / "photos" / "kinds"
    save(tmp_path / "photos" / "other" / "a.png")
    place.mkdir(parents=True)
    left_red = Image.new("RGB", (12, 10), BLUE)
    left_red.paste(RED, (0, 0, 4, 10))
    turned = left_red.transpose(Image.Transpose.ROTATE_90)  # stored on its side, as a camera does
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise when shown
    turned.save(place / "exif.png", exif=exif)
    Image.new("L", (12, 10), 77).save(place / "grey.png")
    Image.fromarray(np.full((10, 12), 77 * 256, np.uint16)).save(place / "grey16.png")
    Image.new("RGBA", (12, 10), (*RED, 0)).save(place / "glass.png")
    left_red.quantize(4).save(place / "palette.gif")
    Image.new("CMYK", (12, 10), (0, 0, 0, 0)).save(place / "print.jpg")
    (place / "notes.txt").write_text("no picture")
    (place / ".hidden.png").write_text("no picture")
    data = load(f"imagefolder:{tmp_path / 'photos'}", test_fraction=0.01, val_fraction=0.01)
    images = np.concatenate([data.train.inputs[0][:], data.val.inputs[0][:], data.test.inputs[0][:]])
    found = {image.tobytes() for image in images}
    assert images.shape == (7, 10, 12, 3)
    expected = {
        "upright": np.asarray(left_red),
        "grey": np.full((10, 12, 3), 77, np.uint8),
        "transparent": np.full((10, 12, 3), 255, np.uint8),
        "solid": np.full((10, 12, 3), RED, np.uint8),
    }
    assert {name for name, image in expected.items() if image.tobytes() in found} == set(expected)
    assert len(found) == 4  # both greys alike, glass and print white, palette and EXIF alike


def test_differing_sizes_are_covered_and_cut_to_the_middle(tmp_path, load):
    for name in ("a", "b"):
        save(tmp_path / "photos" / name / "small.png", RED, (20, 30))
        save(tmp_path / "photos" / name / "wide.png", RED, (90, 40))
        save(tmp_path / "photos" / name / "large.png", RED, (60, 50))
    assert load(f"imagefolder:{tmp_path / 'photos'}").train.inputs[0].shape[1:] == (40, 40, 3)
    data = load(f"imagefolder:{tmp_path / 'photos'}", image_size=(24, 16))
    assert data.train.inputs[0].shape[1:] == (24, 16, 3)
    assert "24x16" in data.notes[0]


def test_decoded_once_and_again_when_a_file_changes(folder, load, monkeypatch):
    decoded = []
    original = image_cache.to_rgb
    monkeypatch.setattr(image_cache, "to_rgb", lambda *given: decoded.append(1) or original(*given))
    load(f"imagefolder:{folder}")
    assert len(decoded) == 20
    load(f"imagefolder:{folder}", seed=5)
    assert len(decoded) == 20
    before = fingerprint(f"imagefolder:{folder}")
    save(folder / "train" / "red" / "0.png", BLUE)
    os.utime(folder / "train" / "red" / "0.png", ns=(1, 1))
    assert fingerprint(f"imagefolder:{folder}") != before
    data = load(f"imagefolder:{folder}")
    assert len(decoded) == 40
    everything = np.concatenate([data.train.inputs[0][:], data.val.inputs[0][:]])
    assert (everything == BLUE).all(axis=(1, 2, 3)).sum() == 1


@pytest.mark.parametrize("damage", ["cut short", "one bit"])
def test_a_damaged_cache_is_made_again(damage, folder, load, tmp_path):
    first = load(f"imagefolder:{folder}").test.inputs[0][:]
    cache = tmp_path / "cache" / "images.u8"
    whole = cache.read_bytes()
    cache.write_bytes(whole[:-1] if damage == "cut short" else bytes(byte ^ 1 for byte in whole))
    assert np.array_equal(load(f"imagefolder:{folder}").test.inputs[0][:], first)
    assert [path.name for path in sorted((tmp_path / "cache").iterdir())] == ["images.json", "images.u8"]


def test_a_truncated_jpeg_is_named_or_skipped_and_listed(folder, load, tmp_path):
    generator = np.random.default_rng(0)
    bad = folder / "train" / "red" / "bad.jpg"
    Image.fromarray(generator.integers(0, 255, (10, 12, 3), dtype=np.uint8)).save(bad)
    bad.write_bytes(bad.read_bytes()[:-40])
    (folder / "train" / "green" / "empty.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"green/empty\.png") as caught:
        load(f"imagefolder:{folder}")
    assert "on_bad_sample" in caught.value.hint
    assert not (tmp_path / "cache" / "images.u8").exists()
    data = load(f"imagefolder:{folder}", on_bad_sample="skip")
    assert [reason.partition(":")[0] for reason in data.skipped] == ["train/green/empty.png", "train/red/bad.jpg"]
    assert (len(data.train), len(data.val), len(data.test)) == (14, 2, 4)
    for image, label in zip(data.train.inputs[0][:], data.train.labels, strict=True):
        assert np.array_equal(image[0, 0], (GREEN, RED)[label])  # labels have not slipped
    with pytest.raises(SourceError, match=r"green/empty\.png"):  # the cache does not hide it
        load(f"imagefolder:{folder}")


def test_folders_that_cannot_be_used(folder, load, tmp_path):
    (folder / "train" / "violet").mkdir()
    with pytest.raises(SourceError, match=r"the class folder .*violet holds no pictures"):
        load(f"imagefolder:{folder}")
    (folder / "train" / "violet").rmdir()
    save(folder / "test" / "violet" / "0.png")
    with pytest.raises(SourceError, match="violet is a class that the training samples do not have"):
        load(f"imagefolder:{folder}")
    save(tmp_path / "one" / "only" / "0.png")
    with pytest.raises(SourceError, match="holds 1 class folder"):
        load(f"imagefolder:{tmp_path / 'one'}")
    with pytest.raises(SourceError, match="there is no folder"):
        load(f"imagefolder:{tmp_path / 'nowhere'}")


def test_unlabelled_pictures_are_scaled_to_the_labelled(folder, load, tmp_path):
    for number in range(3):
        save(tmp_path / "more" / "deep" / f"{number}.jpg", BLUE, (40, 50))
    data = load(f"imagefolder:{folder}", unlabelled=f"imagefolder:{tmp_path / 'more'}")
    assert data.unlabelled.inputs[0].shape == (3, 10, 12, 3)
    assert data.unlabelled.labels is None
    both = data.with_unlabelled
    assert isinstance(both.inputs[0], Rows)
    chosen = np.array([15, 0, len(both) - 1, 3])
    separate = np.concatenate([data.train.inputs[0][:], data.unlabelled.inputs[0][:]])
    assert np.array_equal(both.take(chosen).inputs[0], separate[chosen])


def test_rows_behave_like_the_array_they_stand_for(tmp_path):
    from kdexport.data.samples import open_rows

    array = np.random.default_rng(0).integers(0, 255, (30, 4, 5, 3), dtype=np.uint8)
    (tmp_path / "a.u8").write_bytes(array.tobytes())
    rows = open_rows(tmp_path / "a.u8", array.shape)
    chosen = np.array([7, 3, 3, 29, 0])
    assert (rows.shape, rows.ndim, len(rows), rows.dtype, rows.nbytes) == (array.shape, 4, 30, np.uint8, array.nbytes)
    for index in (slice(3, 9), slice(None, None, 7), chosen, 4, -1, (chosen, 2), (slice(2, 5), ..., 0)):
        assert np.array_equal(rows[index], array[index]), index
    assert np.array_equal(np.asarray(rows), array)
    some = rows.select(chosen).select(np.array([4, 0]))
    assert np.array_equal(some[:], array[[0, 7]])
    (tmp_path / "a.u8").write_bytes(array.tobytes()[:100])
    with pytest.raises(OSError, match="ends before row"):
        open_rows(tmp_path / "a.u8", array.shape)[:]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Training", None, "Testing"),
        ("TRAIN", "VALID", "TEST"),
        ("train", None, "eval"),
        ("training", "validation", "test"),
        ("Train", "Eval", "Test"),
    ],
)
def test_split_folders_in_usual_spellings(train, val, test, load, tmp_path):
    parts = {train: 6, test: 3} | ({val: 2} if val else {})
    for split, count in parts.items():
        for name in ("green", "red"):
            for number in range(count):
                save(tmp_path / "photos" / split / name / f"{number}.png")
    data = load(f"imagefolder:{tmp_path / 'photos'}")
    assert data.class_names == ("green", "red")
    assert len(data.test) == 6
    assert len(data.val) == 4 if val else len(data.train) + len(data.val) == 12


def test_layouts_whose_splits_cannot_be_told_are_refused(load, tmp_path):
    for split in ("seg_train", "seg_test"):
        for name in ("green", "red"):
            save(tmp_path / "photos" / split / name / "0.png")
    with pytest.raises(
        SourceError, match=r"holds seg_test, seg_train with the same folders inside \(green, red\)"
    ) as caught:
        load(f"imagefolder:{tmp_path / 'photos'}")
    assert "name the folders train, val and test" in caught.value.hint
    (tmp_path / "photos" / "seg_test").rename(tmp_path / "photos" / "test")
    (tmp_path / "photos" / "seg_train" / "red").rename(tmp_path / "photos" / "seg_train" / "crimson")
    with pytest.raises(SourceError, match="holds test and no folder called train"):
        load(f"imagefolder:{tmp_path / 'photos'}")
    (tmp_path / "photos" / "seg_train").rename(tmp_path / "photos" / "valid")
    (tmp_path / "photos" / "test").rename(tmp_path / "photos" / "validation")
    with pytest.raises(SourceError, match="valid and validation, which both mean the val split"):
        load(f"imagefolder:{tmp_path / 'photos'}")
    save(tmp_path / "twice" / "photos" / "green" / "0.png")
    save(tmp_path / "twice" / "photos" / "red" / "0.png")
    with pytest.raises(SourceError, match="holds 1 class folder") as caught:
        load(f"imagefolder:{tmp_path / 'twice'}")
    assert f"did you mean {tmp_path / 'twice' / 'photos'}" in caught.value.hint


def test_splits_by_the_words_in_their_names_are_no_classes(load, tmp_path):
    """As an archive that was unpacked into a folder of its own name leaves them; they became the classes."""
    for split in ("seg_train", "seg_test"):
        for name in ("green", "red"):
            save(tmp_path / "photos" / split / split / name / "0.png")
    with pytest.raises(SourceError, match="seg_test, seg_train: splits by the words in their names"):
        load(f"imagefolder:{tmp_path / 'photos'}")


def test_a_train_may_be_a_class(load, tmp_path):
    for name in ("bus", "car", "train"):
        for number in range(4):
            save(tmp_path / "photos" / name / f"{number}.png")
    data = load(f"imagefolder:{tmp_path / 'photos'}")
    assert data.class_names == ("bus", "car", "train")
    assert "the folder train holds pictures and is taken for a class" in data.notes


def test_files_that_are_no_pictures_or_of_no_class_are_counted(folder, load):
    """Photos of a telephone were left out without a word."""
    for number in range(3):
        (folder / "train" / "red" / f"{number}.HEIC").write_bytes(b"")
        save(folder / "train" / "red" / f"more{number}.jfif", format="JPEG")
    save(folder / "train" / "stray.png")
    (folder / "train" / "red" / "Thumbs.db").write_bytes(b"")
    data = load(f"imagefolder:{folder}")
    assert len(data.train) + len(data.val) == 19
    assert "left out, for their names do not end as those of pictures: 3 of .heic" in data.notes
    assert "left out, for they lie in no class folder: 1 pictures" in data.notes


def test_folders_beside_the_splits_are_named(folder, load):
    save(folder / "extra" / "red" / "0.png")
    (folder / "docs").mkdir()
    assert "ignored, for they are no split: the folders extra" in load(f"imagefolder:{folder}").notes


@pytest.mark.parametrize("names", [range(12), ["-1", "0", "10", "2"], ["0.5", "1.0", "10.0"]])
def test_folders_named_by_numbers_are_in_their_order(names, load, tmp_path):
    for name in names:
        for number in range(3):
            save(tmp_path / "photos" / str(name) / f"{number}.png", (int(float(name)) + 1, 0, 0))
    data = load(f"imagefolder:{tmp_path / 'photos'}")
    assert data.class_names == tuple(sorted(map(str, names), key=float))
    for image, label in zip(data.train.inputs[0][:], data.train.labels, strict=True):
        assert image[0, 0, 0] == int(float(data.class_names[label])) + 1  # labels have not slipped
    said = [note for note in data.notes if "are numbers and are taken in their order" in note]
    assert len(said) == (sorted(map(str, names)) != sorted(map(str, names), key=float))


def test_links_do_not_share_pictures_between_classes_or_splits(folder, load, tmp_path):
    (folder / "train" / "red" / "again").symlink_to(".")
    (folder / "train" / "red" / "up").symlink_to("..")
    (folder / "train" / "loop").symlink_to("../train")
    os.mkfifo(folder / "train" / "red" / "pipe.png")
    save(tmp_path / "elsewhere" / "more.png")
    (folder / "train" / "red" / "elsewhere").symlink_to(tmp_path / "elsewhere")  # as people do, and is followed
    data = load(f"imagefolder:{folder}")
    assert data.class_names == ("green", "red")
    assert len(data.train) + len(data.val) == 17
    assert "passed over" in data.notes[-1]
    for name in ("train/loop", "train/red/again", "train/red/pipe.png", "train/red/up"):
        assert name in data.notes[-1]
    (folder / "test" / "red" / "same.png").symlink_to(folder / "train" / "red" / "0.png")
    with pytest.raises(SourceError, match=r"test/red/same\.png and train/red/0\.png are the same picture"):
        load(f"imagefolder:{folder}")


def test_a_link_to_nothing_is_a_picture_that_cannot_be_decoded(folder, load):
    (folder / "train" / "red" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(SourceError, match=r"train/red/gone\.png"):
        load(f"imagefolder:{folder}")
    assert load(f"imagefolder:{folder}", on_bad_sample="skip").skipped[0].startswith("train/red/gone.png")


def test_a_name_that_is_not_utf8_is_read(folder, load):
    place = os.fsencode(folder / "train" / "red")
    os.rename(place + b"/0.png", place + b"/caf\xe9.png")  # noqa: PTH104 bytes
    assert len(load(f"imagefolder:{folder}").train) == 14


DEEP = {
    "12 bits in 16": (lambda x: (x * 4095).astype(np.uint16), 4095),
    "16 bits": (lambda x: (x * 65535).astype(np.uint16), 65535),
    "8 bits in 32": (lambda x: (x * 255).astype(np.int32), 255),
    "floats to 1": (lambda x: x.astype(np.float32), 1),
    "floats to 255": (lambda x: (x * 254.5).astype(np.float32), 255),
    "floats to 1000": (lambda x: (x * 1000).astype(np.float32), 1000),
    "below 0": (lambda x: (x * 2000 - 1000).astype(np.int32), None),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_pictures_are_scaled_alike(kind, load, tmp_path):
    """The brightest of a dark picture is not white: the whole set's range decides, worked out here in float64."""
    make, top = DEEP[kind]
    ramp = np.linspace(0, 1, 120).reshape(12, 10)
    for name, share in (("dark", 0.25), ("light", 1.0)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(make(ramp * share)).save(tmp_path / "photos" / name / f"{number}.tif")
    data = load(f"imagefolder:{tmp_path / 'photos'}")
    for label, share in ((0, 0.25), (1, 1.0)):
        found = data.train.inputs[0][:][data.train.labels == label][0][..., 0].astype(float)
        values = make(ramp * share).astype(np.float64)
        expected = values * 255 / top if top else (values + 1000) * 255 / 2000
        assert np.abs(found - expected).max() <= 0.5 + 1e-6


def test_pictures_are_stored_as_large_as_the_larger_network_needs(load, tmp_path):
    from kdexport.models.fitted_data import load_fitted_data
    from kdexport.recipe import Data, PreprocessingSpec, Student, Teacher

    for name in ("a", "b"):
        for number in range(4):
            save(tmp_path / "photos" / name / f"{number}.png", RED, (500 + number, 420))
    source = f"imagefolder:{tmp_path / 'photos'}"
    assert load(source).train.inputs[0].shape[1:3] == (256, 256)
    student = Student(model="nets.py:S", preprocessing=PreprocessingSpec(size=(64, 64)))
    for size, resize, share, stored in ((320, None, None, 320), (320, "crop", 0.8, 400), (512, None, None, 420)):
        wanted = PreprocessingSpec(size=(size, size), resize=resize, crop_share=share)
        networks = (Teacher(model="nets.py:T", preprocessing=wanted), student)
        data = load_fitted_data(Data(source=source), networks, 0, tmp_path / "cache")
        assert data.train.inputs[0].shape[1:3] == (stored, stored)
        assert any("a network takes 512x512" in note for note in data.notes) == (size == 512)
    given = load_fitted_data(Data(source=source, image_size=(100, 90)), networks, 0, tmp_path / "cache")
    assert given.train.inputs[0].shape[1:3] == (100, 90)


@pytest.mark.parametrize("kind", ["tif", "gif", "png"])
def test_pages_and_frames_beyond_the_first_are_told(kind, folder, load):
    """A scan of several pages silently became its first."""
    for number in range(2):
        pages = [Image.new("RGB", (12, 10), color) for color in (RED, GREEN, BLUE)]
        place = folder / "train" / "red" / f"scan{number}.{kind}"
        pages[0].save(place, save_all=True, append_images=pages[1:])
    for _ in range(2):  # said again of what is decoded already
        (told,) = [line for line in load(f"imagefolder:{folder}").warnings if "frames" in line]
        assert told.startswith("2 of 22 pictures have several pages or frames, of which the first alone is read, e.g. ")
        assert f"train/red/scan0.{kind}" in told
    for number in range(2):
        (folder / "train" / "red" / f"scan{number}.{kind}").unlink()
    save(folder / "train" / "red" / "scan.tif")  # one page
    assert not [line for line in load(f"imagefolder:{folder}").warnings if "frames" in line]


def test_a_picture_too_large_for_the_memory(tmp_path, monkeypatch):
    """The message ended in a colon: a MemoryError has no words of its own."""
    folder = tmp_path / "data"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (8, 8)).save(folder / split / name / f"{number}.png")

    def too_large(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", too_large)
    with pytest.raises(SourceError, match=r"cannot be decoded: train/cat/0.png: out of memory") as caught:
        load_data(Data(source=f"imagefolder:{folder}", image_size=(8, 8)), 0, tmp_path / "cache")
    assert "more memory" in caught.value.hint


@pytest.mark.parametrize(
    ("mode", "dtype", "shape"),
    [("L", np.uint8, ()), ("RGBA", np.uint8, (4,)), ("P", np.uint8, ()), ("I;16", np.uint16, ())],
)
def test_a_large_picture_becomes_smaller_part_by_part(mode, dtype, shape, monkeypatch):
    """Two of 177 million pixels took 10 GB; the same values as of the whole, turned as its EXIF data say."""
    values = np.random.default_rng(1).integers(0, 255 if dtype == np.uint8 else 4096, (90, 67, *shape)).astype(dtype)
    picture = Image.fromarray(values)
    if mode == "P":
        picture.putpalette(list(range(256)) * 3)
    picture.getexif()[0x0112] = 6
    levels = (0, 4095) if mode == "I;16" else (0, 255)
    expected = image_cache.to_rgb(picture, levels).transpose(Image.Transpose.ROTATE_90).reduce(4)
    monkeypatch.setattr(image_cache, "LARGE", 1000)
    monkeypatch.setattr(image_cache, "PART", 600)
    found = image_cache.to_rgb_near(picture, (6, 8), levels)
    assert found.size == (23, 17)
    assert np.array_equal(found, expected.transpose(Image.Transpose.ROTATE_270))


def test_what_pillow_warns_of_stays_off_the_terminal(folder, load, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # the pictures have 120: a DecompressionBombWarning for each
    assert load(f"imagefolder:{folder}").train.inputs[0].shape[1:] == (10, 12, 3)


def test_a_picture_that_is_a_program_is_not_run(folder, load, tmp_path, monkeypatch):
    """Pillow starts Ghostscript for what begins like an EPS file, under any name."""
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    (folder / "train" / "red" / "0.png").write_bytes(program)
    with pytest.raises(SourceError, match=r"red/0\.png: cannot identify"):
        load(f"imagefolder:{folder}")
    picture = Image.open(folder / "train" / "red" / "0.png")  # as `datasets` opens it
    with picture, pytest.raises(OSError, match="Ghostscript"):
        picture.load()
    assert not (tmp_path / "ran").exists()


def test_a_picture_in_a_list_may_be_a_whole_path(load, tmp_path):
    rows = []
    for number in range(16):
        save(tmp_path / "flat" / f"{number}.png", (GREEN, RED)[number % 2])
        rows.append(f"{tmp_path / 'flat' if number % 3 else '.'}/{number}.png,{'gr'[number % 2]}")
    (tmp_path / "flat" / "labels.csv").write_text("\n".join(["file_name,label", *rows]))
    data = load(f"imagefolder:{tmp_path / 'flat'}")
    assert data.class_names == ("g", "r")
    for split in (data.train, data.val, data.test):
        for image, label in zip(split.inputs[0][:], split.labels, strict=True):
            assert tuple(image[0, 0]) == (GREEN, RED)[label]
