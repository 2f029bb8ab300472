"""Bench results and reports from files: bench.json, report.json or a run directory, of this schema or an earlier one.

Whatever is no such file is refused with what it is instead.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from kdexport import results
from kdexport.artifacts import read_text
from kdexport.errors import KDExportError
from kdexport.recipe import Require
from kdexport.report.schema import upgraded
from kdexport.results import SCHEMA, BenchResult, Report

OLD_VERDICTS = {"met": "pass", "failed": "fail"}  # of schema 1
MEASURE = "make one with kdexport bench MODEL.onnx --out bench.json"


def read_benches(
    given: str, other: Callable[[dict[str, Any]], BenchResult | None] | None = None
) -> tuple[BenchResult, ...]:
    """Read what a user named on the command line.

    Args:
        given: A bench.json, a report.json, or a run directory that holds one of them; ``NAME=PATH`` gives its machine
            another name.
        other: Makes a bench result of what is no such document, or says None.

    Raises:
        KDExportError: There is no such file, or it is something else.
    """
    path, name = Path(given), None
    if not path.exists() and "=" in given:
        name, _, rest = given.partition("=")
        path = Path(rest)
    document = _document(_file_in(path))
    path = _file_in(path)
    made = other(document) if other else None
    benches = (
        (made,)
        if made is not None
        else benches_of(_build(Report, document, path))
        if "tradeoffs" in document
        else (_build(BenchResult, document, path),)
    )
    return tuple(_renamed(bench, name) for bench in benches) if name else benches


def read_report(path: Path) -> Report:
    """Read an earlier report.json to compare with; a bench.json is reported on first.

    Raises:
        KDExportError: There is no such file, or it is something else.
    """
    from kdexport.report.stage import report

    path = _file_in(path, ("report.json", "bench.json"))
    document = _document(path)
    if "tradeoffs" not in document:
        return report((_build(BenchResult, document, path),))
    built: Report = _build(Report, document, path)
    return built


def benches_of(report: Report) -> tuple[BenchResult, ...]:
    """Take a report apart again, one bench result per machine: what it was joined from."""
    return tuple(
        BenchResult(
            name=report.name,
            created=report.created,
            machine=machine,
            models=report.models,
            measurements=tuple(item for item in report.measurements if item.machine == machine.name),
            failures=report.failures if index == 0 else (),
            recipe=report.recipe,
            training=report.training if index == 0 else (),
            tested_on=report.tested_on,
            data_warnings=report.data_warnings,
            left_out=report.left_out,
        )
        for index, machine in enumerate(report.machines)
    )


def _file_in(path: Path, names: tuple[str, ...] = ("bench.json", "report.json")) -> Path:
    if path.is_dir():
        found = next((path / name for name in names if (path / name).exists()), None)
        if found is None:
            raise KDExportError(
                f"the directory {path} holds no {' or '.join(names)}",
                hint=f"give a finished run directory, or {MEASURE}",
            )
        return found
    return path


def _document(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise KDExportError(f"there is no file {path}", hint=f"check the path, or {MEASURE}") from None
    except UnicodeDecodeError:
        raise KDExportError(f"{path} is not a JSON text file", hint=f"give a bench.json; {MEASURE}") from None
    except OSError as error:
        raise KDExportError(
            f"{path} cannot be read: {error.strerror or error}", hint="check who may read it"
        ) from error
    if not text.strip():
        raise KDExportError(f"{path} is empty", hint=f"the measuring may have been cut off; {MEASURE}")
    try:
        document = json.loads(text, parse_constant=lambda constant: _refuse_constant(path, constant))
    except json.JSONDecodeError as error:
        whole = text.rstrip()
        if whole.startswith("{") and (error.pos >= len(whole) - 1 or not whole.endswith("}")):
            message = f"{path} is cut off in line {error.lineno}: it ends before its JSON does"
        else:
            message = f"{path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        raise KDExportError(message, hint=f"copy it again, or {MEASURE}") from None
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        raise KDExportError(f"{path} is not a bench.json: no figure or nesting is as long", hint=MEASURE) from None
    if not isinstance(document, dict):
        raise KDExportError(f"{path} is not a bench.json: it holds no JSON object", hint=MEASURE)
    return document


def _refuse_constant(path: Path, constant: str) -> NoReturn:
    raise KDExportError(
        f"{path} holds {constant} where a figure is expected",
        hint="measure again with kdexport bench; a figure that was not measured is null",
    )


def _build(kind: type[Any], document: dict[str, Any], path: Path) -> Any:
    schema = document.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise KDExportError(
            f"{path} was made by a newer kdexport: its schema is {schema}, this one reads up to {SCHEMA}",
            hint="update with pip install --upgrade kdexport",
        )
    missing = {"schema", "models", "measurements"} - document.keys()
    if missing or not isinstance(schema, int):
        raise KDExportError(
            f"{path} is not of kdexport: it has no '{min(missing) if missing else 'schema'}'",
            hint=f"give a bench.json or report.json; {MEASURE}",
        )
    document = upgraded(document)
    known = {field.name for field in dataclasses.fields(kind)}
    _rename_verdicts(document)
    try:
        return results.from_json(kind, {key: value for key, value in document.items() if key in known})
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        more = f" (and {error.error_count() - 1} more faults)" if error.error_count() > 1 else ""
        message = fault["msg"].replace("Input should", "should")
        what = "report.json" if kind is Report else "bench.json"
        raise KDExportError(
            f"{path} is not a {what} as kdexport writes it: {where} {message}{more}",
            hint=f"was it edited by hand or by another tool? {MEASURE}",
        ) from None


def _rename_verdicts(document: dict[str, Any]) -> None:
    """Write the verdicts of an earlier report in today's words."""
    gates = document.get("gates")
    for gate in gates if isinstance(gates, list) else ():
        if isinstance(gate, dict) and gate.get("verdict") in OLD_VERDICTS:
            gate["verdict"] = OLD_VERDICTS[gate["verdict"]]


def _renamed(bench: BenchResult, name: str) -> BenchResult:
    return dataclasses.replace(
        bench,
        machine=dataclasses.replace(bench.machine, name=name),
        measurements=tuple(dataclasses.replace(item, machine=name) for item in bench.measurements),
    )


def folder_of(given: list[str]) -> Path:
    """Return where a report on these goes: beside a single input, else into ``report`` in the working directory."""
    if len(given) > 1:
        return Path("report")
    path = Path(given[0])
    if not path.exists() and "=" in given[0]:
        path = Path(given[0].partition("=")[2])
    return path if path.is_dir() else path.parent


def requirements_of(benches: Sequence[BenchResult]) -> Require:
    """Return the [require] of the first bench result that came from a recipe.

    Raises:
        KDExportError: It is not valid.
    """
    recipe = next((bench.recipe for bench in benches if bench.recipe is not None), {})
    try:
        return Require.model_validate(recipe.get("require", {}))
    except ValidationError as error:
        raise KDExportError(
            f"[require] of the recipe in the bench result is not valid: {error.errors()[0]['msg']}",
            hint="measure again with the recipe as it is now, or fix it in the file",
        ) from None
