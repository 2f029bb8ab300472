"""The teacher as the student's training sees it: frozen, in evaluation mode, asked once per sample and view."""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from kdexport import artifacts
from kdexport.data.samples import Split
from kdexport.distill.batches import Batch, Batches
from kdexport.distill.context import DistillContext
from kdexport.distill.features import FeatureHooks
from kdexport.distill.inference import at_once, in_parts, predict_all
from kdexport.distill.logit_cache import TeacherCache, TopK, Whole, packing_for
from kdexport.distill.objective import METHODS
from kdexport.models.preprocessing import Preprocessing, as_tensor
from kdexport.progress import SILENT, Progress
from kdexport.results import TeacherScore
from kdexport.terms import BaseTerm


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


class OnlineTeacher:
    """A teacher whose layers are listened to: it runs on every batch, for features are too large to keep.

    Its logits are kept all the same, for trainings that need them alone: where a whole epoch of them was heard.

    Args:
        teacher: Who is asked.
        taps: Where its features go.
        cache: Where its logits are kept; None keeps none.
        samples: Of the training split.
    """

    def __init__(
        self, teacher: Teacher, taps: FeatureHooks, cache: TeacherCache | None = None, samples: int = 0
    ) -> None:
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


class Ensemble(nn.Module):
    """A weighted mean of its members' logits.

    Each row of logits is first brought to mean 0, for a softmax does not see the constants that members differ by. With
    ``"average"`` the shares are the weights. With ``"confidence"`` they are the weights times exp(-entropy) of the
    member's own prediction, sample by sample, so that a member which is lost on a sample says little of it: Kwon et al.
    2020, "Adaptive Knowledge Distillation Based on Entropy", with the entropy in place of labels.

    Args:
        members: Networks with their preprocessing.
        weights: One per member, above 0.
        combine: ``"average"`` or ``"confidence"``.
    """

    def __init__(
        self,
        members: Sequence[tuple[nn.Module, Preprocessing]],
        weights: Sequence[float],
        combine: Literal["average", "confidence"],
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(network for network, _ in members)
        self._preprocessings = [preprocessing for _, preprocessing in members]
        self._weights = [weight / sum(weights) for weight in weights]
        self._combine = combine

    def each(self, *inputs: Tensor) -> list[Tensor]:
        """Return every member's logits [batch, classes] for raw inputs."""
        pairs = zip(self.members, self._preprocessings, strict=True)
        return [member(*preprocessing.apply(inputs)).float() for member, preprocessing in pairs]

    def together(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the members' logits combined, [batch, classes]."""
        stacked = torch.stack([rows - rows.mean(dim=1, keepdim=True) for rows in logits])  # [members, batch, classes]
        shares = torch.tensor(self._weights, device=stacked.device).view(-1, 1, 1).expand(-1, stacked.shape[1], 1)
        if self._combine == "confidence":
            logs = F.log_softmax(stacked, dim=2)
            shares = shares * (logs.exp() * logs).sum(dim=2, keepdim=True).exp()
            shares = shares / shares.sum(dim=0)
        return (shares * stacked).sum(dim=0)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the combined logits [batch, classes] for raw inputs."""
        return self.together(self.each(*inputs))

    def votes(self, split: Split, device: torch.device) -> tuple[TeacherScore, ...]:
        """Return how good each member is on a split, and how near to what all say together."""
        parts = []
        with torch.no_grad():
            for batch in split.batches(at_once(split, device)):
                logits = self.each(*(as_tensor(array).to(device) for array in batch.inputs))
                parts.append([rows.cpu().numpy() for rows in (*logits, self.together(logits))])
        *members, together = (np.concatenate(rows) for rows in zip(*parts, strict=True))
        return tuple(
            TeacherScore(
                name="teacher" if number == 0 else f"teacher-{number + 1}",
                weight=self._weights[number],
                val_accuracy=_accuracy(logits, split),
                agreement=split.task.agreement(together, logits),
            )
            for number, logits in enumerate(members)
        )


def _accuracy(logits: np.ndarray, split: Split) -> float | None:
    if split.labels is None:
        return None
    right = (logits > 0) == (split.labels > 0.5) if split.multi_label else logits.argmax(axis=1) == split.labels
    return float(np.mean(right))


def cached(run: DistillContext, teacher: Teacher, cache: TeacherCache, batches: Batches) -> CachedTeacher:
    """Return a teacher that is asked once per sample and view; arguments as ``cache_of``."""
    return CachedTeacher(teacher, cache, batches, run.progress, temperature_of(run.recipe.distill.terms))


def cache_of(
    run: DistillContext, teacher: Teacher, identity: list[object], batches: Batches, accelerator: Accelerator
) -> TeacherCache:
    """Return where a teacher's logits on the training split are kept.

    Args:
        run: What the phases share.
        teacher: Who is asked.
        identity: What stands for the teacher's weights.
        batches: The training split, augmented as the student sees it.
        accelerator: Which process this is.
    """
    settings = run.recipe.distill
    packing = packing_for(run.dataset.num_classes, settings.teacher_top_k)
    made_from = [*_who_and_what(run, teacher, identity), [settings.augment, batches.views]]
    if isinstance(packing, TopK):
        made_from.append([packing.k])
    cache = TeacherCache(
        _folder(run),
        artifacts.key_of(*made_from),
        views=batches.views,
        samples=len(batches.split),
        packing=packing,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    if isinstance(packing, TopK):
        whole = cache.size_bytes / packing.dtype.itemsize * Whole(packing.classes).dtype.itemsize
        run.progress.say(
            f"teacher cache: the {packing.k} largest of {packing.classes:,} logits and the weight of the rest,"
            f" {_mib(cache.size_bytes)} in place of {_mib(whole)} (distill.teacher_top_k)"
        )
    return cache


def kept_answers(
    run: DistillContext,
    teacher: Teacher,
    identity: list[object],
    name: Literal["val", "test"],
    accelerator: Accelerator,
) -> np.ndarray:
    """Return the teacher's float32 logits [samples, classes] on a split that nobody learns from, asked once.

    They are not rounded: the teacher's accuracy is told from them. Arguments as ``cached``.
    """
    split = getattr(run.dataset, name)
    cache = TeacherCache(
        _folder(run),
        artifacts.key_of(*_who_and_what(run, teacher, identity), name),
        views=1,
        samples=len(split),
        packing=Whole(run.dataset.num_classes, np.float32),
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    device = accelerator.device

    def compute(indices: np.ndarray) -> np.ndarray:
        rows = slice(int(indices[0]), int(indices[-1]) + 1)  # they follow each other
        return predict_all(teacher.network, teacher.preprocessing, split, device, rows)

    cache.ensure(0, compute, run.progress)
    accelerator.wait_for_everyone()
    return cache.read(0, np.arange(len(split)))


def _folder(run: DistillContext) -> Path:
    shared = run.recipe.distill.teacher_cache
    return run.directory.cache if shared is None else Path(shared)


def _who_and_what(run: DistillContext, teacher: Teacher, identity: list[object]) -> list[object]:
    """Return what stands for a teacher and the samples that it speaks of; made ones are not the same everywhere."""
    made = run.recipe.distill.data_free
    pixels = None if made is None else hashlib.sha256(run.dataset.train.inputs[0].tobytes()).hexdigest()
    return [identity, teacher.preprocessing.to_json(), [run.data_key, pixels]]


def temperature_of(terms: Sequence[BaseTerm]) -> float:
    """Return the temperature that the rest of the logits is kept right for: that of the weightiest term on logits.

    A squared error, and a decision for each class, are infinity: they compare the logits as they are.
    """
    on_logits = [term for term in terms if term.weight > 0 and "logits" in METHODS[term.method].needs]
    if not on_logits:
        return 1.0
    weightiest = max(on_logits, key=lambda term: term.weight)
    if weightiest.method in ("logit_mse", "binary_soft_targets"):
        return math.inf
    return float(getattr(weightiest, "temperature", 1.0))


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"
