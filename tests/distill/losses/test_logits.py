import math

import numpy as np
import pytest
import torch

from kdexport.distill import losses
from kdexport.errors import KDExportError

BATCH, CLASSES = 6, 5


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def kl(q, p):
    return float((q * np.log(q / p)).sum(axis=1).mean())


def soft_targets(z, v, t=4.0):  # Hinton 2015
    return t**2 * kl(softmax(v / t), softmax(z / t))


def standardized(z, v, t=2.0):  # Sun 2024, algorithm 1
    def score(x):
        return (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)

    return soft_targets(score(z), score(v), t)


def hard_targets(z, v):  # DeiT, equation 3
    return float(np.mean([-math.log(row[choice]) for row, choice in zip(softmax(z), v.argmax(axis=1), strict=True)]))


def logit_mse(z, v):
    return float(((z - v) ** 2).sum() / z.size)


def dkd(z, v, labels, alpha=1.0, beta=8.0, t=4.0):  # Zhao 2022, equations 1 to 7, sample by sample
    p, q, total = softmax(z / t), softmax(v / t), 0.0
    for ps, qs, label in zip(p, q, labels, strict=True):
        pt, qt = ps[label], qs[label]
        target = qt * math.log(qt / pt) + (1 - qt) * math.log((1 - qt) / (1 - pt))
        p_hat, q_hat = np.delete(ps, label) / (1 - pt), np.delete(qs, label) / (1 - qt)
        total += alpha * target + beta * float((q_hat * np.log(q_hat / p_hat)).sum())
    return t**2 * total / len(labels)


def dist(z, v, beta=1.0, gamma=1.0, t=1.0):  # Huang 2022, equations 6 to 10
    p, q = softmax(z / t), softmax(v / t)
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    return float(t**2 * (beta * inter + gamma * intra))


def binary_soft_targets(z, v, t=4.0):
    p, q = 1 / (1 + np.exp(-z / t)), 1 / (1 + np.exp(-v / t))
    return float(t**2 * (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))).mean())


CASES = [
    ("soft_targets", {}, soft_targets),
    ("soft_targets", {"temperature": 1.0}, lambda z, v: soft_targets(z, v, 1.0)),
    ("soft_targets", {"temperature": 2.0, "standardize": True}, standardized),
    ("hard_targets", {}, hard_targets),
    ("logit_mse", {}, logit_mse),
    ("dkd", {}, dkd),
    ("dkd", {"alpha": 0.5, "beta": 2.0, "temperature": 1.0}, lambda z, v, y: dkd(z, v, y, 0.5, 2.0, 1.0)),
    ("dist", {}, dist),
    ("dist", {"beta": 2.0, "gamma": 0.5, "temperature": 4.0}, lambda z, v: dist(z, v, 2.0, 0.5, 4.0)),
    ("binary_soft_targets", {}, binary_soft_targets),
]
NAMES = sorted({name for name, _, _ in CASES})


def draw(seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, scale, (BATCH, CLASSES)), rng.normal(0, scale, (BATCH, CLASSES))


def arguments(name, student, teacher):
    labels = (torch.arange(len(student)) % student.shape[1],) if name == "dkd" else ()
    return (student, teacher, *labels)


@pytest.mark.parametrize(("name", "options", "reference"), CASES)
def test_matches_the_paper(name, options, reference, check_loss):
    student, teacher = draw()
    labels = [np.arange(BATCH) % CLASSES] if name == "dkd" else []
    check_loss(lambda *tensors: getattr(losses, name)(*tensors, **options), reference, student, teacher, *labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_stays_finite_in_half_precision_at_large_logits(name, dtype):
    student, teacher = (torch.tensor(array, dtype=dtype) for array in draw(scale=1e4))
    student.requires_grad_()
    value = getattr(losses, name)(*arguments(name, student, teacher))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", ["soft_targets", "logit_mse", "dkd", "dist", "binary_soft_targets"])
def test_is_zero_where_the_student_has_arrived(name):
    logits = torch.tensor(draw()[0], dtype=torch.float32)
    assert getattr(losses, name)(*arguments(name, logits, logits.clone())).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_passes_no_gradient_to_the_teacher(name):
    student, teacher = (torch.tensor(array, dtype=torch.float32, requires_grad=True) for array in draw())
    getattr(losses, name)(*arguments(name, student, teacher)).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


@pytest.mark.parametrize(("name", "options"), [("dist", {}), ("soft_targets", {"standardize": True})])
def test_a_zero_initialized_student_gets_a_bounded_gradient(name, options):
    student = torch.zeros(BATCH, CLASSES, requires_grad=True)
    getattr(losses, name)(student, torch.tensor(draw()[1]), **options).backward()
    assert student.grad.abs().max() < 1


@pytest.mark.parametrize("name", ["soft_targets", "dkd", "dist", "binary_soft_targets"])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_refuses_a_temperature_that_is_not_positive(name, temperature):
    logits = torch.zeros(BATCH, CLASSES)
    with pytest.raises(KDExportError, match="temperature") as caught:
        getattr(losses, name)(*arguments(name, logits, logits), temperature=temperature)
    assert "2 to 8" in caught.value.hint


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("student", "teacher", "match"),
    [((4, 5), (4, 7), "5 classes, the teacher 7"), ((4, 5), (3, 5), "4 samples"), ((4, 5, 1), (4, 5), "student's are")],
)
def test_refuses_shapes_that_differ(name, student, teacher, match):
    with pytest.raises(KDExportError, match=match) as caught:
        getattr(losses, name)(*arguments(name, torch.zeros(student), torch.zeros(teacher)))
    assert caught.value.hint


def test_dist_refuses_a_batch_of_one():
    with pytest.raises(KDExportError, match="holds 1") as caught:
        losses.dist(torch.zeros(1, CLASSES), torch.zeros(1, CLASSES))
    assert "batch_size" in caught.value.hint


def test_dkd_leaves_samples_without_a_label_out():
    student, teacher = (torch.tensor(array, dtype=torch.float32, requires_grad=True) for array in draw())
    labels = torch.tensor([0, -1, 2, -1, 4, 0])
    value = losses.dkd(student, teacher, labels)
    value.backward()
    known = labels >= 0
    expected = losses.dkd(student[known], teacher[known], labels[known])
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert not student.grad[~known].any()
    assert losses.dkd(student, teacher, torch.full((BATCH,), -1)).item() == 0


def test_dkd_refuses_multi_label_targets():
    with pytest.raises(KDExportError, match="one class per sample") as caught:
        losses.dkd(torch.zeros(4, 5), torch.zeros(4, 5), torch.zeros(4, 5))
    assert "binary_soft_targets" in caught.value.hint


@pytest.mark.parametrize("name", NAMES)
def test_says_when_the_teacher_ran_in_inference_mode(name):
    student = torch.zeros(BATCH, CLASSES, requires_grad=True)
    with torch.inference_mode():
        teacher = torch.ones(BATCH, CLASSES)
    with pytest.raises(KDExportError, match="inference_mode") as caught:
        getattr(losses, name)(*arguments(name, student, teacher))
    assert "no_grad" in caught.value.hint
    with torch.no_grad():  # nothing is differentiated: nothing is wrong
        getattr(losses, name)(*arguments(name, student, teacher))


def test_agrees_with_torchdistill(torchdistill, io):
    student, teacher = (torch.tensor(array, dtype=torch.float32) for array in draw())
    outputs = io(z=student), io(z=teacher)
    paths = ("z", "output", "z", "output")
    # With alpha = 0 it leaves T² out.
    expected = torchdistill.KDLoss(*paths, temperature=4.0, alpha=0)(*outputs)
    assert losses.soft_targets(student, teacher).item() == pytest.approx(16 * expected.item(), rel=1e-5)
    # Its standard deviation divides by classes - 1, which is the same as a higher temperature.
    temperature = 2.0 * math.sqrt(CLASSES / (CLASSES - 1))
    expected = torchdistill.LogitStdKDLoss(*paths, temperature=2.0, alpha=0)(*outputs)
    ours = losses.soft_targets(student, teacher, temperature=temperature, standardize=True)
    assert ours.item() == pytest.approx(temperature**2 * expected.item(), rel=1e-5)
    expected = torchdistill.DISTLoss(*paths, beta=2.0, gamma=0.5, tau=4.0)(*outputs)
    ours = losses.dist(student, teacher, beta=2.0, gamma=0.5, temperature=4.0)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
