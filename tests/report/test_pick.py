"""The pick per device, and the gates."""

import dataclasses

import pytest

from kdexport.errors import KDExportError, RequirementError
from kdexport.recipe import Require
from kdexport.report.requirements import verdict
from kdexport.report.stage import enforce, report
from kdexport.results import Failure


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((1.0, 1.9), "pass"), ((1.0, 2.0), "pass"), ((1.5, 2.5), "undecided"), ((2.1, 2.5), "fail"), (None, "pass")],
)
def test_a_requirement_fails_only_where_the_interval_supports_it(interval, expected: str) -> None:
    assert verdict(1.8, interval, at_least=None, at_most=2.0) == expected


def test_a_lower_limit_and_what_was_not_measured() -> None:
    assert verdict(3.0, (2.9, 3.1), at_least=2.0, at_most=None) == "pass"
    assert verdict(3.0, (2.9, 3.1), at_least=3.05, at_most=None) == "undecided"
    assert verdict(3.0, (2.9, 3.1), at_least=3.5, at_most=None) == "fail"
    assert verdict(None, None, at_least=3.5, at_most=None) == "not measured"


def test_the_fastest_that_fits_is_picked(build) -> None:
    made = report([build.bench()], Require(max_drop=0.03, min_speedup=3.0))
    # student-plain is 1.5 % faster than student, which is no reason to give up accuracy
    assert made.pick.model == "student"
    assert made.pick.why.startswith("Within 5 % of the fastest")
    assert [gate.requirement for gate in made.gates] == ["max_drop", "min_speedup"]
    assert all(gate.passed and gate.model == "student" for gate in made.gates)
    enforce(made)


def test_prefer_size(build) -> None:
    made = report([build.bench()], Require(min_speedup=3.0, prefer="size"))
    assert made.pick.model == "student.int8"
    assert made.pick.why.startswith("The smallest")


def test_without_requirements_what_keeps_its_accuracy(build) -> None:
    models = {"teacher": (0.99, 1000.0, 1.0, 10), "quick": (0.5, 10.0, 0.01, 1), "student": (0.985, 100.0, 0.1, 1)}
    made = report([build.bench(models=models)])
    assert made.pick.model == "student"
    assert made.gates == ()


def test_without_requirements_and_accuracy_there_is_no_pick(build) -> None:
    models = {"a": (None, 100.0, 1.0, 1), "b": (None, 50.0, 0.5, 1)}
    made = report([build.bench(models=models)])
    assert made.pick is None
    assert made.devices[0].why.startswith("Accuracy was not measured")


def test_when_none_fits_the_nearest_is_named_with_what_it_misses(build) -> None:
    made = report([build.bench()], Require(max_drop=0.03, max_latency_ms=0.04))
    assert made.pick is None
    (device,) = made.devices
    assert device.model is None
    assert device.nearest == "student-plain"  # the fastest
    assert device.misses == ("latency is 60.9 µs where at most 40.0 µs is required (misses by 52 %)",)
    assert device.misses[0] in device.why
    assert [gate.requirement for gate in made.gates if not gate.passed] == ["max_latency_ms"]
    with pytest.raises(RequirementError, match="1 of 2 requirements not met: latency of student") as error:
        enforce(made)
    assert error.value.exit_code == 3


def test_undecided_is_the_recipes_choice(build) -> None:
    bench = build.bench()
    low, high = bench.measurements[1].latency_ms.p50_ci95
    limit = (low + bench.measurements[1].latency_ms.p50) / 2  # within the interval, below the median
    only = dataclasses.replace(bench, models=bench.models[:2], measurements=bench.measurements[:2])
    passing = report([only], Require(max_latency_ms=limit))
    assert passing.pick.model == "student"
    assert "not firmly" in passing.pick.why
    assert [(gate.verdict, gate.passed) for gate in passing.gates] == [("undecided", True)]
    failing = report([only], Require(max_latency_ms=limit, undecided="fail"))
    assert failing.pick is None
    assert [(gate.verdict, gate.passed) for gate in failing.gates] == [("undecided", False)]
    with pytest.raises(RequirementError, match="undecided"):
        enforce(failing)
    assert high > limit


def test_a_busy_machine_decides_no_speedup(build) -> None:
    bench = build.bench()
    busy = [dataclasses.replace(one, disturbed="other work kept 2.0 of 2 cores busy") for one in bench.measurements]
    asked = Require(min_speedup=3.0, max_latency_ms=50.0, undecided="fail")
    assert report([bench], asked).pick.model == "student"
    made = report([dataclasses.replace(bench, measurements=tuple(busy))], asked)
    gates = {gate.requirement: gate for gate in made.gates}
    assert gates["min_speedup"].verdict == "undecided"
    assert gates["min_speedup"].setting == "other work kept 2.0 of 2 cores busy: measure on a quiet machine"
    assert gates["max_latency_ms"].verdict == "pass"  # what holds beside other work holds without
    assert all(item.disturbed for tradeoff in made.tradeoffs for item in tradeoff.speedup)
    with pytest.raises(RequirementError, match="quiet machine"):
        enforce(made)
    slow = report([dataclasses.replace(bench, measurements=tuple(busy))], Require(max_latency_ms=0.01))
    assert [gate.verdict for gate in slow.gates] == ["undecided"]


def test_what_holds_firmly_comes_before_what_only_an_interval_saves(build) -> None:
    models = {"teacher": (0.99, 1000.0, 1.0, 10), "doubtful": (0.965, 100.0, 0.1, 1), "firm": (0.985, 200.0, 0.2, 2)}
    made = report([build.bench(models=models)], Require(max_drop=0.02))
    assert made.pick.model == "firm"


def test_a_percentile_of_the_latency(build) -> None:
    bench = build.bench()
    p99 = bench.measurements[1].latency_ms.p99
    made = report([bench], Require(max_latency_ms=p99 * 3, latency_percentile=99))
    gate = next(gate for gate in made.gates if gate.requirement == "max_latency_ms")
    chosen = next(item for item in made.measurements if item.model == gate.model)
    assert gate.value == chosen.latency_ms.p99
    assert gate.ci95[0] <= gate.value <= gate.ci95[1]


def test_memory_size_floor_and_parity(build) -> None:
    require = Require(max_memory_mib=60.0, max_size_mib=0.05, min_score=0.9, parity=True)
    made = report([build.bench()], require)
    assert made.pick.model.endswith(".int8")
    assert {gate.requirement: gate.passed for gate in made.gates} == dict.fromkeys(
        ("max_memory_mib", "max_size_mib", "min_score", "parity"), True
    )


def test_a_figure_that_was_not_measured_never_passes(build) -> None:
    models = {"a": (None, 100.0, 1.0, 1), "b": (None, 50.0, 0.5, 1)}
    made = report([build.bench(models=models)], Require(min_score=0.5))
    assert [(gate.verdict, gate.value, gate.passed) for gate in made.gates] == [("not measured", None, False)]
    with pytest.raises(RequirementError, match="accuracy of b was not measured"):
        enforce(made)


def test_each_device_has_its_own_pick(build) -> None:
    slow_int8 = build.bench()
    fast_int8 = build.bench(
        build.machine("server"),
        models={
            name: (a, k, 0.02 if name == "student.int8" else ms, p) for name, (a, k, ms, p) in build.DIGITS.items()
        },
    )
    made = report([slow_int8, fast_int8], Require(min_speedup=3.0))
    assert [(item.machine, item.model) for item in made.devices] == [("laptop", "student"), ("server", "student.int8")]
    assert made.pick.model in ("student", "student.int8")  # both meet the requirement on both
    assert "all 2 devices" in made.pick.why
    none = report([slow_int8, fast_int8], Require(min_speedup=4.5))
    assert [item.model for item in none.devices] == ["student", "student.int8"]
    assert none.pick.model == "student"  # int8 is too slow on the laptop


def test_a_device_on_which_nothing_could_be_measured_fails_the_gate(build) -> None:
    bench = build.bench(failures=(Failure("student", "cuda", 1, 1, "out of memory"),))
    made = report([bench], Require(min_speedup=3.0))
    assert [(gate.requirement, gate.device, gate.passed) for gate in made.gates][-1] == ("measured", "cuda", False)
    assert "student on cuda could not be measured: out of memory" in made.findings


def test_speed_is_judged_where_the_recipe_says(build) -> None:
    bench = build.bench(conditions=(("cpu", 8, 1), ("cpu", 1, 2), ("cpu", 1, 1)))
    assert [(item.batch_size, item.threads) for item in report([bench]).devices] == [(1, 1)]
    assert [(item.batch_size, item.threads) for item in report([bench], Require(batch_size=8)).devices] == [(8, 1)]
    with pytest.raises(KDExportError, match="batch_size 16"):
        report([bench], Require(batch_size=16))


def test_files_without_timings(build) -> None:
    bench = dataclasses.replace(build.bench(), measurements=())
    made = report([bench], Require(max_size_mib=1.0, max_latency_ms=2.0))
    assert made.pick is None
    assert {gate.requirement: gate.passed for gate in made.gates} == {"max_size_mib": True, "max_latency_ms": False}


def test_the_baseline_is_not_what_a_user_nearly_ships(build) -> None:
    """The teacher loses no accuracy and so misses least; that it is not faster than itself helps nobody."""
    made = report([build.bench()], Require(max_drop=0.0001, min_speedup=1000.0, undecided="fail"))
    (device,) = made.devices
    assert device.model is None
    assert device.nearest != made.baseline
    assert {gate.model for gate in made.gates} == {device.nearest}
