"""What networks are for. A new task is a module here and a line in ``TASKS``."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from kdexport.errors import SourceError, did_you_mean
from kdexport.tasks.base import Task
from kdexport.tasks.classification import Classification
from kdexport.tasks.embedding import Embedding
from kdexport.tasks.multilabel import MultiLabel
from kdexport.tasks.regression import Regression
from kdexport.tasks.segmentation import Segmentation
from kdexport.tasks.similarity import Similarity

# In the order in which targets are tried where the recipe names no task.
TASKS: dict[str, Task] = {
    task.name: task for task in (Classification(), MultiLabel(), Regression(), Segmentation(), Embedding())
}
# Told from one in TASKS of the same name by their targets alone; a source that gives such targets says so.
VARIANTS: tuple[Task, ...] = (Similarity(),)


def task_named(name: str, targets: NDArray[Any] | None = None) -> Task:
    """Return a task: of several with one name that whose targets these are, else the first.

    Raises:
        SourceError: There is none of that name.
    """
    if name not in TASKS:
        near = did_you_mean(name, TASKS) or f"there are: {', '.join(TASKS)}"
        raise SourceError(f"there is no task '{name}'", hint=near.strip())
    variants = [task for task in VARIANTS if task.name == name and targets is not None and task.fits(targets)]
    return variants[0] if variants else TASKS[name]


def task_of_metric(metric: str) -> Task | None:
    """Return the task whose score has a name in JSON; None where there is none."""
    return next((task for task in (*TASKS.values(), *VARIANTS) if task.metric == metric), None)


def task_of(targets: NDArray[Any]) -> Task:
    """Return the task that targets are of, where their form leaves no doubt.

    Raises:
        SourceError: They fit none.
    """
    for task in TASKS.values():
        if task.fits(targets):
            return task
    raise SourceError(
        f"targets of shape {list(targets.shape)} and type {targets.dtype} are of no task",
        hint=f"set task in the recipe to one of: {', '.join(TASKS)}",
    )
