"""What a given model's answers say before anything learns from them."""

import numpy as np
import pytest

from kdexport.tasks.classification import doubt_of

NAMES = tuple("abcdefghij")


def answers(predicted, classes=10):
    return np.eye(classes, dtype=np.float32)[predicted]


def test_a_permutation_is_told_with_the_pairs():
    targets = np.arange(200) % 10
    order = np.array([0, 1, 3, 2, 5, 6, 4, 8, 9, 7])
    said = doubt_of(targets, answers(order[targets]), NAMES)
    assert "another order" in said
    assert "20.0% of 200 samples are right, 100.0% would be" in said
    assert "c -> d, d -> c, e -> f" in said


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.25])
def test_a_noisy_permutation_is_found_and_a_good_model_is_not(noise):
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 4, 300)
    wrong = generator.random(300) < noise
    predicted = np.where(wrong, generator.integers(0, 4, 300), targets)
    assert doubt_of(targets, answers(predicted, 4), NAMES[:4]) is None
    assert "another order" in doubt_of(targets, answers((predicted + 1) % 4, 4), NAMES[:4])


def test_chance_is_told_against_the_commonest_class():
    generator = np.random.default_rng(1)
    targets = (generator.random(200) < 0.3).astype(int)
    said = doubt_of(targets, answers(np.zeros(200, int), 2), ("no", "yes"))
    assert "it does not classify these data" in said
    assert "always saying 'no'" in said
    for seed in range(20):  # guesses over ten classes are never taken for a permutation
        guess = np.random.default_rng(seed).integers(0, 10, 60)
        assert "another order" not in (doubt_of(np.arange(60) % 10, answers(guess), NAMES) or "")


def test_two_classes_the_other_way_round():
    targets = np.arange(100) % 2
    assert "no -> yes, yes -> no" in doubt_of(targets, answers(1 - targets, 2), ("no", "yes"))


def test_nothing_is_said_of_few_samples_or_several_labels():
    assert doubt_of(np.zeros(5, int), answers(np.ones(5, int), 2), ("a", "b")) is None
    assert doubt_of(np.zeros((50, 2)), np.zeros((50, 2)), ("a", "b")) is None
    targets = np.concatenate([np.arange(40) % 2, np.full(40, -1)])
    assert doubt_of(targets, answers(np.maximum(targets, 0), 2), ("a", "b")) is None
