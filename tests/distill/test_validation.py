import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import nn

from kdexport.data.samples import Split
from kdexport.distill.evaluation import Validation
from kdexport.distill.objective import Objective
from kdexport.models.preprocessing import Preprocessing
from kdexport.terms import Hint, LogitMSE

X = np.eye(4, dtype=np.float32)
TEACHER = np.array([[3, 0, 0], [0, 3, 0], [0, 3, 0], [0, 0, 3]], dtype=np.float32)


def score(labels, teacher=TEACHER, objective=None, name="val"):
    network = nn.Linear(4, 3, bias=False)
    with torch.no_grad():  # says class 0, 1, 2, 2 of the four samples
        network.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]]) * 2 - 1)
    split = Split((X,), None if labels is None else np.array(labels))
    return Validation(split, Preprocessing(), torch.device("cpu"), teacher, objective, name).score(network)


def test_tells_student_teacher_and_how_near_they_are():
    scores = score([0, 1, 2, 0])
    assert scores["val_accuracy"] == 0.75
    assert scores["val_teacher_accuracy"] == 0.5
    assert scores["top1_agreement"] == 0.75
    assert scores["val_kl"] > 0
    assert 0 < scores["val_logit_correlation"] < 1


def test_several_labels_score_by_mean_average_precision():
    targets = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=np.float32)
    scores = score(targets)
    student = np.array([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [-1, -1, 1]], dtype=np.float32)
    assert scores["val_score"] == pytest.approx(average_precision_score(targets, student, average="macro"))
    assert scores["val_teacher_score"] == pytest.approx(average_precision_score(targets, TEACHER, average="macro"))
    assert "val_accuracy" not in scores


def test_what_cannot_be_known_is_none():
    assert score(None)["val_accuracy"] is None
    assert score(None)["val_teacher_accuracy"] is None
    alone = score([0, 1, 2, 0], teacher=None)
    assert (alone["val_teacher_accuracy"], alone["top1_agreement"]) == (None, None)


def test_the_terms_are_told_as_far_as_there_are_features():
    objective = Objective(0.5, [LogitMSE(method="logit_mse"), Hint(method="hint")])
    terms = score([0, 1, 2, 0], objective=objective)["val_terms"]
    student = np.array([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [-1, -1, 1]], dtype=np.float64)
    log_softmax = student - np.log(np.exp(student).sum(1, keepdims=True))
    assert set(terms) == {"labels", "logit_mse"}
    assert terms["labels"] == pytest.approx(-np.mean(log_softmax[range(4), [0, 1, 2, 0]]))
    assert terms["logit_mse"] == pytest.approx(np.mean((student - TEACHER) ** 2))
    assert score(None, objective=objective)["val_terms"] == {}
    assert score([0, 1, 2, 0], objective=Objective(0.0, [Hint(method="hint")]))["val_terms"] == {}


def test_another_split_has_its_name_in_front():
    scores = score([0, 1, 2, 0], name="test")
    assert scores["test_top1_agreement"] == 0.75
    assert "top1_agreement" not in scores
    assert all(key.startswith("test_") for key in scores)
