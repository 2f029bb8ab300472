"""Losses on numbers: against float64 numpy from the papers, gradients by finite differences, half types finite."""

import numpy as np
import pytest
import torch

from kdexport.distill.losses.outputs import output_mse, teacher_bounded
from kdexport.errors import KDExportError
from kdexport.tasks.regression import Regression

RNG = np.random.default_rng(3)
STUDENT, TEACHER, TARGETS = RNG.normal(size=(3, 7, 2)) * 2
BOUNDED = [{}, {"margin": 0.7}, {"margin": -0.5}, {"toward": "teacher"}, {"toward": "teacher", "margin": 0.7}]


def bounded(z, v, y, margin=0.0, toward="label"):  # Chen 2017, equation 4, sample by sample
    total = 0.0
    for student, teacher, label in zip(z, v, y, strict=True):
        own, bound = ((student - label) ** 2).mean(), ((teacher - label) ** 2).mean()
        if own + margin > bound:
            total += own if toward == "label" else ((student - teacher) ** 2).mean()
    return total / len(z)


def test_output_mse(check_loss):
    check_loss(output_mse, lambda z, v: float(((z - v) ** 2).mean()), STUDENT, TEACHER)


@pytest.mark.parametrize("options", BOUNDED)
def test_teacher_bounded(check_loss, options):
    def reference(*arrays):
        return bounded(*arrays, **options)

    counted = [
        bounded(z[None], v[None], y[None], **options) > 0 for z, v, y in zip(STUDENT, TEACHER, TARGETS, strict=True)
    ]
    assert 0 < sum(counted) < len(counted)  # some samples count, some do not
    check_loss(lambda *tensors: teacher_bounded(*tensors, **options), reference, STUDENT, TEACHER, TARGETS)


def test_a_sample_without_label():
    targets = TARGETS.copy()
    targets[2, 1] = np.nan
    rest = np.delete(np.arange(7), 2)
    tensors = [torch.tensor(array, requires_grad=index == 0) for index, array in enumerate((STUDENT, TEACHER, targets))]
    toward_label = teacher_bounded(*tensors)
    assert toward_label.item() == pytest.approx(bounded(STUDENT[rest], TEACHER[rest], TARGETS[rest]) * 6 / 7)
    toward_label.backward()
    assert torch.isfinite(tensors[0].grad).all()
    expected = bounded(STUDENT[rest], TEACHER[rest], TARGETS[rest], toward="teacher") * 6
    expected += ((STUDENT[2] - TEACHER[2]) ** 2).mean()
    assert teacher_bounded(*tensors, toward="teacher").item() == pytest.approx(expected / 7)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_types_are_finite(half):
    large = torch.tensor([[300.0, -300.0], [1.0, 2.0]], dtype=half, requires_grad=True)  # 300² is beyond fp16
    for loss in (output_mse(large, -large), teacher_bounded(large, 0.5 * large, torch.zeros(2, 2))):
        large.grad = None
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(large.grad).all()
        assert loss.dtype == torch.float32


def test_shapes_that_would_broadcast_are_refused():
    column, row = torch.zeros(4, 1), torch.zeros(4)
    with pytest.raises(KDExportError, match="a sample"):
        output_mse(column, row)
    with pytest.raises(KDExportError, match="targets"):
        teacher_bounded(column, column, row)
    with pytest.raises(KDExportError, match="samples"):
        output_mse(column, torch.zeros(3, 1))


def huber(errors):
    size = np.abs(errors)
    return np.where(size <= 1, errors**2 / 2, size - 0.5)


@pytest.mark.parametrize(("kind", "of"), [(None, np.square), ("mse", np.square), ("mae", np.abs), ("huber", huber)])
def test_label_losses_in_scaled_units(check_loss, kind, of):
    task = Regression().fitted(5 + 0.4 * TARGETS, ("a", "b"))
    std = (5 + 0.4 * TARGETS).std(axis=0)

    def reference(z, y):
        return float(of((z - y) / std).mean())

    check_loss(lambda z, y: task.label_loss(z, y, kind=kind), reference, 0.4 * STUDENT, 0.4 * TARGETS)


def test_label_losses_are_torchs():
    task, outputs, targets = Regression(), torch.tensor(STUDENT), torch.tensor(TARGETS)
    for kind, torchs in (("mse", torch.nn.MSELoss()), ("mae", torch.nn.L1Loss()), ("huber", torch.nn.HuberLoss())):
        assert task.label_loss(outputs, targets, kind=kind).item() == pytest.approx(torchs(outputs, targets).item())


def test_label_loss_of_one_target_in_either_shape_and_without_some_labels():
    task, outputs, targets = Regression(), torch.tensor(STUDENT[:, 0]), torch.tensor(TARGETS[:, :1])
    whole = ((STUDENT[:, 0] - TARGETS[:, 0]) ** 2).mean()
    assert task.label_loss(outputs, targets).item() == pytest.approx(whole)  # torch's own would broadcast to [7, 7]
    targets[3] = float("nan")
    part = np.delete((STUDENT[:, 0] - TARGETS[:, 0]) ** 2, 3).mean()
    assert task.label_loss(outputs, targets).item() == pytest.approx(part)
    with pytest.raises(KDExportError, match="label_smoothing"):
        task.label_loss(outputs, targets, smoothing=0.1)
    with pytest.raises(KDExportError, match="targets"):
        task.label_loss(torch.zeros(7, 2), targets)
