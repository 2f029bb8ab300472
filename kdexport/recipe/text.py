"""How a recipe is read: TOML and overrides into one document, checked before anything walks into it, and every fault of
it in words.

What the keys are stands in ``kdexport.recipe``; a document that is not one of its tables says so here.
"""

import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kdexport import references
from kdexport.errors import RecipeError, did_you_mean, is_too_long
from kdexport.terms import METHODS, OWN

MAX_FAULTS_SHOWN = 20
MAX_DEPTH = 32  # tables and arrays within each other
SQLITE = "sqlite:///"  # before the path of a study
PRETRAINED = "pretrained"  # as weights: the library's own (torchvision, timm)

Document = TypeVar("Document", bound=BaseModel)


def validated(
    kind: type[Document], document: Mapping[str, Any], base: Path, overrides: Iterable[str], origin: str
) -> Document:
    """Return a document as one of the recipe's tables, with overrides applied.

    Args:
        kind: Of the table.
        document: Nested dicts; any depth, any values.
        base: What its paths are relative to; those of overrides are relative to the working directory.
        overrides: ``key=value``.
        origin: What messages call it.

    Raises:
        RecipeError: Not valid; every fault is listed.
    """
    check_values(document, origin)
    whole = with_absolute_paths(_copy(document), base.resolve())
    for override in overrides:
        _apply(whole, override, kind)
    check_values(whole, origin)
    whole = with_absolute_paths(whole, Path.cwd())
    try:
        return kind.model_validate(tuples(whole))
    except ValidationError as error:
        faults = _describe(error, kind)
        shown = [f"  {fault}" for fault in faults[:MAX_FAULTS_SHOWN]]
        if len(faults) > MAX_FAULTS_SHOWN:
            shown.append(f"  ... and {len(faults) - MAX_FAULTS_SHOWN} more")
        count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise RecipeError(
            "\n".join([f"{origin} has {count}:", *shown]),
            hint="fix what is listed, then give the same command again",
        ) from None


def parsed_toml(text: str, origin: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        RecipeError: It is none, or it nests or counts beyond what a recipe does.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(
            f"{origin} is not TOML: {error}", hint="fix that line; https://toml.io shows the form"
        ) from None
    except RecursionError:
        raise _too_deep(origin) from None
    except ValueError as error:  # an integer of thousands of digits
        raise RecipeError(f"{origin} is no recipe: {error}", hint="give a smaller number") from None


def check_values(document: Any, origin: str) -> None:
    """Hold that nothing later can stumble over a document's values, before anything walks into them by recursion.

    Raises:
        RecipeError: It nests too deep, or holds NaN, an integer beyond 64 bits, or text that no file can hold.
    """
    waiting = [(document, 0, "")]
    while waiting:
        value, depth, where = waiting.pop()
        fault = ""
        if isinstance(value, Mapping | list | tuple):
            if depth == MAX_DEPTH:
                raise _too_deep(origin)
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting += [(item, depth + 1, f"{where}.{key}".lstrip(".")) for key, item in items]
            waiting += [(key, depth + 1, where) for key in value if isinstance(value, Mapping)]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            fault = "is an integer beyond 64 bits"
        elif isinstance(value, float) and math.isnan(value):
            fault = "is not a number (NaN)"
        elif isinstance(value, str) and ("\0" in value or not _is_unicode(value)):
            fault = "holds what is no text (NUL, or bytes that are no UTF-8)"
        if fault:
            raise RecipeError(f"{origin}: {_cut(where)} {fault}", hint="give another value")


def _too_deep(origin: str) -> RecipeError:
    return RecipeError(f"{origin} nests deeper than {MAX_DEPTH} levels", hint="give fewer tables within each other")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def with_absolute_paths(document: dict[str, Any], base: Path) -> dict[str, Any]:
    """Return a document with every reference and path made absolute against a folder."""
    return map_references(
        document,
        lambda text: _usable(references.absolute(text, base)),
        lambda text: _usable(os.path.normpath(base / references.home(text))),
    )


def _usable(text: str) -> str:
    """Return a reference or a path that a file system can hold.

    Raises:
        RecipeError: It is too long; whatever asks the system for it would fail otherwise.
    """
    path = references.path_of(references.parse(text))
    if path is not None and is_too_long(path):
        raise RecipeError(
            f"{_cut(text)!r} is longer than any path: {len(text):,} characters",
            hint="give the path of a file or folder",
        )
    return text


def map_references(document: dict[str, Any], reference: Any, path: Any) -> dict[str, Any]:
    """Apply a function to each field that holds a reference or a path; a wrong type is left for validation."""
    for section, key, function in (
        ("data", "source", reference),
        ("data", "root", path),
        ("data", "tokenizer", reference),
        ("data", "unlabelled", reference),
        ("teacher", "model", reference),
        ("teacher", "weights", path),
        ("student", "model", reference),
        ("student", "weights", path),
        ("student", "vocabulary", lambda text: path(text) if text.endswith(".json") else text),
        ("distill", "teacher_cache", path),
    ):
        head = document.get(section)
        also = head.get("also") if section == "teacher" and isinstance(head, dict) else None
        for table in (head, *(also if isinstance(also, list) else ())):
            if isinstance(table, dict) and isinstance(table.get(key), str) and table[key] != PRETRAINED:
                table[key] = function(table[key])
    search = document.get("search")
    spaces = search.get("space") if isinstance(search, dict) else None
    for table in spaces if isinstance(spaces, list | tuple) else ():
        for key, function in (("model", reference), ("weights", path)):
            if isinstance(table, dict) and isinstance(table.get(key), str) and table[key] != PRETRAINED:
                table[key] = function(table[key])
    if isinstance(search, dict) and str(search.get("storage", "")).startswith(SQLITE):
        file = search["storage"].removeprefix(SQLITE)
        search["storage"] = SQLITE + (path(file) if file and ":" not in file else file)
    distill = document.get("distill")
    terms = distill.get("terms") if isinstance(distill, dict) else None
    for term in terms if isinstance(terms, list) else ():
        if isinstance(term, dict) and isinstance(term.get("method"), str) and ":" in term["method"]:
            term["method"] = reference(term["method"])
    teacher = document.get("teacher")
    train = teacher.get("train") if isinstance(teacher, dict) else None
    for table, key in ((document, "scores"), (distill, "augment"), (train, "augment")):
        if isinstance(table, dict) and isinstance(table.get(key), list | tuple):
            table[key] = [reference(item) if isinstance(item, str) and ":" in item else item for item in table[key]]
    return document


def code_of(document: dict[str, Any]) -> list[str]:
    """Return the Python files and modules of the user's own that carrying out a document imports.

    Args:
        document: With absolute paths.
    """
    found: dict[str, None] = {}

    def note(text: str) -> str:
        reference = references.parse(text)
        if reference.kind == "file":
            files = references.local_sources(Path(reference.target)) or [Path(reference.target)]
            found.update(dict.fromkeys(os.path.relpath(file) for file in files))
        elif reference.kind == "module":
            found[f"the module {reference.target}"] = None
        return text

    map_references(document, note, str)
    return list(found)


def _apply(document: dict[str, Any], override: str, root: type[BaseModel]) -> None:
    """Set one ``a.b.c=value``; the value is read as TOML, else taken as text."""
    key, equals, value = override.partition("=")
    parts = re.sub(r"\[(\d+)\]", r".\1", key.strip()).split(
        "."
    )  # terms[0].weight, as faults name it, is terms.0.weight
    if len(parts) > MAX_DEPTH:
        raise _too_deep(f"--set {_cut(override)!r}")
    if not equals or not all(parts):
        raise RecipeError(f"--set {override!r} is not of the form key=value", hint="e.g. --set distill.epochs=10")
    try:
        parsed, *more = tomllib.loads(f"value = {value}").values()
    except tomllib.TOMLDecodeError:
        parsed, more = value.strip(), []
    except (RecursionError, ValueError):
        raise RecipeError(
            f"--set {_cut(override)!r} is no value of a recipe", hint="give a smaller number, or fewer brackets"
        ) from None
    if more:  # further lines of TOML, which would be lost
        raise RecipeError(f"--set {_cut(override)!r} sets more than one key", hint="give a --set for each key")
    if parts[:2] == ["distill", "terms"] and len(parts) > 2:  # a key of a term changes the default where none is given
        table = _table(["distill"], root)
        terms = [term.model_dump() for term in table.model_fields["terms"].default] if table else []
        if isinstance(distill := document.setdefault("distill", {}), dict):
            distill.setdefault("terms", terms)
    inner: Any = document
    for part in parts[:-1]:
        inner = _step(inner, part, override)
    if isinstance(inner, list):
        inner[_index(inner, parts[-1], override)] = parsed
    else:
        inner[parts[-1]] = parsed


def _step(table: Any, part: str, override: str) -> Any:
    inner = table[_index(table, part, override)] if isinstance(table, list) else table.setdefault(part, {})
    if not isinstance(inner, dict | list):
        raise RecipeError(f"--set {override!r}: '{part}' is a value, not a table", hint="e.g. --set distill.epochs=10")
    return inner


def _index(table: list[Any], part: str, override: str) -> int:
    if part.isdecimal() and len(part) < 10 and int(part) < len(table):
        return int(part)
    raise RecipeError(
        f"--set {override!r}: '{part}' is not one of the {len(table)} entries",
        hint="count from 0, e.g. --set distill.terms.0.temperature=4.0",
    )


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item) for item in value]
    return value


def tuples(value: Any) -> Any:
    """Turn lists into tuples: strict validation wants the frozen form."""
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(tuples(item) for item in value)
    return value


def _describe(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """Say each fault in one line: where, what, and what was probably meant."""
    lines = []
    for fault in error.errors():
        location = list(fault["loc"])
        if len(location) > 3 and location[1] == "terms" and location[3] in (*METHODS, OWN):
            del location[3]  # the union's tag is not a key of the recipe
        where = _dotted(location)
        kind = fault["type"]
        if kind == "extra_forbidden":
            known = _keys_at(location[:-1], root)
            hint = (
                did_you_mean(str(location[-1]), known)
                or _one_table_below(location, known, root)
                or f"known here: {', '.join(sorted(known))}"
            )
            lines.append(f"{where}: unknown key; {hint.strip()}")
        elif kind == "missing":
            lines.append(f"{where}: missing, and there is no default")
        elif kind == "union_tag_invalid":
            method = str(fault["input"].get("method"))
            near = did_you_mean(method, METHODS) or f"there are: {', '.join(METHODS)}"
            lines.append(f"{where}.method: no method is called '{method}'; {near.strip()}")
        elif kind == "union_tag_not_found":
            lines.append(f"{where}.method: missing; there are: {', '.join(METHODS)}")
        elif kind == "value_error":
            lines.append(f"{where}: {fault['msg'].removeprefix('Value error, ')}")
        else:
            message = fault["msg"].replace("Input should", "should")
            lines.append(f"{where}: {message}, not {_shorten(fault['input'])}")
    return lines


def _dotted(location: list[Any]) -> str:
    return (
        "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".") or "the recipe"
    )


def _one_table_below(location: list[Any], known: list[str], root: type[BaseModel]) -> str:
    """Name the tables that hold a key which stands one too high, as ``teacher.epochs`` does."""
    *above, name = location
    tables = [key for key in known if _table([*above, key], root) is not None]
    found = [_dotted([*above, table, name]) for table in tables if name in _keys_at([*above, table], root)]
    return f"did you mean {' or '.join(found)}?" if found else ""


def _keys_at(location: list[Any], root: type[BaseModel]) -> list[str]:
    """Return the keys that a table of the recipe may hold; of a term's, which depend on its method, all."""
    table = _table(location, root)
    return (
        sorted({key for term in METHODS.values() for key in term.model_fields})
        if table is None
        else list(table.model_fields)
    )


def _table(location: list[Any], root: type[BaseModel]) -> type[BaseModel] | None:
    """Return the model of a table of the recipe; None for what is none, or a term's."""
    model = root
    for part in location:
        if isinstance(part, int) or part not in model.model_fields:
            return None
        annotation: Any = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        found = next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)
        if found is None:
            return None
        model = found
    return model


def _shorten(value: Any) -> str:
    return _cut(repr(list(value) if isinstance(value, tuple) else value))
