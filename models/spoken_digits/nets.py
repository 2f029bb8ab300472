"""Networks of the spoken digits pair: inputs [batch, 1, 40 bands, 49 frames], outputs [batch, classes]."""

from torch import Tensor, nn


def _block(channels_in: int, channels_out: int, stride: int = 1, groups: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


def _separable(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """Filter each channel, then mix them (Howard 2017, MobileNets)."""
    return nn.Sequential(
        _block(channels_in, channels_in, stride, groups=channels_in), _block(channels_in, channels_out, kernel=1)
    )


class Teacher(nn.Module):
    """Six 3x3 convolutions at three resolutions; 162,000 parameters at width 24."""

    def __init__(self, width: int = 24, num_classes: int = 10) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            nn.Sequential(_block(1, width, stride=2), _block(width, width)),
            nn.Sequential(_block(width, 2 * width, stride=2), _block(2 * width, 2 * width)),
            nn.Sequential(_block(2 * width, 4 * width, stride=2), _block(4 * width, 4 * width)),
        )
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(4 * width, num_classes))

    def forward(self, picture: Tensor) -> Tensor:
        return self.head(self.stages(picture).mean(dim=(2, 3)))


class Student(nn.Module):
    """One 3x3 convolution and three separable ones; 7,000 parameters at width 16."""

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            _block(1, width, stride=2),
            _separable(width, 2 * width, stride=2),
            _separable(2 * width, 3 * width, stride=2),
            _separable(3 * width, 4 * width, stride=1),
        )
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, picture: Tensor) -> Tensor:
        return self.head(self.stages(picture).mean(dim=(2, 3)))
