"""Training samples made from the teacher alone, for when the data it learned from cannot be had.

A generator learns to make images that the teacher takes for samples of its classes; what it makes on the way is kept,
so that the images differ as much as its stages do. They come out as uint8 NHWC like any other data, and the student is
trained on them with everything that training knows: augmentation, the teacher cache, checkpoints.

Chen et al. 2019, "Data-Free Learning of Student Networks" (DAFL): the one-hot, activation and information-entropy
terms. Yin et al. 2020, "Dreaming to Distill" (DeepInversion): the match of batch-normalization statistics. Unlike
DAFL, the student does not learn in the same loop: no term of the generator's depends on it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from kdexport.data.samples import Dataset, Split
from kdexport.distill import layers
from kdexport.errors import KDExportError
from kdexport.models.preprocessing import Preprocessing
from kdexport.progress import Progress
from kdexport.recipe import DataFree

VALIDATION = 512  # made images to watch the training by
BATCH = 128  # images per step of the generator
WIDTH = 64  # channels of the generator; DAFL has 128
LOG_EVERY = 50  # steps


class Generator(nn.Module):
    """Noise to images: a linear layer and three convolutions with two doublings between, as in DAFL.

    Args:
        latent: Numbers that an image is made from.
        channels: Of the image.
        height: Of the image.
        width: Of the image.
    """

    def __init__(self, latent: int, channels: int, height: int, width: int) -> None:
        super().__init__()
        self._size = height, width
        self._start = WIDTH, -(-height // 4), -(-width // 4)
        self.expand = nn.Linear(latent, self._start[0] * self._start[1] * self._start[2])
        self.draw = nn.Sequential(
            nn.BatchNorm2d(WIDTH),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.BatchNorm2d(WIDTH),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(WIDTH, WIDTH // 2, 3, padding=1),
            nn.BatchNorm2d(WIDTH // 2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(WIDTH // 2, channels, 3, padding=1),
        )
        self.normalize = nn.BatchNorm2d(channels, affine=False)

    def forward(self, noise: Tensor) -> Tensor:
        """Return images [batch, channels, height, width] whose channels have mean 0 and standard deviation 1."""
        images = self.draw(self.expand(noise).unflatten(1, self._start))
        normalized: Tensor = self.normalize(images[:, :, : self._size[0], : self._size[1]])
        return normalized


def with_images(dataset: Dataset, images: NDArray[np.uint8]) -> Dataset:
    """Return the data set with made images in place of its training and validation samples.

    They have no labels, so the epoch log tells how near the student is to the teacher on made images, not how good it
    is, and the last epoch is kept.

    Args:
        dataset: Whose test samples stay.
        images: uint8 [samples, height, width, channels].
    """
    return replace(dataset, train=Split((images,)), val=Split((images[:VALIDATION],)), unlabelled=None)


def synthesize(
    teacher: nn.Module,
    preprocessing: Preprocessing,
    image: tuple[int, int, int],
    settings: DataFree,
    *,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> NDArray[np.uint8]:
    """Return images made from a teacher alone.

    Args:
        teacher: In evaluation mode, its parameters frozen.
        preprocessing: The teacher's; of kind "image".
        image: Height, width and channels of what to make; the first two are the preprocessing's where it has a size.
        settings: How many, by how many steps, with which weights.
        seed: Draws the generator and its noise; the global generator is left as it was.
        device: Where to work.
        progress: Shows the steps.

    Returns:
        uint8 [samples, height, width, channels].

    Raises:
        KDExportError: The teacher takes no images, or the generator's loss is not finite.
    """
    height, width = preprocessing.size or image[:2]
    channels = image[2]
    per_step = -(-settings.samples // (settings.steps - settings.steps // 4))
    if per_step > BATCH:
        raise KDExportError(
            f"{settings.steps} steps cannot give {settings.samples} images: each gives at most {BATCH}",
            hint=f"set distill.data_free.steps to at least {-(-settings.samples * 4 // (3 * BATCH)) + 1}",
        )
    if preprocessing.kind != "image":  # an ensemble's is "none" as well
        raise KDExportError(
            f"data-free distillation makes images for one teacher that takes them, not '{preprocessing.kind}' inputs",
            hint="give real samples; they need no labels if label_weight = 0",
        )
    mean, std = (
        torch.tensor(values or default, device=device).view(-1, 1, 1)
        for values, default in ((preprocessing.mean, (0.0,)), (preprocessing.std, (1.0,)))
    )
    kept: list[Tensor] = []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        generator = Generator(settings.latent, channels, height, width).to(device).train()
        optimizer = torch.optim.Adam(generator.parameters(), lr=settings.lr)
        with (
            progress.task("make samples", total=settings.steps) as task,
            _embedding(teacher, (height, width, channels), device) as captured,
        ):
            for step in range(settings.steps):
                images = generator(torch.randn(BATCH, settings.latent).to(device)) * std + mean
                # No pixel is darker than black; the gradient passes as if there were, or it would stay there.
                images = images + (images.clamp(0, 1) - images).detach()
                loss, parts = _loss(teacher, (images - mean) / std, settings, captured)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if step >= settings.steps // 4:  # the first quarter makes noise
                    kept.append((images.detach()[:per_step] * 255).round().byte().permute(0, 2, 3, 1).cpu())
                if step % LOG_EVERY == 0 and not torch.isfinite(loss):
                    raise KDExportError(
                        f"the generator's loss is not finite at step {step}",
                        hint=f"lower distill.data_free.lr, e.g. to {settings.lr / 3:.2g}",
                    )
                task.advance(note=", ".join(f"{name} {value:.3f}" for name, value in parts.items()))
    made: NDArray[np.uint8] = torch.cat(kept)[: settings.samples].numpy()
    return made


def _loss(
    teacher: nn.Module, inputs: Tensor, settings: DataFree, captured: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return DAFL's three terms and DeepInversion's, weighted, and each alone."""
    with _batch_statistics(teacher) as differences:
        logits = teacher(inputs)
    mean = F.softmax(logits, dim=1).mean(dim=0)
    parts = {
        "one-hot": F.cross_entropy(logits, logits.argmax(dim=1)),
        "activation": -captured["embedding"].abs().mean(),
        "entropy": (mean * (mean + 1e-8).log()).sum(),
        "statistics": torch.stack(differences).sum() if differences else logits.new_zeros(()),
    }
    weights = (settings.one_hot, settings.activation, settings.entropy, settings.statistics)
    total = torch.stack([weight * part for weight, part in zip(weights, parts.values(), strict=True)]).sum()
    return total, {name: part.detach() for name, part in parts.items()}


@contextmanager
def _embedding(teacher: nn.Module, image: tuple[int, int, int], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Keep what the teacher's last stage before the head gives."""
    height, width, channels = image
    known = layers.trace(teacher, (torch.zeros(2, channels, height, width, device=device),))
    captured: dict[str, Tensor] = {}
    with layers.capture_outputs(teacher, {"embedding": layers.embedding(known, "teacher").path}, captured.__setitem__):
        yield captured


@contextmanager
def _batch_statistics(teacher: nn.Module) -> Iterator[list[Tensor]]:
    """Collect, for each batch normalization, how far a batch's mean and variance are from those it has learned."""
    differences: list[Tensor] = []

    def compare(module: Any, inputs: tuple[Tensor, ...]) -> None:
        (feature,) = inputs
        axes = [axis for axis in range(feature.ndim) if axis != 1]
        variance, mean = torch.var_mean(feature, dim=axes, correction=0)
        differences.append((mean - module.running_mean).norm() + (variance - module.running_var).norm())

    handles = [
        module.register_forward_pre_hook(compare)
        for module in teacher.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    try:
        yield differences
    finally:
        for handle in handles:
            handle.remove()
