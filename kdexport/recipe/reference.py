"""Every key of a recipe, told by the recipe's own model: ``models/RECIPE.md`` and the JSON Schema for editors.

``python -m kdexport.recipe.reference models`` writes both anew; a test holds them fresh.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kdexport.recipe import Recipe, Section, Training
from kdexport.terms import METHODS, BaseTerm, OwnLoss

REFERENCE, SCHEMA = "RECIPE.md", "recipe.schema.json"
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
HEAD = """# Every key of a recipe

Generated from `kdexport/recipe/` and `kdexport/terms.py` by `python -m kdexport.recipe.reference models`;
`kdexport init --reference` prints it. On the command line a key is `--set distill.epochs=10`, and that of a term is
`--set distill.terms.0.weight=0.9`.

The line `#:schema ./recipe.schema.json` on top of a recipe makes an editor complete and check the keys (Even Better
TOML in VS Code, Taplo in others); `kdexport init NAME` writes the line and the file."""
TRAIN = "Its keys are those of `[distill]` from `epochs` to `patience`, with the same defaults."


def schema() -> dict[str, Any]:
    """Return the recipe's JSON Schema: as TOML has no null, keys may be left out in place of it."""
    document: dict[str, Any] = _without_null(Recipe.model_json_schema())
    for section in _subclasses(Section):
        table = document["$defs"].get(section.__name__)
        for old, new in section.OLD_NAMES.items() if table else ():
            table["properties"][old] = {**table["properties"][new], "deprecated": True}
            table["properties"][old]["description"] = f"Old name of {new}."
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}


def markdown() -> str:
    """Return the reference: a table for each section, and one for each method of [[distill.terms]]."""
    document = schema()
    top = [HEAD, "## At the top", _table(document, Recipe)]
    return "\n\n".join([*top, *_sections(document, Recipe, "", {})]) + "\n"


def write(folder: Path) -> None:
    """Write both files into a folder."""
    (folder / REFERENCE).write_text(markdown(), encoding="utf-8")
    (folder / SCHEMA).write_text(json.dumps(schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _subclasses(kind: type[Section]) -> Iterator[type[Section]]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def _without_null(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_null(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: _without_null(item) for key, item in value.items() if not (key == "default" and item is None)}
    if "anyOf" in value:
        left = [item for item in value.pop("anyOf") if item != {"type": "null"}]
        value = {**left[0], **value} if len(left) == 1 else {**value, "anyOf": left}
    return value


def _sections(document: dict[str, Any], kind: type[Section], prefix: str, seen: dict[Any, str]) -> Iterator[str]:
    """Yield heading, purpose and table of each table below a section, depth first; equal ones once."""
    for name, field in kind.model_fields.items():
        path, inner = f"{prefix}{name}", _model_in(field.annotation)
        if path == "distill.terms":
            yield from _terms(document)
        if inner is None:
            continue
        many = str(field.annotation).startswith("tuple")
        yield f"{'###' if prefix else '##'} " + (f"[[{path}]]" if many else f"[{path}]")
        yield str(field.description)
        if inner is Training:
            yield TRAIN
        elif inner in seen:
            yield f"Its keys are those of `[{seen[inner]}]`."
        else:
            seen[inner] = path
            yield _table(document, inner)
            yield from () if many else _sections(document, inner, f"{path}.", seen)


def _terms(document: dict[str, Any]) -> Iterator[str]:
    yield "### [[distill.terms]]"
    yield "What every term takes:"
    yield _table(document, OwnLoss, [name for name in OwnLoss.model_fields if name in BaseTerm.model_fields])
    methods: dict[str, type[BaseTerm]] = {**METHODS, "file.py:name": OwnLoss}
    for name, term in methods.items():
        yield f'#### method = "{name}"'
        yield str(term.__doc__).partition("\n")[0].replace("``", "`")
        own = [key for key in term.model_fields if key not in BaseTerm.model_fields]
        yield _table(document, term, own) if own else "It takes no further key."


def _model_in(annotation: Any) -> type[Section] | None:
    """Return the section that an annotation holds, if it holds one."""
    for item in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(item, type) and issubclass(item, Section):
            return item
    return None


def _table(document: dict[str, Any], kind: type[BaseModel], names: Iterable[str] | None = None) -> str:
    """Return the named keys of a section or term as a table; by default all that are not tables themselves."""
    properties = (document if kind is Recipe else document["$defs"][kind.__name__])["properties"]
    rows = ["| key | values | default | what it says |", "|---|---|---|---|"]
    for name in names or [name for name, field in kind.model_fields.items() if not _model_in(field.annotation)]:
        field = kind.model_fields[name]
        default = "required" if field.is_required() else _default(properties[name])
        rows.append(f"| `{name}` | {_values(properties[name])} | {default} | {field.description} |")
    return "\n".join(rows)


def _values(value: dict[str, Any]) -> str:
    """Return what may stand there, in a few words."""
    if "anyOf" in value:
        return " or ".join(_values(item) for item in value["anyOf"])
    if "enum" in value or "const" in value:
        return ", ".join(f"`{json.dumps(item)}`" for item in value.get("enum", [value.get("const")]))
    if "oneOf" in value or "$ref" in value:
        return "table"
    if value.get("type") == "array":
        if "prefixItems" in value:
            return f"list of {len(value['prefixItems'])}: {_values(value['prefixItems'][0])}"
        return f"list of {_values(value['items'])}"
    name = {"integer": "whole number", "string": "text", "object": "table", "boolean": "`true`, `false`"}
    bounds = [f"{sign} {value[key]:g}" for key, sign in BOUNDS.items() if key in value]
    return " ".join([name.get(value.get("type", ""), str(value.get("type"))), ", ".join(bounds)]).strip()


def _default(value: dict[str, Any]) -> str:
    default = value.get("default")
    if default in (None, [], {}):
        return ""
    if isinstance(default, list) and isinstance(default[0], dict):
        return f"`{default[0]['method']}`"
    return f"`{json.dumps(default)}`"


if __name__ == "__main__":
    write(Path(sys.argv[1]))
