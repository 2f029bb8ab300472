"""The cache of one run's teacher: what it is keyed by, how much of the logits it keeps, and saying so."""

import math
from collections.abc import Sequence

from accelerate import Accelerator

from kdexport import artifacts
from kdexport.distill.batches import Batches
from kdexport.distill.objective import METHODS
from kdexport.distill.packing import TopK, Whole, packing_for
from kdexport.distill.run import Run
from kdexport.distill.teacher import CachedTeacher, Teacher
from kdexport.distill.teacher_cache import TeacherCache
from kdexport.terms import BaseTerm


def cached(
    run: Run, teacher: Teacher, identity: list[object], batches: Batches, accelerator: Accelerator
) -> CachedTeacher:
    """Return a teacher that is asked once per sample and view.

    Args:
        run: What the phases share.
        teacher: Who is asked.
        identity: What stands for the teacher's weights.
        batches: The training split, augmented as the student sees it.
        accelerator: Which process this is.
    """
    settings = run.recipe.distill
    packing = packing_for(run.dataset.num_classes, settings.teacher_top_k)
    data = [run.data_key, settings.data_free and settings.data_free.model_dump()]
    made_from = [identity, teacher.preprocessing.to_json(), data, [settings.augment, batches.views]]
    if isinstance(packing, TopK):
        made_from.append([packing.k])
    cache = TeacherCache(
        run.directory.cache,
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
    return CachedTeacher(teacher, cache, batches, run.progress, temperature_of(settings.terms))


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
