"""What a network needs done to a sample before it can see it; the value travels with the network into its ONNX file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kdexport.errors import SourceError
from kdexport.recipe import PreprocessingSpec

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # torchvision and timm, for pixels scaled to 0..1
IMAGENET_STD = (0.229, 0.224, 0.225)

Kind = Literal["image", "tokens", "none"]
Resize = Literal["squash", "crop"]


@dataclass(frozen=True)
class Preprocessing:
    """How raw inputs become a network's inputs.

    ``image``: uint8 NHWC in, float32 NCHW out: resized to ``size`` where it isn't that already, scaled to 0..1,
    then ``(x - mean) / std`` per channel. ``squash`` ignores the aspect ratio; ``crop`` resizes the short side to
    ``size / crop_share`` and takes the middle. ``tokens``: ids and mask made by ``tokenizer``, cut at ``length`` and at
    the longest of the batch. ``none``: fed as it is.
    """

    kind: Kind = "none"
    size: tuple[int, int] | None = None  # height, width; None: as the data comes
    resize: Resize = "squash"
    crop_share: float = 1.0  # ImageNet's evaluation takes 224 of 256: 0.875
    mean: tuple[float, ...] = ()  # of pixels scaled to 0..1; empty: 0
    std: tuple[float, ...] = ()  # empty: 1
    tokenizer: str | None = None
    length: int | None = None  # tokens
    contiguous: bool = False  # images channels first in memory too: ``networks.needs_channels_first``

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; None, empty and false ones left out."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in values.items() if value not in (None, [], False)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Build one from JSON values.

        Raises:
            SourceError: A key that no ``Preprocessing`` has: the file comes from a newer kdexport.
        """
        values: dict[str, Any] = {}
        for key, value in document.items():
            values[key] = tuple(value) if isinstance(value, list) else value
        try:
            return cls(**values)
        except TypeError as error:
            raise SourceError(
                f"the model's preprocessing cannot be read: {error}", hint="export the model again with this kdexport"
            ) from None

    def apply(self, inputs: Sequence[NDArray[Any] | Tensor]) -> tuple[Tensor, ...]:
        """Turn raw inputs into a network's inputs; it can be traced, so that an ONNX file can hold it.

        Args:
            inputs: One array or tensor per network input, first axis the batch; an image comes first, uint8 NHWC.

        Returns:
            One tensor per network input, on the device of what came in; an image as float32 NCHW, its memory in the
            order in which it was stored (channels last: convolutions are faster so) unless ``contiguous``.
        """
        tensors = tuple(as_tensor(item) for item in inputs)
        if self.kind == "tokens":
            return _trimmed(tensors)
        if self.kind != "image":
            return tensors
        return (self._image(tensors[0]), *tensors[1:])

    def _image(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2)
        pixels = (pixels.contiguous() if self.contiguous else pixels).to(torch.float32)
        if self.size is not None and tuple(pixels.shape[2:]) != self.size:
            pixels = self._resized(pixels, self.size)
        # (x / 255 - mean) / std as one product and one sum: the ONNX file that holds it runs two operators, not three.
        channels = pixels.shape[1]
        std = self.std or (1.0,) * channels
        mean = self.mean or (0.0,) * channels
        scale = pixels.new_tensor([1 / (255 * deviation) for deviation in std]).view(1, -1, 1, 1)
        offset = pixels.new_tensor([-centre / deviation for centre, deviation in zip(mean, std, strict=True)])
        return pixels * scale + offset.view(1, -1, 1, 1)

    def _resized(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        height, width = pixels.shape[2:]
        if self.resize == "squash":
            # Antialiased only where it shrinks: that is where aliasing is, and ONNX's Resize agrees with the rest.
            shrinks = size[0] < height or size[1] < width
            return F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=shrinks)
        target = tuple(round(side / self.crop_share) for side in size)
        scale = max(target[0] / height, target[1] / width)
        # Rounded as torchvision's Resize and CenterCrop round, or a network would see its pictures half a pixel off.
        whole = (max(size[0], int(height * scale + 1e-6)), max(size[1], int(width * scale + 1e-6)))
        if whole != (height, width):
            pixels = F.interpolate(pixels, whole, mode="bilinear", align_corners=False, antialias=scale < 1)
        top, left = round((whole[0] - size[0]) / 2), round((whole[1] - size[1]) / 2)
        return pixels[:, :, top : top + size[0], left : left + size[1]]


def with_spec(preprocessing: Preprocessing, spec: PreprocessingSpec) -> Preprocessing:
    """Return ``preprocessing`` with what the recipe says put in its place.

    Raises:
        SourceError: The recipe speaks of pixels and the inputs are no images, or what it says would do nothing.
    """
    said = {key: value for key, value in spec.model_dump().items() if value is not None}
    if said and preprocessing.kind != "image":
        raise SourceError(
            f"the recipe gives {', '.join(sorted(said))} as preprocessing, but the data are no uint8 images",
            hint="take the preprocessing table out, or give the images as uint8 (height, width, channels)",
        )
    whole = Preprocessing(**{**asdict(preprocessing), **said})
    idle = ["resize", "crop_share"] if whole.size is None else ["crop_share"] if whole.resize != "crop" else []
    if idle := [key for key in idle if key in said]:
        raise SourceError(
            f"the recipe's {' and '.join(idle)} would do nothing without {'size' if whole.size is None else 'a crop'}",
            hint='give the preprocessing a size too, e.g. size = [224, 224], and resize = "crop" for a crop_share',
        )
    return whole


def of_images(images: NDArray[Any], sample: int = 2000) -> Preprocessing:
    """Return the preprocessing that centres and scales these images, from at most ``sample`` of them.

    Args:
        images: uint8 NHWC.
        sample: How many images, evenly spaced, the statistics are taken from.
    """
    chosen = np.linspace(0, len(images) - 1, min(sample, len(images))).astype(np.int64)
    sums = np.zeros((2, images.shape[3]))
    for start in range(0, len(chosen), 32):  # large pictures don't fit in memory all at once
        pixels = images[chosen[start : start + 32]].reshape(-1, images.shape[3]) / 255.0
        sums += [pixels.sum(axis=0), (pixels**2).sum(axis=0)]
    mean, square = sums / (len(chosen) * images.shape[1] * images.shape[2])
    std = np.sqrt(np.maximum(square - mean**2, 0))
    std = np.where(std < 1e-3, 1.0, std)  # a channel that never changes is left as it is, not blown up
    return Preprocessing("image", mean=_rounded(mean), std=_rounded(std))


def _rounded(values: NDArray[Any]) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)


def _trimmed(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Cut a batch of text at its longest sample: half of the work on short texts; the mask makes it the same to the
    model.
    """
    if len(tensors) < 2 or tensors[1].ndim != 2:
        return tensors
    used = tensors[1].any(dim=0).nonzero()
    length = int(used.max()) + 1 if len(used) else 1
    return tuple(tensor[:, :length] if tensor.ndim == 2 else tensor for tensor in tensors)


def as_tensor(item: NDArray[Any] | Tensor) -> Tensor:
    """Return an array as a tensor over the same memory, or over a copy where that may not be written to."""
    if isinstance(item, Tensor):
        return item
    # A memory-mapped file is read-only, and a tensor over it would warn; a batch of it is small.
    return torch.from_numpy(np.ascontiguousarray(item) if item.flags.writeable else np.array(item))
