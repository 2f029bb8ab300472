"""The teacher as the student's training sees it: frozen, in evaluation mode, asked once per sample and view."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from kdexport.distill.batches import Batch, Batches
from kdexport.distill.inference import at_once, in_parts
from kdexport.distill.taps import Taps
from kdexport.distill.teacher_cache import TeacherCache
from kdexport.progress import SILENT, Progress
from kdexport.sources.preprocessing import Preprocessing


def _never() -> bool:
    return False


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

    Its logits are kept all the same, for trainings that need them alone: where a whole epoch of them was heard.

    Args:
        teacher: Who is asked.
        taps: Where its features go.
        cache: Where its logits are kept; None keeps none.
        samples: Of the training split.
    """

    def __init__(self, teacher: Teacher, taps: Taps, cache: TeacherCache | None = None, samples: int = 0) -> None:
        self.teacher = teacher
        self.taps = taps
        self._cache, self._samples = cache, samples
        self._heard: Tensor | None = None  # [samples, classes]
        self._known = np.zeros(samples, dtype=bool)
        self._view = 0

    def prepare(self, view: int, interrupted: Callable[[], bool] = _never) -> Literal["online"]:  # noqa: ARG002
        """Say that the teacher runs with the student."""
        self._heard, self._view = None, view
        self._known[:] = False
        return "online"

    def logits(self, batch: Batch) -> Tensor:
        """Return float32 logits [batch, classes]; the features lie in the taps."""
        logits = self.listen(batch.inputs)
        if self._cache is not None:
            if self._heard is None:
                self._heard = logits.new_zeros(self._samples, logits.shape[1])
            self._heard[torch.from_numpy(batch.indices).to(logits.device)] = logits
            self._known[batch.indices] = True
        return logits

    def finish(self) -> None:
        """Keep what was heard in an epoch that showed every sample."""
        if self._cache is not None and self._heard is not None and self._known.all():
            heard = self._heard.cpu().numpy()
            self._cache.ensure(self._view, heard.__getitem__, SILENT)

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

    def prepare(self, view: int, interrupted: Callable[[], bool] = _never) -> Literal["online", "cache"]:
        """Make a view's logits ready, and say whether the teacher had to run for it.

        Raises:
            KeyboardInterrupt: ``interrupted`` says so; what was computed before lies in the cache.
        """

        def compute(indices: np.ndarray) -> np.ndarray:
            if interrupted():
                raise KeyboardInterrupt
            return in_parts(answer, indices, at_once(self._batches.split, self._batches.device))

        def answer(indices: np.ndarray) -> np.ndarray:
            logits: np.ndarray = self.teacher.logits(self._batches.gather(indices, view).inputs).cpu().numpy()
            return logits

        return "online" if self._cache.ensure(view, compute, self._progress) else "cache"

    def finish(self) -> None:
        """Do nothing: what the teacher says is kept before the epoch."""

    def logits(self, batch: Batch) -> Tensor:
        """Return float32 logits [batch, classes] for a batch of a prepared view."""
        logits = torch.from_numpy(self._cache.read(batch.view, batch.indices, self._temperature))
        return logits.to(batch.inputs[0].device, non_blocking=True)
