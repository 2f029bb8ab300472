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


class Wide(nn.Module):
    """Takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(image)).amax((2, 3)))


class FixedBatch(nn.Module):
    """Holds the batch size of its first test in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).reshape(2, 3)


class Svd(nn.Module):
    """Uses what ONNX lacks."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x.unsqueeze(1) * x.unsqueeze(2))


class NoOperator(nn.Module):
    """Holds a module that cannot be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Svd()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Branches(nn.Module):
    """Goes one of two ways, depending on the data."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Dict(nn.Module):
    """Returns a dict, as many libraries' networks do."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": x}


class Zeros(nn.Module):
    """Answers zero to everything: a head that is fresh from a zero initialization."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)
