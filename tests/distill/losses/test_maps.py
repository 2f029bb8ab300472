"""Losses of maps against float64 numpy written from the papers, one position after the other."""

import numpy as np
import pytest
import torch

from kdexport.distill import losses
from kdexport.errors import KDExportError

MAP = (2, 3, 4, 5)
VOID = np.zeros((2, 4, 5), dtype=bool)
VOID[0, :2], VOID[1, 3, 4] = True, True


def draw(student, teacher, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1.5, student), rng.normal(0, 1.5, teacher)


def channel_wise(f, g, counted=None, temperature=4.0):  # Shu 2021, equations 3 and 4
    batch, channels, height, width = f.shape
    counted = np.ones((batch, height, width), dtype=bool) if counted is None else counted
    total = 0.0
    for sample in range(batch):
        for channel in range(channels):
            y_s, y_t = (x[sample, channel][counted[sample]] / temperature for x in (f, g))
            if not len(y_s):
                continue
            phi_s, phi_t = (np.exp(y) / np.exp(y).sum() for y in (y_s, y_t))
            total += sum(t * np.log(t / s) for s, t in zip(phi_s, phi_t, strict=True))
    return float(temperature**2 / channels * total / batch)


def pairwise(f, g):  # Liu 2019, equations 2 and 3, every position a node
    def similarities(x):
        nodes = x.reshape(x.shape[0], -1).T
        return np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in nodes] for a in nodes])

    count = f.shape[2] * f.shape[3]
    return float(
        np.mean([((similarities(a) - similarities(b)) ** 2).sum() / count**2 for a, b in zip(f, g, strict=True)])
    )


CASES = [
    ("channel_wise", MAP, MAP, {}, channel_wise),
    ("channel_wise", MAP, MAP, {"temperature": 1.0}, lambda f, g: channel_wise(f, g, temperature=1.0)),
    ("channel_wise", MAP, MAP, {"counted": torch.from_numpy(~VOID)}, lambda f, g: channel_wise(f, g, ~VOID)),
    ("pairwise", (2, 3, 3, 2), (2, 6, 3, 2), {}, pairwise),
    ("pairwise", (2, 7, 3), (2, 7, 6), {}, lambda f, g: pairwise(*(x.transpose(0, 2, 1)[..., None] for x in (f, g)))),
]


@pytest.mark.parametrize(("name", "student", "teacher", "options", "reference"), CASES)
def test_matches_the_paper(name, student, teacher, options, reference, check_loss):
    check_loss(lambda f, g: getattr(losses, name)(f, g, **options), reference, *draw(student, teacher))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "student", "teacher", "options", "_"), CASES)
def test_stays_finite_in_half_precision(name, student, teacher, options, _, dtype):
    f, g = (torch.tensor(array * 1e4, dtype=dtype) for array in draw(student, teacher))
    f.requires_grad_()
    value = getattr(losses, name)(f, g, **options)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(f.grad).all()


@pytest.mark.parametrize("name", ["channel_wise", "pairwise"])
def test_is_zero_and_flat_where_the_student_has_arrived_and_autocast_changes_nothing(name):
    f = torch.tensor(draw(MAP, MAP)[0], dtype=torch.float32, requires_grad=True)
    value = getattr(losses, name)(f, f.detach().clone())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert f.grad.abs().max() < 1e-5
    f, g = (torch.tensor(array, dtype=torch.float32) for array in draw(MAP, MAP))
    expected = getattr(losses, name)(f, g).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert getattr(losses, name)(f, g).item() == expected


def test_void_positions_change_nothing_and_an_image_of_void_adds_nothing():
    f, g = (torch.tensor(array) for array in draw(MAP, MAP))
    counted = torch.from_numpy(~VOID)
    expected = losses.channel_wise(f, g, counted)
    f, g = f.masked_fill(~counted[:, None], 1e3), g.masked_fill(~counted[:, None], -1e3)
    assert losses.channel_wise(f, g, counted).item() == pytest.approx(expected.item(), rel=1e-12)
    f.requires_grad_()
    losses.channel_wise(f, g, counted).backward()
    assert (f.grad.masked_select(~counted[:, None]) == 0).all()
    none = torch.zeros_like(counted)
    value = losses.channel_wise(f, g, none)
    value.backward()
    assert value.item() == 0
    assert torch.isfinite(f.grad).all()


def test_pairwise_averages_over_a_grid_that_the_smaller_map_allows():
    f, g = (torch.tensor(array, dtype=torch.float32) for array in draw((2, 3, 8, 8), (2, 5, 4, 4)))
    pooled = torch.nn.functional.avg_pool2d(f, 2)
    assert losses.pairwise(f, g).item() == pytest.approx(losses.pairwise(pooled, g).item())
    halves = [torch.nn.functional.adaptive_avg_pool2d(x, 2) for x in (f, g)]
    assert losses.pairwise(f, g, nodes=2).item() == pytest.approx(losses.pairwise(*halves).item())
    flat = torch.zeros(2, 3, 4, 4, requires_grad=True)  # a dead layer's feature has no direction
    losses.pairwise(flat, g).backward()
    assert torch.isfinite(flat.grad).all()


def test_refuses_what_is_no_map_or_of_another_size():
    with pytest.raises(KDExportError, match=r"takes maps.*student's feature is \[2, 6\]"):
        losses.pairwise(torch.zeros(2, 6), torch.zeros(2, 6, 4, 4))
    with pytest.raises(KDExportError, match=r"\[2, 3, 4, 4\], the teacher's \[2, 3, 8, 8\]"):
        losses.channel_wise(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 8, 8))
    with pytest.raises(KDExportError, match="temperature is 0"):
        losses.channel_wise(torch.zeros(MAP), torch.zeros(MAP), temperature=0)
    with torch.inference_mode():
        g = torch.ones(MAP)
    for name in ("channel_wise", "pairwise"):
        with pytest.raises(KDExportError, match="inference_mode"):
            getattr(losses, name)(torch.zeros(MAP, requires_grad=True), g)
