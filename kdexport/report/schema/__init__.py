"""The JSON Schema of report.json, and its making."""

import json
from importlib.resources import files
from typing import Any

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
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "kdexport report.json",
        "description": "Schema 1. Units stand in the names; null means not measured.",
        **{key: value for key, value in made.items() if key not in ("title", "description")},
        "required": ["schema", *made["required"]],
    }
