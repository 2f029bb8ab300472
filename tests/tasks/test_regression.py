"""Scores of numbers against scikit-learn's and scipy's, and what is legal as targets."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from kdexport.data.splits import stratified
from kdexport.errors import SourceError
from kdexport.statistics import paired_difference
from kdexport.tasks.regression import Regression, as_targets

TASK = Regression()
RNG = np.random.default_rng(5)
TARGETS = (RNG.gamma(2.0, 50.0, size=(211, 2)) * (1.0, 1e-3)).astype(np.float32)
OUTPUTS = (TARGETS * 1.1 + RNG.normal(size=TARGETS.shape) * (20.0, 0.02)).astype(np.float32)
NAMES = ("price", "share")


@pytest.mark.parametrize("columns", [slice(0, 1), slice(None)])
def test_scores_are_scikit_learns(columns):
    targets, outputs, names = TARGETS[:, columns], OUTPUTS[:, columns], NAMES[columns]
    found = TASK.evaluate(outputs, targets, names, "test")
    true, predicted = targets.astype(np.float64), outputs.astype(np.float64)
    assert found.score.value == pytest.approx(metrics.mean_absolute_error(true, predicted), abs=1e-9)
    assert found.metrics["rmse"] == pytest.approx(metrics.root_mean_squared_error(true, predicted), abs=1e-9)
    assert found.metrics["r2"] == pytest.approx(metrics.r2_score(true, predicted), abs=1e-9)
    for column, score in enumerate(found.per_target):
        mine = true[:, column], predicted[:, column]
        assert score.name == names[column]
        assert score.mae == pytest.approx(metrics.mean_absolute_error(*mine), abs=1e-9)
        assert score.rmse == pytest.approx(metrics.root_mean_squared_error(*mine), abs=1e-9)
        assert score.r2 == pytest.approx(metrics.r2_score(*mine), abs=1e-9)
        assert score.bias == pytest.approx((mine[1] - mine[0]).mean(), abs=1e-9)
        assert (score.true, score.predicted) == (tuple(mine[0]), tuple(mine[1]))  # few enough to keep all of them
    assert found.score.value == TASK.score(outputs, targets) == pytest.approx(np.mean(found.per_sample))
    errors = np.abs(true - predicted).mean(axis=1)
    assert found.score.ci95 == pytest.approx(
        stats.t.interval(0.95, len(errors) - 1, errors.mean(), stats.sem(errors)), rel=1e-3
    )
    assert found.score.higher_is_better is False
    assert found.chance == pytest.approx(
        np.mean([metrics.mean_absolute_error(column, np.full(211, np.median(column))) for column in true.T])
    )


def test_pairs_are_of_absolute_errors():
    one = TASK.evaluate(OUTPUTS, TARGETS, NAMES, "test")
    other = TASK.evaluate(TARGETS * np.float32(1.05), TARGETS, NAMES, "test")
    delta, (low, high) = paired_difference(one, other)
    difference = np.abs(TARGETS * np.float32(1.05) - TARGETS).mean(1) - np.abs(OUTPUTS - TARGETS).mean(1)
    assert delta == pytest.approx(other.score.value - one.score.value)
    expected = stats.t.interval(0.95, 210, difference.mean(), stats.sem(difference))
    assert (low, high) == pytest.approx(expected, rel=1e-3)
    assert high < 0  # lower is better: the other is


def test_one_target_in_either_shape():
    column = TASK.evaluate(OUTPUTS[:, :1], TARGETS[:, :1], ("y",), "test")
    assert TASK.evaluate(OUTPUTS[:, 0], TARGETS[:, :1], ("y",), "test") == column
    TASK.check_outputs((4,), 4, ("y",), "the model")
    TASK.check_outputs((4, 1), 4, ("y",), "the model")
    for shape, names in (((4,), NAMES), ((4, 3), NAMES), ((4, 1, 1), ("y",)), ((1, 4), ("y",))):
        with pytest.raises(SourceError, match="the model gives"):
            TASK.check_outputs(shape, 4, names, "the model")


def test_r2_of_a_target_that_does_not_vary_is_not_known():
    targets = np.array([[1.0, 2.0], [2.0, 2.0], [4.0, 2.0]], np.float32)
    found = TASK.evaluate(targets + 1, targets, NAMES, "test")
    assert found.per_target[1].r2 is None
    assert found.metrics["r2"] == pytest.approx(metrics.r2_score(targets[:, 0], targets[:, 0] + 1))


def test_pictures_keep_few_points():
    many = np.arange(50_000, dtype=np.float32)[:, None]
    (score,) = TASK.evaluate(many, many, ("y",), "test").per_target
    assert len(score.true) == len(score.predicted) == 2000
    assert (score.true[0], score.true[-1]) == (0.0, 49_999.0)


def test_agreement_is_pearsons():
    found = TASK.agreement(TARGETS, OUTPUTS)
    expected = [stats.pearsonr(TARGETS[:, column], OUTPUTS[:, column]).statistic for column in (0, 1)]
    assert found.logit_correlation == pytest.approx(np.mean(expected), abs=1e-6)
    assert (found.top1, found.kl) == (None, None)
    assert TASK.agreement(TARGETS[:, :1], np.ones((211, 1), np.float32)).logit_correlation is None


def test_the_fit_is_of_the_training_targets():
    fitted = TASK.fitted(TARGETS, NAMES)
    assert fitted.mean == pytest.approx(TARGETS.astype(np.float64).mean(0))
    assert fitted.std == pytest.approx(TARGETS.astype(np.float64).std(0))
    np.testing.assert_allclose(
        fitted.comparable(torch.tensor(OUTPUTS)).std(0, correction=0), OUTPUTS.std(0) / fitted.std
    )
    assert torch.equal(TASK.comparable(torch.tensor(OUTPUTS)), torch.tensor(OUTPUTS))


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        (np.full_like(TARGETS, 3.0), "not shown to be better than a constant"),
        ((TARGETS - TARGETS.mean(0)) / TARGETS.std(0), "other units"),  # a network of standardized targets
        (TARGETS[:, ::-1], "price is its output 1, share is its output 0"),
        (OUTPUTS, None),
    ],
)
def test_doubts(outputs, told):
    said = TASK.doubt(np.ascontiguousarray(outputs), TARGETS, NAMES)
    assert (said is None) if told is None else (told in said)


def test_doubt_says_the_scale():
    said = TASK.doubt((TARGETS[:, :1] - 100) / 50, TARGETS[:, :1], ("price",))
    assert "50 times its output +100" in said


@pytest.mark.parametrize("skewed", [TARGETS[:, :1], TARGETS, np.repeat(TARGETS[:5, :1], 60, axis=0)])
def test_splits_hold_the_range_of_the_targets(skewed):
    groups = TASK.groups(skewed)
    for value in np.unique(skewed[:, 0]) if len(np.unique(skewed)) < 10 else ():
        assert len(np.unique(groups[skewed[:, 0] == value])) == 1  # equal targets in one group
    rest, taken = stratified(groups, 0.2, 0)
    assert len(taken) == pytest.approx(0.2 * len(skewed), abs=5)
    for share in (0.25, 0.5, 0.75):
        below = np.quantile(skewed[:, 0], share)
        assert (skewed[taken, 0] <= below).mean() == pytest.approx((skewed[rest, 0] <= below).mean(), abs=0.12)


def test_few_samples_are_one_group():
    assert set(TASK.groups(TARGETS[:30])) == {0}


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (np.array([[1.0], [np.nan], [2.0]]), "1 samples have NaN or infinity as target, the first is number 1 .'y'"),
        (np.array([[1.0], [np.inf], [np.nan]]), "2 samples have NaN"),
        (np.zeros((3, 2)), "for 1 names"),
    ],
)
def test_targets_that_are_none(targets, told):
    with pytest.raises(SourceError, match=told):
        TASK.check_targets(targets.astype(np.float32), ("y",), "train")


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (np.full((9, 1), 3.5), "the target is 3.5 in every training sample"),
        (np.column_stack([np.arange(9), np.zeros(9)]), "target 1 is 0 in every"),
        (1.7e9 + 300 * np.arange(9)[:, None], "hardly tells apart"),  # seconds since 1970
    ],
)
def test_targets_that_teach_nothing(targets, told):
    with pytest.raises(SourceError, match=told):
        TASK.check_training(targets.astype(np.float32), "data")


def test_numbers_of_any_type_become_float32_columns():
    for given in ([1, 2, 3], np.array([1, 2, 3], np.uint8), np.array([[1.0], [2.0], [3.0]])):
        found = as_targets(given, "train")
        assert (found.shape, found.dtype) == ((3, 1), np.float32)
    with pytest.raises(SourceError, match="beyond what float32 holds"):
        as_targets([1e300, 1.0], "train")
    with pytest.raises(SourceError, match="tells apart"):
        as_targets(1.7e9 + np.arange(9), "train")  # one and the same float32
    with pytest.raises(SourceError, match="targets are"):
        as_targets(["a", "b"], "train")


def test_r2_of_a_nearly_constant_target_is_summed_in_float64():
    """torchmetrics 1573: in float32 it came to 82,685, and no R2 is above 1; a constant or lone target has none."""
    true = np.array([-5.1608, -5.1609, -5.1608, -5.1608, -5.1608, -5.1608], np.float32)[:, None]
    predicted = np.array([-3.9865, -5.4648, -5.0238, -4.3899, -5.6672, -4.7336], np.float32)[:, None]
    found = TASK.evaluate(predicted, true, ("y",), "test").metrics["r2"]
    assert found == pytest.approx(metrics.r2_score(true.astype(np.float64), predicted.astype(np.float64)), rel=1e-9)
    assert found < -1e8
    for some in (slice(0, 1), slice(2, 6)):
        assert TASK.evaluate(predicted[some], true[some], ("y",), "test").metrics["r2"] is None
