"""Networks of the digits pair: inputs [batch, 1, 8, 8], outputs [batch, classes]."""

from torch import Tensor, nn


def _block(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class Teacher(nn.Module):
    """Four 3x3 convolutions at two resolutions; 261,000 parameters at width 64."""

    def __init__(self, width: int = 64, num_classes: int = 10) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            nn.Sequential(_block(1, width), _block(width, width)),
            nn.Sequential(_block(width, 2 * width, stride=2), _block(2 * width, 2 * width)),
        )
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.stages(image).mean(dim=(2, 3)))


class Student(nn.Module):
    """Three 3x3 convolutions, each but the first at stride 2; 11,000 parameters at width 16."""

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            _block(1, width),
            _block(width, width * 3 // 2, stride=2),
            _block(width * 3 // 2, 2 * width, stride=2),
        )
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.stages(image).mean(dim=(2, 3)))
