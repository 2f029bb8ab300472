"""Embeddings: what is scored, on which threshold, and what is refused; held against scikit-learn and scipy."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from kdexport.data.samples import Split
from kdexport.errors import SourceError
from kdexport.scoring import evaluate
from kdexport.statistics import paired_difference
from kdexport.tasks import TASKS, task_named, task_of, task_of_metric
from kdexport.tasks.embedding import Embedding
from kdexport.tasks.similarity import Similarity, pair_targets, pairs_in

TASK = TASKS["embedding"]
NAMES = tuple(f"s{number:02d}" for number in range(20))


def people(seed, identities, each=6, width=8, spread=1.0):
    generator = np.random.default_rng(seed)
    numbers = np.repeat(np.asarray(identities), each)
    centres = np.random.default_rng(99).normal(size=(20, width))
    return (spread * centres[numbers] + generator.normal(size=(len(numbers), width))).astype(np.float32), numbers


def all_pairs(outputs, numbers):
    left, right = np.triu_indices(len(numbers), 1)
    similarity = metrics.pairwise.cosine_similarity(outputs.astype(np.float64))[left, right]
    return numbers[left] == numbers[right], similarity


def test_the_test_split_is_scored_at_the_threshold_that_the_same_model_has_on_validation():
    val, test = people(1, range(5)), people(2, range(5, 12))
    splits = [Split((outputs,), numbers, TASK) for outputs, numbers in (val, test)]
    test_split = dataclasses.replace(splits[1], calibration=splits[0])
    found, outputs = evaluate(lambda inputs: inputs[0], test_split, NAMES, batch_size=7)
    assert np.array_equal(outputs, test[0])
    same, similarity = all_pairs(*val)
    accuracies = [metrics.balanced_accuracy_score(same, similarity >= value) for value in np.unique(similarity)[::5]]
    threshold = found.metrics["threshold"]
    assert metrics.balanced_accuracy_score(same, similarity >= threshold) >= max(accuracies)
    same, similarity = all_pairs(*test)
    value = metrics.balanced_accuracy_score(same, similarity >= threshold)
    assert found.score.value == pytest.approx(value, abs=1e-12)
    assert found.score.metric == "verification_accuracy"
    assert found.score.ci95[0] < value < found.score.ci95[1]
    assert found.metrics["auc"] == pytest.approx(metrics.roc_auc_score(same, similarity), abs=1e-12)
    far, tar, _ = metrics.roc_curve(same, similarity, drop_intermediate=False)
    assert found.metrics["tar_at_far_1"] == pytest.approx(tar[far <= 0.01].max(), abs=1e-12)
    neighbours = metrics.pairwise.cosine_similarity(test[0].astype(np.float64)) - 2 * np.eye(len(test[0]))
    retrieved = (test[1][neighbours.argmax(axis=1)] == test[1]).mean()
    assert found.metrics["top1_retrieval"] == pytest.approx(retrieved, abs=1e-12)
    assert found.chance == 0.5
    assert sum(found.curves["same"]) == pytest.approx(1.0)
    assert TASK.calibrated(*val).score(*test) == pytest.approx(value, abs=1e-12)


def test_two_models_are_compared_over_the_same_identities():
    outputs, numbers = people(3, range(8))
    worse = outputs + np.random.default_rng(0).normal(size=outputs.shape).astype(np.float32)
    first, second = (TASK.evaluate(rows, numbers, NAMES, "test") for rows in (outputs, worse))
    difference, (low, high) = paired_difference(first, second)
    assert difference == pytest.approx(second.score.value - first.score.value)
    assert low < difference < high < 0.05
    assert paired_difference(first, first) == (0.0, (0.0, 0.0))


def test_a_constant_is_chance_and_told_as_that():
    numbers = np.repeat(np.arange(10), 5)
    constant = np.ones((50, 4), np.float32)
    assert TASK.score(constant, numbers) == TASK.evaluate(constant, numbers, NAMES, "test").score.value == 0.5
    assert "the same embedding" in TASK.doubt(constant, numbers, NAMES)
    noise = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert "does not tell these identities apart" in TASK.doubt(noise, numbers, NAMES)
    assert TASK.doubt(*people(1, range(10)), NAMES) is None


@pytest.mark.parametrize(
    ("train", "val", "test", "message"),
    [
        ([0, 0, 1, 1], [2, 2, 3, 3], [1, 1, 4, 4], "1 identity is in both train and test: s01"),
        ([0, 0, 1, 1], [1, 0, 3, 3], [5, 5, 4, 4], "2 identities are in both train and val: s00, s01"),
        ([0, 0, 1, 1], [2, 2, 3, 3], [3, 3, 4, 4], "1 identity is in both val and test: s03"),
        ([0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 4], "test: its samples are of 1 identity"),
        ([0, 0, 1, 1], [2, 3, 5], [4, 4, 6], "val has one sample of each identity"),
    ],
)
def test_splits_that_cannot_be_scored_honestly_are_refused_with_names(train, val, test, message):
    with pytest.raises(SourceError, match=message) as error:
        TASK.check_splits({"train": np.array(train), "val": np.array(val), "test": np.array(test)}, NAMES, "faces")
    assert error.value.hint


def test_outputs_are_vectors_of_any_width_and_nothing_else():
    TASK.check_outputs((3, 64), 3, NAMES, "the student")
    for shape in ((3,), (3, 1), (2, 64), (3, 4, 4)):
        with pytest.raises(SourceError, match=r"an embedding is \[batch, width\]"):
            TASK.check_outputs(shape, 3, NAMES, "the student")
    with pytest.raises(SourceError, match="all of one identity"):
        TASK.check_training(np.zeros(4, int), "faces")


def test_agreement_compares_cosines_whatever_the_widths():
    outputs, _ = people(4, range(6), width=8)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    wider = np.pad(outputs @ rotation, ((0, 0), (0, 5)))
    assert TASK.agreement(outputs, wider).logit_correlation == pytest.approx(1.0)
    other, _ = people(5, range(6), width=3)
    left, right = np.triu_indices(len(outputs), 1)
    cosines = [metrics.pairwise.cosine_similarity(rows.astype(np.float64))[left, right] for rows in (outputs, other)]
    found = TASK.agreement(outputs, other)
    assert found.logit_correlation == pytest.approx(stats.pearsonr(*cosines)[0], abs=1e-12)
    assert found.top1 is None
    assert found.kl is None


def pairs(seed, count=60, width=5, noise=0.3):
    generator = np.random.default_rng(seed)
    outputs = generator.normal(size=(2 * count, width)).astype(np.float32)
    halves = outputs.astype(np.float64).reshape(count, 2, width)
    cosines = np.array([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in halves])
    return outputs, pair_targets(np.round(2.5 + 2.5 * cosines + noise * generator.normal(size=count), 1)), cosines


@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_scored_by_spearman_in_whatever_order_the_samples_come(seed):
    outputs, targets, cosines = pairs(seed)
    expected = stats.spearmanr(cosines, targets[::2, 1])[0]
    task = Similarity()
    order = np.random.default_rng(0).permutation(len(outputs))
    for rows, told in ((outputs, targets), (outputs[order], targets[order])):
        assert task.score(rows, told) == pytest.approx(expected, abs=1e-9)
    found = task.evaluate(outputs, targets, (), "test")
    assert found.samples == 60
    assert found.score.value == pytest.approx(expected, abs=1e-9)
    assert found.score.metric == "spearman"
    assert found.metrics["pearson"] == pytest.approx(stats.pearsonr(cosines, targets[::2, 1])[0], abs=1e-9)
    assert found.score.ci95[0] < expected < found.score.ci95[1]
    assert found.chance == 0
    assert task.doubt(outputs, targets, ()) is None
    assert "do not follow" in task.doubt(outputs[order], targets, ())
    assert task.score(np.ones_like(outputs), targets) == 0.0


def test_whole_pairs_stay_together_where_few_are_taken():
    outputs, targets, _ = pairs(0)
    some = Similarity().spread(targets, 21)
    assert len(some) == 20
    assert len(pairs_in(targets[some])[2]) == 10
    half = Split((outputs,), targets, Similarity()).spread(30)
    assert len(pairs_in(half.labels)[2]) == 15
    assert len(pairs_in(targets[:5])[2]) == 2  # one without its other half


def test_the_pairs_label_loss_is_that_of_sentence_bert():
    outputs, targets, cosines = pairs(1)
    task = Similarity().fitted(targets, ())
    scores = targets[::2, 1]
    wanted = (scores - scores.min()) / (scores.max() - scores.min())
    tensors = torch.from_numpy(outputs).requires_grad_(), torch.from_numpy(targets)
    loss = task.label_loss(*tensors)
    assert loss.item() == pytest.approx(((cosines - wanted) ** 2).mean(), rel=1e-6)
    loss.backward()
    assert tensors[0].grad.isfinite().all()


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0, 1.0, 1.0, 1.0], "all 4 pairs have the score 1"),
        ([1.0, np.nan, 2.0], "1 pairs have no finite score, the first is number 1"),
        ([1.0, 2.0], "2 pairs: a correlation needs at least 3"),
    ],
)
def test_pairs_that_cannot_be_ranked_are_refused(scores, message):
    with pytest.raises(SourceError, match=message) as error:
        Similarity().check_targets(pair_targets(np.array(scores)), (), "stsb: test")
    assert error.value.hint


def test_a_task_is_found_by_name_targets_and_metric():
    _, targets, _ = pairs(0)
    assert isinstance(task_named("embedding"), Embedding)
    assert isinstance(task_named("embedding", np.arange(3)), Embedding)
    assert isinstance(task_named("embedding", targets), Similarity)
    assert task_of(np.arange(3)).name == "classification"  # identities have to be asked for
    assert task_of_metric("spearman").label == "Spearman correlation"
    assert task_of_metric("accuracy") is TASKS["classification"]
