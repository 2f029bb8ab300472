"""Scores against scikit-learn, scipy and numbers worked out by hand."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from kdexport.data.samples import Split
from kdexport.errors import SourceError
from kdexport.scoring import evaluate
from kdexport.statistics import paired_difference, wilson
from kdexport.tasks import TASKS
from kdexport.tasks.classification import worst_confusions

agreement = TASKS["classification"].agreement
NAMES = ("cat", "dog", "emu", "fox")


def scored(seed, samples=203, skill=1.5):
    generator = np.random.default_rng(seed)
    labels = np.random.default_rng(0).integers(0, 4, samples)
    logits = generator.normal(size=(samples, 4)) + skill * np.eye(4)[labels]
    split = Split((logits.astype(np.float32),), labels)
    return evaluate(lambda inputs: inputs[0], split, NAMES, batch_size=64)[0], labels, logits


def test_scores_agree_with_scikit_learn():
    found, labels, logits = scored(1)
    said = logits.argmax(1)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels, said))
    assert found.metrics["macro_f1"] == pytest.approx(metrics.f1_score(labels, said, average="macro"))
    assert np.array_equal(found.confusion, metrics.confusion_matrix(labels, said))
    precision, recall, f1, support = metrics.precision_recall_fscore_support(labels, said)
    for index, score in enumerate(found.per_class):
        assert (score.name, score.samples) == (NAMES[index], support[index])
        assert (score.accuracy, score.precision, score.f1) == pytest.approx(
            (recall[index], precision[index], f1[index])
        )


def test_batches_do_not_matter_and_logits_come_back_in_order():
    split = Split((np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32),), np.arange(10) % 4)
    one, logits = evaluate(lambda inputs: inputs[0], split, NAMES, batch_size=3)
    assert np.array_equal(logits, split.inputs[0])
    assert one == evaluate(lambda inputs: inputs[0], split, NAMES, batch_size=10)[0]


def test_a_class_that_is_absent_or_never_predicted():
    split = Split((np.eye(4, dtype=np.float32)[[0, 0, 1]],), np.array([0, 1, 1]))
    found = evaluate(lambda inputs: inputs[0], split, NAMES)[0]
    assert found.per_class[2].precision is None
    assert found.per_class[2].samples == 0
    assert found.metrics["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)  # over the classes that occur


def test_several_labels_a_sample():
    labels = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]], np.float32)
    logits = np.array([[2, -1, -1, -1], [-1, 1, 3, -2], [-1, -1, 1, 2]], np.float32)
    found = evaluate(lambda inputs: inputs[0], Split((logits,), labels), NAMES)[0]
    assert found.samples == 3
    assert found.accuracy is None
    assert found.metrics["decision_accuracy"] == pytest.approx(10 / 12)  # two of twelve decisions are wrong
    assert found.score.value == pytest.approx(metrics.average_precision_score(labels, logits, average="macro"))
    assert found.metrics["macro_f1"] == pytest.approx(metrics.f1_score(labels, logits > 0, average="macro"))


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (7, 10), (345, 359), (1, 2)])
def test_wilson_agrees_with_scipy(successes, trials):
    theirs = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_agreement_agrees_with_scipy():
    generator = np.random.default_rng(0)
    teacher, other = generator.normal(size=(50, 6)) * 3, generator.normal(size=(50, 6))
    found = agreement(teacher, other)
    soft = [np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (teacher, other)]
    assert found.kl == pytest.approx(float(np.mean(stats.entropy(soft[0], soft[1], axis=1))))
    assert found.top1 == np.mean(teacher.argmax(1) == other.argmax(1))
    centred = [(x - x.mean(1, keepdims=True)).reshape(-1) for x in (teacher, other)]
    assert found.logit_correlation == pytest.approx(stats.pearsonr(*centred)[0])
    same = agreement(teacher, teacher + 100)  # softmax does not see a shift
    assert (same.top1, same.logit_correlation) == (1.0, pytest.approx(1.0))
    assert same.kl == pytest.approx(0, abs=1e-12)
    assert agreement(teacher, np.zeros_like(teacher)).logit_correlation is None
    assert np.isfinite(agreement(teacher * 1e4, other).kl)


def test_the_paired_interval_covers_and_is_narrower_than_two_intervals():
    truth = 0.0
    covered = 0
    for seed in range(200):
        first, second = scored(seed, skill=1.5)[0], scored(seed + 1000, skill=1.5)[0]
        difference, (low, high) = paired_difference(first, second)
        assert difference == pytest.approx(second.accuracy - first.accuracy)
        covered += low <= truth <= high
    assert covered / 200 > 0.91  # both have the same skill on the same labels
    same, (low, high) = paired_difference(first, first)
    assert same == 0
    assert high - low < 0.03


def test_a_pair_that_cannot_be_compared():
    assert paired_difference(scored(0)[0], scored(0, samples=77)[0]) is None


def test_the_worst_confusions_come_first():
    found = evaluate(
        lambda inputs: inputs[0],
        Split((np.eye(4, dtype=np.float32)[[1, 1, 1, 0, 2, 3]],), np.array([0, 0, 1, 3, 2, 2])),
        NAMES,
    )[0]
    assert worst_confusions(found, 2) == [("cat", "dog", 2), ("emu", "fox", 1)]


@pytest.mark.parametrize(
    ("predict", "labels", "message"),
    [
        (lambda inputs: inputs[0][:, :3], np.zeros(5, int), r"gives \[5, 3\] for 5 samples; the data have 4 classes"),
        (lambda inputs: inputs[0] * np.nan, np.zeros(5, int), "not finite"),
        (lambda inputs: inputs[0], None, "no labelled samples"),
    ],
)
def test_what_cannot_be_scored(predict, labels, message):
    with pytest.raises(SourceError, match=message):
        evaluate(predict, Split((np.ones((5, 4), np.float32),), labels), NAMES)
