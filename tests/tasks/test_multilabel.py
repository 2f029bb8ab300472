"""Mean average precision against scikit-learn, and its paired interval against what it must hold."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from kdexport.statistics import SCORE_RESAMPLES, paired_difference, resample_counts
from kdexport.tasks import TASKS
from kdexport.tasks.multilabel import average_precisions

TASK = TASKS["multilabel"]
NAMES = ("cat", "dog", "emu")


def made(seed, skill=1.0, samples=80):
    targets = (np.random.default_rng(5).random((samples, 3)) < (0.5, 0.3, 0.1)).astype(np.float32)
    noise = np.random.default_rng(seed).normal(size=(samples, 3))
    return np.round(noise + skill * (2 * targets - 1), 1).astype(np.float32), targets  # rounded: many are equal


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_scikit_learns_with_equal_outputs_too(seed):
    outputs, targets = made(seed)
    theirs = [metrics.average_precision_score(targets[:, column], outputs[:, column]) for column in range(3)]
    assert average_precisions(outputs, targets > 0.5) == pytest.approx(theirs, abs=1e-12)
    assert TASK.score(outputs, targets) == pytest.approx(np.mean(theirs), abs=1e-12)


def test_a_resample_scores_as_the_samples_that_it_draws():
    outputs, targets = made(1)
    counts = next(iter(resample_counts(len(outputs))))[:7]
    found = average_precisions(outputs, targets > 0.5, counts)
    for row, drawn in zip(found, counts.astype(int), strict=True):
        again = [
            metrics.average_precision_score(targets[:, c].repeat(drawn), outputs[:, c].repeat(drawn)) for c in range(3)
        ]
        assert row == pytest.approx(again, abs=1e-12)


def test_a_class_without_samples_does_not_count():
    outputs, targets = made(2)
    targets[:, 2] = 0
    theirs = [metrics.average_precision_score(targets[:, c], outputs[:, c]) for c in range(2)]
    assert TASK.score(outputs, targets) == pytest.approx(np.mean(theirs))
    found = TASK.evaluate(outputs, targets, NAMES, "test")
    assert found.score.value == pytest.approx(np.mean(theirs))
    assert found.accuracy is None
    assert found.chance == pytest.approx(targets[:, :2].mean())


def test_the_paired_interval_holds_the_truth_and_is_narrower_than_two_intervals():
    covered, narrower = 0, 0
    for seed in range(40):
        base, targets = made(seed)
        other = base + np.random.default_rng(seed + 99).normal(0, 0.3, base.shape).astype(np.float32)
        first, second = (TASK.evaluate(outputs, targets, NAMES, "test") for outputs in (base, other))
        assert len(first.resamples) == SCORE_RESAMPLES
        difference, (low, high) = paired_difference(first, second)
        assert difference == pytest.approx(second.score.value - first.score.value)
        covered += low <= difference <= high
        widths = [one.score.ci95[1] - one.score.ci95[0] for one in (first, second)]
        narrower += high - low < np.hypot(*widths)
    assert covered >= 38
    assert narrower == 40
    same = paired_difference(first, first)
    assert same == (0.0, (0.0, 0.0))


def test_scores_of_other_samples_are_not_paired():
    first = TASK.evaluate(*made(1), NAMES, "test")
    assert paired_difference(first, TASK.evaluate(*made(1, samples=70), NAMES, "test")) is None
    assert paired_difference(first, TASK.evaluate(*made(1), NAMES, "val")) is None


def test_agreement_is_that_of_independent_decisions():
    teacher, _ = made(1)
    other, _ = made(2)
    found = TASK.agreement(teacher, other)
    p, q = (1 / (1 + np.exp(-logits.astype(np.float64))) for logits in (teacher, other))
    kl = sum(stats.entropy([p[:, c], 1 - p[:, c]], [q[:, c], 1 - q[:, c]]) for c in range(3))
    assert found.kl == pytest.approx(kl.mean())
    assert found.top1 == pytest.approx(((teacher > 0) == (other > 0)).mean())
