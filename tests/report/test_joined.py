"""Many bench results as one."""

import dataclasses

import pytest

from kdexport.errors import KDExportError
from kdexport.report.join import Condition, join
from kdexport.results import Score


def test_two_machines_make_one_whole(build) -> None:
    joined = join([build.bench(), build.bench(build.machine("pi"), slowdown=4, created="2026-11-22T00:00:00+00:00")])
    assert [machine.name for machine in joined.machines] == ["laptop", "pi"]
    assert [model.name for model in joined.models] == list(build.DIGITS)
    assert list(joined.by_condition) == [Condition("laptop", "cpu", 1, 1), Condition("pi", "cpu", 1, 1)]
    assert joined.created == "2026-11-22T00:00:00+00:00"
    assert joined.baseline == "teacher"
    assert joined.notes == ()


def test_without_a_teacher_the_first_model_is_the_baseline(build) -> None:
    models = {"big": (0.9, 100.0, 1.0, 10), "small": (0.9, 10.0, 0.1, 1)}
    assert join([build.bench(models=models)]).baseline == "big"


def test_of_a_figure_measured_twice_the_later_counts(build) -> None:
    old, new = build.bench(created="2026-01-01"), build.bench(created="2026-02-01", slowdown=2)
    for order in ([old, new], [new, old]):
        joined = join(order)
        assert joined.measurements == new.measurements
        assert joined.notes == ("5 measurements were made more than once; the latest of each counts.",)


def test_the_same_file_twice_says_nothing(build) -> None:
    assert join([build.bench(), build.bench()]).notes == ()


def test_what_one_machine_did_not_find_out_another_fills(build) -> None:
    blind = build.bench(build.machine("pi"))
    blind = dataclasses.replace(
        blind,
        models=tuple(dataclasses.replace(model, score=None, evaluation=None) for model in blind.models),
    )
    joined = join([blind, build.bench()])
    assert joined.model_by_name["student"].accuracy == build.bench().models[1].accuracy


def test_an_empty_list(build) -> None:
    with pytest.raises(KDExportError, match="no bench results") as error:
        join([])
    assert "kdexport bench" in error.value.hint
    with pytest.raises(KDExportError, match="holds no models"):
        join([dataclasses.replace(build.bench(), models=(), measurements=())])


def test_two_machines_with_one_name(build) -> None:
    with pytest.raises(KDExportError, match="two machines are called 'laptop' but differ in cpu, cores") as error:
        join([build.bench(), build.bench(build.machine(cpu="Cortex-A76", cores=4))])
    assert "other-name=" in error.value.hint


def test_two_files_with_one_name(build) -> None:
    other = build.bench()
    changed = dataclasses.replace(other.models[1], sha256="f" * 64)
    with pytest.raises(KDExportError, match="two different files are called 'student'"):
        join([build.bench(), dataclasses.replace(other, models=(other.models[0], changed, *other.models[2:]))])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: dataclasses.replace(m, throughput_per_s=float("nan")), "throughput_per_s"),
        (
            lambda m: dataclasses.replace(m, latency_ms=dataclasses.replace(m.latency_ms, p99=float("inf"))),
            "latency_ms.p99",
        ),
        (
            lambda m: dataclasses.replace(
                m, latency_ms=dataclasses.replace(m.latency_ms, rounds_p50=(1.0, float("nan")))
            ),
            "latency_ms.rounds_p50",
        ),
        (lambda m: dataclasses.replace(m, placement={"CPUExecutionProvider": float("nan")}), "placement.CPU"),
        (lambda m: dataclasses.replace(m, latency_ms=dataclasses.replace(m.latency_ms, p50=0.0)), "latency_ms.p50"),
    ],
)
def test_a_figure_that_is_no_number(build, change, named: str) -> None:
    bench = build.bench()
    broken = dataclasses.replace(bench, measurements=(change(bench.measurements[0]), *bench.measurements[1:]))
    with pytest.raises(KDExportError, match=named):
        join([broken])


def test_an_accuracy_that_is_no_number(build) -> None:
    bench = build.bench()
    broken = dataclasses.replace(
        bench, models=(dataclasses.replace(bench.models[0], score=Score("accuracy", float("nan"), None)),)
    )
    with pytest.raises(KDExportError, match=r"score\.value of 'teacher' is not a finite number"):
        join([broken])
