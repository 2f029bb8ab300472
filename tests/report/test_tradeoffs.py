"""Trade-offs, the front, and what dominates what."""

import dataclasses

import pytest

from kdexport.report.join import join
from kdexport.report.tradeoffs import dominated, front, tradeoffs
from kdexport.results import Memory


def test_every_model_against_teacher_and_plain_student(build) -> None:
    joined = join([build.bench()])
    found = {(item.model, item.against): item for item in tradeoffs(joined)}
    assert set(found) == {
        ("student", "teacher"),
        ("student-plain", "teacher"),
        ("student.int8", "teacher"),
        ("student-plain.int8", "teacher"),
        ("student", "student-plain"),
        ("student.int8", "student-plain"),
        ("student-plain.int8", "student-plain"),
    }
    student = found["student", "teacher"]
    assert student.size_ratio == pytest.approx(1650 / 83, rel=1e-3)
    (speedup,) = student.speedup
    assert (speedup.machine, speedup.device, speedup.batch_size, speedup.threads) == ("laptop", "cpu", 1, 1)
    assert speedup.ci95[0] < speedup.ratio < speedup.ci95[1]
    assert speedup.ratio == pytest.approx(5.0, rel=0.03)
    assert student.accuracy_delta_ci95[0] < student.accuracy_delta < student.accuracy_delta_ci95[1]
    assert student.savings[0].memory_ratio == pytest.approx((58 + 0.31 * 20) / (58 + 0.062 * 20))
    assert student.savings[0].energy_ratio is None


def test_device_memory_counts_where_there_is_one(build) -> None:
    bench = build.bench()
    peaks = {"teacher": 400.0, "student": 100.0}  # MiB; of the others the device said nothing
    measured = tuple(
        dataclasses.replace(
            item, memory_mib=Memory(900.0, None, peaks.get(item.model)), energy_mj=2.0 * item.latency_ms.p50
        )
        for item in bench.measurements
    )
    whole = tradeoffs(join([dataclasses.replace(bench, measurements=measured)]))
    found = {item.model: item for item in whole if item.against == "teacher"}
    assert found["student.int8"].savings[0].memory_ratio == 1.0  # the process's peaks: 900 MiB both
    assert found["student"].savings[0].memory_ratio == 4.0
    assert found["student"].savings[0].energy_ratio == pytest.approx(5.0, rel=0.05)


def test_no_speed_up_where_the_baseline_was_not_measured(build) -> None:
    bench = build.bench()
    lone = dataclasses.replace(bench, measurements=bench.measurements[1:])
    assert all(item.speedup == () for item in tradeoffs(join([lone])) if item.against == "teacher")


def test_the_front() -> None:
    points = [("slow", 9.0, 0.99), ("fast", 1.0, 0.9), ("beaten", 5.0, 0.89), ("middle", 5.0, 0.95), ("tie", 9.0, 0.98)]
    assert front(points) == ["fast", "middle", "slow"]


def test_what_dominates_what(build) -> None:
    models = {
        "teacher": (0.995, 1000.0, 1.0, 10),
        "good": (0.95, 100.0, 0.1, 1),
        "beaten": (0.90, 120.0, 0.2, 1),
        "smallest": (0.90, 10.0, 0.3, 1),
    }
    found = dominated(join([build.bench(models=models)]))
    assert [(item.model, item.by, item.shown) for item in found] == [("beaten", "good", True)]


def test_a_difference_within_the_noise_is_reported_as_such(build) -> None:
    models = {"teacher": (0.995, 1000.0, 1.0, 10), "a": (0.95, 100.0, 0.1, 1), "b": (0.94, 100.0, 0.1, 1)}
    bench = build.bench(models=models)
    same = [dataclasses.replace(item, latency_ms=bench.measurements[1].latency_ms) for item in bench.measurements[1:]]
    found = dominated(join([dataclasses.replace(bench, measurements=(bench.measurements[0], *same))]))
    assert [(item.model, item.by, item.shown) for item in found] == [("b", "a", False)]


def test_without_accuracy_latency_and_size_decide(build) -> None:
    models = {"a": (None, 100.0, 1.0, 1), "b": (None, 50.0, 0.5, 1)}
    assert [(item.model, item.by) for item in dominated(join([build.bench(models=models)]))] == [("a", "b")]
