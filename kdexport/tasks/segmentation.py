"""A class for each pixel: mean IoU, pixel accuracy, IoU and recall of each class.

Logits at full size do not fit in memory (CamVid's test split at 480x360 takes 1.8 GB), so that a batch is reduced
before the next one is computed: see ``Segmentation.kept``.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdexport.errors import SourceError
from kdexport.results import Agreement, Evaluation, MaskPicture
from kdexport.statistics import bootstrap_interval
from kdexport.tasks.base import Activation, Array, Task
from kdexport.tasks.classification import MAX_CONFUSION_CLASSES, class_scores, correlation, log_softmax
from kdexport.tasks.masks import AT_ONCE, MOST_CLASSES, VOID, at_grid, check_masks, grid, in_parts, positions
from kdexport.tasks.mean_iou import (
    chance_mean_iou,
    class_counts,
    confusion,
    constant_mean_iou,
    ious_of,
    mean_iou,
    resampled_mean_iou,
)
from kdexport.tasks.postprocessing import Postprocessing

if TYPE_CHECKING:
    from torch import Tensor

GRID_PIXELS = 1024  # of a sample, evenly spread, whose logits are kept to compare networks by
PICTURED, PICTURED_SIDE = 3, 128  # samples that a report shows, and pixels of their longer side, at most


@dataclass(frozen=True)
class Segmentation(Task):
    """Targets are class ids ``[samples, h, w]``, 255 for none; outputs logits ``[batch, classes, h, w]``.

    The score is the mean intersection over union, over the classes that the targets hold: intersections and unions are
    summed over all samples first, as in the benchmarks of VOC, Cityscapes and CamVid. A class that a model names and
    the targets never hold lowers the IoU of the classes whose pixels it takes and is not averaged itself, so that all
    models are averaged over the same classes.
    """

    size: tuple[int, int] | None = None  # of the masks, height and width; None: not known

    name = "segmentation"
    metric = "mean_iou"
    label = "mean IoU"
    relative_outputs = True
    activation: ClassVar[Activation] = "softmax"
    other_metrics: ClassVar[dict[str, str]] = {"pixel_accuracy": "pixel accuracy"}
    charts = ("classes", "confusions")
    output_ndim = 4

    def fits(self, targets: Array) -> bool:
        """Whether targets are whole numbers, a map a sample."""
        return targets.ndim == 3 and targets.dtype.kind in "iu"

    def check_targets(self, targets: Array, names: Sequence[str], where: str) -> None:
        """Hold that every pixel is a class or void, and that some pixel has a class."""
        if len(names) > MOST_CLASSES:
            raise SourceError(
                f"{where}: there are {len(names)} classes, and a mask holds {MOST_CLASSES} and void",
                hint="merge the rare ones",
            )
        labelled = False
        for start, part in in_parts(targets):
            wrong = (part != VOID) & ((part < 0) | (part >= len(names)))
            if wrong.any():
                sample = int(np.flatnonzero(wrong.any(axis=(1, 2)))[0])
                raise SourceError(
                    f"{where}: mask {start + sample} holds the class {int(part[wrong][0])}, and there are {len(names)} "
                    f"classes ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})",
                    hint=f"classes count from 0 to {len(names) - 1}, and {VOID} is a pixel without one",
                )
            labelled = labelled or bool((part != VOID).any())
        if len(targets) and not labelled:
            raise SourceError(
                f"{where}: every pixel of every mask is void ({VOID})",
                hint=f"give each pixel its class, a number from 0 on; what is to be found is not {VOID}",
            )

    @property
    def map_size(self) -> tuple[int, int] | None:
        """Height and width of the masks."""
        return self.size

    def fitted(self, targets: Array, names: Sequence[str]) -> Task:  # noqa: ARG002
        """Return the task of masks of this size."""
        return replace(self, size=(int(targets.shape[1]), int(targets.shape[2])))

    def postprocessing(self, shape: Sequence[int], *, fresh: bool) -> Postprocessing | None:  # noqa: ARG002
        """Return the scaling of a network's map to the size of the masks."""
        return None if self.size is None else Postprocessing("resize", size=self.size)

    def check_inputs(self, inputs: Sequence[Array], targets: Array, where: str) -> None:
        """Hold that a mask has the size of its image, whether that has its channels first or last."""
        shape, size = inputs[0].shape, tuple(targets.shape[1:])
        if len(shape) == 4 and size not in (tuple(shape[1:3]), tuple(shape[2:])):
            raise SourceError(
                f"{where}: masks of {size[0]}x{size[1]} pixels, and images {list(shape[1:])}",
                hint="give each image a mask of its own size",
            )

    def check_training(self, targets: Array, name: str) -> None:
        """Hold that there are two classes or more."""
        seen = np.zeros(VOID + 1, dtype=bool)
        for _, part in in_parts(targets):
            seen[np.unique(part)] = True
        seen[VOID] = False
        if seen.sum() < 2:
            raise SourceError(
                f"{name}: all labelled pixels of the training masks are of one class",
                hint=f"give masks of at least two classes; where {VOID} is meant as a class, give it another number",
            )

    def check_outputs(self, shape: Sequence[int], samples: int, names: Sequence[str], who: str) -> None:
        """Hold that an output is a map of ``len(names)`` logits a pixel."""
        if len(shape) != 4 or tuple(shape[:2]) != (samples, len(names)):
            raise SourceError(
                f"{who} gives {list(shape)} for {samples} samples; the masks have {len(names)} classes",
                hint=f"it must give [batch, {len(names)}, height, width]: set its args, e.g. args = {{ num_classes = "
                f"{len(names)} }}",
            )

    def label_loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        *,
        kind: str | None = None,  # noqa: ARG002 - there is one
        smoothing: float = 0.0,
        labelled: Tensor | None = None,
        mixed: bool = False,  # noqa: ARG002 - nothing mixes masks
    ) -> Tensor:
        """Return the cross-entropy, the mean over labelled pixels, of which a batch may hold none."""
        import torch.nn.functional as F

        check_masks(targets, outputs, "the labels' loss")
        if labelled is None:
            labelled = (targets != VOID).sum().clamp(min=1)
        total = F.cross_entropy(outputs, targets.long(), label_smoothing=smoothing, ignore_index=VOID, reduction="sum")
        return total / labelled

    def count_labelled(self, targets: Tensor) -> Tensor | None:
        """Return how many pixels have a class."""
        return (targets != VOID).sum().clamp(min=1)

    def right_in_batch(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many pixels have a class and how many of them are right."""
        known = targets != VOID
        return known.sum(), ((outputs.argmax(1) == targets) & known).sum()

    def batch_agreement(self, outputs: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return how many pixels are compared, how many have the teacher's class, and the sum over samples of a pixel's
        mean KL.
        """
        ours, theirs = outputs.log_softmax(1), teacher.log_softmax(1)
        alike = outputs.argmax(1) == teacher.argmax(1)
        kl = (theirs.exp() * (theirs - ours)).sum(1).mean(dim=(1, 2)).sum()
        return outputs.new_zeros(()) + alike.numel(), alike.sum(), kl

    def compared(self, kept: Array, targets: Array | None = None) -> tuple[Array, Array | None]:
        """Return the grid's logits and masks."""
        logits = self.kept(kept)["logits"]
        return logits, None if targets is None else at_grid(targets, *logits.shape[2:])

    def values_per_sample(self, targets: Array, names: Sequence[str]) -> int:
        """Return how many logits an image has."""
        return len(names) * math.prod(targets.shape[1:])

    def kept(self, outputs: Array, targets: Array | None = None) -> Array:
        """Return what is kept of a batch's logits: each pixel's class, and the logits of an even grid of pixels.

        Score, pixel accuracy and the agreement's share are those of all pixels; the agreement's KL and correlation are
        those of at most 1,024 pixels a sample. 480x360 pixels of 11 classes take 210 KiB in place of 7.3 MiB.

        Args:
            outputs: float32 ``[samples, classes, h, w]``, or what was kept of them.
            targets: Of the same samples; None where there are none.

        Returns:
            ``[samples]`` of records: ``classes`` uint8 ``[h, w]``, 255 where the target is void, and ``logits`` float32
            ``[classes, rows, columns]``.

        Raises:
            SourceError: The masks have another size.
        """
        if outputs.dtype.names is not None:
            return outputs
        if targets is not None and outputs.shape[2:] != targets.shape[1:]:
            raise SourceError(
                f"the model gives {outputs.shape[2]}x{outputs.shape[3]} pixels a sample, the masks have "
                f"{targets.shape[1]}x{targets.shape[2]}",
                hint="export it again for these data, or set data.image_size to the size that it was made for",
            )
        samples, classes, height, width = outputs.shape
        rows, columns = grid(height, width, GRID_PIXELS)
        form = [("classes", np.uint8, (height, width)), ("logits", np.float32, (classes, len(rows), len(columns)))]
        records = np.empty(samples, dtype=np.dtype(form, align=True))
        records["classes"] = outputs.argmax(axis=1)
        records["logits"] = outputs[:, :, rows[:, None], columns]
        if targets is not None:
            records["classes"][targets == VOID] = VOID
        return records

    def score(self, outputs: Array, targets: Array) -> float | None:
        """Return the mean IoU."""
        return mean_iou(*(counts.sum(axis=0) for counts in class_counts(self.kept(outputs, targets), targets)))

    def evaluate(self, outputs: Array, targets: Array, names: Sequence[str], split: str) -> Evaluation:
        """Score what was kept of logits; the interval is a bootstrap over samples."""
        kept, classes = self.kept(outputs, targets), len(names)
        hits, actual, predicted = class_counts(kept, targets)
        total = actual.sum(axis=0)
        value = mean_iou(hits.sum(axis=0), total, predicted.sum(axis=0)) or 0.0
        resampled = resampled_mean_iou(hits, actual, predicted, value)
        ious = ious_of(hits.sum(axis=0), total, predicted.sum(axis=0))
        per_class = class_scores(hits.sum(axis=0), total, predicted.sum(axis=0), names)
        pixels = int(total.sum())
        return Evaluation(
            split=split,
            samples=len(kept),
            task=self.name,
            score=self.made_score(value, bootstrap_interval(resampled)),
            metrics={"pixel_accuracy": float(hits.sum() / pixels) if pixels else None},
            per_class=tuple(replace(row, iou=float(iou) if row.samples else None) for row, iou in zip(per_class, ious)),
            confusion=confusion(kept, targets, classes) if classes <= MAX_CONFUSION_CLASSES else (),
            resamples=tuple(float(value) for value in resampled),
            chance=chance_mean_iou(total) if pixels else None,
        )

    def illustrated(
        self, evaluation: Evaluation, outputs: Array, targets: Array, inputs: Sequence[Array]
    ) -> Evaluation:
        """Return it with small pictures of three samples: image, mask, and the classes that are predicted."""
        kept = self.kept(outputs)
        height, width = (int(side) for side in targets.shape[1:])
        step = -(-max(height, width) // PICTURED_SIDE)
        size = -(-height // step), -(-width // step)
        images = inputs[0] if inputs[0].dtype == np.uint8 and inputs[0].shape[1:3] == (height, width) else None
        pictures = []
        for sample in dict.fromkeys(positions(len(kept), min(PICTURED, len(kept))).tolist()):
            image = None if images is None else at_grid(np.moveaxis(np.asarray(images[sample]), -1, 0), *size)
            truth, predicted = np.asarray(targets[sample]), kept["classes"][sample]
            pictures.append(
                MaskPicture(
                    sample,
                    *size,
                    _packed(at_grid(predicted, *size)),
                    _packed(at_grid(truth, *size)),
                    "" if image is None else _packed(_in_cube(image)),
                )
            )
        return replace(evaluation, pictures=tuple(pictures))

    def predictions(self, outputs: Array) -> Array:
        """Return each pixel's class, uint8 ``[samples, h, w]``."""
        classes: Array = self.kept(outputs)["classes"]
        return classes

    def doubt(self, outputs: Array, targets: Array, names: Sequence[str]) -> str | None:
        """Say where it does not beat one class everywhere."""
        kept = self.kept(outputs, targets)
        counts = class_counts(kept, targets)
        hits, total, predicted = (item.sum(axis=0) for item in counts)
        value = mean_iou(hits, total, predicted)
        if value is None or (total > 0).sum() < 2:
            return None
        constant, guess = constant_mean_iou(total), chance_mean_iou(total)
        interval = bootstrap_interval(resampled_mean_iou(counts[0], counts[1], counts[2], value))
        if value > guess and (interval is None or interval[0] > guess):
            return None
        told = f"'{names[int(total.argmax())]}' for every pixel gives {constant:.1%}"
        if value > constant:
            told = f"classes drawn by their share, without a look at the image, give {guess:.1%}"
        verdict = "does not segment these data" if value <= guess else "is not shown to do better than a guess"
        return (
            f"it {verdict}: mean IoU {value:.1%}, and {told}; "
            "check its weights, its preprocessing and the order of its classes"
        )

    def agreement(self, teacher: Array, outputs: Array) -> Agreement:
        """Return the share of pixels with the teacher's class; KL(teacher || model) and the correlation by the grid."""
        theirs, ours = self.kept(teacher), self.kept(outputs)
        alike = counted = 0
        kls: list[NDArray[np.float64]] = []
        pairs: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        for start in range(0, len(ours), AT_ONCE):
            their, our = theirs[start : start + AT_ONCE], ours[start : start + AT_ONCE]
            known = (their["classes"] != VOID) & (our["classes"] != VOID)
            counted += int(known.sum())
            alike += int(((their["classes"] == our["classes"]) & known).sum())
            on_grid = at_grid(known, *their["logits"].shape[2:])
            p, q = (np.moveaxis(part["logits"], 1, -1)[on_grid].astype(np.float64) for part in (their, our))
            log_p, log_q = log_softmax(p), log_softmax(q)
            kls.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
            pairs.append((p, q))
        kl = np.concatenate(kls) if kls else np.zeros(0)
        return Agreement(
            top1=alike / counted if counted else 0.0,
            kl=max(float(kl.mean()), 0.0) if len(kl) else 0.0,
            logit_correlation=correlation(*(np.concatenate(side) for side in zip(*pairs))) if len(kl) else None,
        )

    def groups(self, targets: Array) -> NDArray[np.int64]:
        """Return each mask's commonest class; -1 where all is void."""
        found = np.full(len(targets), -1, dtype=np.int64)
        for start, part in in_parts(targets):
            for place, mask in enumerate(part, start):
                counts = np.bincount(mask[mask != VOID].reshape(-1).astype(np.int64))
                if counts.size:
                    found[place] = counts.argmax()
        return found


def _packed(ids: Array) -> str:
    """Return a map of bytes as text; see ``MaskPicture``."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(ids, dtype=np.uint8).tobytes(), 9)).decode()


def _in_cube(image: Array) -> Array:
    """Return an image uint8 ``[channels, h, w]`` in a cube of 6 x 6 x 6 colors; grey where it has not three."""
    colors = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    red, green, blue = (colors.astype(np.int64) + 25) // 51
    levels: Array = 36 * red + 6 * green + blue
    return levels
