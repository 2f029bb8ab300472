"""Intervals, held against scipy and against resampling."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from kdexport.statistics import median_ratio, percentile_interval, score_delta


def test_the_ratio_of_paired_rounds_is_the_t_interval_of_their_logs(build) -> None:
    random = np.random.default_rng(0)
    drift = random.uniform(1, 3, 9)  # that the machine put on both: it must cancel
    rounds = [scale * drift * random.lognormal(0, 0.02, 9) for scale in (2.0, 0.5)]
    base, model = (
        dataclasses.replace(build.latency(1.0, 1), p50=float(stats.gmean(own)), rounds_p50=tuple(own)) for own in rounds
    )
    ratio, interval = median_ratio(base, model)
    expected = stats.ttest_1samp(np.log(base.rounds_p50) - np.log(model.rounds_p50), 0).confidence_interval(0.98)
    assert interval == pytest.approx((np.exp(expected.low), np.exp(expected.high)), rel=2e-3)
    assert 3.9 < ratio < 4.1
    assert interval[1] / interval[0] < 1.1


def test_without_common_rounds_the_medians_own_intervals_count(build) -> None:
    base = dataclasses.replace(build.latency(2.0, 1), p50=2.0, p50_ci95=(1.9, 2.2), rounds_p50=())
    model = dataclasses.replace(build.latency(1.0, 2), p50=1.0, p50_ci95=(0.9, 1.1))
    assert median_ratio(base, model) == (2.0, (pytest.approx(1.9 / 1.1), pytest.approx(2.2 / 0.9)))
    assert median_ratio(dataclasses.replace(base, p50_ci95=None), model) == (2.0, None)


def test_a_percentile_has_the_interval_that_was_measured(build) -> None:
    latency = build.latency(1.0, 3)
    assert percentile_interval(latency, 50) == (latency.p50, latency.p50_ci95)
    assert percentile_interval(latency, 99) == (latency.p99, latency.p99_ci95)
    assert percentile_interval(latency, 90) == (latency.p90, None)


def test_a_percentile_that_the_samples_cannot_carry(build) -> None:
    assert percentile_interval(dataclasses.replace(build.latency(1.0, 3), p99=None, p99_ci95=None), 99) == (None, None)


def test_accuracy_on_the_same_samples_is_paired(build) -> None:
    better, worse = build.model("a", 0.95, 1, 1, seed=1), build.model("b", 0.85, 1, 1, seed=1)
    delta, paired = score_delta(better, worse)
    loose_delta, loose = score_delta(
        dataclasses.replace(better, evaluation=None), dataclasses.replace(worse, evaluation=None)
    )
    assert delta == pytest.approx(loose_delta)
    assert loose[0] < paired[0] < delta < paired[1] < loose[1]
    assert score_delta(better, dataclasses.replace(worse, score=None)) == (None, None)
