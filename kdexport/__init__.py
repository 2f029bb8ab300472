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
import sys
from typing import TYPE_CHECKING, Any

# The packages come first: once imported they are never bound here again, so that the functions keep the names.
import kdexport.bench
import kdexport.distill
import kdexport.export
import kdexport.report
import kdexport.search  # noqa: F401
from kdexport.api import bench, distill, evaluate, export, report, run, search

if TYPE_CHECKING:
    from kdexport.artifacts import RunDirectory
    from kdexport.errors import KDExportError
    from kdexport.recipe import Recipe

# ONNX Runtime's wheels queue events about the machine and its models, and look up their collector's address, unless
# this is set before they are imported: here, because whatever imports onnxruntime imports this package first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = [
    "KDExportError",
    "Recipe",
    "RunDirectory",
    "bench",
    "distill",
    "evaluate",
    "export",
    "report",
    "run",
    "search",
]

# `kdexport.distill` is the function and `kdexport.distill.losses` a module of the package of the same name.
for _stage in (bench, distill, export, report, search):
    _stage.__dict__ = sys.modules[f"kdexport.{_stage.__name__}"].__dict__

_HOMES = {"KDExportError": "kdexport.errors", "Recipe": "kdexport.recipe", "RunDirectory": "kdexport.artifacts"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'kdexport' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
