"""What guesses is never shipped, and where nothing but speed is known the report compares speed and says so."""

import dataclasses

import pytest

from kdexport.errors import RequirementError
from kdexport.recipe import Require
from kdexport.report.card import card
from kdexport.report.decisions import decisions, headline
from kdexport.report.html import html
from kdexport.report.markdown import markdown
from kdexport.report.publish import github, junit
from kdexport.report.requirements import chance
from kdexport.report.stage import enforce, report

GOOD = (0.95, 1000.0, 1.0, 10)
GUESSING = (0.11, 10.0, 0.006, 1)  # of ten even classes: 170 times as fast, and worthless


def test_chance_is_the_share_of_the_largest_class(build) -> None:
    assert chance(build.evaluation(0.5, 1, samples=365)) == pytest.approx(37 / 365)
    assert chance(None) is None
    earlier = dataclasses.replace(build.evaluation(0.5, 1, samples=365), chance=None)  # schema 1 says only how many
    assert chance(earlier) == pytest.approx(37 / 365)
    assert chance(dataclasses.replace(earlier, samples=100)) is None  # more than one label a sample


def test_a_pick_at_chance_is_not_shipped(build) -> None:
    made = report([build.bench(models={"teacher": GOOD, "student": GUESSING})], Require(min_speedup=10.0))
    assert made.pick is None
    (device,) = made.devices
    assert (device.model, device.nearest) == (None, "student")
    assert device.why.startswith("No model is shown to do better than a guess. student is nearest: accuracy of student")
    (gate,) = [gate for gate in made.gates if gate.requirement == "above_chance"]
    assert (gate.model, gate.verdict, gate.passed, gate.limit) == ("student", "fail", False, pytest.approx(0.1))
    assert gate.ci95[0] <= 0.1
    with pytest.raises(RequirementError, match="accuracy above chance of student"):
        enforce(made)
    assert headline(made) == "fail: nothing to ship"
    assert "10.0 %, which always answering the largest class scores" in decisions(made)[0].sentence
    assert card(made) is None
    assert "above_chance" in junit(made)
    for text in (html(made), markdown(made), github(made)):
        assert "Ship student" not in text
        assert "nothing to ship" in text.lower()


@pytest.mark.parametrize("require", [Require(), Require(min_speedup=2.0)])
def test_nor_is_anything_that_a_guessing_teacher_taught(build, require) -> None:
    models = {"teacher": (0.1, 1000.0, 1.0, 10), "student": (0.4, 10.0, 0.1, 1)}
    made = report([build.bench(models=models)], require)
    assert made.pick is None
    assert [(gate.model, gate.passed) for gate in made.gates if gate.requirement == "above_chance"] == [
        ("teacher", False)
    ]
    assert "accuracy of teacher is" in made.devices[0].why


def test_without_requirements_too(build) -> None:
    made = report([build.bench(models={"teacher": GUESSING, "student": GUESSING})])
    assert made.pick is None
    assert {gate.requirement for gate in made.gates} == {"above_chance"}


def test_what_a_constant_scores_stands_beside_the_scores(build) -> None:
    assert "The best constant answer scores 10.0 %." in html(report([build.bench()]))
    unscored = {"a": (None, 100.0, 1.0, 1)}
    assert "constant answer" not in html(report([build.bench(models=unscored)]))


def test_a_majority_is_no_skill(build) -> None:
    """80 % of the samples are of one class: an accuracy of 82 % is what a constant scores, 90 % is not."""
    uneven = [dataclasses.replace(score, samples=8) for score in build.evaluation(0.8, 1).per_class]
    uneven[0] = dataclasses.replace(uneven[0], samples=360 - 72)
    bench = build.bench(models={"teacher": GOOD, "student": (0.82, 10.0, 0.1, 1)})
    counted = {"per_class": tuple(uneven), "chance": None}
    evaluations = [dataclasses.replace(model.evaluation, **counted) for model in bench.models]
    pairs = zip(bench.models, evaluations, strict=True)
    scored = [dataclasses.replace(model, evaluation=evaluation) for model, evaluation in pairs]
    made = report([dataclasses.replace(bench, models=tuple(scored))], Require(min_speedup=2.0))
    assert made.pick is None
    assert [gate.model for gate in made.gates if not gate.passed] == ["student"]


def test_no_scores_no_requirements_speed_alone(build) -> None:
    models = {"a": (None, 100.0, 1.0, 1), "b": (None, 50.0, 0.5, 1), "c": (None, 50.0, 0.8, 1)}
    made = report([build.bench(models=models)])
    (device,) = made.devices
    assert (device.model, device.fastest) == (None, "b")
    assert device.why.startswith("Accuracy was not measured, so speed alone is compared: b is 2")
    assert "as fast as a (95 % interval" in device.why
    assert headline(made) == "speed only"
    for text in (html(made), markdown(made), github(made)):
        assert "nothing to ship" not in text.lower()
        assert "speed alone is compared" in text
    enforce(made)


def test_no_faster_than_the_baseline(build) -> None:
    made = report([build.bench(models={"a": (None, 100.0, 0.5, 1), "b": (None, 50.0, 0.5, 1)})])
    assert "no model is shown to be faster than a" in made.devices[0].why
    alone = report([build.bench(models={"a": (None, 100.0, 0.5, 1)})])
    assert "a is the only model" in alone.devices[0].why
