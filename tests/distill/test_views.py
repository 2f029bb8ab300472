"""Networks that take images channels first in memory only: they call ``view``, as tutorials do, or crash torch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from kdexport.artifacts import RunDirectory
from kdexport.data.datasets import load_data
from kdexport.distill.batches import lay_out_for_inference
from kdexport.distill.stage import distill
from kdexport.models.loading import load_model
from kdexport.models.networks import needs_channels_first
from kdexport.models.preprocessing import Preprocessing
from kdexport.recipe import Recipe

NETS = """
import torch
from torch import nn


class Viewer(nn.Module):
    def __init__(self, width=4, num_classes=10):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, width, 3), nn.Conv2d(width, 6, 3)
        self.head = nn.Linear(6 * 4 * 4, num_classes)

    def forward(self, image):
        hidden = self.second(torch.relu(self.first(image)))
        return self.head(hidden.view(-1, 6 * 4 * 4))
"""


def recipe(folder: Path) -> Recipe:
    digits = load_digits()
    pixels = np.repeat((digits.images * 15).astype(np.uint8)[..., None], 3, axis=3)
    labels = digits.target
    splits = {"x_train": pixels[:400], "y_train": labels[:400], "x_test": pixels[400:600], "y_test": labels[400:600]}
    np.savez(folder / "digits.npz", **splits)
    (folder / "viewers.py").write_text(NETS)
    network = f"{folder / 'viewers.py'}:Viewer"
    return Recipe.parse(
        {
            "name": "views",
            "data": {"source": f"npz:{folder / 'digits.npz'}"},
            "teacher": {"model": network, "args": {"width": 8}, "train": {"epochs": 4, "lr": 0.01}},
            "student": {"model": network},
            "distill": {"epochs": 2, "lr": 0.01, "baseline": False},
        }
    )


def test_they_teach_and_learn(tmp_path: Path) -> None:
    result = distill(recipe(tmp_path), RunDirectory(tmp_path / "run"))
    teacher, student = result.networks
    assert teacher.val_score is not None
    assert teacher.val_score > 0.5
    assert student.epochs == 2


def test_only_they_are_given_their_images_in_another_order(tmp_path: Path) -> None:
    asked = recipe(tmp_path)
    data = load_data(asked.data, 0, tmp_path / "cache")
    model = load_model("student", asked.student, data)
    assert model.preprocessing.contiguous
    assert Preprocessing.from_json(model.preprocessing.to_json()) == model.preprocessing
    (images,) = model.preprocessing.apply(data.test.take(slice(0, 3)).inputs)
    assert images.is_contiguous()
    assert not data.preprocessing.contiguous
    (as_stored,) = data.preprocessing.apply(data.test.take(slice(0, 3)).inputs)
    assert as_stored.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(as_stored, images, rtol=0, atol=0)


class Flat(nn.Module):
    """Two convolutions, flattened in one way or the other."""

    def __init__(self, flatten: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.flatten = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 3), flatten

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.flatten(self.second(self.first(image)))


def test_a_teacher_computes_channels_last_where_it_can() -> None:
    images = torch.rand(2, 1, 8, 8)  # grey ones lie both ways at once, so that the network alone decides
    for flatten, expected in ((lambda x: x.flatten(1), True), (lambda x: x.view(2, -1), False)):
        network = Flat(flatten).eval()
        before = network(images)
        lay_out_for_inference(network, (images,))
        kernels = network.second.weight
        assert kernels.is_contiguous(memory_format=torch.channels_last) is expected
        assert kernels.is_contiguous() is not expected
        torch.testing.assert_close(network(images), before)


def test_a_strided_1x1_convolution_of_few_channels_is_kept_from_a_crash_of_torch() -> None:
    images = torch.rand(2, 8, 8, 3).permute(0, 3, 1, 2)
    for channels, stride, kernel, expected in ((8, 2, 1, True), (16, 2, 1, False), (8, 1, 1, False), (8, 2, 3, False)):
        network = nn.Sequential(nn.Conv2d(3, channels, 1), nn.Conv2d(channels, 4, kernel, stride=stride))
        assert needs_channels_first(network, (images,)) is expected
