import numpy as np
import pytest
import torch
from torch import nn

from kdexport.distill.validation import Validation
from kdexport.sources.preprocessing import Preprocessing
from kdexport.sources.samples import Split

X = np.eye(4, dtype=np.float32)
TEACHER = np.array([[3, 0, 0], [0, 3, 0], [0, 3, 0], [0, 0, 3]], dtype=np.float32)


def score(labels, teacher=TEACHER):
    network = nn.Linear(4, 3, bias=False)
    with torch.no_grad():  # says class 0, 1, 2, 2 of the four samples
        network.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]]) * 2 - 1)
    split = Split((X,), None if labels is None else np.array(labels))
    return Validation(split, Preprocessing(), torch.device("cpu"), teacher).score(network)


def test_tells_student_teacher_and_how_near_they_are():
    scores = score([0, 1, 2, 0])
    assert scores["val_accuracy"] == 0.75
    assert scores["val_teacher_accuracy"] == 0.5
    assert scores["top1_agreement"] == 0.75
    assert scores["val_kl"] > 0
    assert 0 < scores["val_logit_correlation"] < 1


def test_several_labels_are_decisions_of_their_own():
    scores = score(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=np.float32))
    assert scores["val_accuracy"] == pytest.approx(10 / 12)
    assert scores["val_teacher_accuracy"] == pytest.approx(8 / 12)


def test_what_cannot_be_known_is_none():
    assert score(None)["val_accuracy"] is None
    assert score(None)["val_teacher_accuracy"] is None
    alone = score([0, 1, 2, 0], teacher=None)
    assert (alone["val_teacher_accuracy"], alone["top1_agreement"]) == (None, None)
