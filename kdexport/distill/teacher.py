"""The teacher as the student's training sees it: frozen, in evaluation mode, run once per sample and view."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from kdexport.data.samples import Split
from kdexport.distill.batches import Batch, Batches, at_once, even_parts, in_parts, predict_all
from kdexport.distill.context import DistillContext, augment_key
from kdexport.distill.features import FeatureHooks
from kdexport.distill.logit_cache import AllLogits, Compression, Pixels, Records, TeacherCache, TopK, compression_for
from kdexport.distill.losses.maps import on_grid
from kdexport.models.preprocessing import Preprocessing, as_tensor
from kdexport.progress import SILENT, Progress
from kdexport.results import TeacherScore
from kdexport.stage_cache import cache_key
from kdexport.tasks.masks import grid

LARGEST_MAPS = 4 * 2**30  # bytes on the disk: beyond that the teacher runs at every step


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
    """A teacher that runs on every batch: its layers are captured, and features are too large to keep; or its maps are.

    Its logits are kept all the same, for trainings that need them alone: where a whole epoch of them was captured.

    Args:
        teacher: Whose logits they are.
        hooks: Where its features go; None: nowhere.
        cache: Where its logits are kept; None keeps none.
        samples: Of the training split.
    """

    def __init__(
        self, teacher: Teacher, hooks: FeatureHooks | None, cache: TeacherCache | None = None, samples: int = 0
    ) -> None:
        self.teacher = teacher
        self.hooks = hooks
        self._cache, self._samples = cache, samples
        self._captured: Tensor | None = None  # [samples, classes]
        self._known = np.zeros(samples, dtype=bool)
        self._view = 0

    def prepare(self, view: int, interrupted: Callable[[], bool] = _never) -> Literal["online"]:  # noqa: ARG002
        """Say that the teacher runs with the student."""
        self._captured, self._view = None, view
        self._known[:] = False
        return "online"

    def logits(self, batch: Batch) -> Tensor:
        """Return float32 logits [batch, classes]; the hooks hold the features."""
        logits = self.capture(batch.inputs)
        if self._cache is not None:
            if self._captured is None:
                self._captured = logits.new_zeros(self._samples, logits.shape[1])
            self._captured[torch.from_numpy(batch.indices).to(logits.device)] = logits
            self._known[batch.indices] = True
        return logits

    def catch_up(self, batches: Iterable[Batch]) -> None:
        """See what an epoch showed before it was interrupted: from other batches the logits differ in the last bits."""
        if self._cache is not None and not self._cache.is_filled(self._view):
            for batch in batches:
                self.logits(batch)

    def finish(self) -> None:
        """Keep what was captured in an epoch that showed every sample."""
        if self._cache is not None and self._captured is not None and self._known.all():
            captured = self._captured.cpu().numpy()
            self._cache.ensure(self._view, captured.__getitem__, SILENT)

    def capture(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the same for raw inputs."""
        with self.hooks.teacher() if self.hooks else nullcontext():
            return self.teacher.logits(inputs)


class CachedTeacher:
    """A teacher with its logits on the training split kept.

    Args:
        teacher: Runs where the cache has no logits.
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
            return in_parts(logits, indices, max(2, at_once(self._batches.split, self._batches.device)))

        def logits(indices: np.ndarray) -> np.ndarray:
            found, kept = self.teacher.logits(self._batches.gather(indices, view).inputs), self._cache.compression
            array: np.ndarray = (
                (on_grid(found, kept.rows, kept.columns) if isinstance(kept, Pixels) else found).cpu().numpy()
            )
            return array

        return "online" if self._cache.ensure(view, compute, self._progress) else "cache"

    def catch_up(self, batches: Iterable[Batch]) -> None:
        """Do nothing, as ``finish``."""

    def finish(self) -> None:
        """Do nothing: the logits are kept before the epoch."""

    def logits(self, batch: Batch) -> Tensor:
        """Return float32 logits [batch, classes] for a batch of a prepared view."""
        logits = torch.from_numpy(self._cache.read(batch.view, batch.indices, self._temperature))
        return logits.to(batch.inputs[0].device, non_blocking=True)


class Ensemble(nn.Module):
    """A weighted mean of its members' logits.

    Each row of logits is first brought to mean 0 (unless ``relative`` is False: numbers, logits of a sigmoid), for a
    softmax does not see the constants that members differ by. With
    ``"average"`` the shares are the weights. With ``"confidence"`` they are the weights times exp(-entropy) of the
    member's own prediction, sample by sample, so that a member which is unsure of a sample counts little there: Kwon
    et al. 2020, "Adaptive Knowledge Distillation Based on Entropy", with the entropy in place of labels.

    Args:
        members: Networks with their preprocessing.
        weights: One per member, above 0.
        combine: ``"average"`` or ``"confidence"``.
        relative: Whether outputs count up to a constant of each sample; else they are averaged as they are.
        embeds: Whether outputs are embeddings of length 1, each in a space of its own: they are put one behind the
            other, each times the root of its share, so that a cosine is the members' weighted mean.
    """

    def __init__(
        self,
        members: Sequence[tuple[nn.Module, Preprocessing]],
        weights: Sequence[float],
        combine: Literal["average", "confidence"],
        *,
        relative: bool = True,
        embeds: bool = False,
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(network for network, _ in members)
        self._preprocessings = [preprocessing for _, preprocessing in members]
        self._weights = [weight / sum(weights) for weight in weights]
        self._combine, self._relative, self._embeds = combine, relative, embeds

    def each(self, *inputs: Tensor) -> list[Tensor]:
        """Return every member's logits [batch, classes] for raw inputs."""
        pairs = zip(self.members, self._preprocessings, strict=True)
        return [member(*preprocessing.apply(inputs)).float() for member, preprocessing in pairs]

    def together(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the members' logits combined, [batch, classes]."""
        if self._embeds:
            return torch.cat([rows * weight**0.5 for rows, weight in zip(logits, self._weights, strict=True)], dim=1)
        stacked = torch.stack(list(logits))  # [members, batch, classes, ...]
        if self._relative:
            stacked = stacked - stacked.mean(dim=2, keepdim=True)
        shares = torch.tensor(self._weights, device=stacked.device).view(-1, *[1] * (stacked.ndim - 1))
        if self._combine == "confidence":
            logs = F.log_softmax(stacked, dim=2)
            shares = shares * (logs.exp() * logs).sum(dim=2, keepdim=True).exp()
            shares = shares / shares.sum(dim=0)
        return (shares * stacked).sum(dim=0)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the combined logits [batch, classes] for raw inputs."""
        return self.together(self.each(*inputs))

    def scores(self, split: Split, device: torch.device) -> tuple[TeacherScore, ...]:
        """Return how good each member is on a split, and how near to all together."""
        parts = []
        with torch.no_grad():
            for part in even_parts(np.arange(len(split)), max(2, at_once(split, device))):
                batch = split.take(slice(int(part[0]), int(part[-1]) + 1))
                logits = self.each(*(as_tensor(array).to(device) for array in batch.inputs))
                both = (*logits, self.together(logits))
                parts.append([split.task.kept(rows.cpu().numpy(), batch.labels) for rows in both])
        *members, together = (np.concatenate(rows) for rows in zip(*parts, strict=True))
        return tuple(
            TeacherScore(
                name="teacher" if number == 0 else f"teacher-{number + 1}",
                weight=self._weights[number],
                val_score=None if split.labels is None else split.task.score(logits, np.asarray(split.labels)),
                agreement=split.task.agreement(together, logits),
            )
            for number, logits in enumerate(members)
        )


def cache_of(
    context: DistillContext, teacher: Teacher, teacher_key: list[object], batches: Batches, accelerator: Accelerator
) -> TeacherCache | None:
    """Return where a teacher's logits on the training split are kept; None where maps would take too much.

    Args:
        context: What the phases share.
        teacher: Whose logits they are.
        teacher_key: What stands for the teacher's weights.
        batches: The training split, augmented as the student sees it.
        accelerator: Which process this is.
    """
    settings = context.recipe.distill
    whole: AllLogits | TopK = compression_for(context.dataset.num_classes, settings.teacher_top_k)
    if context.dataset.task.embeds:
        whole = AllLogits(_width(context, teacher, accelerator))
    if context.dataset.task.exact_outputs:  # numbers in the data's units: half precision ends at 65,504
        whole = AllLogits(context.dataset.num_classes, np.float32)
    made_from = [*_made_from(context, teacher, teacher_key, "train"), [augment_key(settings), batches.views]]
    if isinstance(whole, TopK):
        made_from.append([whole.k])
    compression: AllLogits | TopK | Pixels = whole
    size = context.dataset.task.map_size
    if size is not None:
        rows, columns = grid(*size, settings.teacher_pixels)
        compression = Pixels(whole, len(rows), len(columns))
        made_from.append([compression.rows, compression.columns])
        if not _is_kept(context, compression, size, batches):
            return None
    cache = TeacherCache(
        _folder(context),
        cache_key("teacher logits", made_from=made_from),
        views=batches.views,
        samples=len(batches.split),
        compression=compression,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    if isinstance(compression, TopK):
        all_of_them = cache.size_bytes / compression.dtype.itemsize * AllLogits(compression.classes).dtype.itemsize
        context.progress.message(
            f"teacher cache: the {compression.k} largest of {compression.classes:,} logits and the weight of the rest,"
            f" {_mib(cache.size_bytes)} in place of {_mib(all_of_them)} (distill.teacher_top_k)"
        )
    return cache


def _is_kept(context: DistillContext, compression: Pixels, size: tuple[int, int], batches: Batches) -> bool:
    """Whether the logits of maps are kept; what is lost by that, or why not, is told."""
    pixels, bytes_of_all = compression.rows * compression.columns, compression.dtype.itemsize * len(batches.split)
    views, whole = batches.views, size[0] * size[1]
    if views * bytes_of_all > LARGEST_MAPS:
        context.progress.message(
            f"the teacher runs at every step: {views} views of its maps, {pixels:,} of {whole:,} pixels each, would "
            f"take {_mib(views * bytes_of_all)}; to keep them, lower distill.teacher_pixels, distill.teacher_top_k or "
            "distill.views"
        )
        return False
    share = f"{pixels:,} of {whole:,} pixels, evenly spread" if pixels < whole else "all pixels"
    kept = f"the {compression.inner.k} largest" if isinstance(compression.inner, TopK) else "all"
    context.progress.message(
        f"teacher cache: {kept} of {compression.inner.classes} logits of {share}, in half precision: "
        f"{_mib(views * bytes_of_all)}"
        + ("; the student is compared there alone (distill.teacher_pixels)" if pixels < whole else "")
    )
    return True


def kept_logits(
    context: DistillContext,
    teacher: Teacher,
    teacher_key: list[object],
    name: Literal["val", "test"],
    accelerator: Accelerator,
) -> np.ndarray:
    """Return the teacher's float32 logits [samples, classes] on a split that nobody learns from, computed once; of maps
    what the task keeps of them.

    They are not rounded: the teacher's accuracy is told from them. Arguments as ``cache_of``.
    """
    split = getattr(context.dataset, name)
    compression: Compression = AllLogits(_width(context, teacher, accelerator), np.float32)
    if (size := context.dataset.task.map_size) is not None:
        empty = np.zeros((1, context.dataset.num_classes, *size), dtype=np.float32)
        compression = Records(context.dataset.task.kept(empty).dtype)
    cache = TeacherCache(
        _folder(context),
        cache_key(f"teacher logits on {name}", made_from=_made_from(context, teacher, teacher_key, name)),
        views=1,
        samples=len(split),
        compression=compression,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    device = accelerator.device

    def compute(indices: np.ndarray) -> np.ndarray:
        rows = slice(int(indices[0]), int(indices[-1]) + 1)  # they follow each other
        return predict_all(teacher.network, teacher.preprocessing, split, device, rows)

    cache.ensure(0, compute, context.progress)
    accelerator.wait_for_everyone()
    return cache.read(0, np.arange(len(split)))


def _width(context: DistillContext, teacher: Teacher, accelerator: Accelerator) -> int:
    """Return how many numbers a teacher gives for a sample: of an embedding that is asked of it."""
    if not context.dataset.task.embeds:
        return context.dataset.num_classes
    inputs = context.dataset.train.take(slice(0, 2)).inputs
    return int(teacher.logits(tuple(as_tensor(array).to(accelerator.device) for array in inputs)).shape[1])


def _folder(context: DistillContext) -> Path:
    shared = context.recipe.distill.teacher_cache
    return context.directory.cache if shared is None else Path(shared)


def _made_from(context: DistillContext, teacher: Teacher, teacher_key: list[object], split: str) -> list[object]:
    """Return what a teacher's logits depend on, beside the views; made samples are not the same everywhere."""
    made = context.recipe.distill.data_free
    pixels = None if made is None else hashlib.sha256(context.dataset.train.inputs[0].tobytes()).hexdigest()
    return [teacher_key, teacher.preprocessing.to_json(), [context.samples_key(split), pixels]]


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"
