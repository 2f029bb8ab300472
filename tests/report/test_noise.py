"""Warnings by kind, and whether they touch the median."""

import dataclasses

import pytest

from kdexport.recipe import Require
from kdexport.report.decisions import decisions
from kdexport.report.findings import findings, noise_lines
from kdexport.report.join import join
from kdexport.report.stage import report


def warned(bench, *texts: str):
    """Give every timing of a bench result warnings; ``{}`` becomes a figure of its own."""
    measurements = tuple(
        dataclasses.replace(item, warnings=tuple(text.format(index) for text in texts))
        for index, item in enumerate(bench.measurements)
    )
    return dataclasses.replace(bench, measurements=measurements)


def test_one_line_a_kind_not_one_a_timing(build) -> None:
    texts = ("other work kept 1.{} of 2 cores busy", "noisy: single calls vary by 3{}%", "odd {} x")
    bench = warned(build.bench(), *texts)
    lines = noise_lines(bench.measurements)
    assert lines == [
        "The machine was busy: 5 of 5 timings (teacher, student, student-plain, student.int8, student-plain.int8), "
        "e.g. teacher on cpu of laptop, batch 1: other work kept 1.0 of 2 cores busy. "
        "Medians may be too high and speed-ups wrong.",
        "Single calls vary: 5 of 5 timings (teacher, student, student-plain, student.int8, student-plain.int8), "
        "e.g. teacher on cpu of laptop, batch 1: single calls vary by 30%. "
        "The median is hardly touched; mean and slowest calls are.",
        "Odd … x: 5 of 5 timings (teacher, student, student-plain, student.int8, student-plain.int8), "
        "e.g. teacher on cpu of laptop, batch 1: odd 0 x.",
    ]
    told = findings(join([bench]), ())
    assert [line for line in lines if line in told] == lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the hypervisor took 0.50 cores away while this was measured", "5 of 5 timings noisy: the machine was busy"),
        ("fresh processes differ: their medians run from 1 to 2 ms", "5 of 5 timings noisy: fresh processes differ"),
        ("the median is known to ±5.00%, not to the ±2.00% asked for", "5 of 5 timings noisy: the median is known"),
        ("3 nodes ran on CPUExecutionProvider", ""),
        ("the CPU's governor is 'powersave': the clock follows the load", ""),
    ],
)
def test_noise_stands_beside_the_verdict(build, text: str, message: str) -> None:
    (decision,) = decisions(report([warned(build.bench(), text)], Require(min_speedup=3.0)))
    assert decision.noise.startswith(message)
    assert bool(decision.noise) == bool(message)


def test_a_tie_goes_to_the_distilled_student_and_is_reported(build) -> None:
    """student-plain is a sample better, which is nothing."""
    models = {
        "teacher": build.DIGITS["teacher"],
        "student": (0.975, 83.0, 0.062, 19_900),
        "student-plain": (0.978, 83.0, 0.062, 19_900),
    }
    made = report([build.bench(models=models)], Require(min_speedup=3.0))
    accuracy = {model.name: model.accuracy for model in made.models}
    assert accuracy["student-plain"] > accuracy["student"]
    assert made.pick.model == "student"
    assert "; a tie in accuracy with student-plain (" in made.pick.why


def test_a_difference_that_is_not_shown_is_called_indistinguishable(build) -> None:
    made = report([build.bench()], Require(min_speedup=3.0))
    tradeoff = next(item for item in made.tradeoffs if item.model == "student" and item.against == "teacher")
    low, high = tradeoff.accuracy_delta_ci95
    (decision,) = decisions(made)
    indistinguishable = low <= 0 <= high
    assert ("accuracy indistinguishable from teacher's" in decision.sentence) == indistinguishable
    models = {"teacher": (0.97, 1000.0, 1.0, 10), "student": (0.972, 100.0, 0.1, 1)}
    (decision,) = decisions(report([build.bench(models=models)]))
    start = "pass: laptop · cpu, ship student: accuracy indistinguishable from teacher's (−"
    assert decision.sentence.startswith(start)
    assert "indistinguishable" in decision.why
