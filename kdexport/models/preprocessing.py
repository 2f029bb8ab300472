"""What a network needs done to a sample before it can see it; the value travels with the network into its ONNX file.

numpy alone is imported, so that a process without PyTorch can read and apply it: ``apply_numpy``. ``apply`` does the
same with tensors, and can be traced.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdexport.errors import SourceError
from kdexport.recipe import PreprocessingSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Kind = Literal["image", "features", "tokens", "none"]
Resize = Literal["squash", "crop"]
Resample = Literal["bilinear", "bicubic"]
T = TypeVar("T")
TEXT_INPUTS = 2  # ids and attention mask


AS_THEY_ARE = (
    "the file says nothing of its inputs, so the table's numbers are fed as they are; data.standardize = true feeds "
    "them standardized"
)


@dataclass(frozen=True)
class Preprocessing:
    """How raw inputs become a network's inputs.

    ``image``: uint8 NHWC in, float32 NCHW out: resized to ``size`` where it isn't that already, scaled to 0..1,
    then ``(x - mean) / std`` per channel. ``squash`` ignores the aspect ratio; ``crop`` resizes the short side to
    ``size / crop_share`` and takes the middle; both average over what they shrink, as Pillow does. ``features``:
    numbers ``[batch, features]`` in, float32 out, ``(x - mean) / std`` for each. ``tokens``: ids and mask made by
    ``tokenizer``, cut at ``length`` and at the longest of the batch; of several tokenizers' side by side its own are
    taken. ``none``: fed as it is.
    """

    kind: Kind = "none"
    size: tuple[int, int] | None = None  # height, width; None: as the data comes
    resize: Resize = "squash"
    crop_share: float = 1.0  # ImageNet's evaluation takes 224 of 256: 0.875
    mean: tuple[float, ...] = ()  # of pixels scaled to 0..1, or of features; empty: 0
    std: tuple[float, ...] = ()  # empty: 1
    tokenizer: str | None = None
    length: int | None = None  # tokens
    tokenizer_file: str | None = None  # beside the ONNX file: makes its ids of a text, cut and padded
    first_input: int = 0  # where ids of several tokenizers lie side by side, the place of its own
    resample: Resample = "bilinear"
    assumed: bool = False  # nobody asked for it: a file that says nothing of its inputs takes them as they are
    contiguous: bool = False  # images channels first in memory too: ``networks.needs_channels_first``

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; None, empty and false ones and the usual resampling left out."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if self.resample == "bilinear":
            del values["resample"]
        del values["assumed"]  # of a file that is written it is known
        return {key: value for key, value in values.items() if value not in (None, [], False)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Build one from JSON values.

        Raises:
            SourceError: A key that no ``Preprocessing`` has: the file comes from a newer kdexport.
        """
        hint = "export the model again with this kdexport"
        try:
            values: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
            }
            made = cls(**values)
        except (TypeError, AttributeError) as error:
            raise SourceError(f"the model's preprocessing cannot be read: {error}", hint=hint) from None
        if fault := made.fault():
            raise SourceError(f"the model's preprocessing cannot be used: {fault}", hint=hint)
        return made

    def fault(self) -> str | None:
        """Return what is wrong with the values, or None."""
        choices = {"kind": (self.kind, Kind), "resize": (self.resize, Resize), "resample": (self.resample, Resample)}
        for name, (value, allowed) in choices.items():
            if value not in allowed.__args__:  # type: ignore[attr-defined]
                return f"{name} is {value!r}"
        if not isinstance(self.first_input, int) or self.first_input < 0:
            return f"first_input is {self.first_input!r}, not a whole number from 0 on"
        size = self.size
        if size is not None and (not isinstance(size, tuple) or len(size) != 2 or not all(map(_is_side, size))):
            return f"size is {size!r}, not two whole numbers above 0"
        if not isinstance(self.crop_share, int | float) or not 0 < self.crop_share <= 1:
            return f"crop_share is {self.crop_share!r}, not above 0 and at most 1"
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if not isinstance(numbers, tuple) or not all(_is_finite(number) for number in numbers):
                return f"{name} is {numbers!r}, not finite numbers"
        if any(number <= 0 for number in self.std):
            return f"std is {list(self.std)}, not above 0"
        if self.mean and self.std and len(self.mean) != len(self.std):
            return f"mean has {len(self.mean)} values and std has {len(self.std)}"
        return None

    def apply(self, inputs: "Sequence[NDArray[Any] | Tensor]") -> "tuple[Tensor, ...]":
        """Turn raw inputs into a network's inputs; it can be traced, so that an ONNX file can hold it.

        Args:
            inputs: One array or tensor per network input, first axis the batch; an image comes first, uint8 NHWC.

        Returns:
            One tensor per network input, on the device of what came in; an image as float32 NCHW, its memory in the
            order in which it was stored (channels last: convolutions are faster so) unless ``contiguous``.

        Raises:
            SourceError: Mean or std have another length than the images have channels.
        """
        tensors = tuple(as_tensor(item) for item in self.own(inputs))
        if self.kind == "tokens":
            return _trimmed(tensors)
        if self.kind == "features":
            return (self._features(tensors[0]), *tensors[1:])
        if self.kind != "image":
            return tensors
        return (self._image(tensors[0]), *tensors[1:])

    def own(self, inputs: "Sequence[T]") -> "tuple[T, ...]":
        """Return those of the raw inputs that this network is fed: of several tokenizers' ids and masks its own."""
        if self.kind != "tokens" or len(inputs) <= TEXT_INPUTS:
            return tuple(inputs)
        return tuple(inputs[self.first_input : self.first_input + TEXT_INPUTS])

    @property
    def fits_in_graph(self) -> bool:
        """Whether an ONNX file can do it itself, so that raw samples go in."""
        return self.kind in ("image", "features")

    def apply_numpy(self, inputs: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        """Return what ``apply`` gives, to float32's rounding, without PyTorch."""
        inputs = self.own(inputs)
        if self.kind == "tokens" and len(inputs) > 1 and inputs[1].ndim == 2:
            used = np.flatnonzero(inputs[1].any(axis=0))
            length = int(used[-1]) + 1 if len(used) else 1
            return tuple(array[:, :length] if array.ndim == 2 else array for array in inputs)
        if self.kind == "features":
            scale, offset = self.feature_scale_and_offset()
            return (inputs[0].astype(np.float32) * scale + offset, *inputs[1:])
        if self.kind != "image":
            return tuple(inputs)
        pixels = inputs[0].transpose(0, 3, 1, 2).astype(np.float32)
        if self.size is not None and pixels.shape[2:] != self.size:
            whole, top, left = self.resizing((pixels.shape[2], pixels.shape[3]))
            if whole != pixels.shape[2:]:
                rows, columns = (
                    resampling(there, wanted, self.resample)
                    for there, wanted in zip(pixels.shape[2:], whole, strict=True)
                )
                pixels = rows @ (pixels @ columns.T)
            pixels = pixels[:, :, top : top + self.size[0], left : left + self.size[1]]
        scale, offset = self.scale_and_offset(pixels.shape[1])
        return (pixels * scale.reshape(1, -1, 1, 1) + offset.reshape(1, -1, 1, 1), *inputs[1:])

    def scale_and_offset(self, channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return ``(x / 255 - mean) / std`` as one product and one sum, a number per channel, rounded once.

        Raises:
            SourceError: Mean or std have another length than there are channels.
        """
        mean, std = self.mean or (0.0,) * channels, self.std or (1.0,) * channels
        for name, numbers in (("mean", mean), ("std", std)):
            if len(numbers) != channels:
                raise SourceError(
                    f"the preprocessing's {name} has {len(numbers)} values, and the images have {channels} channels",
                    hint=f"give mean and std as {channels} numbers, one for each channel, or other images",
                )
        deviations = np.array(std, dtype=np.float64)
        return (1 / (255 * deviations)).astype(np.float32), (-np.array(mean) / deviations).astype(np.float32)

    def feature_scale_and_offset(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return ``(x - mean) / std`` as one product and one sum, a number per feature, rounded once."""
        mean, std = np.array(self.mean, dtype=np.float64), np.array(self.std, dtype=np.float64)
        return (1 / std).astype(np.float32), (-mean / std).astype(np.float32)

    def resizing(self, given: tuple[int, int]) -> tuple[tuple[int, int], int, int]:
        """Return the size that images of a size are scaled to, and where top and left of what is kept of it lie."""
        size = self.size or given
        if self.resize == "squash":
            return size, 0, 0
        scale = max(round(side / self.crop_share) / there for side, there in zip(size, given, strict=True))
        # Rounded as torchvision's Resize and CenterCrop round, or a network would see its pictures half a pixel off.
        whole = (max(size[0], int(given[0] * scale + 1e-6)), max(size[1], int(given[1] * scale + 1e-6)))
        return whole, round((whole[0] - size[0]) / 2), round((whole[1] - size[1]) / 2)

    def _features(self, numbers: "Tensor") -> "Tensor":
        import torch

        scale, offset = (tensor_on(array, numbers.device) for array in self.feature_scale_and_offset())
        return numbers.to(torch.float32) * scale + offset

    def _image(self, images: "Tensor") -> "Tensor":
        import torch
        from torch.nn import functional as F

        pixels = images.permute(0, 3, 1, 2)
        pixels = (pixels.contiguous() if self.contiguous else pixels).to(torch.float32)
        there = (int(pixels.shape[2]), int(pixels.shape[3]))
        if self.size is not None and there != self.size:
            whole, top, left = self.resizing(there)
            if whole != there:
                # Antialiased only where it shrinks: that is where aliasing is, and ONNX's Resize agrees with the rest.
                # torch's bicubic is Pillow's (a = -0.5) only where it antialiases, so there it always does.
                shrinks = whole[0] < there[0] or whole[1] < there[1]
                antialias = shrinks or self.resample == "bicubic"
                pixels = F.interpolate(pixels, whole, mode=self.resample, align_corners=False, antialias=antialias)
            pixels = pixels[:, :, top : top + self.size[0], left : left + self.size[1]]
        scale, offset = (tensor_on(array, pixels.device) for array in self.scale_and_offset(pixels.shape[1]))
        return pixels * scale.view(1, -1, 1, 1) + offset.view(1, -1, 1, 1)


def resampling(there: int, wanted: int, kind: Resample) -> NDArray[np.float32]:
    """Return the matrix ``[wanted, there]`` that resamples a line of pixels as Pillow does, averaging where it shrinks.

    Bicubic is Keys' kernel with a = -0.5 (Keys 1981), Pillow's and torch's where it antialiases.
    """
    scale = there / wanted
    centres = (np.arange(wanted) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(there) - centres[:, None]) / max(scale, 1.0)
    if kind == "bilinear":
        weights = np.maximum(1 - distance, 0)
    else:
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)  # type: ignore[no-any-return]


def resample_of(filter_name: str | int) -> Resample:
    """Return the nearest to what a library calls its resampling, by name or by Pillow's number: the smooth kernels
    (bicubic, Lanczos, Hamming) are taken as bicubic, the others as bilinear.
    """
    return "bicubic" if filter_name in ("bicubic", "lanczos", "hamming", 1, 3, 5) else "bilinear"


def with_spec(preprocessing: Preprocessing, spec: PreprocessingSpec) -> Preprocessing:
    """Return ``preprocessing`` with what the recipe says put in its place.

    Raises:
        SourceError: The recipe tells of pixels and the inputs are no images, or what it says would do nothing.
    """
    stated = {key: value for key, value in spec.model_dump().items() if value is not None}
    if stated and preprocessing.kind != "image":
        raise SourceError(
            f"the recipe gives {', '.join(sorted(stated))} as preprocessing, but the data are no uint8 images",
            hint="take the preprocessing table out, or give the images as uint8 (height, width, channels)",
        )
    whole = Preprocessing(**{**asdict(preprocessing), **stated})
    if fault := whole.fault():
        raise SourceError(f"the preprocessing cannot be used: {fault}", hint="change it in the recipe's table")
    idle = (
        ["resize", "crop_share", "resample"] if whole.size is None else ["crop_share"] if whole.resize != "crop" else []
    )
    if idle := [key for key in idle if key in stated]:
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


def of_features(numbers: NDArray[Any]) -> Preprocessing:
    """Return the preprocessing that gives each feature of these numbers mean 0 and standard deviation 1.

    Args:
        numbers: ``[samples, features]``; a feature that never changes keeps its scale.
    """
    rows = np.asarray(numbers, dtype=np.float64)
    mean, std = rows.mean(axis=0), rows.std(axis=0)
    std = np.where(std > 1e-12 * np.maximum(np.abs(mean), 1.0), std, 1.0)
    return Preprocessing("features", mean=tuple(map(float, mean)), std=tuple(map(float, std)))


def _rounded(values: NDArray[Any]) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 16


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _trimmed(tensors: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
    """Cut a batch of text at its longest sample: half of the work on short texts; the mask makes it the same to the
    model.
    """
    if len(tensors) < 2 or tensors[1].ndim != 2:
        return tensors
    used = tensors[1].any(dim=0).nonzero()
    length = int(used.max()) + 1 if len(used) else 1
    return tuple(tensor[:, :length] if tensor.ndim == 2 else tensor for tensor in tensors)


def as_tensor(item: "NDArray[Any] | Tensor") -> "Tensor":
    """Return an array as a tensor over the same memory, or over a copy where that may not be written to."""
    import torch

    if isinstance(item, torch.Tensor):
        return item
    # A memory-mapped file is read-only, and a tensor over it would warn; a batch of it is small.
    return torch.from_numpy(np.ascontiguousarray(item) if item.flags.writeable else np.array(item))


def tensor_on(array: "NDArray[Any] | Tensor", device: "torch.device") -> "Tensor":
    """Return an array as a tensor on a device; a GPU's copy is waited for neither here nor by what is computed next."""
    tensor = as_tensor(array)
    if device.type == "cuda":  # from pinned memory alone: any other copy waits until the device is idle
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
