"""Verification over pairs and rank correlation, against scikit-learn, scipy and loops over pairs."""

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from kdexport.statistics import SCORE_RESAMPLES, resample_counts
from kdexport.tasks import rank_correlation, verification


def made(seed, samples=60, identities=7, spread=1.0, width=8):
    generator = np.random.default_rng(seed)
    numbers = generator.integers(0, identities, samples)
    centres = generator.normal(size=(identities, width))
    return (spread * centres[numbers] + generator.normal(size=(samples, width))).astype(np.float32), numbers


def scored(outputs, numbers):
    pairs = verification.verification_pairs(numbers)
    return pairs, verification.cosines(outputs, pairs.left, pairs.right)


@pytest.mark.parametrize("seed", range(4))
def test_scores_over_all_pairs_are_scikit_learns(seed):
    outputs, numbers = made(seed)
    outputs[::2] = outputs[0]  # many cosines are equal
    pairs, found = scored(outputs, numbers)
    every = list(itertools.combinations(range(len(numbers)), 2))
    assert sorted(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == every
    assert (pairs.same == (numbers[pairs.left] == numbers[pairs.right])).all()
    theirs = metrics.pairwise.cosine_similarity(outputs.astype(np.float64))[pairs.left, pairs.right]
    assert found == pytest.approx(theirs, abs=1e-12)
    assert verification.area_under_roc(found, pairs.same) == pytest.approx(
        metrics.roc_auc_score(pairs.same, found), abs=1e-12
    )
    far, tar, _ = metrics.roc_curve(pairs.same, found, drop_intermediate=False)
    for limit in (0.0, 0.01, 0.2, 1.0):
        assert verification.tar_at_far(found, pairs.same, limit) == pytest.approx(tar[far <= limit].max(), abs=1e-12)
    for threshold in (-1.0, 0.1, 0.5):
        expected = metrics.balanced_accuracy_score(pairs.same, found >= threshold)
        assert verification.balanced_accuracy(found, pairs.same, threshold) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_no_threshold_is_better_than_the_best(seed):
    pairs, found = scored(*made(seed, samples=25, identities=4))
    best = verification.balanced_accuracy(found, pairs.same, verification.best_threshold(found, pairs.same))
    tried = [((found[pairs.same] >= t).mean() + (found[~pairs.same] < t).mean()) / 2 for t in np.append(found, 2.0)]
    assert best == pytest.approx(max(tried), abs=1e-12)


def test_a_threshold_lies_between_two_cosines_also_where_only_one_side_is_right():
    same = np.array([True, True, False, False])
    assert verification.best_threshold(np.array([0.9, 0.7, 0.3, 0.1]), same) == pytest.approx(0.5)
    for reversed_order in (np.array([0.1, 0.3, 0.7, 0.9]), np.full(4, 0.5)):  # one class is always wrong
        threshold = verification.best_threshold(reversed_order, same)
        assert verification.balanced_accuracy(reversed_order, same, threshold) == 0.5


def test_retrieval_asks_for_the_nearest_other_sample():
    outputs, numbers = made(3)
    numbers[-1] = 99  # alone: it can be found, and is not asked for
    similarity = metrics.pairwise.cosine_similarity(outputs.astype(np.float64))
    np.fill_diagonal(similarity, -np.inf)
    right = [numbers[row.argmax()] == number for row, number in zip(similarity, numbers, strict=True)][:-1]
    assert verification.top1_retrieval(outputs, numbers) == pytest.approx(np.mean(right))
    assert verification.top1_retrieval(outputs[:3], np.arange(3)) is None


def test_a_resample_scores_as_the_identities_that_it_draws():
    outputs, numbers = made(4, samples=40, identities=5)
    pairs, found = scored(outputs, numbers)
    accepted = found >= 0.3
    resamples = verification.resampled_accuracy(accepted, pairs, numbers)
    assert len(resamples) == SCORE_RESAMPLES
    for value, counts in zip(resamples[:20], next(iter(resample_counts(5))), strict=False):
        weights = np.where(
            pairs.same, counts[numbers[pairs.left]], counts[numbers[pairs.left]] * counts[numbers[pairs.right]]
        )
        expected = metrics.balanced_accuracy_score(pairs.same, accepted, sample_weight=weights)
        if weights[~pairs.same].any():
            assert value == pytest.approx(expected, abs=1e-12)
    assert np.isfinite(resamples).all()


def test_too_many_pairs_are_a_fixed_choice_of_both_kinds(monkeypatch):
    monkeypatch.setattr(verification, "MAX_PAIRS", 600)
    for identities in (3, 40):
        numbers = np.random.default_rng(0).integers(0, identities, 100)
        first, second = verification.verification_pairs(numbers), verification.verification_pairs(numbers)
        assert np.array_equal(first.left, second.left)
        assert (first.same == (numbers[first.left] == numbers[first.right])).all()
        assert (first.left < first.right).all()
        assert len(set(zip(first.left.tolist(), first.right.tolist(), strict=True))) == len(first.left) <= 600
        within = sum(count * (count - 1) // 2 for count in np.bincount(numbers))
        assert first.same.sum() == min(within, 300)
        assert 250 < (~first.same).sum() <= 300


@pytest.mark.parametrize("seed", range(4))
def test_correlations_are_scipys_of_samples_and_of_resamples(seed):
    generator = np.random.default_rng(seed)
    first = np.round(generator.normal(size=50), 1)
    second = np.round(first + generator.normal(size=50), 1)
    assert rank_correlation.spearman(first, second) == pytest.approx(stats.spearmanr(first, second)[0], abs=1e-12)
    assert rank_correlation.pearson(first, second) == pytest.approx(stats.pearsonr(first, second)[0], abs=1e-12)
    found = rank_correlation.resampled_spearman(first, second)
    for value, counts in zip(found[:5], next(iter(resample_counts(50))).astype(int), strict=False):
        drawn = first.repeat(counts), second.repeat(counts)
        assert value == pytest.approx(stats.spearmanr(*drawn)[0], abs=1e-12)
    assert rank_correlation.spearman(np.ones(4), first[:4]) is None
