"""Who trains on is decided by intervals, and the places of a rung."""

import numpy as np
import pytest

from kdexport.recipe import Search
from kdexport.results import Evaluation, Score
from kdexport.search.halving import Rung, decide, first_places, ranked, rungs
from kdexport.search.predict import choose, fit_latency


def search(**keys) -> Search:
    return Search.model_validate({"budget": {"size_mib": 1.0}, "space": ({"model": "n.py:N"},), **keys})


def scored(right: int, of: int = 200, shift: int = 0) -> Evaluation:
    values = tuple(int(index < right) for index in np.roll(np.arange(of), shift))
    return Evaluation("val", of, "classification", Score("accuracy", right / of, None), per_sample=values)


def test_rungs_grow_by_the_reduction() -> None:
    assert rungs(search(), 60, 9) == [Rung(7, 3), Rung(20, 2)]
    assert rungs(search(reduction=2, finalists={"count": 1}), 16, 8) == [Rung(2, 4), Rung(4, 2), Rung(8, 1)]
    assert rungs(search(), 60, 2) == []  # as many as finalists: nothing to decide
    assert rungs(search(), 3, 9) == [Rung(2, 2)]  # too short for two rungs: one, that leaves the finalists
    assert rungs(search(), 1, 9) == []


def test_the_one_shown_to_be_worse_is_out_though_there_is_a_place() -> None:
    found = {0: scored(190), 1: scored(150), 2: scored(189)}
    out = decide(found, 3, dict.fromkeys(found, 1.0), {0: "a", 1: "b", 2: "c"})
    assert list(out) == [1]
    assert out[1].startswith("worse than a on validation: −20.0 points (−")


def test_those_that_cannot_be_told_apart_stay_as_far_as_there_are_places() -> None:
    found = {0: scored(188), 1: scored(189), 2: scored(190), 3: scored(187)}
    out = decide(found, 2, dict.fromkeys(found, 1.0), dict.fromkeys(found, "x"))
    assert sorted(out) == [0, 3]
    assert all("no place left among 2" in why for why in out.values())


def test_the_best_that_is_surely_within_the_budget_goes_on() -> None:
    """Else all finalists may prove to be over the budget once they are measured for longer."""
    found = {0: scored(190), 1: scored(150), 2: scored(140), 3: scored(189)}
    labels = dict.fromkeys(found, "x")
    assert sorted(decide(found, 2, dict.fromkeys(found, 1.0), labels, {1, 2})) == [2]
    assert sorted(decide(found, 2, dict.fromkeys(found, 1.0), labels, {2, 3})) == [1, 2]
    assert sorted(decide(found, 1, dict.fromkeys(found, 1.0), labels, set())) == [1, 2, 3]


def test_one_that_is_surely_within_the_budget_begins() -> None:
    costs = [(number, float(number), float(number)) for number in range(10)]
    assert {4, 9, 8} <= set(first_places(costs, 4, {4, 3}))
    assert first_places(costs, 4, {9}) == first_places(costs, 4)


def test_of_equal_scores_the_fastest_comes_first() -> None:
    found = {0: scored(190), 1: scored(190), 2: scored(180)}
    assert ranked(found, {0: 2.0, 1: 1.0, 2: 0.1}) == [1, 0, 2]


def test_an_error_is_better_where_it_is_lower() -> None:
    def error(value: float) -> Evaluation:
        drawn = np.random.default_rng(0).normal(value, 0.05, 300)
        score = Score("mean_absolute_error", float(drawn.mean()), None, higher_is_better=False)
        return Evaluation("val", 300, "regression", score, per_sample=tuple(drawn))

    found = {0: error(0.5), 1: error(0.4), 2: error(0.401)}
    out = decide(found, 3, dict.fromkeys(found, 1.0), {0: "a", 1: "b", 2: "c"})
    assert sorted(out) == [0, 2]  # the same draws shifted: the difference is exact, however small
    assert ranked(found, dict.fromkeys(found, 1.0))[0] == 1


def test_places_go_to_the_largest_and_to_all_latencies() -> None:
    costs = [(number, float(number), float(number)) for number in range(10)]
    assert first_places(costs, 20) == list(range(10))
    chosen = first_places(costs, 4)
    assert len(chosen) == len(set(chosen)) == 4
    assert {9, 8} <= set(chosen)
    assert {0, 7} <= set(chosen)  # the ends of the rest


def test_latency_is_predicted_and_the_error_is_cross_validated() -> None:
    rng = np.random.default_rng(0)
    rows = [[float(width), np.log(width)] for width in rng.integers(4, 256, 40)]
    true = [0.01 * row[0] ** 1.5 for row in rows]
    model = fit_latency(rows, true)
    assert model is not None
    assert model.samples == 40
    assert model.error < 0.05
    assert model.predict([[100.0, np.log(100.0)]])[0] == pytest.approx(10.0, rel=0.1)
    noise = fit_latency(rows, list(rng.uniform(0.1, 10.0, 40)))
    assert noise is not None
    assert noise.error > 0.3  # what cannot be predicted is not told to be
    assert fit_latency(rows[:5], true[:5]) is None


def test_half_of_what_is_measured_next_lies_at_the_budget_s_edge() -> None:
    predicted = np.linspace(1.0, 20.0, 20)
    chosen = choose(predicted, 10.0, 6, np.random.default_rng(0))
    assert len(set(chosen)) == 6
    assert {9, 8, 7} <= set(chosen)
    assert all(predicted[place] <= 13.0 for place in chosen)
    assert choose(np.array([30.0, 20.0]), 1.0, 1, np.random.default_rng(0)) == [1]  # nothing fits: the fastest
