"""What mixes samples: mixup and CutMix, again a function of seed, sample and view alone."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdexport.data.draws import uniform
from kdexport.data.samples import Split
from kdexport.errors import RecipeError

MIXES = ("mixup", "cutmix")
_DRAWS = 5  # partner, which of both, share, top, left


class Mixing:
    """Mixup (Zhang 2018, equation 1) and CutMix (Yun 2019, equations 1 and 2), both with Beta(1, 1), their CIFAR
    setting.

    With both, each sample gets one or the other with even chances.

    Args:
        names: Of ``MIXES``.
        seed: Of the run.
        split: The training samples, uint8 images in their first input.
        classes: How wide the labels are.
    """

    def __init__(self, names: tuple[str, ...], seed: int, split: Split, classes: int) -> None:
        self.names, self._seed, self._split, self._classes = names, seed, split, classes

    def partners(self, indices: NDArray[Any], view: int) -> NDArray[np.int64]:
        """Return which sample each one is mixed with, int64 ``[batch]``."""
        share = self._draws(indices, view)[:, 0].astype(np.float64)
        return np.minimum((share * len(self._split)).astype(np.int64), len(self._split) - 1)

    def raw_partners(self, indices: NDArray[Any], view: int) -> Tensor:
        """Return the partners' pictures as they are stored."""
        return torch.from_numpy(np.array(self._split.take(self.partners(indices, view)).inputs[0]))

    def mix(self, images: Tensor, others: Tensor, indices: NDArray[Any], view: int) -> Tensor:
        """Return the pictures mixed with their partners.

        Args:
            images: uint8 ``[batch, height, width, channels]``.
            others: The partners, alike.
            indices: int64 ``[batch]``.
            view: Which view.
        """
        height, width = images.shape[1:3]
        keeps = torch.from_numpy(self._keep(indices, view, height, width)).to(images.device)[..., None]
        mixed = images.float() * keeps + others.float() * (1 - keeps)
        return mixed.round().clamp(0, 255).to(torch.uint8)

    def labels(self, indices: NDArray[Any], view: int) -> NDArray[np.float32]:
        """Return what the mixed pictures show, float32 ``[batch, classes]``: each label by its share of the picture.

        Raises:
            RecipeError: The samples have several labels each, or none.
        """
        given = self._split.labels
        if given is None or given.ndim != 1 or bool((given < 0).any()):
            raise RecipeError(
                f"augment = {list(self.names)} mixes labels, and these samples don't have one each",
                hint="take mixup and cutmix out of augment",
            )
        height, width = self._split.inputs[0].shape[1:3]
        shares = self._keep(indices, view, height, width).mean(axis=(1, 2))
        soft = np.zeros((len(indices), self._classes), dtype=np.float32)
        rows = np.arange(len(indices))
        np.add.at(soft, (rows, given[np.asarray(indices)]), shares)
        np.add.at(soft, (rows, given[self.partners(indices, view)]), 1 - shares)
        return soft

    def _keep(self, indices: NDArray[Any], view: int, height: int, width: int) -> NDArray[np.float32]:
        """Return how much of each pixel is the sample's own, ``[batch, height, width]``; broadcast where it is even."""
        _, choice, share, top, left = self._draws(indices, view).T
        even = np.broadcast_to(share[:, None, None], (len(share), height, width)).copy()
        # A box of area 1 - share around a uniform centre, cut at the border; labels go by the pixels that are left of
        # it.
        tall, wide = height * np.sqrt(1 - share), width * np.sqrt(1 - share)
        inside_y = np.abs(np.arange(height) + 0.5 - (top * height)[:, None]) < (tall / 2)[:, None]
        inside_x = np.abs(np.arange(width) + 0.5 - (left * width)[:, None]) < (wide / 2)[:, None]
        cut = 1 - (inside_y[:, :, None] & inside_x[:, None, :]).astype(np.float32)
        if self.names == ("mixup",):
            return even
        return cut if self.names == ("cutmix",) else np.where((choice < 0.5)[:, None, None], even, cut)

    def _draws(self, indices: NDArray[Any], view: int) -> NDArray[np.float32]:
        return uniform(self._seed, "mix", np.asarray(indices, dtype=np.uint64), view, _DRAWS)
