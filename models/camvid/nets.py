"""Networks of the camvid pair: images [batch, 3, h, w] to logits [batch, classes, h / 2, w / 2], which the run resizes.

Small U-Nets (Ronneberger 2015) whose first convolution halves the image: three resolutions, each decoded beside what
its encoder saw.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _block(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """A U-Net of ``width`` channels at half the image, and twice as many with each of three halvings below."""

    def __init__(self, width: int, num_classes: int = 11) -> None:
        super().__init__()
        self.stem = _block(3, width, stride=2)
        self.down = nn.ModuleList(
            nn.Sequential(
                _block(width << level, 2 * width << level, stride=2), _block(2 * width << level, 2 * width << level)
            )
            for level in range(3)
        )
        self.up = nn.ModuleList(_block(3 * width << level, width << level) for level in reversed(range(3)))
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        maps = [self.stem(image)]
        for stage in self.down:
            maps.append(stage(maps[-1]))
        found = maps.pop()
        for stage in self.up:
            beside = maps.pop()
            found = stage(torch.cat([F.interpolate(found, beside.shape[2:], mode="nearest"), beside], dim=1))
        return self.head(found)


class Teacher(UNet):
    """683,000 parameters at width 20."""

    def __init__(self, width: int = 20, num_classes: int = 11) -> None:
        super().__init__(width, num_classes)


class Student(UNet):
    """An eleventh of the teacher's: 62,000 parameters at width 6."""

    def __init__(self, width: int = 6, num_classes: int = 11) -> None:
        super().__init__(width, num_classes)
