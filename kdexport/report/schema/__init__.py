"""The JSON Schema of report.json, and its making."""

import base64
import json
from importlib.resources import files
from typing import Any

from kdexport import results
from kdexport.results import Report

FILE = "report.schema.json"


def schema() -> dict[str, Any]:
    """Return the schema that ships with this version."""
    document: dict[str, Any] = json.loads(files("kdexport.report.schema").joinpath(FILE).read_text(encoding="utf-8"))
    return document


def make() -> dict[str, Any]:
    """Work the schema out from ``results.Report``: what has no default is required, what is not known is allowed.

    Whoever changes ``Report`` writes this into the file, and a test says so.
    """
    from pydantic import TypeAdapter

    made = TypeAdapter(Report).json_schema()
    interval = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
    for kind in ("ModelFile", "Evaluation", "Tradeoff"):  # what is derived is written too
        for name in getattr(results, kind).DERIVED:
            of = interval if name.endswith("ci95") else {"type": "number"}
            made["$defs"][kind]["properties"][name] = {"anyOf": [of, {"type": "null"}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "kdexport report.json",
        "description": "Schema 2. Units stand in the names; null means not measured.",
        **{key: value for key, value in made.items() if key not in ("title", "description")},
        "required": ["schema", *made["required"]],
    }


def upgraded(document: dict[str, Any]) -> dict[str, Any]:
    """Return a bench.json or report.json of schema 1 in today's form: there, the one score was an accuracy."""
    if document.get("schema") != 1:
        return document
    models = document.get("models")
    if not isinstance(models, list):
        return document
    return document | {
        "models": [_model_of_schema_1(model) if isinstance(model, dict) else model for model in models],
        "tradeoffs": [
            item | {"score_delta": item.get("accuracy_delta"), "score_delta_ci95": item.get("accuracy_delta_ci95")}
            for item in document.get("tradeoffs") or ()
            if isinstance(item, dict)
        ],
    }


def _model_of_schema_1(model: dict[str, Any]) -> dict[str, Any]:
    evaluation, score = model.get("evaluation"), None
    if model.get("accuracy") is not None:
        score = {"metric": "accuracy", "value": model["accuracy"], "ci95": model.get("accuracy_ci95")}
    if isinstance(evaluation, dict) and "task" not in evaluation:
        evaluation = evaluation | {
            "task": "classification",
            "score": {
                "metric": "accuracy",
                "value": evaluation.get("accuracy"),
                "ci95": evaluation.get("accuracy_ci95"),
            },
            "metrics": {"macro_f1": evaluation.get("macro_f1")},
            "per_sample": _bits(evaluation.get("correct"), evaluation.get("samples")),
        }
    return model | {"score": score, "evaluation": evaluation}


def _bits(packed: Any, samples: Any) -> list[int]:
    """Return which samples were right, from one bit a sample; empty where the bits are of something else."""
    import numpy as np

    try:
        bits = np.unpackbits(np.frombuffer(base64.b64decode(packed), dtype=np.uint8))
    except (TypeError, ValueError):  # not base64: the file was edited
        return []
    if not isinstance(samples, int) or (len(bits) + 7) // 8 != (samples + 7) // 8:
        return []  # with several labels a sample, each class was a decision
    return [int(bit) for bit in bits[:samples]]
