"""What `kdexport distill --show-layers` shows: the layers of both networks and pairs that hold comparable things."""

from dataclasses import dataclass
from pathlib import Path

from kdexport.distill import layers
from kdexport.progress import SILENT, Progress
from kdexport.recipe import Recipe
from kdexport.sources.datasets import load_data
from kdexport.sources.models import load_model
from kdexport.sources.samples import Dataset


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
    dataset = load_data(recipe.data, recipe.seed, cache, progress)
    student = _trace(recipe, "student", dataset)
    teacher = _trace(recipe, "teacher", dataset)
    return ShownLayers(
        tuple(map(_row, student)),
        tuple(map(_row, teacher)),
        tuple((ours.path, theirs.path) for ours, theirs in layers.suggested_pairs(student, teacher)),
    )


def _trace(recipe: Recipe, role: str, dataset: Dataset) -> tuple[layers.Layer, ...]:
    spec = recipe.student if role == "student" else recipe.teacher
    model = load_model(role, spec, dataset)
    return layers.trace(model.network, model.preprocessing.apply(dataset.train.take(slice(0, 2)).inputs))


def _row(layer: layers.Layer) -> LayerRow:
    return LayerRow(layer.path, layer.kind, layer.shape, layer.stage, usable=layer.calls == 1)
