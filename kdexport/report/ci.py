"""The gates for machines: JUnit XML for any CI, a job summary in Markdown for GitHub."""

import xml.etree.ElementTree as ET

from kdexport.report.figures import xml_text
from kdexport.report.markdown import answer, device_table, escape, gate_table
from kdexport.report.view import gate_words, judged_views
from kdexport.results import Gate, Report

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
