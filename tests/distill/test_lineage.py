"""Features of networks that give maps: the last map is the one before the logits, however these are made."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import segmentation

from kdexport.distill import layers
from kdexport.distill.features import FeatureHooks
from kdexport.distill.losses import hint
from kdexport.models.outputs import Output, install
from kdexport.terms import METHODS

CLASSES = 5


class UNet(nn.Module):
    """An encoder, a decoder, a head that is one convolution; what follows the logits differs from class to class."""

    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(inplace=True))
        self.decoder = nn.Sequential(nn.Conv2d(3 * width, width, 3, padding=1), nn.ReLU(inplace=True))
        self.head = nn.Conv2d(width, CLASSES, 1)

    def decoded(self, x):
        fine = self.first(F.avg_pool2d(x, 2))
        coarse = self.second(fine)
        return self.decoder(torch.cat([fine, F.interpolate(coarse, fine.shape[2:])], 1)), coarse

    def forward(self, x):
        return F.interpolate(self.head(self.decoded(x)[0]), x.shape[2:], mode="bilinear")


class Normalized(UNet):
    """Logits through a normalization and a scale of their own."""

    def __init__(self, width=8):
        super().__init__(width)
        self.norm, self.scale = nn.BatchNorm2d(CLASSES), nn.Parameter(torch.ones(1, CLASSES, 1, 1))

    def forward(self, x):
        return self.norm(self.head(self.decoded(x)[0])) * self.scale


class Enlarged(UNet):
    """Logits made larger by a convolution, as in FCN-32s."""

    def __init__(self, width=8):
        super().__init__(width)
        self.larger = nn.ConvTranspose2d(CLASSES, CLASSES, 2, 2)

    def forward(self, x):
        return self.larger(self.head(self.decoded(x)[0]))


class Summed(UNet):
    """Logits of two resolutions added, and a head that is not scored."""

    def __init__(self, width=8):
        super().__init__(width)
        self.coarse_head = nn.Conv2d(2 * width, CLASSES, 1)
        self.auxiliary = nn.Sequential(nn.Conv2d(2 * width, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, CLASSES, 1))

    def forward(self, x):
        decoded, coarse = self.decoded(x)
        logits = self.head(decoded)
        logits = logits + F.interpolate(self.coarse_head(coarse), logits.shape[2:])
        return {"out": logits, "aux": self.auxiliary(coarse)}


class Blind(UNet):
    """No gradient passes: nothing can be told, and the last map is the last one that there is."""

    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


def torchvisions(build, **options):
    return build(weights=None, weights_backbone=None, num_classes=CLASSES, **options)


def traced(network, side=32):
    install(network, Output(None, None, "network"))
    return layers.trace(network, (torch.rand(2, 3, side, side),))


@pytest.mark.parametrize(
    ("make", "last"),
    [
        (UNet, "decoder"),
        (Normalized, "decoder"),
        (Enlarged, "decoder"),
        (Summed, "decoder"),
        (Blind, "head"),
        (lambda: torchvisions(segmentation.lraspp_mobilenet_v3_large), "classifier.cbr"),
        (lambda: torchvisions(segmentation.deeplabv3_mobilenet_v3_large), "classifier.3"),
        (lambda: torchvisions(segmentation.deeplabv3_mobilenet_v3_large, aux_loss=True), "classifier.3"),
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_the_last_map_is_the_one_before_the_logits(make, last, frozen):
    network = make().requires_grad_(not frozen)
    network.train()
    found = traced(network)
    assert layers.last_map(found, "student").path == last
    assert layers.stage_ends(found)[-1].path == last
    assert all(parameter.requires_grad is not frozen for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.training
    assert layers.find(found, "head" if isinstance(network, UNet) else "classifier", "student")  # named, it is taken


def test_a_head_that_is_not_scored_holds_no_feature():
    found = {layer.path: layer.feature for layer in traced(Summed())}
    assert not any(feature for path, feature in found.items() if path.startswith(("aux", "head", "coarse_head")))
    assert all(feature for path, feature in found.items() if path.startswith(("first", "second", "decoder")))


def test_a_network_that_gives_no_map_keeps_all_its_layers():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    assert all(layer.feature for layer in traced(network))


def test_an_unnamed_term_teaches_all_but_the_heads_of_a_segmentation_network():
    torch.manual_seed(0)
    student, teacher = Summed(4), UNet(8)
    for network in (student, teacher):
        install(network, Output(None, None, "network"))
    images = torch.rand(2, 3, 32, 32)
    term = METHODS["hint"](method="hint")
    hooks = FeatureHooks({"hint": term}, student, teacher, (images,), (images,), samples=2)
    assert hooks.pairs == {"hint": (("decoder",), ("decoder",))}
    with hooks.student():
        student(images)
    with torch.no_grad(), hooks.teacher():
        teacher(images)
    ours, theirs = hooks.features(torch.arange(2))["hint"]
    assert ours.shape == theirs.shape == (2, 8, 16, 16)
    hint(ours, theirs).backward()
    taught = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[0] for name in taught} == {"first", "second", "decoder"}
