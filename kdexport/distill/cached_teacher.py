"""What a run keeps of its teacher's answers: on the views that are learnt from, and on the splits that are watched."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from accelerate import Accelerator

from kdexport import artifacts
from kdexport.distill.batches import Batches
from kdexport.distill.inference import predict_all
from kdexport.distill.objective import METHODS
from kdexport.distill.packing import TopK, Whole, packing_for
from kdexport.distill.run import Run
from kdexport.distill.teacher import CachedTeacher, Teacher
from kdexport.distill.teacher_cache import TeacherCache
from kdexport.terms import BaseTerm


def cached(run: Run, teacher: Teacher, cache: TeacherCache, batches: Batches) -> CachedTeacher:
    """Return a teacher that is asked once per sample and view; arguments as ``cache_of``."""
    return CachedTeacher(teacher, cache, batches, run.progress, temperature_of(run.recipe.distill.terms))


def cache_of(
    run: Run, teacher: Teacher, identity: list[object], batches: Batches, accelerator: Accelerator
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
    run: Run, teacher: Teacher, identity: list[object], name: Literal["val", "test"], accelerator: Accelerator
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


def _folder(run: Run) -> Path:
    shared = run.recipe.distill.teacher_cache
    return run.directory.cache if shared is None else Path(shared)


def _who_and_what(run: Run, teacher: Teacher, identity: list[object]) -> list[object]:
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
