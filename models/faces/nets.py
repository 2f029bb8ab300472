"""Networks of the faces pair: inputs [batch, 3, height, width], outputs embeddings [batch, embedding_dim]."""

from torch import Tensor, nn
from torch.nn import functional as F


def _convolution(channels_in: int, channels_out: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    padding = size // 2
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, size, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
    )


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He 2016)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(channels_in, channels_out, 3, stride)
        self.second = _convolution(channels_out, channels_out, 3)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else _convolution(channels_in, channels_out, 1, stride)

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(maps))) + self.shortcut(maps))


class Separable(nn.Module):
    """A 3x3 convolution within each channel, then a 1x1 one over them (MobileNet, Howard 2017)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.depthwise = _convolution(channels_in, channels_in, 3, stride, groups=channels_in)
        self.pointwise = _convolution(channels_in, channels_out, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.pointwise(F.relu(self.depthwise(maps))))


class Embedder(nn.Module):
    """A stem, blocks of which each halves the resolution, and a linear layer on what is left, place by place averaged
    over a 2x2 grid: where in a face something is matters.
    """

    def __init__(self, block: type[nn.Module], width: int, depth: int, embedding_dim: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, width, 3, stride=2), nn.ReLU())
        blocks: list[nn.Module] = []
        for stage in range(3):
            channels = width * 2**stage
            blocks += [block(channels if stage == 0 else channels // 2, channels, 1 if stage == 0 else 2)]
            blocks += [block(channels, channels, 1) for _ in range(depth - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.embedding = nn.Linear(4 * width * 4, embedding_dim)

    def forward(self, image: Tensor) -> Tensor:
        maps = F.adaptive_avg_pool2d(self.blocks(self.stem(image)), (2, 2))
        return self.embedding(maps.flatten(1))


class Teacher(Embedder):
    """A ResNet of three stages, two residual blocks each."""

    def __init__(self, width: int = 24, depth: int = 2, embedding_dim: int = 64) -> None:
        super().__init__(Residual, width, depth, embedding_dim)


class Student(Embedder):
    """A MobileNet of three stages, one separable convolution each."""

    def __init__(self, width: int = 12, depth: int = 1, embedding_dim: int = 64) -> None:
        super().__init__(Separable, width, depth, embedding_dim)
