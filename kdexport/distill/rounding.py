"""Rounding to 8-bit integers and back, as the exported int8 does it, with gradients: pure functions of tensors.

Weights: signed, symmetric, a scale per output channel that follows the largest weight. Folding a batch normalization
multiplies a whole output channel, so rounding before or after it comes to the same.
Activations: unsigned, one range per tensor, learnt with the weights.
"""

from typing import Any

import torch
from torch import Tensor

LEVELS = 255  # steps between the 256 values of an unsigned byte


def rounded_weight(weight: Tensor, axis: int, bits: int) -> Tensor:
    """Return a weight rounded to ``bits`` bits per output channel; the gradient passes straight through.

    Args:
        weight: Any shape.
        axis: That of the output channels.
        bits: ``export.weight_bits``. 8 are -127 to 127, fewer are symmetric about 0 too: 7 are -64 to 64.
    """
    half = 127 if bits == 8 else 2 ** (bits - 1)
    others = [dim for dim in range(weight.ndim) if dim != axis]
    scale = weight.detach().abs().amax(dim=others).float() / half
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -half, half)


def rounded_activation(value: Tensor, bounds: Tensor) -> Tensor:
    """Return an activation clipped to a range and rounded to one of its 256 values.

    The gradient for the value passes straight through inside the range. Those for the bounds are LSQ's (Esser 2020,
    "Learned Step Size Quantization", equations 3 and 4), written for both ends of a range: what is clipped pulls its
    end outward or inward, what is inside weighs its rounding error.

    Args:
        value: Any shape.
        bounds: The range's ends [2], the first not above 0, the second not below.
    """
    return _RoundedActivation.apply(value, bounds)  # type: ignore[no-any-return]


def scale_and_zero(bounds: Tensor) -> tuple[Tensor, Tensor]:
    """Return the float32 scale and the int32 zero point of a range, computed as onnxruntime does from the same ends."""
    low, high = bounds.detach().double()
    scale = (high - low) / LEVELS
    empty = scale < torch.finfo(torch.float32).tiny  # nothing is looked at on the host: a look waits for the device
    zero = torch.where(empty, 0.0, torch.round(-low / scale))
    return torch.where(empty, 1.0, scale).float(), zero.to(torch.int32)


class _RoundedActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, bounds: Tensor) -> Tensor:
        scale, zero = scale_and_zero(bounds)
        ctx.save_for_backward(value, scale, zero)
        return torch.fake_quantize_per_tensor_affine(value, scale, zero, 0, LEVELS)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        value, scale, zero = ctx.saved_tensors
        # Made again, not saved: the network may change what it was given in place.
        rounded = torch.fake_quantize_per_tensor_affine(value, scale, zero, 0, LEVELS)
        below = value < -zero * scale - scale / 2
        above = value > (LEVELS - zero) * scale + scale / 2
        inside = ~(below | above)
        passed = gradient * inside
        step = (passed * (rounded - value)).sum() / (scale * LEVELS)  # by the scale, which both ends move
        ends = torch.stack([(gradient * below).sum() - step, (gradient * above).sum() + step])
        return passed, ends / (value.numel() * LEVELS) ** 0.5  # LSQ's share, so that a large tensor doesn't shout
