"""A report against an earlier one."""

import dataclasses

import pytest

from kdexport.errors import KDExportError
from kdexport.report.regression import against_earlier
from kdexport.report.stage import failed_gates, report


def test_the_same_measurements_are_no_regression(build) -> None:
    made = report([build.bench()])
    compared = against_earlier(made, made)
    assert failed_gates(compared) == ()
    assert {gate.requirement for gate in compared.gates} == {
        "baseline_accuracy_drop",
        "baseline_size_ratio",
        "baseline_latency_ratio",
        "baseline_memory_ratio",
    }
    assert len(compared.gates) == 4 * len(build.DIGITS)


def test_what_is_slower_beyond_the_tolerance_fails(build) -> None:
    old, new = report([build.bench()]), report([build.bench(slowdown=1.2)])
    failed = failed_gates(against_earlier(new, old))
    assert {gate.requirement for gate in failed} == {"baseline_latency_ratio"}
    assert all(gate.ci95[0] > gate.limit == 1.05 for gate in failed)
    assert failed_gates(against_earlier(new, old, tolerance=0.3)) == ()


def test_a_slowdown_within_the_interval_is_undecided(build) -> None:
    old, new = report([build.bench()]), report([build.bench(slowdown=1.05)])
    gates = [gate for gate in against_earlier(new, old).gates if gate.requirement == "baseline_latency_ratio"]
    assert {(gate.verdict, gate.passed) for gate in gates} == {("undecided", True)}
    strict = against_earlier(new, old, undecided="fail")
    assert len(failed_gates(strict)) == len(build.DIGITS)


def test_lost_accuracy_and_a_larger_file_fail(build) -> None:
    worse = build.DIGITS | {"student": (0.80, 100.0, 0.062, 19_900)}
    failed = failed_gates(against_earlier(report([build.bench(models=worse)]), report([build.bench()])))
    assert {(gate.requirement, gate.model) for gate in failed} == {
        ("baseline_accuracy_drop", "student"),
        ("baseline_size_ratio", "student"),
    }


def test_another_machine_of_that_name_is_not_compared(build) -> None:
    new = report([build.bench(build.machine(cpu="another"), slowdown=3)])
    compared = against_earlier(new, report([build.bench()]))
    assert failed_gates(compared) == ()
    assert "laptop is not the machine that it was: its timings are not compared." in compared.findings


def test_nothing_in_common(build) -> None:
    other = report([build.bench(models={"x": (0.9, 1.0, 1.0, 1)})])
    with pytest.raises(KDExportError, match="no model in common"):
        against_earlier(report([build.bench()]), other)


def test_a_model_that_is_gone_is_reported_as_such(build) -> None:
    bench = build.bench()
    fewer = dataclasses.replace(bench, models=bench.models[:2], measurements=bench.measurements[:2])
    compared = against_earlier(report([fewer]), report([bench]))
    assert "No longer measured: student-plain, student.int8, student-plain.int8." in compared.findings
