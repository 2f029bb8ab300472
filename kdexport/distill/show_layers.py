"""``kdexport distill --show-layers``: both networks' layers, by the names that a term may give."""

from dataclasses import dataclass
from pathlib import Path

from kdexport.data.samples import Dataset
from kdexport.distill.layers import Layer, suggested_pairs, trace
from kdexport.models.fitted_data import load_run_data
from kdexport.models.loading import load_model
from kdexport.progress import SILENT, Progress
from kdexport.recipe import Recipe


@dataclass(frozen=True)
class LayerRow:
    """One layer that a term can name."""

    path: str
    kind: str  # its class
    shape: tuple[int, ...]  # of what it gives, without the batch
    stage: int | None  # its number, by which it can be named as well
    usable: bool  # False where it runs several times in one pass


@dataclass(frozen=True)
class ShownLayers:
    """Both networks' layers in the order in which they run."""

    student: tuple[LayerRow, ...]
    teacher: tuple[LayerRow, ...]
    suggested: tuple[tuple[str, str], ...]  # (student's path, teacher's path), first stage first


def show_layers(recipe: Recipe, cache: Path, progress: Progress = SILENT) -> ShownLayers:
    """Return the layers of a recipe's networks, from one pass of two samples; nothing is trained.

    Args:
        recipe: Whose networks and data.
        cache: Folder for decoded samples.
        progress: Where long reading shows.

    Raises:
        KDExportError: A network or the data cannot be had.
    """
    dataset = load_run_data(recipe, cache, progress)
    student = _trace(recipe, "student", dataset)
    teacher = _trace(recipe, "teacher", dataset)
    return ShownLayers(
        tuple(map(_row, student)),
        tuple(map(_row, teacher)),
        tuple((ours.path, theirs.path) for ours, theirs in suggested_pairs(student, teacher)),
    )


def _trace(recipe: Recipe, role: str, dataset: Dataset) -> tuple[Layer, ...]:
    spec = recipe.student if role == "student" else recipe.teacher
    model = load_model(role, spec, dataset)
    return trace(model.network, model.preprocessing.apply(dataset.train.take(slice(0, 2)).inputs))


def _row(layer: Layer) -> LayerRow:
    return LayerRow(layer.path, layer.kind, layer.shape, layer.stage, usable=layer.calls == 1)
