"""Every task's score: called by its name, and better where it is better, also where lower is."""

import dataclasses
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from kdexport.recipe import Require
from kdexport.report.card import card
from kdexport.report.charts import curves, scatter
from kdexport.report.charts.marks import marks
from kdexport.report.decisions import decisions
from kdexport.report.html import html
from kdexport.report.markdown import markdown
from kdexport.report.regression import against_earlier
from kdexport.report.scores import named
from kdexport.report.stage import report
from kdexport.report.terminal import terminal
from kdexport.report.view import condition_views
from kdexport.results import Evaluation, Score

SAMPLES = 400
# name: error, KiB, median ms; "plain" costs as much as "student" and errs more, "broken" is no better than a constant
ERRORS = {
    "teacher": (0.10, 1000.0, 1.0),
    "student": (0.11, 50.0, 0.1),
    "plain": (0.2, 50.0, 0.12),
    "broken": (0.9, 9.0, 0.01),
}


def scored(error: float, seed: int) -> Evaluation:
    """Score a made-up regression: its absolute errors are the same shape for all, so that pairs differ by the scale."""
    hard = np.random.default_rng(5).exponential(1.0, SAMPLES)
    errors = error * hard / hard.mean() + np.random.default_rng(seed).normal(0, 0.004, SAMPLES)
    value, half = float(errors.mean()), 1.96 * float(errors.std()) / SAMPLES**0.5
    score = Score("mean_absolute_error", value, (value - half, value + half), higher_is_better=False)
    samples = tuple(float(value) for value in errors)
    return Evaluation("test", SAMPLES, "regression", score, {"rmse": value * 1.3}, per_sample=samples, chance=0.9)


@pytest.fixture(scope="module")
def bench(build):
    made = build.bench(models={name: (None, kib, ms, 10) for name, (_, kib, ms) in ERRORS.items()}, with_training=False)
    models = []
    for index, model in enumerate(made.models):
        evaluation = scored(ERRORS[model.name][0], index)
        models.append(dataclasses.replace(model, evaluation=evaluation, score=evaluation.score))
    lines = tuple(
        {"phase": "student", "epoch": epoch, "val_score": 0.5 / epoch, "kept": epoch == 3, "test_score": 0.17}
        for epoch in (1, 2, 3)
    )
    return dataclasses.replace(made, models=tuple(models), training=lines)


def rescored(bench, name: str, error: float):
    """Give one model another error."""
    evaluation = scored(error, 9)
    changed = {"evaluation": evaluation, "score": evaluation.score}
    models = [dataclasses.replace(model, **changed) if model.name == name else model for model in bench.models]
    return dataclasses.replace(bench, models=tuple(models))


def only(bench, *names: str):
    """Leave the other models out."""
    models = tuple(model for model in bench.models if model.name in names)
    measurements = tuple(item for item in bench.measurements if item.model in names)
    return dataclasses.replace(bench, models=models, measurements=measurements)


@pytest.fixture(scope="module")
def errors(bench):
    return {model.name: model.score.value for model in bench.models}


def test_the_lower_error_is_the_better(bench, errors) -> None:
    made = report([bench], Require(max_drop=0.05, min_score=0.3))
    assert made.pick.model == "student"
    gates = {gate.requirement: gate for gate in made.gates}
    assert gates["max_drop"].value == pytest.approx(errors["student"] - errors["teacher"], abs=1e-9)
    assert gates["max_drop"].ci95[0] < gates["max_drop"].value < gates["max_drop"].ci95[1]
    assert (gates["min_score"].value, gates["min_score"].verdict) == (errors["student"], "pass")
    assert {item.model: item.by for item in made.dominated} == {"plain": "student"}
    tradeoff = next(item for item in made.tradeoffs if item.model == "student")
    assert tradeoff.score_delta > 0
    assert tradeoff.accuracy_delta is None


def test_a_rise_fails_and_a_fall_does_not(bench, errors) -> None:
    tight = report([bench], Require(max_drop=0.005, min_speedup=5.0))
    (gate,) = [gate for gate in tight.gates if gate.requirement == "max_drop"]
    assert (gate.model, gate.verdict) == ("student", "fail")
    assert "rise of the MAE 0.00" in decisions(tight)[0].sentence
    (gate,) = report([only(bench, "teacher", "plain")], Require(min_score=0.05)).gates
    assert (gate.model, gate.verdict) == ("plain", "fail")  # the limit is the largest error that is allowed
    made = report([rescored(bench, "student", 0.08)], Require(max_drop=0.0))
    assert made.pick.model == "student"
    assert condition_views(made)[0].chosen.change.startswith("−0.0")


def test_no_better_than_a_constant_is_not_shipped(bench) -> None:
    made = report([only(bench, "teacher", "broken")], Require(min_speedup=10.0))
    assert made.pick is None
    (gate,) = [gate for gate in made.gates if gate.requirement == "above_chance"]
    assert (gate.model, gate.passed, gate.higher_is_better) == ("broken", False, False)
    assert "below 0.900, which the best constant answer scores" in made.devices[0].why


def test_every_text_calls_it_by_its_name(bench) -> None:
    from rich.console import Console

    made = report([bench], Require(max_drop=0.05))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal(made))
    for text in (html(made), markdown(made), card(made), console.export_text()):
        assert "MAE" in text
        assert not re.search(r"accurac|%</td>| points", text.split("</style>")[-1].split("<script>")[0])


def test_a_long_name_of_a_score_leaves_room_for_those_of_the_models(bench) -> None:
    from rich.console import Console

    def renamed(model):
        score = dataclasses.replace(model.score, metric="mean_intersection_over_union")
        return dataclasses.replace(model, score=score, evaluation=dataclasses.replace(model.evaluation, score=score))

    stream = io.StringIO()
    made = report([dataclasses.replace(bench, models=tuple(map(renamed, bench.models)))])
    Console(file=stream, width=80).print(terminal(made))
    for name in ERRORS:
        assert re.search(rf"^(▶|  ) *{name} ", stream.getvalue(), re.MULTILINE), name


def test_upwards_is_better_in_pictures(bench, errors) -> None:
    made = report([bench])
    (drawing,) = scatter.draw(made, marks(made), 700)
    points = [item for item in ElementTree.fromstring(str(drawing.svg)).iter() if item.get("class") == "point"]
    heights = {point.get("data-model"): float(point[0].get("cy")) for point in points}
    order = sorted(heights, key=heights.get)
    assert order == sorted(heights, key=errors.get), "the least error is drawn highest"
    assert "lower is better" in str(drawing.svg)
    (curve,) = curves.draw(made, marks(made), 700)
    path = re.search(r'd="(M[^"]+)" class="curve', str(curve.svg))[1]
    ys = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)]
    assert ys == sorted(ys, reverse=True), "a falling error climbs"
    assert "best 0.167 in epoch 3" in str(curve.svg)


def test_a_regression_of_the_error(bench) -> None:
    now = report([rescored(bench, "student", 0.2)])
    made = against_earlier(now, report([bench]), accuracy_tolerance=0.02)
    failed = [(gate.requirement, gate.model) for gate in made.gates if not gate.passed]
    assert failed == [("baseline_accuracy_drop", "student")]


def test_an_unknown_metric_is_written_as_it_stands() -> None:
    metric = named("word_error_rate", higher_is_better=False)
    assert (metric.label, metric.write(0.1234), metric.change(-0.02)) == ("word error rate", "0.123", "−0.0200")
    accuracy = named("accuracy")
    assert (accuracy.write(0.9), accuracy.change(-0.02)) == ("90.0 %", "−2.0 points")
