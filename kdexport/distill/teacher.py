"""The teacher as the student's training sees it: frozen, in evaluation mode, asked once per sample and view."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from kdexport.distill.batches import Batch, Batches
from kdexport.distill.taps import Taps
from kdexport.distill.teacher_cache import TeacherCache
from kdexport.progress import Progress
from kdexport.sources.preprocessing import Preprocessing

COMPUTE_BATCH = 256  # samples; without gradients a batch this large costs little memory


class Teacher:
    """A frozen network with its preprocessing.

    Args:
        network: Called as ``network(*inputs)``, returns logits [batch, classes].
        preprocessing: From raw inputs to the network's.
        device: Where it runs.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, device: torch.device) -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.preprocessing = preprocessing

    def logits(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return float32 logits [batch, classes] of raw inputs.

        Under ``no_grad`` rather than ``inference_mode``: a loss may save the result for its backward pass.
        """
        with torch.no_grad():
            logits: Tensor = self.network(*self.preprocessing.apply(inputs))
        return logits.float()


class ListenedTeacher:
    """A teacher whose layers are listened to: it runs on every batch, for features are too large to keep.

    Args:
        teacher: Who is asked.
        taps: Where its features go.
    """

    def __init__(self, teacher: Teacher, taps: Taps) -> None:
        self.teacher = teacher
        self.taps = taps

    def prepare(self, view: int) -> Literal["online"]:  # noqa: ARG002
        """Say that the teacher runs with the student."""
        return "online"

    def logits(self, batch: Batch) -> Tensor:
        """Return float32 logits [batch, classes]; the features lie in the taps."""
        return self.listen(batch.inputs)

    def listen(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the same for raw inputs."""
        with self.taps.teacher():
            return self.teacher.logits(inputs)


class CachedTeacher:
    """A teacher with its logits on the training split kept.

    Args:
        teacher: Who is asked where the cache has no answer.
        cache: The logits of every view.
        batches: The training split, augmented as the student sees it.
        progress: Shows the filling.
        temperature: Of the losses, where not every logit is kept.
    """

    def __init__(
        self, teacher: Teacher, cache: TeacherCache, batches: Batches, progress: Progress, temperature: float = 1.0
    ) -> None:
        self.teacher, self._temperature = teacher, temperature
        self._cache, self._batches, self._progress = cache, batches, progress

    def prepare(self, view: int) -> Literal["online", "cache"]:
        """Make a view's logits ready, and say whether the teacher had to run for it."""

        def compute(indices: np.ndarray) -> np.ndarray:
            parts = np.array_split(indices, max(1, -(-len(indices) // COMPUTE_BATCH)))
            logits = [self.teacher.logits(self._batches.gather(part, view).inputs).cpu().numpy() for part in parts]
            return np.concatenate(logits)

        return "online" if self._cache.ensure(view, compute, self._progress) else "cache"

    def logits(self, batch: Batch) -> Tensor:
        """Return float32 logits [batch, classes] for a batch of a prepared view."""
        logits = torch.from_numpy(self._cache.read(batch.view, batch.indices, self._temperature))
        return logits.to(batch.inputs[0].device, non_blocking=True)
