"""The residual networks for 32x32 images of He et al. 2016, section 4.2, at the depths that CIFAR-100 tables use.

``resnet(32)`` has 7.43 M parameters and ``resnet(8)`` 1.23 M at 100 classes: the usual widths times four, "x4". Where
a stage changes the width the shortcut is a 1x1 convolution. Inputs [batch, 3, 32, 32], outputs [batch, classes].
"""

import torch.nn.functional as F
from torch import Tensor, nn


def resnet(depth: int, widths: tuple[int, int, int, int] = (32, 64, 128, 256), num_classes: int = 100) -> nn.Module:
    """Return a network of 6n + 2 layers, its stem and stages as wide as given."""
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth {depth} is not 6n + 2")
    return ResNet(blocks, tuple(widths), num_classes)


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem and three stages, at 32x32, 16x16 and 8x8."""

    def __init__(self, blocks: int, widths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        stem = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(widths[0]), nn.ReLU())
        for stage in (1, 2, 3):
            first = Block(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)
            others = [Block(widths[stage], widths[stage], 1) for _ in range(blocks - 1)]
            setattr(self, f"stage{stage}", nn.Sequential(first, *others))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[3], num_classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(image))))
        return self.head(self.pool(x).flatten(1))
