"""The public functions: each stage by itself, and ``run``, which joins them.

Nothing heavy is imported until one is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kdexport.artifacts import RunDirectory
    from kdexport.progress import Progress
    from kdexport.recipe import Bench, Recipe, Require
    from kdexport.results import BenchResult, DistillResult, Evaluation, ExportResult, ModelFile, OnChange, Report
    from kdexport.scoring import Predict, Samples
    from kdexport.search.results import SearchResult


def run(
    recipe: Recipe,
    out: Path | None = None,
    progress: Progress | None = None,
    *,
    on_change: OnChange | None = None,
) -> Report:
    """Distill, export, benchmark and report; see ``kdexport.pipeline.run``."""
    from kdexport import pipeline
    from kdexport.progress import for_python

    return pipeline.run(recipe, out, progress or for_python(), on_change=on_change)


def distill(
    recipe: Recipe,
    directory: RunDirectory,
    progress: Progress | None = None,
    *,
    on_change: OnChange | None = None,
) -> DistillResult:
    """Train what the recipe asks for; see ``kdexport.distill.stage.distill``."""
    from kdexport.distill import stage
    from kdexport.progress import for_python

    return stage.distill(recipe, directory, progress or for_python(), on_change=on_change)


def export(
    recipe: Recipe, distilled: DistillResult, directory: RunDirectory, progress: Progress | None = None
) -> ExportResult:
    """Export every network of a run and prove each file; see ``kdexport.export.stage.export``."""
    from functools import partial

    from kdexport.bench.comparison import Comparison
    from kdexport.export import stage
    from kdexport.progress import for_python

    return stage.export(recipe, distilled, directory, progress or for_python(), partial(Comparison, recipe.bench))


def bench(
    models: Sequence[ModelFile], settings: Bench, *, name: str, progress: Progress | None = None, **options: Any
) -> BenchResult:
    """Measure models against the first of them; ``options`` as ``kdexport.bench.stage.bench`` describes them."""
    from kdexport.bench import stage
    from kdexport.progress import for_python

    return stage.bench(models, settings, name=name, progress=progress or for_python(), **options)


def report(benched: Sequence[BenchResult], require: Require | None = None, name: str | None = None) -> Report:
    """Join results into one report; see ``kdexport.report.stage.report``."""
    from kdexport.report import stage

    return stage.report(benched, require, name=name)


def evaluate(
    predict: Predict, split: Samples, class_names: Sequence[str], batch_size: int = 128, *, name: str = "test"
) -> tuple[Evaluation, NDArray[np.float32]]:
    """Score any function from inputs to outputs; see ``kdexport.scoring.evaluate``."""
    from kdexport import scoring

    return scoring.evaluate(predict, split, class_names, batch_size, name=name)


def search(recipe: Recipe, out: Path | None = None, progress: Progress | None = None) -> SearchResult:
    """Find the student that fits the budget of the recipe's [search]; see ``kdexport.search.stage.search``."""
    from kdexport.progress import for_python
    from kdexport.search import stage

    return stage.search(recipe, out, progress or for_python())
