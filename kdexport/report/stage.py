"""Open first: bench results in, a ``Report`` out, and the files that people and programs read.

``report`` is pure; ``write_report`` writes report.json, report.md, report.html and card.md into one folder.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdexport import results
from kdexport.artifacts import RUN_MARKS, RunDirectory, read_json, write_text
from kdexport.errors import KDExportError, RequirementError
from kdexport.progress import Progress
from kdexport.recipe import Recipe, Require
from kdexport.report.findings import findings
from kdexport.report.join import join
from kdexport.report.selection import pick_devices
from kdexport.report.tradeoffs import dominated, tradeoffs
from kdexport.report.view import gate_words
from kdexport.results import BenchResult, Gate, Report
from kdexport.stage_cache import as_written, cache_key, done, stamped

MOST_SHOWN = 6  # failed requirements in an error message


def report(benches: Sequence[BenchResult], require: Require | None = None, *, name: str | None = None) -> Report:
    """Join bench results and decide.

    Args:
        benches: One or more, also from several machines.
        require: What the model to ship must hold; None asks for nothing.
        name: What the report is called; else the first bench result's name.

    Raises:
        KDExportError: The results cannot be joined; see ``join.join``.
    """
    joined = join(benches, name)
    devices, gates, pick = pick_devices(joined, require or Require())
    return Report(
        name=joined.name,
        recipe=joined.recipe,
        machines=joined.machines,
        models=joined.models,
        measurements=joined.measurements,
        tradeoffs=tradeoffs(joined),
        pick=pick,
        gates=gates,
        failures=joined.failures,
        training=joined.training,
        findings=findings(joined, devices),
        devices=devices,
        dominated=dominated(joined),
        created=joined.created,
        baseline=joined.baseline,
        tested_on=joined.tested_on,
        data_warnings=joined.data_warnings,
        left_out=joined.left_out,
    )


def report_run(recipe: Recipe, benched: BenchResult, directory: RunDirectory, progress: Progress) -> Report:
    """Report on one run and write report.json, report.md and report.html into its directory.

    What was made before from the same figures, requirements and version is returned as it is.
    """
    key = cache_key("report", benched=as_written(results.to_json(benched)), require=recipe.require.model_dump())
    known = done(directory.report("json"), key, Report)
    if known is not None:
        progress.message("report: nothing has changed")
        return known
    made = report((benched,), recipe.require, name=recipe.name)
    write_report(made, directory.root, key=key)
    progress.message(f"report: {directory.report('html')}")
    return made


def write_report(report: Report, folder: Path, *, key: str | None = None) -> tuple[Path, ...]:
    """Write report.json, report.md with its pictures, report.html and card.md, each whole or not at all.

    Args:
        report: What ``report`` returned.
        folder: Made where it does not exist.
        key: What the report was made from (``stage_cache.is_done`` compares it); kept in report.json.

    Returns:
        The paths written: report.json last, so that what it stands for is there.

    Raises:
        KDExportError: The folder cannot be written to, or holds files of these names that no report of kdexport's is.
    """
    from kdexport.report.card import card
    from kdexport.report.html import html
    from kdexport.report.markdown import markdown, pictures_of

    pictures = pictures_of(report)
    made = card(report, folder)
    texts = {
        **pictures,
        "report.md": markdown(report, pictures),
        "report.html": html(report),
        **({"card.md": made} if made else {}),
    }
    _check_own(folder, (*texts, "report.json"))
    written = tuple(folder / name for name in texts)
    fresh = [path for path in written if not path.exists()]
    try:
        for path, text in zip(written, texts.values(), strict=True):
            write_text(path, text)
        document = results.to_json(report)
        write_text(folder / "report.json", _in_lines(stamped(document, folder, key, written) if key else document))
    except BaseException:  # a part of a report would be taken for somebody else's files
        for path in fresh:
            path.unlink(missing_ok=True)
        raise
    return (*written, folder / "report.json")


def _check_own(folder: Path, names: Sequence[str]) -> None:
    if folder.is_file():
        raise KDExportError(
            f"the report could not be written: {folder} is a file",
            hint="give a folder with --out, for its several files",
        )
    is_run = (folder / RUN_MARKS[0]).exists()  # a run that was killed here left a part of its report
    if is_run or {"schema", "models", "measurements"} <= (read_json(folder / "report.json") or {}).keys():
        return
    found = [name for name in names if (folder / name).exists()]
    if found:
        raise KDExportError(
            f"{folder} holds {', '.join(found)}, which no report of kdexport's belongs to: it would be replaced",
            hint="give another folder with --out, or move it elsewhere",
        )


def _in_lines(document: dict[str, Any]) -> str:
    """Write a JSON object with a line per model, measurement and so on: a diff then shows which has changed."""
    dumps = functools.partial(json.dumps, ensure_ascii=False, allow_nan=False)
    entries = []
    for key, value in document.items():
        if isinstance(value, list) and value:
            written = "[\n    " + ",\n    ".join(map(dumps, value)) + "\n  ]"
        else:
            written = dumps(value)
        entries.append(f"  {dumps(key)}: {written}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def failed_gates(report: Report) -> tuple[Gate, ...]:
    """Return the requirements that do not hold."""
    return tuple(gate for gate in report.gates if not gate.passed)


def enforce(report: Report) -> None:
    """Do nothing where every requirement holds.

    Raises:
        RequirementError: One does not (exit code 3).
    """
    failed = failed_gates(report)
    if not failed:
        return
    shown = "; ".join(_in_words(gate) for gate in failed[:MOST_SHOWN])
    more = f"; and {len(failed) - MOST_SHOWN} more" if len(failed) > MOST_SHOWN else ""
    raise RequirementError(
        f"{len(failed)} of {len(report.gates)} requirements not met: {shown}{more}",
        hint="report.html shows every model against each requirement; change the student, or the limits in [require]",
    )


def _in_words(gate: Gate) -> str:
    words = gate_words(gate)
    what = f"{words['title']} of {gate.model}" if gate.model else words["title"]
    where = f" on {words['where']}" if words["where"] else ""
    if gate.verdict == "not measured":
        return f"{what} was not measured{where}"
    undecided = " (undecided, and [require] counts that as failed)" if gate.verdict == "undecided" else ""
    return f"{what} is {words['measured']}, not {words['required']}{where}{undecided}"
