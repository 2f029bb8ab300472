"""Augmentation of whole batches that can be asked for again.

View ``v`` of sample ``i`` is a function of (seed, i, v) alone: it is the same in whatever batch, process or epoch it is
asked for, so that a teacher's answer to it can be kept. torchvision.transforms.v2 draws one set of parameters for a
whole batch from a global generator, which is why the drawing here is its own: a counter-based hash, one row of numbers
per sample, no loop over samples.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kdexport.errors import RecipeError, did_you_mean
from kdexport.sources.draws import uniform
from kdexport.sources.mixing import MIXES, Mixing
from kdexport.sources.samples import Split

SHIFT = 8  # "shift" moves by up to an eighth of each side: CIFAR's 4 of 32
CROP_AREA = (0.35, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
COLOUR = 0.4  # brightness, contrast and saturation each within 1 ± this
ERASE_SHARE = 0.5  # of the samples
ERASE_AREA = (0.02, 0.2)


class Augmentation:
    """The augmentations of a recipe, applied in the order given; what mixes samples comes last.

    Args:
        names: Of ``AUGMENTATIONS`` and ``MIXES``.
        seed: Of the run.
        split: The training samples: what ``mixup`` and ``cutmix`` draw partners from.
        classes: Of the labels that these two make.

    Raises:
        RecipeError: A name that there isn't.
    """

    def __init__(self, names: Sequence[str], seed: int, split: Split | None = None, classes: int = 0) -> None:
        known = (*AUGMENTATIONS, *MIXES)
        for name in names:
            if name not in known:
                near = did_you_mean(name, known) or f"there are: {', '.join(known)}"
                raise RecipeError(f"no augmentation is called '{name}'", hint=near.strip())
        self.names = tuple(names)
        self.seed = seed
        mixes = tuple(name for name in MIXES if name in names)
        if mixes and split is None:
            raise RecipeError(
                f"augment = {list(names)} mixes samples, and here are none to mix with",
                hint="take mixup and cutmix out",
            )
        self._mixing = Mixing(mixes, seed, split, classes) if mixes and split is not None else None

    def __bool__(self) -> bool:
        return bool(self.names)

    @property
    def mixes(self) -> bool:
        """Whether a view shows several samples, so that its label is ``labels``'s and not the sample's own."""
        return self._mixing is not None

    def __call__(self, images: Tensor, indices: Tensor | NDArray[Any], view: int) -> Tensor:
        """Return one view of some samples.

        Args:
            images: uint8 ``[batch, height, width, channels]``, unchanged.
            indices: int64 ``[batch]``, which samples of the training split they are.
            view: Which view.

        Returns:
            A tensor like ``images``.

        Raises:
            RecipeError: The inputs are no images.
        """
        if self.names and (images.dtype != torch.uint8 or images.ndim != 4):
            raise RecipeError(
                f"augment = {list(self.names)} works on uint8 images; the inputs are {images.dtype}",
                hint="set distill.augment = [], or give the images as uint8 (height, width, channels)",
            )
        places = np.asarray(indices)
        augmented = self._each(images, places, view)
        if self._mixing is None:
            return augmented
        partners = self._mixing.partners(places, view)
        others = self._each(self._mixing.raw_partners(places, view).to(images.device), partners, view)
        return self._mixing.mix(augmented, others, places, view)

    def labels(self, indices: Tensor | NDArray[Any], view: int) -> NDArray[np.float32]:
        """Return the soft labels of a view that mixes samples, float32 ``[batch, classes]``, each row summing to 1.

        Raises:
            RecipeError: Nothing mixes here, or the samples don't have one label each.
        """
        if self._mixing is None:
            raise RecipeError("these augmentations mix no samples", hint="use the samples' own labels")
        return self._mixing.labels(np.asarray(indices), view)

    def _each(self, images: Tensor, indices: NDArray[Any], view: int) -> Tensor:
        rows = indices.astype(np.uint64)
        for name in self.names:
            if name in AUGMENTATIONS:
                function, draws = AUGMENTATIONS[name]
                numbers = torch.from_numpy(uniform(self.seed, name, rows, view, draws))
                images = function(images, numbers.to(images.device))
        return images


def flip(images: Tensor, draws: Tensor) -> Tensor:
    """Mirror half of the samples left to right; ``draws`` is ``[batch, 1]``."""
    return torch.where((draws[:, 0] < 0.5)[:, None, None, None], images.flip(2), images)


def shift(images: Tensor, draws: Tensor) -> Tensor:
    """Move each sample by up to an eighth of its sides, black coming in; ``draws`` is ``[batch, 2]``.

    The pad-and-crop of the CIFAR literature (He 2016): 4 pixels of 32.
    """
    batch, height, width, _ = images.shape
    reach_y, reach_x = max(1, height // SHIFT), max(1, width // SHIFT)
    padded = F.pad(images, (0, 0, reach_x, reach_x, reach_y, reach_y))
    top = (draws[:, 0] * (2 * reach_y + 1)).long()
    left = (draws[:, 1] * (2 * reach_x + 1)).long()
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    samples = torch.arange(batch, device=images.device)
    return padded[samples[:, None, None], rows[:, :, None], columns[:, None, :]]


def crop(images: Tensor, draws: Tensor) -> Tensor:
    """Cut out a random part and stretch it to the whole (Szegedy 2015); ``draws`` is ``[batch, 4]``."""
    area = CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * draws[:, 0]
    aspect = torch.exp(math.log(CROP_ASPECT[0]) + math.log(CROP_ASPECT[1] / CROP_ASPECT[0]) * draws[:, 1])
    scale_x, scale_y = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    centre_x, centre_y = (1 - scale_x) * (2 * draws[:, 2] - 1), (1 - scale_y) * (2 * draws[:, 3] - 1)
    zero = torch.zeros_like(area)
    affine = torch.stack([scale_x, zero, centre_x, zero, scale_y, centre_y], dim=1).view(-1, 2, 3)
    pixels = images.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(affine, list(pixels.shape), align_corners=False)
    return _bytes(F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)).permute(0, 2, 3, 1)


def colour(images: Tensor, draws: Tensor) -> Tensor:
    """Change brightness, contrast and saturation; ``draws`` is ``[batch, 3]``. Grey images have no saturation to
    change.
    """
    brightness, contrast, saturation = ((1 - COLOUR + 2 * COLOUR * draws).T[:, :, None, None, None]).unbind(0)
    pixels = images.float() * brightness
    pixels = _towards(pixels, _grey(pixels).mean(dim=(1, 2), keepdim=True), contrast)
    if images.shape[3] == 3:
        pixels = _towards(pixels, _grey(pixels), saturation)
    return _bytes(pixels)


def erase(images: Tensor, draws: Tensor) -> Tensor:
    """Black out a rectangle in half of the samples (Zhong 2020); ``draws`` is ``[batch, 5]``."""
    _, height, width, _ = images.shape
    area = ERASE_AREA[0] + (ERASE_AREA[1] - ERASE_AREA[0]) * draws[:, 1]
    aspect = torch.exp(math.log(0.3) * (2 * draws[:, 2] - 1))  # 0.3 to 1/0.3
    tall, wide = (area * aspect).sqrt().clamp(max=1) * height, (area / aspect).sqrt().clamp(max=1) * width
    top, left = draws[:, 3] * (height - tall), draws[:, 4] * (width - wide)
    y = torch.arange(height, device=images.device) + 0.5
    x = torch.arange(width, device=images.device) + 0.5
    inside_y = (y >= top[:, None]) & (y < (top + tall)[:, None])
    inside_x = (x >= left[:, None]) & (x < (left + wide)[:, None])
    gone = inside_y[:, :, None] & inside_x[:, None, :] & (draws[:, 0] < ERASE_SHARE)[:, None, None]
    return images.masked_fill(gone[..., None], 0)


def _towards(pixels: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (other + (pixels - other) * factor).clamp(0, 255)


def _grey(pixels: Tensor) -> Tensor:
    if pixels.shape[3] != 3:
        return pixels.mean(dim=3, keepdim=True)
    return (pixels * pixels.new_tensor([0.299, 0.587, 0.114])).sum(dim=3, keepdim=True)  # ITU-R BT.601


def _bytes(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


# name -> function of (images, draws), and how many draws a sample it takes
AUGMENTATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "shift": (shift, 2),
    "flip": (flip, 1),
    "crop": (crop, 4),
    "colour": (colour, 3),
    "erase": (erase, 5),
}
