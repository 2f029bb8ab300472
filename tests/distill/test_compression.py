"""The largest logits and two levels say nearly what all logits say."""

import math

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from kdexport.distill.logit_cache import AllLogits, TopK, compression_for
from kdexport.distill.objective import Objective
from kdexport.terms import METHODS

SAMPLES, CLASSES = 300, 2000


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    """A teacher of 2,000 classes as they are found: a normal crowd and a few related classes far above it."""
    generator = np.random.default_rng(0)
    crowd = generator.normal(0, 1.5, (SAMPLES, CLASSES))
    for row in crowd:
        row[generator.choice(CLASSES, 8, replace=False)] += generator.exponential(5, 8) + 2
    return crowd.astype(np.float32)


def kl(teacher: np.ndarray, kept: np.ndarray, temperature: float) -> float:
    ours, theirs = log_softmax(kept / temperature, axis=1), log_softmax(teacher / temperature, axis=1)
    return float((np.exp(theirs) * (theirs - ours)).sum(axis=1).mean())


def entropy_gap(teacher: np.ndarray, temperature: float) -> float:
    """KL between the teacher and one that says the same of every class: what there is to lose."""
    return kl(teacher, np.zeros_like(teacher), temperature)


def kept(logits: np.ndarray, k: int, temperature: float) -> np.ndarray:
    compression = TopK(CLASSES, k)
    return compression.decompress(compression.compress(logits), temperature)


def test_all_of_them_are_kept_whole(logits: np.ndarray) -> None:
    for compression in (
        compression_for(CLASSES, CLASSES),
        compression_for(10, None),
        compression_for(1000, None),
        compression_for(5, 9),
    ):
        assert isinstance(compression, AllLogits)
    whole = AllLogits(CLASSES)
    np.testing.assert_array_equal(
        whole.decompress(whole.compress(logits), 4.0), logits.astype(np.float16).astype(np.float32)
    )


def test_above_a_thousand_classes_the_largest_are_kept() -> None:
    assert compression_for(1001, None) == TopK(1001, 128)
    assert compression_for(10, 3) == TopK(10, 3)
    assert TopK(10_000, 128).dtype.itemsize * 38 < AllLogits(10_000).dtype.itemsize
    assert TopK(70_000, 4).dtype["classes"].base == np.uint32
    assert TopK(65_536, 4).dtype["classes"].base == np.uint16


def test_the_largest_are_where_they_were_and_the_rest_weighs_what_it_did(logits: np.ndarray) -> None:
    found = kept(logits, 20, 1.0)
    largest = np.argsort(logits, axis=1)[:, -20:]
    np.testing.assert_allclose(
        np.take_along_axis(found, largest, 1), np.take_along_axis(logits, largest, 1), rtol=1e-3, atol=1e-3
    )
    np.testing.assert_array_equal(found.argmax(1), logits.argmax(1))
    halved = np.where(np.isin(logits, np.take_along_axis(logits, largest, 1)), logits.astype(np.float16), logits)
    np.testing.assert_allclose(logsumexp(found, axis=1), logsumexp(halved, axis=1), atol=1e-3)
    np.testing.assert_allclose(kept(logits, 20, math.inf).mean(axis=1), logits.mean(axis=1), atol=1e-3)


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.005), (2.0, 0.1), (4.0, 0.5)])
def test_little_of_the_teachers_output_is_lost(logits: np.ndarray, temperature: float, share: float) -> None:
    """At a high temperature the crowd weighs most, and which of the crowd was likelier is what is left out."""
    loss = kl(logits, kept(logits, 128, temperature), temperature)
    assert 0 <= loss < share * entropy_gap(logits, temperature)
    assert loss < kl(logits, kept(logits, 16, temperature), temperature) + 1e-9


@pytest.mark.parametrize("temperature", [2.0, 4.0, 20.0])
def test_the_level_goes_by_the_temperature(logits: np.ndarray, temperature: float) -> None:
    """The rest's weight is within 3 % of what it was; with the level of temperature 1 it would be far off."""
    largest = np.argsort(logits, axis=1)[:, -128:]

    def rest(values: np.ndarray) -> np.ndarray:
        others = values.astype(np.float64).copy()
        np.put_along_axis(others, largest, -np.inf, axis=1)
        return logsumexp(others / temperature, axis=1)

    np.testing.assert_allclose(rest(kept(logits, 128, temperature)), rest(logits), atol=0.03)
    assert (
        np.abs(rest(kept(logits, 128, 1.0)) - rest(logits)).mean()
        > np.abs(rest(kept(logits, 128, temperature)) - rest(logits)).mean()
    )


def test_values_beyond_half_precision_stay_finite() -> None:
    compression = TopK(4, 2)
    assert np.isfinite(compression.decompress(compression.compress(np.full((3, 4), 1e9)), 1.0)).all()


def test_the_weightiest_term_on_logits_says_the_temperature() -> None:
    def term(method: str, weight: float, **options: float) -> object:
        return METHODS[method](method=method, weight=weight, **options)

    soft, mse, crd = term("soft_targets", 0.5, temperature=3.0), term("logit_mse", 0.9), term("crd", 1.0)
    assert Objective(0.0, [soft, crd]).cache_temperature == 3.0
    assert Objective(0.0, [soft, mse]).cache_temperature == math.inf
    assert Objective(0.0, [crd]).cache_temperature == 1.0
