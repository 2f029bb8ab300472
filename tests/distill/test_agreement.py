import numpy as np
import pytest
import torch
from accelerate import Accelerator

from kdexport.distill.evaluation import BATCHES_LOOKED_AT, BatchAgreement, Seen
from kdexport.tasks import TASKS

CPU = torch.device("cpu")
RANDOM = np.random.default_rng(0)
STUDENT, TEACHER = (RANDOM.normal(size=(60, 5)).astype(np.float32) for _ in range(2))
LABELS = RANDOM.integers(0, 5, 60)


def summed(task=TASKS["classification"], labels=LABELS, teacher=TEACHER, per_epoch=3, mixed=False):
    """Three batches of twenty, counted one by one."""
    sums = BatchAgreement(CPU, per_epoch, task, mixed=mixed)
    for rows in np.split(np.arange(60), 3):
        sums.count(
            Seen(
                torch.from_numpy(STUDENT[rows]),
                None if teacher is None else torch.from_numpy(teacher[rows]),
                None if labels is None else torch.from_numpy(labels[rows]),
            )
        )
    return sums.means(Accelerator(cpu=True))


def test_batch_by_batch_it_is_what_evaluate_says_of_the_whole():
    found, expected = summed(), TASKS["classification"].agreement(TEACHER, STUDENT)
    assert found["train_top1_agreement"] == pytest.approx(expected.top1)
    assert found["train_kl"] == pytest.approx(expected.kl, rel=1e-5)
    assert found["train_logit_correlation"] == pytest.approx(expected.logit_correlation, rel=1e-5)
    assert found["train_accuracy"] == pytest.approx(np.mean(STUDENT.argmax(1) == LABELS))
    assert found["train_teacher_accuracy"] == pytest.approx(np.mean(TEACHER.argmax(1) == LABELS))


def test_unlabelled_samples_are_no_mistakes():
    some = np.where(np.arange(60) % 4, -1, LABELS)
    known = some >= 0
    assert summed(labels=some)["train_accuracy"] == pytest.approx(np.mean(STUDENT[known].argmax(1) == LABELS[known]))
    assert summed(labels=np.full(60, -1))["train_accuracy"] is None


def test_what_is_not_known_is_none():
    assert summed(teacher=None)["train_kl"] is None
    assert summed(teacher=None)["train_accuracy"] is not None
    assert summed(labels=None)["train_accuracy"] is None
    assert summed(mixed=True, labels=np.full((60, 5), 0.2))["train_accuracy"] is None


def test_several_labels_are_decisions_of_their_own():
    targets = (RANDOM.random((60, 5)) > 0.5).astype(np.float32)
    found = summed(TASKS["multilabel"], targets)
    assert found["train_accuracy"] == pytest.approx(np.mean((STUDENT > 0) == (targets > 0.5)))


def test_a_long_epoch_is_looked_at_in_part():
    sums = BatchAgreement(CPU, 10 * BATCHES_LOOKED_AT, TASKS["classification"])
    assert sum(sums.looks_at(step) for step in range(10 * BATCHES_LOOKED_AT)) == BATCHES_LOOKED_AT
    assert all(BatchAgreement(CPU, 5, TASKS["classification"]).looks_at(step) for step in range(5))


def test_a_checkpoint_holds_the_sums():
    whole, first, second = (BatchAgreement(CPU, 3, TASKS["classification"]) for _ in range(3))
    arrays = (STUDENT, TEACHER, LABELS)
    parts = [Seen(*(torch.from_numpy(array[rows]) for array in arrays)) for rows in (slice(30), slice(30, 60))]
    for part in parts:
        whole.count(part)
    first.count(parts[0])
    second.load(first.state())
    second.count(parts[1])
    assert second.means(Accelerator(cpu=True)) == whole.means(Accelerator(cpu=True))  # to the last bit


def test_numbers_are_correlated_around_the_training_targets_mean():
    targets = (50 + 10 * STUDENT[:, :1]).astype(np.float32)
    task = TASKS["regression"].fitted(targets, ("y",))
    sums = BatchAgreement(CPU, 3, task)
    for rows in np.split(np.arange(60), 3):
        sums.count(Seen(*(torch.from_numpy(50 + 10 * array[rows, :1]) for array in (STUDENT, TEACHER)), None))
    found = sums.means(Accelerator(cpu=True))
    centred = [STUDENT[:, 0] - STUDENT[:, 0].mean(), TEACHER[:, 0] - STUDENT[:, 0].mean()]
    expected = (centred[0] * centred[1]).sum() / np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    assert found["train_logit_correlation"] == pytest.approx(expected, rel=1e-4)
    assert (found["train_top1_agreement"], found["train_kl"]) == (None, None)
