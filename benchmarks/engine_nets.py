"""The networks of the engine_* benchmarks, by reference: what a recipe names and what the other side builds.

The residual pair is the reference pair's own file; the fully connected one is Hinton et al. 2015's for MNIST
(two hidden layers of 1,200 teach one of 800).
"""

from itertools import pairwise
from pathlib import Path

from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
MLP = f"{HERE / 'engine_nets.py'}:mlp"
RESNET = f"{HERE.parent / 'models' / 'cifar100_resnet56_resnet20' / 'nets.py'}:resnet"  # args: depth
SMALL_RESNET = f"{HERE / 'methods_nets.py'}:ResNet"  # args: width, blocks; for trainings that only accuracy is asked of


def mlp(hidden: tuple[int, ...] = (1200, 1200), inputs: int = 784, num_classes: int = 10) -> nn.Module:
    """Return a fully connected network with ReLU between its layers: inputs [batch, 1, 28, 28]."""
    return FullyConnected([inputs, *hidden], num_classes)


class FullyConnected(nn.Module):
    def __init__(self, widths: list[int], num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)
