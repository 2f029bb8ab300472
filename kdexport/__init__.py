"""kdexport: distill a student, export it with proof, measure what it costs, decide.

The four stages and ``run``, which joins them, are functions of a ``Recipe``::

    from pathlib import Path
    from kdexport import Recipe, run

    report = run(Recipe.load(Path("recipe.toml")))
    print(report.pick)

Nothing heavy is imported until a stage is called.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdexport.artifacts import RunDirectory
    from kdexport.bench.stage import bench
    from kdexport.distill.stage import distill
    from kdexport.errors import KDExportError
    from kdexport.evaluate import evaluate
    from kdexport.export.stage import export
    from kdexport.pipeline import run
    from kdexport.recipe import Recipe
    from kdexport.report.stage import report

# ONNX Runtime's wheels queue events about the machine and its models, and look up their collector's address, unless
# this is set before they are imported: here, because whatever imports onnxruntime imports this package first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["KDExportError", "Recipe", "RunDirectory", "bench", "distill", "evaluate", "export", "report", "run"]

_HOMES = {
    "KDExportError": "kdexport.errors",
    "Recipe": "kdexport.recipe",
    "RunDirectory": "kdexport.artifacts",
    "run": "kdexport.pipeline",
}
_STAGES = ("bench", "distill", "evaluate", "export", "report")  # modules that can be called: see stage_module


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _STAGES:
        return importlib.import_module(f"kdexport.{name}")
    raise AttributeError(f"module 'kdexport' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
