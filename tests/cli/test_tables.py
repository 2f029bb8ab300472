"""What commands print: the same words and units, whole in 80 and in 60 columns."""

import dataclasses
import io
from collections.abc import Iterable

import pytest

from kdexport.cli import bench_tables, tables
from kdexport.results import (
    BenchResult,
    ClassScore,
    DistillResult,
    Evaluation,
    ExportFailure,
    ExportResult,
    Latency,
    Machine,
    Measurement,
    Memory,
    ModelFile,
    Parity,
    Score,
    TrainedNetwork,
)
from kdexport.tasks import TASKS

NAMES = ("teacher", "student-plain.int8")


def printed(what: object, width: int) -> str:
    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(what)
    assert max(map(len, file.getvalue().splitlines())) <= width
    assert "…" not in file.getvalue()
    return file.getvalue()


def blank(kind: type, **values: object) -> object:
    """A result of which only what is given is known."""
    return kind(**{field.name: values.get(field.name) for field in dataclasses.fields(kind) if field.init})


def model(name: str, score: Score | None = None) -> ModelFile:
    parity = Parity(1e-6, 3.26e-7, 256, 1e-4, passed=True, argmax_agreement=0.99609375)
    file = ModelFile(name, f"{name}.onnx", "0" * 64, "fp32", 46_182, 1234, None, parity=parity, oldest_runtime="1.14")
    return dataclasses.replace(file, operators={"Conv": 4}, score=score)


def bench(scores: Iterable[Score | None] = (None, None), warnings: tuple[str, ...] = ()) -> BenchResult:
    def measured(name: str, p50: float) -> Measurement:
        latency = Latency(p50, (0.99 * p50, 1.01 * p50), None, None, 2 * p50, p50, 0.0, 100, rounds_p50=(p50,) * 5)
        memory = Memory(31.4, None, None)
        return Measurement(name, "m", "cpu", "CPU", {}, 1, 1, latency, 1000 / p50, 1.0, 1.0, memory, None, warnings)

    machine = blank(Machine, cpu="a CPU", cores=2)
    values = {
        "name": "x",
        "models": tuple(map(model, NAMES, scores)),
        "measurements": (measured(NAMES[0], 1.0), measured(NAMES[1], 0.5)),
        "machine": machine,
        "failures": (),
    }
    return blank(BenchResult, **values)  # type: ignore[return-value]


@pytest.mark.parametrize("width", [80, 60])
def test_what_was_measured_is_in_the_reports_units(width: int) -> None:
    scores = (Score("accuracy", 0.9791, None), Score("accuracy", 0.5, None))
    shown = printed(bench_tables.measured(bench(scores), width), width)
    rows = shown.splitlines()
    assert rows[0].split()[:6] == ["model", "p50,", "ms", "±", "accuracy", "speed"]
    assert rows[2].split()[:6] == ["teacher", "1.00", "1.0", "%", "97.9", "%"]
    assert "student-plain.int8" in rows[3]
    assert "2.0× ±0.00" in rows[3]
    assert ("45.1 KiB" in rows[3]) == (width == 80)
    assert "memory" not in rows[0] or width == 80


def test_an_error_is_shown_as_a_value_and_an_unknown_score_not_at_all() -> None:
    assert "accuracy" not in printed(bench_tables.measured(bench(), 80), 80)
    error = next(task for task in TASKS.values() if task.unit == "value")
    shown = printed(
        bench_tables.measured(bench((Score(error.metric, 12.345, None, higher_is_better=False), None)), 80), 80
    )
    assert "12.3" in shown
    assert "accuracy" not in shown


def test_many_warnings_are_a_line_for_each_kind() -> None:
    few = printed(bench_tables.measured(bench(warnings=("noisy: single calls vary by 30 %",)), 80), 80)
    assert few.splitlines()[-1] == "! all: noisy: single calls vary by 30 %"
    kinds = ("a debug build of ONNX Runtime", "noisy: single calls vary by 30 %", "x", "y")
    many = [
        line for line in printed(bench_tables.measured(bench(warnings=kinds), 80), 80).splitlines() if line[:2] == "! "
    ]
    assert len(many) == 4
    assert any("2 of 2 timings (teacher, student-plain.int8)" in line for line in many)


@pytest.mark.parametrize("width", [80, 60])
def test_what_was_exported(width: int) -> None:
    failed = (ExportFailure("student.int4", "no [large] matrix", "leave it out"),)
    result = ExportResult("x", tuple(map(model, NAMES)), failed)
    shown = printed(tables.exported(result, "kdexport bench x", width), width)
    assert "student-plain.int8.onnx" in shown
    assert "3.3e-07" in shown
    assert "99.6 %" in shown
    assert "! student.int4 is left out: no [large] matrix" in shown
    assert shown.splitlines()[-1] == "next: kdexport bench x"


def test_a_share_that_is_nearly_whole_is_not_rounded_to_it() -> None:
    proof = dataclasses.replace(model("a").parity, argmax_agreement=0.99996)  # type: ignore[type-var]
    result = ExportResult("x", (dataclasses.replace(model("a"), parity=proof),))
    assert "99.996 %" in printed(tables.exported(result, "x", 80), 80)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_what_was_trained_is_told_by_its_task(name: str, tmp_path) -> None:
    task = TASKS[name]
    network = blank(TrainedNetwork, name="student", weights="w", parameters=11_234, epochs=20, seconds=39.6)
    network = dataclasses.replace(network, best_epoch=6, val_score=0.9791, activation_ranges={})  # type: ignore[type-var]
    result = DistillResult("x", ("a",), {}, {}, (network,), metric=task.metric)
    shown = printed(tables.trained(result, tmp_path), 80)
    assert "val" in shown
    assert task.label.split()[0] in shown
    assert ("97.9 %" in shown) == (task.unit == "share")
    assert "11.2 k" in shown
    assert "40 s" in shown


def test_a_score_with_its_interval_classes_and_confusions() -> None:
    classes = (ClassScore("a[b]", 1000, 0.5, None, 0.25), ClassScore("b", 1, 1.0, 0.125, 0.5))
    score = Score("accuracy", 0.9791, (0.95, 0.99))
    result = Evaluation(
        score=score, split="test", samples=1001, task="classification", per_class=classes, confusion=((0, 500), (0, 1))
    )
    shown = printed(tables.evaluated(result, "source"), 80).splitlines()
    assert shown[0] == "accuracy 97.9 % (95 % interval 95.0–99.0 %) on 1,001 samples of test"
    assert shown[2].split() == ["class", "samples", "recall", "precision", "F1"]
    assert shown[4].split() == ["a[b]", "1,000", "50.0", "%", "–", "25.0", "%"]
    assert shown[-1] == "   500  true a[b] -> predicted b"


def test_the_classes_of_pixels_have_their_intersection_over_union() -> None:
    classes = (ClassScore("sky", 5000, 0.5, 0.5, 0.25, 0.125),)
    score = Score("mean_iou", 0.125, None)
    result = Evaluation(score=score, split="val", samples=3, task="segmentation", per_class=classes)
    shown = printed(tables.evaluated(result, "source"), 80).splitlines()
    assert shown[0] == "mean IoU 12.5 % on 3 samples of val"
    assert shown[2].split() == ["class", "pixels", "recall", "precision", "F1", "IoU"]
    assert shown[4].split()[:2] == ["sky", "5,000"]
    assert shown[4].endswith("12.5 %")


def test_an_error_has_no_classes_and_no_percent() -> None:
    error = next(task for task in TASKS.values() if task.unit == "value")
    result = Evaluation(
        score=Score(error.metric, 12.345, (12.0, 13.0), higher_is_better=False), split="val", samples=9, task=error.name
    )
    shown = printed(tables.evaluated(result, "drawn"), 80)
    assert shown.splitlines()[0] == f"{error.label} 12.3 (95 % interval 12.0–13.0) on 9 samples of val (drawn)"
    assert "class" not in shown
