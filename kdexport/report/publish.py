"""The report for others: on the Hugging Face hub, and as gates for machines.

The hub gets the files that ship, and the card as the repository's README.md; any CI gets JUnit XML, and GitHub a job
summary in Markdown.
"""

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdexport.errors import KDExportError
from kdexport.figures import xml_text
from kdexport.report.card import card
from kdexport.report.markdown import answer, device_table, escape, gate_table
from kdexport.report.view import gate_words, judged_views
from kdexport.results import Gate, ModelFile, Report

BESIDE = ("infer.py", "recipe.toml", "report.html", "report.json")  # published where they are


def files_to_push(report: Report, folder: Path) -> dict[str, Path]:
    """Return what is published: name in the repository -> file.

    Args:
        report: With a pick for each device that has one.
        folder: What the models' paths are relative to: the run directory.

    Raises:
        KDExportError: Nothing ships, or a file is not where the report says, or not the file that was measured.
    """
    picked = [device.model for device in report.devices] + [report.pick.model if report.pick else None]
    names = [name for name in dict.fromkeys(picked) if name is not None]
    if not names:
        raise KDExportError(
            "there is nothing to ship, so nothing was pushed",
            hint="report.html says what each model misses; change the student, or the limits in [require]",
        )
    found: dict[str, Path] = {}
    for model in (model for model in report.models if model.name in names):
        path = _measured(model, folder)
        found[path.name] = path
        for data in sorted(folder.glob(f"{path.name}*data")):  # weights beyond 2 GiB lie beside their graph
            found[data.name] = data
    return found | {name: folder / name for name in BESIDE if (folder / name).is_file()}


def push(report: Report, folder: Path, repository: str) -> str:
    """Upload the files and the card in one commit; the repository is made where there is none.

    Args:
        report: What ``report`` returned.
        folder: The run directory.
        repository: ``OWNER/NAME``, or ``NAME`` of one's own, at ``HF_ENDPOINT``, else at huggingface.co.

    Returns:
        Its address.

    Raises:
        KDExportError: huggingface_hub is not installed, nothing ships, or the hub refuses.
    """
    files = files_to_push(report, folder)
    text = card(report, folder)
    hub = _library()
    operations = [hub.CommitOperationAdd(name, str(path)) for name, path in files.items()]
    if text is not None:
        operations.append(hub.CommitOperationAdd("README.md", text.encode()))
    api = hub.HfApi()
    try:
        made = api.create_repo(repository, exist_ok=True)
        api.create_commit(made.repo_id, operations, commit_message=f"{report.name}: files and card of kdexport")
    except (OSError, ValueError, hub.errors.OfflineModeIsEnabled) as error:  # its own errors are of these kinds
        raise KDExportError(f"{repository} could not be pushed to: {_first_line(error)}", hint=_hint(error)) from error
    return str(made)


def _measured(model: ModelFile, folder: Path) -> Path:
    from kdexport.artifacts import sha256

    path = folder / model.file
    if not path.is_file():
        raise KDExportError(
            f"{path}, the file to ship, is not there",
            hint="give the run directory whose models were measured: kdexport report RUN --push-to-hub OWNER/NAME",
        )
    if sha256(path) != model.sha256:
        raise KDExportError(
            f"{path} is not the file that was measured: its sha256 differs",
            hint="measure it again with kdexport bench, then report and push",
        )
    return path


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise KDExportError(
            "--push-to-hub needs huggingface_hub", hint="install it with pip install 'kdexport[hub]'"
        ) from None
    return huggingface_hub


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _hint(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    hints: Mapping[Any, str] = {
        401: "log in first: hf auth login (or set HF_TOKEN to a token that may write)",
        403: "the token may not write there: make one that may at huggingface.co/settings/tokens",
        404: "check OWNER/NAME, and that the token may write there",
    }
    if type(error).__name__ == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set: unset it to push"
    if isinstance(error, ValueError) and status is None:
        return "a repository is OWNER/NAME, of letters, digits, '-', '_' and '.'"
    return hints.get(status, "check the network and OWNER/NAME, then give the same command again")


MOST_TABLES = 6  # of devices in a job summary; the whole is in report.md


def junit(report: Report) -> str:
    """Return the gates as JUnit XML: a test case each, a failure for each that does not pass."""
    failed = sum(not gate.passed for gate in report.gates)
    suite = ET.Element(
        "testsuite",
        name=xml_text(f"kdexport: {report.name}"),
        tests=str(len(report.gates)),
        failures=str(failed),
        errors="0",
        skipped="0",
        timestamp=report.created.replace("+00:00", ""),
    )
    for gate in report.gates:
        suite.append(_case(gate))
    suites = ET.Element("testsuites", tests=str(len(report.gates)), failures=str(failed), errors="0")
    suites.append(suite)
    ET.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def github(report: Report) -> str:
    """Return a job summary: the verdict first, then the requirements, then the figures."""
    failed = sum(not gate.passed for gate in report.gates)
    verdict = "no requirements" if not report.gates else f"{failed} of {len(report.gates)} requirements fail"
    if report.gates and not failed:
        verdict = f"all {len(report.gates)} requirements pass"
        unsure = sum(gate.verdict == "undecided" for gate in report.gates)
        verdict += f", {unsure} of them undecided" if unsure else ""
    lines = [f"## {escape(report.name)}: {verdict}", "", *answer(report), ""]
    if report.gates:
        lines += [*gate_table(report), ""]
    for _, view in judged_views(report)[:MOST_TABLES]:
        lines += [*device_table(view, level=3), ""]
    lines += [f"- {escape(sentence)}" for sentence in report.findings]
    return "\n".join(lines).rstrip("\n") + "\n"


def _case(gate: Gate) -> ET.Element:
    words = gate_words(gate)
    where = f" on {words['where']}" if words["where"] else ""
    name = f"{words['title']} of {gate.model}{where}" if gate.model else f"{words['title']}{where}"
    case = ET.Element("testcase", name=xml_text(name), classname=xml_text(f"kdexport.{gate.requirement}"))
    measured = f"{words['measured']}, required: {words['required']}"
    measured += f", 95 % interval {words['interval']}" if words["interval"] else ""
    if gate.passed:
        ET.SubElement(case, "system-out").text = xml_text(f"{measured} ({words['verdict']})")
    else:
        message = xml_text(f"{name}: {measured} ({words['verdict']})")
        ET.SubElement(case, "failure", message=message, type=gate.verdict.replace(" ", "-")).text = message
    return case
