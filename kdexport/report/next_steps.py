"""What a reader does next: use the file, check that it is the file, make it again, see what the recipe changed."""

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel

from kdexport.recipe import Recipe
from kdexport.results import ModelFile, Report

MOST_CHARACTERS = 120  # of a value of the recipe


def snippet(model: ModelFile) -> str:
    """Return Python that runs a file on zeros of the shapes and types that the file itself states."""
    name = json.dumps(PurePosixPath(model.file).name)
    return f"""import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession({name}, providers=["CPUExecutionProvider"])
kinds = {{"float": "float32", "double": "float64", "float16": "float16"}}
feed = {{}}
for item in session.get_inputs():
    kind = item.type[7:-1]  # "tensor(uint8)" -> "uint8"
    shape = [size if isinstance(size, int) else 1 for size in item.shape]
    feed[item.name] = np.zeros(shape, kinds.get(kind, kind))
for item, output in zip(session.get_outputs(), session.run(None, feed), strict=True):
    print(item.name, output.dtype, output.shape)
"""


def command(report: Report) -> str:
    """Return the command that makes these results again: the run, or the measuring."""
    if report.training or "distill" in (report.recipe or {}):
        return "kdexport run recipe.toml"
    files = " ".join(shlex.quote(model.file) for model in report.models)
    conditions = [
        *(f"--device {shlex.quote(name)}" for name in dict.fromkeys(item.device for item in report.measurements)),
        *(f"--batch-size {size}" for size in sorted({item.batch_size for item in report.measurements})),
        *(f"--threads {count}" for count in sorted({item.threads for item in report.measurements})),
    ]
    return f"kdexport bench {files} {' '.join(conditions)} --out bench.json && kdexport report bench.json"


def changed_settings(recipe: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return the recipe's keys, dotted, whose values are not the defaults, each with its value as it is written."""
    return [(key, _short(value)) for key, value in _differing(Recipe, recipe or {}, "")]


def _differing(section: type[BaseModel], values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        field = section.model_fields.get(name)
        default = _plain(field.get_default(call_default_factory=True)) if field and not field.is_required() else None
        if field is not None and isinstance(value, Mapping) and (nested := _section(field.annotation)) is not None:
            yield from _differing(nested, value, f"{prefix}{name}.")
        elif _plain(value) != default:
            yield prefix + name, value


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
