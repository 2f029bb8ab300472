"""Preprocessing in the graph against preprocessing in Python, on real JPEGs."""

import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kdexport.export import network_export
from kdexport.export.target import ExportTarget, Form
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx import runtimes
from kdexport.onnx.sessions import OnnxSession

JPEGS = 1000


class Net(nn.Module):
    """Random and untrained, but far from constant: what it says changes with the pixels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 16, 5, stride=2)
        self.head = nn.Linear(16, 10)
        with torch.no_grad():
            self.conv.weight *= 4
            self.head.weight *= 20

    def forward(self, image):
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))


@pytest.fixture(scope="module")
def photos(shared_archive):
    """Real JPEGs; the first of the archive, so that it need not be unpacked to its end."""
    images = []
    with tarfile.open(shared_archive("cifar10-jpg")) as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                images.append(np.asarray(Image.open(tar.extractfile(member)).convert("RGB")))
            if len(images) == JPEGS:
                break
    return np.stack(images)


CASES = {
    "as it is": (Preprocessing("image", mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26)), False),
    "smaller, squashed": (Preprocessing("image", (20, 24), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)), True),
    "larger, squashed": (Preprocessing("image", (48, 40), mean=(0.5, 0.5, 0.5)), True),
    "cropped": (Preprocessing("image", (21, 21), "crop", 0.875, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), True),
    "fixed size, resized": (Preprocessing("image", (24, 24), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)), False),
}


@pytest.mark.parametrize("case", CASES)
def test_the_graph_sees_what_python_sees(case, photos, tmp_path):
    wanted, any_size = CASES[case]
    network = Net().eval()
    subject = ExportTarget("net", network, wanted, ("image",), (photos[:64],))
    opset = runtimes.DEFAULT_OPSET
    form = Form(opset, runtimes.ir_for(opset), 1e-4, bake=True, any_image_size=any_size)
    network_export.write(subject, form, tmp_path / "baked.onnx")
    baked = OnnxSession(tmp_path / "baked.onnx")
    with torch.no_grad():
        expected = network(*wanted.apply((photos,))).numpy()
    actual = np.concatenate([baked((photos[start : start + 100],))[0] for start in range(0, JPEGS, 100)])
    assert len(np.unique(expected.argmax(1))) >= 3  # an argmax that is always the same would agree with anything
    assert (expected.argmax(1) == actual.argmax(1)).mean() >= 0.999
    np.testing.assert_allclose(actual, expected, atol=2e-4 * np.abs(expected).max())


def test_images_of_any_size_go_in(photos, tmp_path):
    wanted = Preprocessing("image", (24, 24), "crop", 0.75, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    network = Net().eval()
    subject = ExportTarget("net", network, wanted, ("image",), (photos[:64],))
    network_export.write(subject, Form(18, 8, 1e-4, bake=True, any_image_size=True), tmp_path / "net.onnx")
    session = OnnxSession(tmp_path / "net.onnx")
    for height, width in ((64, 96), (31, 97), (200, 45), (24, 24), (10, 12)):
        image = np.asarray(Image.fromarray(photos[0]).resize((width, height)))[None]
        with torch.no_grad():
            expected = network(*wanted.apply((image,))).numpy()
        np.testing.assert_allclose(session((image,))[0], expected, atol=5e-4 * np.abs(expected).max())


def test_preprocessing_is_named_apart_from_the_network(photos, tmp_path):
    subject = ExportTarget("net", Net().eval(), Preprocessing("image"), ("image",), (photos[:64],))
    network_export.write(subject, Form(18, 8, 1e-4, bake=True), tmp_path / "net.onnx")
    import onnx

    from kdexport.export.quantize import own_nodes

    model = onnx.load(tmp_path / "net.onnx")
    assert len(own_nodes(model)) == 4
    assert "conv/Conv" not in own_nodes(model)
