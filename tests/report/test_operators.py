"""A profile as people read it: sums by type and layer, and what made a quantized file slower."""

import dataclasses
import io

import pytest

from kdexport.cli import bench_tables
from kdexport.report import operators
from kdexport.report.html import html
from kdexport.report.stage import report
from kdexport.results import OperatorTime, Profile

CPU = "CPUExecutionProvider"


def profile(*times: tuple[str, str, float], between: float = 0.0) -> Profile:
    found = tuple(OperatorTime(f"{layer}/{kind}", kind, layer, CPU, ms) for kind, layer, ms in times)
    whole = sum(ms for *_, ms in times) + between
    return Profile(found, between, whole, 7.0, whole * 1.2)


FP32 = profile(("Conv", "stem", 0.6), ("Conv", "body", 0.3), ("Gemm", "head", 0.2), ("Add", "", 0.001), between=0.02)
INT8 = profile(
    ("QLinearConv", "stem", 0.5), ("Conv", "body", 0.5), ("QuantizeLinear", "stem", 0.2),
    ("QuantizeLinear", "body", 0.1), ("QGemm", "head", 0.05), ("Add", "", 0.004), between=0.02,
)  # fmt: skip


@pytest.fixture(scope="module")
def benched(build):
    """Return a bench result whose student was profiled in both precisions."""
    result = build.bench()
    wanted = {"student": FP32, "student.int8": INT8}
    kept = []
    for one in result.measurements:
        found = wanted.get(one.model)
        p50 = one.latency_ms.p50 if found is None else found.sum_ms
        latency = dataclasses.replace(one.latency_ms, p50=p50, p50_ci95=(p50 * 0.99, p50 * 1.01))
        kept.append(dataclasses.replace(one, profile=found, latency_ms=latency))
    return dataclasses.replace(result, measurements=tuple(kept))


def test_times_sum_by_type_and_by_layer():
    assert [(one.name, round(one.ms, 3), one.operators) for one in operators.by_type(FP32)] == [
        ("Conv", 0.9, 2), ("Gemm", 0.2, 1), ("Add", 0.001, 1), ("between operators", 0.02, 0),
    ]  # fmt: skip
    assert [(one.name, round(one.ms, 3)) for one in operators.by_layer(INT8)] == [
        ("stem", 0.7), ("body", 0.6), ("head", 0.05), ("(not told)", 0.004),
    ]  # fmt: skip


def test_what_changed_counts_fused_and_quantized_forms_as_one():
    assert {name: round(ms, 3) for name, ms in operators.changes(FP32, INT8).items()} == {
        "Conv": 0.1, "QuantizeLinear": 0.3, "Gemm": -0.15, "Add": 0.003, "between operators": 0,
    }  # fmt: skip


def test_a_finding_names_the_operators_that_made_int8_slower(benched):
    (found,) = [text for text in report((benched,)).findings if text.startswith("Operators of")]
    assert found == (
        "Operators of student.int8 against student's on cpu of laptop, batch 1: QuantizeLinear, which it did not have, "
        "0.300 ms (most of it at stem), Conv 0.100 ms more; Gemm 0.150 ms less."
    )


def test_nothing_is_said_of_what_lies_within_the_medians_own_interval(benched):
    rows = {one.model: one for one in benched.measurements}
    wide = dataclasses.replace(rows["student"].latency_ms, p50_ci95=(0.5, 1.6))
    assert operators.what_changed(dataclasses.replace(rows["student"], latency_ms=wide), rows["student.int8"]) == ""
    assert operators.what_changed(rows["teacher"], rows["student.int8"]) == ""


def test_the_page_shows_types_as_a_picture_and_every_layer_in_a_table(benched):
    page = html(report((benched,)))
    assert "Where the time goes" in page
    assert "By layer: cpu of laptop, batch 1" in page
    assert "Time by operator type on cpu of laptop" in page
    for text in ("QLinearConv", "0.700 ms", "(not told)"):
        assert text in page


def test_without_a_profile_the_page_has_no_such_section(build):
    assert "Where the time goes" not in html(report((build.bench(),)))


def test_the_terminal_shows_the_ten_costliest(benched):
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(bench_tables.measured(benched, 100))
    text = console.export_text()
    assert "the costliest operators" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["student", "Conv", "stem", "600", "53.5", "%"] in lines
    assert "student.int8 against student: QuantizeLinear, which it did not have, 0.300 ms" in text
