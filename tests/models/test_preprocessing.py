"""What a network's inputs look like, against Pillow, torchvision and float64 arithmetic."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from kdexport.errors import SourceError
from kdexport.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, of_images, with_spec
from kdexport.recipe import PreprocessingSpec


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
