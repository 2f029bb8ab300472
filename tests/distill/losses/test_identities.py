"""ArcFace and the cross-entropy over identities against float64 numpy written from the papers."""

import numpy as np
import pytest
import torch

from kdexport.distill.heads import Heads, IdentityHead
from kdexport.distill.losses.identities import arcface, identity_cross_entropy
from kdexport.errors import KDExportError


def log_softmax(rows):
    rows = rows - rows.max(axis=1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def paper_arcface(x, w, labels, margin=0.5, scale=64.0):  # Deng 2019, equation 3
    angles = np.arccos(np.clip(unit(x) @ unit(w).T, -1, 1))
    angles[np.arange(len(x)), labels] += margin
    return -log_softmax(scale * np.cos(angles))[np.arange(len(x)), labels].mean()


def paper_cross_entropy(x, w, b, labels):
    logits = np.sqrt(x.shape[1]) * unit(x) @ w.T + b
    return -log_softmax(logits)[np.arange(len(x)), labels].mean()


def drawn(seed, samples=5, identities=4, width=6):
    generator = np.random.default_rng(seed)
    shapes = ((samples, width), (identities, width), (identities,))
    return *(generator.normal(size=shape) for shape in shapes), generator.integers(0, identities, samples)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("margin", "scale"), [(0.5, 64.0), (0.0, 16.0), (0.3, 8.0)])
def test_arcface_is_equation_3(check_loss, seed, margin, scale):
    x, w, _, labels = drawn(seed)

    def loss(x, w, labels):
        return arcface(x, w, labels, margin=margin, scale=scale)

    check_loss(loss, lambda x, w, y: paper_arcface(x, w, y, margin, scale), x, w, labels)
    check_loss(lambda w, x, y: loss(x, w, y), lambda w, x, y: paper_arcface(x, w, y, margin, scale), w, x, labels)


@pytest.mark.parametrize("seed", range(4))
def test_cross_entropy_is_that_of_a_linear_classifier_on_scaled_directions(check_loss, seed):
    x, w, b, labels = drawn(seed)
    check_loss(identity_cross_entropy, paper_cross_entropy, x, w, b, labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_stay_finite_at_the_ends_of_the_angle(dtype):
    w = torch.eye(3, dtype=dtype)
    x = torch.stack([w[0], -w[0], 1e-2 * w[1], 1e3 * w[2], 0 * w[0]]).requires_grad_()
    labels = torch.tensor([0, 0, 1, 2, 1])
    for loss in (arcface(x, w, labels), identity_cross_entropy(x, w, torch.zeros(3, dtype=dtype), labels)):
        (gradient,) = torch.autograd.grad(loss, x)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_samples_without_a_label_do_not_count():
    x, w, b, labels = (torch.as_tensor(item) for item in drawn(0))
    known = torch.where(torch.arange(5) < 3, labels, -1)
    assert arcface(x, w, known) == pytest.approx(arcface(x[:3], w, labels[:3]).item())
    assert identity_cross_entropy(x, w, b, torch.full((5,), -1)) == 0


def test_a_head_counts_the_identities_of_its_own():
    x, _, _, places = drawn(1)
    identities = np.array([2, 3, 7, 40])
    for kind in ("arcface", "cross_entropy"):
        head = IdentityHead(kind, torch.as_tensor(identities), 6)
        weight = head.weight.detach().double().numpy()
        found = head(torch.as_tensor(x), torch.as_tensor(identities[places]), smoothing=0.0, labelled=None)
        expected = paper_arcface(x, weight, places)
        if kind == "cross_entropy":
            expected = paper_cross_entropy(x, weight, np.zeros(4), places)
        assert found.item() == pytest.approx(expected, rel=1e-6)


def test_bad_arguments_say_what_to_change():
    x, w, _, labels = (torch.as_tensor(item) for item in drawn(0))
    with pytest.raises(KDExportError, match=r"takes embeddings \[batch, 6\], these are \[5, 4\]"):
        arcface(x[:, :4], w, labels)
    with pytest.raises(KDExportError, match="one class per sample"):
        arcface(x, w, labels.float())
    with pytest.raises(KDExportError, match="above 0"):
        arcface(x, w, labels, scale=0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_heads_take_the_outputs_of_a_half_precision_pass(dtype):
    heads = Heads(IdentityHead("arcface", torch.arange(3), 6), ["cosine", "cosine.2"], (6, 9))
    outputs = torch.randn(4, 6).to(dtype).requires_grad_()
    projected = heads.project("cosine.2", outputs)
    assert projected.dtype == torch.float32
    assert projected.shape == (4, 9)
    assert heads.project("relational", outputs) is outputs
    loss = heads.label_loss(outputs, torch.tensor([0, 2, 1, -1]), smoothing=0.1, labelled=None) + projected.sum()
    loss.backward()
    assert outputs.grad.isfinite().all()
