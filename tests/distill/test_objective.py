import inspect

import numpy as np
import pydantic
import pytest
import torch
import torch.nn.functional as F

from kdexport import terms
from kdexport.distill.losses import soft_targets
from kdexport.distill.objective import Objective, loss_of, with_usual_terms
from kdexport.errors import KDExportError
from kdexport.recipe import Distill
from kdexport.tasks import TASKS
from kdexport.tasks.regression import Regression
from kdexport.terms import METHODS

TERM = pydantic.TypeAdapter(terms.Term)
BATCH, CLASSES = 8, 5


def term(method, **options):
    return TERM.validate_python({"method": method, **options})


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(BATCH, CLASSES), torch.randint(CLASSES, (BATCH,)), torch.randn(BATCH, CLASSES)


@pytest.mark.parametrize("name", METHODS)
def test_a_terms_fields_are_its_functions_options_with_the_same_defaults(name):
    parameters = inspect.signature(loss_of(term(name)).function).parameters.values()
    options = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert term(name).options() == options


def test_sums_the_weighted_parts(batch):
    student, labels, teacher = batch
    objective = Objective(0.3, [term("soft_targets", weight=0.9), term("logit_mse", weight=0.5)])
    total, parts = objective(student, labels, teacher, progress_of_training=0.0)
    assert tuple(parts) == objective.names == ("labels", "soft_targets", "logit_mse")
    expected = 0.3 * F.cross_entropy(student, labels) + 0.9 * soft_targets(student, teacher)
    assert total.item() == pytest.approx((expected + 0.5 * F.mse_loss(student, teacher)).item())
    assert parts["soft_targets"].item() == pytest.approx(soft_targets(student, teacher).item())
    assert not any(part.requires_grad for part in parts.values())


def test_two_terms_of_one_method_keep_their_names_apart(batch):
    objective = Objective(0.0, [term("soft_targets"), term("dist"), term("soft_targets", temperature=1.0)])
    _, parts = objective(batch[0], None, batch[2], progress_of_training=0.0)
    assert tuple(parts) == ("soft_targets", "dist", "soft_targets.2")
    assert parts["soft_targets"] != parts["soft_targets.2"]


@pytest.mark.parametrize(
    ("schedule", "share", "weights"),
    [
        ("constant", 1.0, (2.0, 2.0, 2.0, 2.0)),
        ("warmup", 1.0, (0.0, 0.5, 1.0, 2.0)),
        ("warmup", 0.5, (0.0, 1.0, 2.0, 2.0)),
        ("decay", 1.0, (2.0, 1.5, 1.0, 0.0)),
        ("decay", 0.5, (2.0, 1.0, 0.0, 0.0)),
    ],
)
def test_a_schedule_moves_the_weight_but_not_the_part(schedule, share, weights, batch):
    objective = Objective(0.0, [term("soft_targets", weight=2.0, schedule=schedule, schedule_share=share)])
    value = soft_targets(batch[0], batch[2]).item()
    for progress, weight in zip((0.0, 0.25, 0.5, 1.0), weights, strict=True):
        total, parts = objective(batch[0], None, batch[2], progress_of_training=progress)
        assert total.item() == pytest.approx(weight * value, abs=1e-7)
        assert parts["soft_targets"].item() == pytest.approx(value)


def test_works_without_labels_when_nothing_needs_them(batch):
    objective = Objective(0.0, [term("soft_targets")])
    assert not objective.needs_labels
    assert objective.needs_teacher
    total, _ = objective(batch[0], None, batch[2], progress_of_training=0.0)
    assert total > 0
    assert Objective(0.0, [term("dkd")]).needs_labels


def test_labels_alone_need_no_teacher(batch):
    objective = Objective(1.0, [term("soft_targets", weight=0.0)], label_smoothing=0.1)
    assert not objective.needs_teacher
    total, parts = objective(batch[0], batch[1], None, progress_of_training=0.0)
    assert tuple(parts) == ("labels",)
    assert total.item() == pytest.approx(F.cross_entropy(batch[0], batch[1], label_smoothing=0.1).item())


def test_multi_label_is_binary_cross_entropy(batch):
    labels = (torch.rand(BATCH, CLASSES) > 0.5).float()
    objective = Objective(1.0, [term("binary_soft_targets")], task=TASKS["multilabel"])
    _, parts = objective(batch[0], labels, batch[2], progress_of_training=0.0)
    p = torch.sigmoid(batch[0].double())
    expected = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    assert parts["labels"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_soft_labels_are_cross_entropy_with_probabilities(batch):
    labels = torch.softmax(torch.randn(BATCH, CLASSES), dim=1)
    _, parts = Objective(1.0, mixed=True)(batch[0], labels, None, progress_of_training=0.0)
    expected = -(labels.double() * torch.log_softmax(batch[0].double(), dim=1)).sum(dim=1).mean()
    assert parts["labels"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_fp32(dtype, batch):
    student = (batch[0] * 1e4).to(dtype).requires_grad_()
    every = [term(name) for name, method in METHODS.items() if method.classes and "features" not in method.needs]
    total, _ = Objective(1.0, every)(student, batch[1], (batch[2] * 1e4).to(dtype), progress_of_training=0.5)
    total.backward()
    assert total.dtype == torch.float32
    assert torch.isfinite(total)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_changes_nothing(dtype, batch):
    every = [term(name) for name, method in METHODS.items() if method.classes and "features" not in method.needs]
    objective = Objective(1.0, every)
    expected, _ = objective(*batch, progress_of_training=0.5)
    with torch.autocast("cpu", dtype=dtype):
        total, _ = objective(*batch, progress_of_training=0.5)
    assert total.item() == expected.item()


def test_refuses_weights_that_are_all_zero():
    with pytest.raises(KDExportError, match="learn nothing"):
        Objective(0.0, [term("soft_targets", weight=0.0)])


@pytest.mark.parametrize("name", ["soft_targets", "hard_targets", "dkd", "dist"])
def test_refuses_multi_label_targets_for_a_single_label_method(name):
    with pytest.raises(KDExportError, match="multi-label") as caught:
        Objective(1.0, [term(name)], task=TASKS["multilabel"])
    assert "binary_soft_targets" in caught.value.hint


def test_numbers_are_compared_in_standard_deviations_of_the_target():
    generator = np.random.default_rng(1)
    student, teacher, targets = generator.normal(100, 20, size=(3, 6, 2)).astype(np.float32)
    std = np.array([20.0, 3.0])
    task = Regression(mean=(100.0, 90.0), std=tuple(std))
    objective = Objective(0.5, [term("output_mse"), term("teacher_bounded")], task=task, label_loss="mae")
    total, parts = objective(*map(torch.tensor, (student, targets, teacher)), progress_of_training=0.0)
    z, v, y = student / std, teacher / std, targets / std
    own, bound = ((z - y) ** 2).mean(1), ((v - y) ** 2).mean(1)
    expected = {
        "labels": np.abs(z - y).mean(), "output_mse": ((z - v) ** 2).mean(),
        "teacher_bounded": np.where(own > bound, own, 0).mean(),
    }  # fmt: skip
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected, rel=1e-5)
    weights = {"labels": 0.5, "output_mse": 1.0, "teacher_bounded": 1.0}
    assert total.item() == pytest.approx(sum(weights[name] * value for name, value in expected.items()), rel=1e-5)


@pytest.mark.parametrize("name", ["soft_targets", "dkd", "binary_soft_targets", "logit_mse"])
def test_refuses_methods_of_classes_for_numbers(name):
    with pytest.raises(KDExportError, match="compares classes, and these targets are numbers") as caught:
        Objective(1.0, [term(name)], task=Regression())
    assert 'method = "output_mse"' in caught.value.hint
    assert "teacher_bounded, hint, attention" in caught.value.hint


def test_refuses_methods_of_numbers_for_classes():
    for task in ("classification", "multilabel"):
        with pytest.raises(KDExportError, match="compares numbers, and these targets are classes"):
            Objective(1.0, [term("teacher_bounded")], task=TASKS[task])


def test_refuses_multi_label_targets_that_were_not_announced(batch):
    with pytest.raises(KDExportError, match="one class per sample"):
        Objective(1.0)(batch[0], torch.zeros(BATCH, CLASSES), None, progress_of_training=0.0)


def test_refuses_mixed_labels_for_a_method_that_needs_one_class():
    with pytest.raises(KDExportError, match="dkd needs one class"):
        Objective(1.0, [term("dkd")], mixed=True)


def test_refuses_labels_of_another_width(batch):
    with pytest.raises(KDExportError, match="multilabel labels"):
        Objective(1.0, task=TASKS["multilabel"])(batch[0], torch.zeros(BATCH, 2), None, progress_of_training=0.0)


@pytest.mark.parametrize(
    ("labels", "teacher", "match"), [(None, 1, "labels are missing"), (1, None, "teacher's logits")]
)
def test_says_what_is_missing(labels, teacher, match, batch):
    with pytest.raises(KDExportError, match=match):
        Objective(1.0, [term("soft_targets")])(
            batch[0], labels and batch[1], teacher and batch[2], progress_of_training=0.0
        )


OWN = """
import torch
def margin(student_logits, teacher_logits, labels, *, scale=1.0):
    return scale * (student_logits - teacher_logits).gather(1, labels[:, None]).abs().mean()
def maps(student_feature, teacher_feature):
    return (student_feature.mean() - teacher_feature.mean()) ** 2
def rows(student_logits, teacher_logits):
    return (student_logits - teacher_logits).abs().mean(dim=1)
def lost(student_logits, something):
    return student_logits.mean()
"""


@pytest.fixture
def own(tmp_path):
    """Return a function from a name to the method's reference: a loss is one file and its test."""
    (tmp_path / "mine.py").write_text(OWN)
    return lambda name: f"{tmp_path / 'mine.py'}:{name}"


def test_a_loss_of_ones_own_is_fed_what_its_parameters_name(own, batch):
    student, labels, teacher = batch
    objective = Objective(0.0, [term(own("margin"), weight=2.0, scale=3.0)])
    assert objective.needs_labels
    total, _ = objective(student, labels, teacher, progress_of_training=0.0)
    rows = torch.arange(BATCH)
    assert total.item() == pytest.approx(6 * (student[rows, labels] - teacher[rows, labels]).abs().mean().item())
    assert list(Objective(0.0, [term(own("maps"), student_layer=1)]).feature_terms) == [own("maps")]


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("margin", {"skale": 2.0}, "takes no 'skale'"),
        ("lost", {}, "takes 'something'"),
        ("absent", {}, "has no 'absent'"),
    ],
)
def test_a_loss_of_ones_own_that_cannot_be_fed_is_an_error(own, name, options, match):
    with pytest.raises(KDExportError, match=match):
        Objective(0.0, [term(own(name), **options)])


def test_a_loss_of_ones_own_gives_one_number(own, batch):
    with pytest.raises(KDExportError, match="not one number"):
        Objective(0.0, [term(own("rows"))])(batch[0], None, batch[2], progress_of_training=0.0)


def test_a_recipe_without_terms_gets_those_that_make_sense():
    for task, method in (
        ("classification", "dist"),
        ("multilabel", "binary_soft_targets"),
        ("regression", "output_mse"),
    ):
        assert [term.method for term in with_usual_terms(Distill(), TASKS[task]).terms] == [method]
    asked = Distill(terms=(term("similarity"),))
    assert with_usual_terms(asked, TASKS["regression"]) is asked
