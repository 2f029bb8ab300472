import math

import numpy as np
import pytest
from scipy import stats

from kdexport.results import Measurement, Memory
from kdexport.statistics import (
    disturbed,
    latency,
    median_interval,
    paired_ratio,
    ratio_interval,
    speedup,
    student_t95,
    student_t98,
)


def test_ratio_follows_students_t_on_logarithms():
    rng = np.random.default_rng(3)
    first, second = rng.lognormal(0.5, 0.1, 7), rng.lognormal(0, 0.1, 7)
    ratio, interval = ratio_interval(list(first), list(second))
    logs = np.log(first) - np.log(second)
    low, high = stats.t.interval(0.95, 6, loc=logs.mean(), scale=stats.sem(logs))
    assert ratio == pytest.approx(math.exp(logs.mean()))
    assert interval == pytest.approx((math.exp(low), math.exp(high)), rel=1e-3)


def test_what_the_machine_does_to_both_cancels():
    drift = np.linspace(1, 2, 6)
    ratio, interval = ratio_interval(list(3 * drift), list(drift))
    assert ratio == pytest.approx(3)
    assert interval == pytest.approx((3, 3))


def test_few_rounds_give_no_interval():
    assert ratio_interval([2.0, 2.0], [1.0, 1.0]) == (pytest.approx(2), None)
    assert median_interval([np.array([1, 2, 3])] * 2) is None
    with pytest.raises(ValueError, match="at least one round"):
        ratio_interval([], [1.0])


def test_the_t_table_is_right():
    for freedom in (1, 2, 5, 29, 30, 31, 40, 200):
        assert student_t95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)
        assert student_t98(freedom) == pytest.approx(stats.t.ppf(0.99, freedom), rel=4e-3)


@pytest.mark.parametrize("rounds", [5, 10])
def test_a_median_between_processes_that_differ_is_held_at_least_nine_times_in_ten(rounds):
    # Each process is off by 1 % of its own, each call by 5 %: intervals over single calls would hold it in one of ten.
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(60):
        samples = [rng.normal(1000 * rng.normal(1, 0.01), 50, 100) for _ in range(rounds)]
        low, high = median_interval(samples)
        held += low <= 1000 <= high
    assert held / 60 >= 0.9


def test_equal_samples_give_equal_intervals():
    samples = [np.random.default_rng(seed).normal(100, 5, 50) for seed in range(4)]
    assert median_interval(samples) == median_interval(samples)


def test_a_machine_that_changes_its_speed_within_rounds_does_not_move_a_speedup():
    # In each turn the machine is at full or at half speed; the medians of whole rounds fall on one side or the other.
    rng = np.random.default_rng(0)
    slow = rng.integers(1, 3, (6, 11))
    one, other = (
        latency([1e6 * scale * np.repeat(row, 40) for row in slow], 1e6 * scale * slow) for scale in (2.0, 1.0)
    )
    assert speedup(one, other) == (pytest.approx(2), pytest.approx((2, 2)))


def test_without_turns_the_rounds_are_paired():
    one, other = (latency([np.full(9, scale * 1e6 * row) for row in (1, 2, 4)]) for scale in (3.0, 1.0))
    assert speedup(one, other) == (pytest.approx(3), pytest.approx((3, 3)))


def two_speeds(scale, turns_slow):
    """A model whose machine runs at half speed in some turns of each of five rounds."""
    turns = np.ones((5, 10))
    turns[:, :turns_slow] = 2
    return latency([1e6 * scale * np.repeat(row, 40) for row in turns], 1e6 * scale * turns)


def measured(latency_ms, told=None):
    memory = Memory(None, None, None)
    return Measurement("m", "", "cpu", "", {}, 1, 1, latency_ms, 1.0, 1.0, 1.0, memory, disturbed=told)


def test_the_ratio_is_that_of_the_medians_beside_it_and_lies_in_its_interval():
    # The median of one falls on the slow turns, that of the other on the quick ones: turn by turn it would be 1.5.
    one, other = two_speeds(3.0, 6), two_speeds(2.0, 4)
    ratio, interval = speedup(one, other)
    assert ratio == one.p50 / other.p50 == pytest.approx(3)
    assert interval == (pytest.approx(1.5), pytest.approx(3))
    assert paired_ratio(one, other)[0] == pytest.approx(1.5)
    assert "the medians' ratio is 3, turn by turn it is 1.5" in disturbed(measured(one), measured(other))


def test_a_speedup_is_undecided_where_either_model_was_disturbed():
    one, other = two_speeds(3.0, 6), two_speeds(2.0, 6)
    assert disturbed(measured(one), measured(other)) is None
    assert disturbed(measured(one, "busy"), measured(other)) == "busy"
    assert disturbed(measured(one), measured(other, "busy")) == "busy"
