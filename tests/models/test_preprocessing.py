"""What a network's inputs look like, against Pillow, torchvision and float64 arithmetic."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from kdexport.errors import SourceError
from kdexport.models.preprocessing import Preprocessing, of_images, with_spec
from kdexport.recipe import PreprocessingSpec

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # torchvision's and timm's, for pixels scaled to 0..1
IMAGENET_STD = (0.229, 0.224, 0.225)


def photos(count, height, width, channels=3, seed=0):
    """Pictures with structure: resampling noise alone would hide mistakes."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / generator.uniform(2, 9) + y / generator.uniform(2, 9)) for _ in range(count * channels)]
    return np.stack(waves).reshape(count, channels, height, width).transpose(0, 2, 3, 1) * 127 + 128


def test_normalization_is_the_formula_in_float64():
    images = photos(3, 7, 9).astype(np.uint8)
    found = Preprocessing("image", mean=IMAGENET_MEAN, std=IMAGENET_STD).apply((images,))[0]
    expected = ((images / 255.0 - IMAGENET_MEAN) / IMAGENET_STD).transpose(0, 3, 1, 2)
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - expected).max() < 1e-6


@pytest.mark.parametrize(("height", "width"), [(300, 400), (512, 300), (256, 256), (100, 180)])
def test_imagenet_evaluation_agrees_with_torchvision(height, width):
    image = photos(1, height, width).astype(np.uint8)
    theirs = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    expected = theirs(Image.fromarray(image[0])).numpy()
    found = Preprocessing("image", (224, 224), "crop", 224 / 256).apply((image,))[0][0].numpy() * 255
    assert np.abs(found - expected).max() < 2  # Pillow rounds to whole levels after each of two passes


def test_squash_agrees_with_pillow():
    image = photos(1, 90, 50).astype(np.uint8)
    expected = np.asarray(Image.fromarray(image[0]).resize((32, 40), Image.Resampling.BILINEAR))
    found = Preprocessing("image", (40, 32)).apply((image,))[0][0].numpy() * 255
    assert np.abs(found.transpose(1, 2, 0) - expected).max() < 1.01  # Pillow rounds to whole levels


def test_json_round_trip_and_what_is_not_known():
    value = Preprocessing("image", (3, 4), "crop", 0.875, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert Preprocessing.from_json(json.loads(json.dumps(value.to_json()))) == value
    assert Preprocessing.from_json({}) == Preprocessing()
    with pytest.raises(SourceError, match="cannot be read"):
        Preprocessing.from_json({"color_space": "lab"})


def test_the_recipe_is_put_in_place_and_refused_where_there_are_no_images():
    said = PreprocessingSpec(size=(8, 8), std=(0.5,))
    assert with_spec(Preprocessing("image", mean=(0.1,)), said) == Preprocessing(
        "image", (8, 8), mean=(0.1,), std=(0.5,)
    )
    assert with_spec(Preprocessing(), PreprocessingSpec()) == Preprocessing()
    with pytest.raises(SourceError, match="gives size, std as preprocessing"):
        with_spec(Preprocessing(), said)
    with pytest.raises(SourceError, match="resize would do nothing without size"):
        with_spec(Preprocessing("image"), PreprocessingSpec(resize="crop"))
    with pytest.raises(SourceError, match="crop_share would do nothing without a crop"):
        with_spec(Preprocessing("image"), PreprocessingSpec(size=(8, 8), crop_share=0.5))


def test_statistics_are_those_of_all_pixels():
    images = photos(70, 6, 5).astype(np.uint8)
    images[..., 2] = 9  # a channel that never changes is not blown up
    found = of_images(images)
    assert np.allclose(found.mean, images.mean(axis=(0, 1, 2)) / 255, atol=1e-4)
    assert np.allclose(found.std[:2], images.std(axis=(0, 1, 2))[:2] / 255, atol=1e-4)
    assert found.std[2] == 1.0


def test_tokens_are_cut_at_the_longest_of_the_batch():
    ids, mask = np.arange(24).reshape(3, 8), np.zeros((3, 8), np.int64)
    mask[0, :3] = mask[1, :5] = mask[2, :1] = 1
    found = Preprocessing("tokens").apply((ids, mask))
    assert [tuple(tensor.shape) for tensor in found] == [(3, 5), (3, 5)]
    assert np.array_equal(found[0], ids[:, :5])
    nothing = Preprocessing("tokens").apply((ids, mask * 0))
    assert nothing[0].shape == (3, 1)


SIZES = [(30, 44, (16, 16)), (9, 7, (20, 31)), (40, 10, (20, 20)), (16, 16, (16, 16)), (33, 17, (64, 9))]


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "share"), [("squash", 1.0), ("crop", 0.875)])
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_without_torch_it_gives_the_same(height, width, size, resize, share, resample):
    image = photos(2, height, width).astype(np.uint8)
    value = Preprocessing("image", size, resize, share, IMAGENET_MEAN, IMAGENET_STD, resample=resample)
    (found,), (expected,) = value.apply_numpy((image,)), value.apply((image,))
    assert found.dtype == np.float32
    assert np.abs(found - expected.numpy()).max() < 2e-5


@pytest.mark.parametrize("size", [(32, 40), (120, 110), (60, 100)])
def test_bicubic_agrees_with_pillow(size):
    image = photos(1, 90, 50).astype(np.uint8)
    expected = np.asarray(Image.fromarray(image[0]).resize(size[::-1], Image.Resampling.BICUBIC))
    found = Preprocessing("image", size, resample="bicubic").apply((image,))[0][0].numpy() * 255
    assert (
        np.abs(found.transpose(1, 2, 0).clip(0, 255) - expected).max() < 1.6
    )  # Pillow rounds after each of two passes


def test_tokens_without_torch():
    ids, mask = np.arange(24).reshape(3, 8), np.zeros((3, 8), np.int64)
    mask[0, :3] = mask[1, :5] = 1
    for found, expected in zip(
        Preprocessing("tokens").apply_numpy((ids, mask)), Preprocessing("tokens").apply((ids, mask)), strict=True
    ):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"std": [0.5, 0.0, 0.5]}, "std is .* not above 0"),
        ({"mean": [0.5, float("nan")]}, "mean is .* not finite"),
        ({"mean": "half"}, "mean is 'half'"),
        ({"size": [8]}, "size is"),
        ({"size": [-1, 8]}, "size is"),
        ({"size": 8}, "size is 8"),
        ({"crop_share": 0}, "crop_share is 0"),
        ({"mean": [0.1, 0.2], "std": [1.0]}, "mean has 2 values and std has 1"),
        ({"kind": "video"}, "kind is 'video'"),
        ({"resample": "lanczos"}, "resample is 'lanczos'"),
    ],
)
def test_values_that_mean_nothing_are_refused(values, message):
    with pytest.raises(SourceError, match=message):
        Preprocessing.from_json({"kind": "image", **values})


def test_another_number_of_channels_is_refused():
    value = Preprocessing("image", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    for apply in (value.apply, value.apply_numpy):
        with pytest.raises(SourceError, match="mean has 3 values, and the images have 1 channels"):
            apply((np.zeros((2, 4, 4, 1), np.uint8),))


def test_resampling_is_the_one_that_the_model_was_trained_with(tmp_path):
    from kdexport.models.loading import inferred_preprocessing

    pixels = Preprocessing("image")
    for name, expected in (("resnet18", "bilinear"), ("vit_b_16", "bilinear"), ("swin_t", "bicubic")):
        assert inferred_preprocessing(f"torchvision:{name}", {}, "pretrained", pixels).resample == expected
    transformers = pytest.importorskip("transformers", reason="it is an extra: pip install 'kdexport[text]'")
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}, resample=3).save_pretrained(tmp_path)
    assert inferred_preprocessing(f"hf:{tmp_path}", {}, None, pixels).resample == "bicubic"
