"""Networks for the tests of export, small enough to be captured in a second."""

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Convolutions, a batch normalization, a residual sum and a linear head: what folding and int8 deal with."""

    def __init__(self, width: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, num_classes)
        # statistics that are not 0 and 1: folding has something to get wrong
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.stem(image)))
        return self.head(torch.relu(hidden + self.conv(hidden)).mean((2, 3)))
