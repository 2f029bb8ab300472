"""Preprocessing inside the graph: what a camera gives goes in.

The network is wrapped before it is exported, so the operators that normalize are exported like any other and the
parity proof, whose reference is the preprocessing in Python, covers them.
"""

import torch
from torch import Tensor, nn

from kdexport.sources.preprocessing import Preprocessing


class Baked(nn.Module):
    """A network behind its normalization: uint8 images [batch, height, width, channels] in.

    Args:
        network: Takes float32 [batch, channels, height, width], then any further inputs.
        preprocessing: Of kind ``image``.
        channels: Of the images.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, channels: int) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing
        # (x / 255 - mean) / std as one multiplication and one addition, rounded once, from float64
        mean = torch.tensor(preprocessing.mean or (0.0,) * channels, dtype=torch.float64)
        std = torch.tensor(preprocessing.std or (1.0,) * channels, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std)).float().reshape(1, -1, 1, 1))
        self.register_buffer("offset", (-mean / std).float().reshape(1, -1, 1, 1))

    def forward(self, image: Tensor, *others: Tensor) -> Tensor:
        """Return what the network makes of the images, normalized, and resized where they are not the size it takes."""
        if self.preprocessing.size not in (None, tuple(image.shape[1:3])):
            return self.network(*self.preprocessing.apply((image, *others)))  # type: ignore[no-any-return]
        pixels = image.permute(0, 3, 1, 2).to(torch.float32)
        return self.network(pixels * self.scale + self.offset, *others)  # type: ignore[no-any-return]
