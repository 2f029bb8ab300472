"""Augmentation of whole batches that can be asked for again.

View ``v`` of sample ``i`` is a function of (seed, i, v) alone: it is the same in whatever batch, process or epoch it is
asked for, so that a teacher's answer to it can be kept. torchvision.transforms.v2 draws one set of parameters for a
whole batch from a global generator, which is why the drawing is our own (``draws``): one row of numbers per sample, no
loop over samples.
"""

import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kdexport.data.draws import uniform
from kdexport.data.mixing import MIXES, Mixing
from kdexport.data.samples import Split
from kdexport.errors import RecipeError, did_you_mean
from kdexport.models.preprocessing import tensor_on
from kdexport.references import load_object, parse, place
from kdexport.tasks.masks import VOID

SHIFT = 8  # "shift" moves by up to an eighth of each side: CIFAR's 4 of 32
CROP_AREA = (0.35, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
COLOR_JITTER = 0.4  # brightness, contrast and saturation each within 1 ± this
ROTATION = 15  # degrees, either way
ERASE_SHARE = 0.5  # of the samples
ERASE_AREA = (0.02, 0.2)


class Augmentation:
    """The augmentations of a recipe, applied in the order given; what mixes samples comes last.

    Args:
        names: Of ``AUGMENTATIONS`` and ``MIXES``, or ``file.py:name`` of the user's own: ``f(sample, generator)`` is
            given one sample of the first input and a ``numpy.random.Generator`` of that sample's view, and returns the
            sample changed, in the same shape. One that moves pixels has a third parameter ``is_mask``: it is called
            again, with True and an equal generator, for the mask ``[height, width, 1]``; without it masks stay.
        seed: Of the run.
        split: The training samples: what ``mixup`` and ``cutmix`` draw partners from.
        classes: Of the labels that these two make.

    Raises:
        RecipeError: A name that there isn't.
        SourceError: The same of a function of the user's own.
    """

    def __init__(self, names: Sequence[str], seed: int, split: Split | None = None, classes: int = 0) -> None:
        known = (*AUGMENTATIONS, *MIXES)
        self._own = {name: load_object(parse(name)) for name in names if ":" in name}
        for name in names:
            if name not in known and name not in self._own:
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
        if len(self._own) < len(self.names) and (images.dtype != torch.uint8 or images.ndim != 4):
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

    def masks(self, masks: Tensor, indices: Tensor | NDArray[Any], view: int) -> Tensor:
        """Return the masks of a view: moved as their images, by the nearest pixel, void where nothing is shown.

        Args:
            masks: uint8 ``[batch, height, width]``, unchanged.
            indices: int64 ``[batch]``, which samples of the training split they are.
            view: Which view.

        Raises:
            RecipeError: The augmentations mix samples.
        """
        if self._mixing is not None:
            raise RecipeError(
                f"augment = {list(self.names)} mixes samples, and a mask cannot be mixed",
                hint="take mixup and cutmix out of augment",
            )
        moved = masks[..., None]
        rows = np.asarray(indices).astype(np.uint64)
        for name in self.names:
            if name in AUGMENTATIONS and name not in COLORS:
                function, draws = AUGMENTATIONS[name]
                numbers = tensor_on(uniform(self.seed, name, rows, view, draws), masks.device)
                moved = function(moved, numbers, VOID)
            elif name in self._own and "is_mask" in inspect.signature(self._own[name]).parameters:
                function = functools.partial(self._own[name], is_mask=True)
                moved = _own_view(function, name, moved, [self.seed, view], np.asarray(indices))
        return moved[..., 0]

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
                numbers = tensor_on(uniform(self.seed, name, rows, view, draws), images.device)
                images = function(images, numbers)
            elif name in self._own:
                images = _own_view(self._own[name], name, images, [self.seed, view], indices)
        return images


def _own_view(
    function: Callable[[NDArray[Any], np.random.Generator], Any],
    name: str,
    samples: Tensor,
    key: list[int],
    indices: NDArray[Any],
) -> Tensor:
    """Return samples that a function of the user's own has changed, one by one.

    Raises:
        RecipeError: It raises, or gives something of another shape.
    """
    changed = []
    for sample, index in zip(samples.cpu().numpy(), indices, strict=True):
        stream = int.from_bytes(hashlib.sha256(name.rpartition(":")[2].encode()).digest()[:4], "little")
        try:
            one = np.asarray(function(sample.copy(), np.random.default_rng([*key, int(index), stream])))
        except Exception as error:
            raise RecipeError(
                f"the augmentation {name} raises {type(error).__name__}: {error}{place(error)}",
                hint=f"let it take (sample {list(sample.shape)} {sample.dtype}, generator) and return the sample",
            ) from error
        if one.shape != sample.shape:
            raise RecipeError(
                f"the augmentation {name} makes {list(one.shape)} of {list(sample.shape)}",
                hint="let it return a sample of the shape that it was given",
            )
        changed.append(one.astype(sample.dtype, copy=False))
    return torch.from_numpy(np.stack(changed)).to(samples.device)


def flip(images: Tensor, draws: Tensor, fill: int | None = None) -> Tensor:  # noqa: ARG001 - nothing comes in
    """Mirror half of the samples left to right; ``draws`` is ``[batch, 1]``."""
    return torch.where((draws[:, 0] < 0.5)[:, None, None, None], images.flip(2), images)


def shift(images: Tensor, draws: Tensor, fill: int | None = None) -> Tensor:
    """Move each sample by up to an eighth of its sides, black coming in; ``draws`` is ``[batch, 2]``.

    The pad-and-crop of the CIFAR literature (He 2016): 4 pixels of 32.
    """
    batch, height, width, _ = images.shape
    reach_y, reach_x = max(1, height // SHIFT), max(1, width // SHIFT)
    padded = F.pad(images, (0, 0, reach_x, reach_x, reach_y, reach_y), value=fill or 0)
    top = (draws[:, 0] * (2 * reach_y + 1)).long()
    left = (draws[:, 1] * (2 * reach_x + 1)).long()
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    samples = torch.arange(batch, device=images.device)
    return padded[samples[:, None, None], rows[:, :, None], columns[:, None, :]]


def crop(images: Tensor, draws: Tensor, fill: int | None = None) -> Tensor:
    """Cut out a random part and stretch it to the whole (Szegedy 2015); ``draws`` is ``[batch, 4]``."""
    area = CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * draws[:, 0]
    aspect = torch.exp(math.log(CROP_ASPECT[0]) + math.log(CROP_ASPECT[1] / CROP_ASPECT[0]) * draws[:, 1])
    scale_x, scale_y = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    centre_x, centre_y = (1 - scale_x) * (2 * draws[:, 2] - 1), (1 - scale_y) * (2 * draws[:, 3] - 1)
    zero = torch.zeros_like(area)
    affine = torch.stack([scale_x, zero, centre_x, zero, scale_y, centre_y], dim=1).view(-1, 2, 3)
    return _moved(images, affine, "bilinear" if fill is None else "nearest")


def rotate(images: Tensor, draws: Tensor, fill: int | None = None) -> Tensor:
    """Turn each sample by up to 15 degrees about its middle, black coming in; ``draws`` is ``[batch, 1]``."""
    _, height, width, _ = images.shape
    angle = math.radians(ROTATION) * (2 * draws[:, 0] - 1)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    affine = torch.stack([cos, -sin * height / width, zero, sin * width / height, cos, zero], dim=1).view(-1, 2, 3)
    if fill is None:
        return _moved(images, affine, "bilinear", "zeros")
    # What comes in is 0 in grid_sample: classes are counted from 1 meanwhile.
    moved = _moved_floats(images.float() + 1, affine, "nearest", "zeros")
    return torch.where(moved < 0.5, float(fill), moved - 1).to(torch.uint8)


def color(images: Tensor, draws: Tensor, fill: int | None = None) -> Tensor:  # noqa: ARG001 - nothing moves
    """Change brightness, contrast and saturation; ``draws`` is ``[batch, 3]``. Grey images have no saturation to
    change.
    """
    factors = 1 - COLOR_JITTER + 2 * COLOR_JITTER * draws
    brightness, contrast, saturation = factors.T[:, :, None, None, None].unbind(0)
    pixels = images.float() * brightness
    pixels = _towards(pixels, _grey(pixels).mean(dim=(1, 2), keepdim=True), contrast)
    if images.shape[3] == 3:
        pixels = _towards(pixels, _grey(pixels), saturation)
    return _bytes(pixels)


def erase(images: Tensor, draws: Tensor, fill: int | None = None) -> Tensor:
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
    return images.masked_fill(gone[..., None], fill or 0)


def _towards(pixels: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (other + (pixels - other) * factor).clamp(0, 255)


def _grey(pixels: Tensor) -> Tensor:
    if pixels.shape[3] != 3:
        return pixels.mean(dim=3, keepdim=True)
    return (pixels * pixels.new_tensor([0.299, 0.587, 0.114])).sum(dim=3, keepdim=True)  # ITU-R BT.601


def _moved(
    images: Tensor, affine: Tensor, mode: Literal["bilinear", "nearest"], padding: Literal["border", "zeros"] = "border"
) -> Tensor:
    """Return uint8 images ``[batch, height, width, channels]`` as an affine map ``[batch, 2, 3]`` moves them."""
    return _bytes(_moved_floats(images.float(), affine, mode, padding))


def _moved_floats(
    images: Tensor, affine: Tensor, mode: Literal["bilinear", "nearest"], padding: Literal["border", "zeros"]
) -> Tensor:
    pixels = images.permute(0, 3, 1, 2)
    grid = F.affine_grid(affine, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode=mode, padding_mode=padding, align_corners=False).permute(0, 2, 3, 1)


def _bytes(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


# name -> function of (images, draws), and how many draws a sample it takes. With a third argument it moves masks: by
# the nearest pixel, with that value where nothing is shown.
AUGMENTATIONS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "shift": (shift, 2),
    "flip": (flip, 1),
    "crop": (crop, 4),
    "rotate": (rotate, 1),
    "color": (color, 3),
    "erase": (erase, 5),
}


COLORS = ("color",)  # those that move nothing
