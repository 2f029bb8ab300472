"""What maps are taught by: a pixel with a class is a sample, void counts nowhere, a grid stands for the whole."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdexport.distill.evaluation import BatchAgreement, Seen
from kdexport.distill.logit_cache import AllLogits, Pixels, TeacherCache, TopK
from kdexport.distill.losses import channel_wise, dkd
from kdexport.distill.losses.maps import on_grid
from kdexport.distill.objective import Objective
from kdexport.distill.teacher import Ensemble
from kdexport.errors import KDExportError
from kdexport.models.preprocessing import Preprocessing
from kdexport.progress import SILENT
from kdexport.tasks import TASKS
from kdexport.tasks.masks import VOID, at_grid, grid
from kdexport.terms import METHODS, OwnLoss

TASK = TASKS["segmentation"]


def drawn(size=(6, 5), classes=3, batch=2):
    rng = np.random.default_rng(0)
    student, teacher = (torch.from_numpy(rng.normal(0, 2, (batch, classes, *size))).float() for _ in range(2))
    masks = torch.from_numpy(rng.integers(0, classes, (batch, *size)).astype(np.uint8))
    masks[0, :2] = VOID
    return student.requires_grad_(), teacher, masks


def told(method, student, teacher, masks, label_weight=0.0, **options):
    objective = Objective(label_weight, [METHODS[method](method=method, **options)], task=TASK)
    return objective(student, masks, teacher, progress_of_training=1.0)[0]


def rows(maps, masks):
    return np.moveaxis(maps.detach().double().numpy(), 1, -1)[masks.numpy() != VOID]


def test_soft_targets_are_the_mean_over_pixels_with_a_class():
    student, teacher, masks = drawn()
    p, q = (
        np.exp(x / 4) / np.exp(x / 4).sum(axis=1, keepdims=True) for x in (rows(teacher, masks), rows(student, masks))
    )
    expected = 16 * (p * np.log(p / q)).sum(axis=1).mean()  # Hinton 2015, a pixel a sample
    value = told("soft_targets", student, teacher, masks)
    assert value.item() == pytest.approx(expected, rel=1e-6)
    value.backward()
    assert (student.grad[0, :, :2] == 0).all()
    assert (student.grad[0, :, 2:] != 0).all()


def test_methods_with_labels_and_of_maps_are_fed_what_they_take():
    student, teacher, masks = drawn()
    known = masks != VOID
    pixels = [x.permute(0, 2, 3, 1)[known] for x in (student, teacher)]
    assert told("dkd", student, teacher, masks).item() == pytest.approx(dkd(*pixels, masks[known].long()).item())
    expected = channel_wise(student, teacher, known)
    assert told("channel_wise", student, teacher, masks).item() == pytest.approx(expected.item())
    value = told("hard_targets", student, teacher, masks, label_weight=1.0)
    label = TASK.label_loss(student, masks)
    hard = torch.nn.functional.cross_entropy(pixels[0], pixels[1].argmax(1))
    assert value.item() == pytest.approx((label + hard).item())


@pytest.mark.parametrize("method", ["soft_targets", "channel_wise", "logit_mse"])
def test_a_batch_of_nothing_but_void_teaches_nothing(method):
    student, teacher, masks = drawn()
    value = told(method, student, teacher, torch.full_like(masks, VOID), label_weight=1.0)
    value.backward()
    assert value.item() == 0
    assert (student.grad == 0).all()


@pytest.mark.parametrize("method", ["soft_targets", "channel_wise"])
def test_a_teacher_kept_at_a_grid_is_compared_there(method):
    student, teacher, masks = drawn((20, 30))
    down, right = grid(20, 30, 40)
    there = np.ix_(range(2), range(3), down, right)
    kept = torch.from_numpy(at_grid(teacher.numpy(), len(down), len(right)))
    assert torch.equal(kept, teacher[there])
    assert torch.equal(kept, on_grid(teacher, len(down), len(right)))
    value = told(method, student, kept, masks)
    expected = told(method, student[there], kept, masks[there[0][:, 0], there[2][0], there[3][0]])
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_methods_of_maps_are_refused_for_classes():
    with pytest.raises(KDExportError, match="channel_wise compares maps of logits"):
        Objective(1.0, [METHODS["channel_wise"](method="channel_wise")])


def test_a_loss_of_ones_own_is_given_maps(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "def far(student_logits, teacher_logits, labels):\n"
        "    known = (labels != 255)[:, None].expand_as(student_logits)\n"
        "    return (student_logits - teacher_logits)[known].abs().mean()\n"
    )
    student, teacher, masks = drawn()
    objective = Objective(0.0, [OwnLoss(method=f"{path}:far")], task=TASK)
    value = objective(student, masks, teacher, progress_of_training=1.0)[0]
    expected = np.abs(rows(student, masks) - rows(teacher, masks)).mean()
    assert value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("inner", [AllLogits(3), TopK(3, 2)])
def test_kept_maps_come_back_as_each_pixel_would(tmp_path, inner):
    maps = drawn((4, 5), batch=7)[1].numpy()
    kept = Pixels(inner, 4, 5)
    cache = TeacherCache(tmp_path, "k", views=1, samples=7, compression=kept)
    cache.ensure(0, maps.__getitem__, SILENT)
    found = cache.read(0, np.array([6, 0, 3]), 4.0)
    pixels = np.moveaxis(maps[[6, 0, 3]], 1, -1).reshape(-1, 3)
    expected = inner.decompress(inner.compress(pixels), 4.0).reshape(3, 4, 5, 3)
    assert np.array_equal(found, np.moveaxis(expected, -1, 1))
    assert cache.size_bytes == 7 * 20 * inner.dtype.itemsize
    again = TeacherCache(tmp_path, "k", views=1, samples=7, compression=kept)
    assert not again.ensure(0, lambda _: pytest.fail("it is there"), SILENT)


def test_a_batch_in_parts_weighs_every_labelled_pixel_alike():
    student, _, masks = drawn()
    whole = TASK.label_loss(student, masks)
    count = TASK.count_labelled(masks)
    parts = [TASK.label_loss(student[k : k + 1], masks[k : k + 1], labelled=count / 2) / 2 for k in range(2)]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)


def test_agreement_in_training_counts_pixels():
    student, teacher, _ = drawn()
    compared, agreed, kl = TASK.batch_agreement(student, teacher)
    assert (compared.item(), agreed.item()) == (60, (student.argmax(1) == teacher.argmax(1)).sum().item())
    near = TASK.agreement(teacher.numpy(), student.detach().numpy())
    assert kl.item() / 2 == pytest.approx(near.kl, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_are_summed_in_fp32(dtype):
    student, teacher, masks = drawn()
    terms = [METHODS[name](method=name) for name in ("soft_targets", "hard_targets", "dkd", "dist", "channel_wise")]
    half = (student.detach() * 5e3).to(dtype).requires_grad_()
    total, _ = Objective(1.0, terms, task=TASK)(half, masks, (teacher * 5e3).to(dtype), progress_of_training=1.0)
    total.backward()
    assert total.dtype == torch.float32
    assert torch.isfinite(total)
    assert torch.isfinite(half.grad).all()


@pytest.mark.parametrize("combine", ["average", "confidence"])
def test_several_teachers_are_combined_pixel_by_pixel(combine):
    maps = [drawn()[1], drawn()[1].flip(0) * 2]
    ensemble = Ensemble([(torch.nn.Identity(), Preprocessing()) for _ in maps], [1.0, 3.0], combine)
    pixels = ensemble.together([one.permute(0, 2, 3, 1).reshape(-1, 3) for one in maps])
    assert torch.allclose(ensemble.together(maps).permute(0, 2, 3, 1).reshape(-1, 3), pixels, atol=1e-6)


def test_agreement_in_training_is_that_of_the_grid_where_the_teacher_was_kept_at_one():
    student, teacher, masks = drawn((20, 30))
    down, right = grid(20, 30, 40)
    kept = torch.from_numpy(at_grid(teacher.numpy(), len(down), len(right)))
    there = np.ix_(range(2), down, right)
    seen = BatchAgreement(torch.device("cpu"), 1, TASK)
    seen.count(Seen(student.detach(), kept, masks))
    means = seen.means(SimpleNamespace(reduce=lambda sums, _: sums))
    ours, theirs = (one.detach().argmax(1).numpy()[there] for one in (student, teacher))
    labels = masks.numpy()[there]
    known = labels != VOID
    assert means["train_accuracy"] == pytest.approx((ours == labels)[known].mean())
    assert means["train_teacher_accuracy"] == pytest.approx((theirs == labels)[known].mean())
    assert means["train_top1_agreement"] == pytest.approx((ours == theirs).mean())
