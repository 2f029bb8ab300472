import numpy as np
import pytest
import torch

from kdexport.distill import losses
from kdexport.distill.losses.features import Keys
from kdexport.errors import KDExportError

MAP = (3, 4, 5, 5)
FLAT = (4, 6)


def hint(f, g):  # FitNets, equation 3, as a mean
    return float(((f - g) ** 2).mean())


def attention(f, g):  # Zagoruyko 2017, equation 2, squared, as a mean
    total = 0.0
    for a, b in zip(f, g, strict=True):
        a, b = (a**2).mean(axis=0).ravel(), (b**2).mean(axis=0).ravel()
        total += float(((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2).mean())
    return total / len(f)


def similarity(f, g):  # Tung 2019, equations 1 to 4
    def gram(x):
        q = x.reshape(len(x), -1)
        q = q @ q.T
        return q / np.linalg.norm(q, axis=1, keepdims=True)

    return float(((gram(f) - gram(g)) ** 2).sum() / len(f) ** 2)


def huber(a, b):
    d = abs(a - b)
    return 0.5 * d**2 if d <= 1 else d - 0.5


def relational(f, g, distance_weight=25.0, angle_weight=50.0):  # Park 2019, equations 5 to 10, as means
    n = len(f)

    def distances(x):
        d = {(i, j): np.linalg.norm(x[i] - x[j]) for i in range(n) for j in range(n)}
        mean = np.mean([v for (i, j), v in d.items() if i != j])
        return {pair: v / mean for pair, v in d.items()}

    def angle(x, i, j, k):
        if i == j or k == j:
            return 0.0
        a, b = x[i] - x[j], x[k] - x[j]
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    df, dg = distances(f), distances(g)
    by_distance = sum(huber(df[p], dg[p]) for p in df) / n**2
    triples = [(i, j, k) for i in range(n) for j in range(n) for k in range(n)]
    by_angle = sum(huber(angle(f, *t), angle(g, *t)) for t in triples) / n**3
    return distance_weight * by_distance + angle_weight * by_angle


def cosine(f, g):
    return float(np.mean([1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(f, g, strict=True)]))


def review(f, g):  # Chen 2021, section 3.3; an 8x8 map, so that each cell of the grids is a plain block
    def blocks(x, grid):
        size = x.shape[2] // grid
        return x.reshape(*x.shape[:2], grid, size, grid, size).mean(axis=(3, 5))

    levels = [((blocks(f, k) - blocks(g, k)) ** 2).mean() for k in (8, 4, 2, 1)]
    return float(np.dot(levels, [1, 0.5, 0.25, 0.125]) / 1.875)


CASES = [
    ("hint", MAP, MAP, {}, hint),
    ("attention", MAP, (3, 2, 5, 5), {}, attention),
    ("similarity", MAP, (3, 2, 3, 3), {}, similarity),
    ("relational", FLAT, (4, 3), {}, relational),
    ("relational", FLAT, FLAT, {"distance_weight": 1.0, "angle_weight": 0.0}, lambda f, g: relational(f, g, 1.0, 0.0)),
    ("cosine", FLAT, FLAT, {}, cosine),
]
NAMES = sorted({case[0] for case in CASES})


def draw(student, teacher, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1.5, student), rng.normal(0, 1.5, teacher)


@pytest.mark.parametrize(("name", "student", "teacher", "options", "reference"), CASES)
def test_matches_the_paper(name, student, teacher, options, reference, check_loss):
    check_loss(lambda f, g: getattr(losses, name)(f, g, **options), reference, *draw(student, teacher))


def test_review_matches_the_paper(check_loss):
    student, teacher = draw((2, 2, 8, 8), (2, 2, 8, 8))
    check_loss(lambda f, g: losses.review([f, f], [g, g]), lambda f, g: 2 * review(f, g), student, teacher)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_review_stays_finite_in_half_precision(dtype):
    f, g = (torch.tensor(array * 1e4, dtype=dtype) for array in draw((2, 3, 8, 8), (2, 3, 8, 8)))
    f.requires_grad_()
    value = losses.review([f, f], [g, g])
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(f.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_crd_stays_finite_in_half_precision_and_far_from_the_sphere(dtype):
    # Embeddings are brought to length 1 by their projection; this is what comes of one that forgets to.
    student, teacher, bank_s, bank_t, indices, drawn = (torch.tensor(array) for array in contrast())
    f, g = (student * 1e4).to(dtype).requires_grad_(), (teacher * 1e4).to(dtype)
    keys = [Keys(bank[indices].float(), bank[drawn].float(), torch.tensor(5.0)) for bank in (bank_t, bank_s)]
    value = losses.crd(f, g, *keys, drawn[None] == indices[:, None], 50)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(f.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name):
    case = next(case for case in CASES if case[0] == name)
    f, g = (torch.tensor(array, dtype=torch.float32) for array in draw(case[1], case[2]))
    expected = getattr(losses, name)(f, g)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert getattr(losses, name)(f, g).item() == expected.item()


@pytest.mark.parametrize("name", NAMES)
def test_is_zero_and_flat_where_the_student_has_arrived(name):
    case = next(case for case in CASES if case[0] == name)
    f = torch.tensor(draw(case[1], case[1])[0], dtype=torch.float32, requires_grad=True)
    value = getattr(losses, name)(f, f.detach().clone())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert f.grad.abs().max() < 1e-5


@pytest.mark.parametrize("name", ["relational", "similarity", "attention", "cosine"])
def test_features_that_are_all_alike_leave_finite_gradients(name):
    shape = (4, 3, 2, 2)
    f = torch.zeros(shape, requires_grad=True)
    getattr(losses, name)(f, torch.tensor(draw(shape, shape)[1], dtype=torch.float32)).backward()
    assert torch.isfinite(f.grad).all()


def test_attention_pools_the_larger_map():
    f, g = (torch.tensor(array, dtype=torch.float32) for array in draw((2, 3, 4, 4), (2, 5, 8, 8)))
    pooled = torch.nn.functional.avg_pool2d(g, 2)
    assert losses.attention(f, g).item() == pytest.approx(losses.attention(f, pooled).item())


@pytest.mark.parametrize("name", ["relational", "similarity"])
def test_refuses_a_batch_of_one(name):
    with pytest.raises(KDExportError, match="holds 1") as caught:
        getattr(losses, name)(torch.zeros(1, 6), torch.zeros(1, 6))
    assert "batch_size" in caught.value.hint


@pytest.mark.parametrize("name", [*NAMES, "review"])
def test_says_when_the_teacher_ran_in_inference_mode(name):
    f = torch.zeros(2, 3, 4, 4, requires_grad=True)
    with torch.inference_mode():
        g = torch.ones(2, 3, 4, 4)
    arguments = ([f], [g]) if name == "review" else (f, g)
    with pytest.raises(KDExportError, match="inference_mode"):
        getattr(losses, name)(*arguments)


@pytest.mark.parametrize("name", ["hint", "cosine", "review"])
def test_refuses_shapes_that_differ(name):
    f, g = torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4)
    arguments = ([f], [g]) if name == "review" else (f, g)
    with pytest.raises(KDExportError, match=r"\[2, 3, 4, 4\]") as caught:
        getattr(losses, name)(*arguments)
    assert "project" in caught.value.hint


def test_refuses_what_a_method_cannot_compare():
    with pytest.raises(KDExportError, match="has none"):
        losses.attention(torch.zeros(2, 6), torch.zeros(2, 6))
    with pytest.raises(KDExportError, match="positions"):
        losses.attention(torch.zeros(2, 9, 6), torch.zeros(2, 16, 6))
    with pytest.raises(KDExportError, match="1 features of the student, 2"):
        losses.review([torch.zeros(2, 3, 4, 4)], [torch.zeros(2, 3, 4, 4)] * 2)
    with pytest.raises(KDExportError, match="takes maps"):
        losses.review([torch.zeros(2, 3)], [torch.zeros(2, 3)])
    with pytest.raises(KDExportError, match="saw 2 samples"):
        losses.hint(torch.zeros(2, 3), torch.zeros(4, 3))


def contrast(seed=0, batch=4, width=6, samples=50, negatives=20):
    rng = np.random.default_rng(seed)

    def unit(*shape):
        x = rng.normal(size=shape)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    indices = rng.permutation(samples)[:batch]
    drawn = np.concatenate([indices[:1], rng.permutation(np.setdiff1d(np.arange(samples), indices))[: negatives - 1]])
    return unit(batch, width), unit(batch, width), unit(samples, width), unit(samples, width), indices, drawn


def test_crd_matches_the_paper(check_loss):
    student, teacher, bank_s, bank_t, indices, drawn = contrast()
    own = drawn[None] == indices[:, None]
    log_z = 5.0
    shares = len(drawn) / len(bank_s)

    def reference(f, g):  # Tian 2020, equations 17 to 19, one term after the other
        total = 0.0
        for embedding, bank in ((f, bank_t), (g, bank_s)):
            for row, index in zip(embedding, indices, strict=True):
                p = np.exp(row @ bank[index] / 0.07) / np.exp(log_z)
                total -= np.log(p / (p + shares))
                for negative in drawn:
                    if negative != index:
                        p = np.exp(row @ bank[negative] / 0.07) / np.exp(log_z)
                        total -= np.log(1 - p / (p + shares))
        return float(total / len(f))

    def loss(f, g):
        keys = [
            Keys(torch.tensor(bank[indices]).float(), torch.tensor(bank[drawn]).float(), torch.tensor(log_z))
            for bank in (bank_t, bank_s)
        ]
        return losses.crd(f, g, *keys, torch.tensor(own), len(bank_s))

    # The banks are rounded to fp32 and similarities divided by 0.07: hence float64 inputs that fp32 can hold.
    bank_s, bank_t = bank_s.astype(np.float32).astype(np.float64), bank_t.astype(np.float32).astype(np.float64)
    check_loss(loss, reference, student, teacher)


def test_agrees_with_torchdistill(torchdistill, io):
    f, g = (torch.tensor(array, dtype=torch.float32) for array in draw((8, 16, 4, 4), (8, 8, 4, 4)))
    outputs = io(f=f), io(f=g)
    pair = {"one": {"student": {"path": "f", "io": "output"}, "teacher": {"path": "f", "io": "output"}}}
    assert losses.attention(f, g).item() == pytest.approx(torchdistill.ATLoss(pair)(*outputs).item(), rel=1e-5)
    # Its SPKDLoss is left out: version 1.1 brings rows to an L1 norm of 1, where the paper's equation 2 has L2.
    expected = torchdistill.RKDLoss("f", "f", 25.0, 50.0, "mean")(*outputs)
    assert losses.relational(f, g).item() == pytest.approx(expected.item(), rel=1e-4)


def test_review_agrees_with_torchdistill(torchdistill):
    f, g = (torch.tensor(array, dtype=torch.float32) for array in draw((4, 3, 8, 8), (4, 3, 8, 8)))
    theirs = torchdistill.HierarchicalContextLoss("f", "output", "f", "output")
    expected = theirs({"f": {"output": (f, None)}}, {"f": {"output": g}})
    assert losses.review([f], [g]).item() == pytest.approx(expected.item(), rel=1e-5)


def test_crd_agrees_with_torchdistill(torchdistill):
    student, teacher, bank_s, bank_t, indices, drawn = (torch.tensor(array) for array in contrast())
    drawn = drawn[1:]  # without a sample of the batch: torchdistill keeps those
    theirs = torchdistill.CRDLoss(
        "s", "empty", "t", input_size=6, output_size=50, num_negative_samples=len(drawn), num_samples=50
    )
    theirs.memory_v1.copy_(bank_s)
    theirs.memory_v2.copy_(bank_t)
    log_z = torch.tensor(5.0)
    theirs.params[2:4] = log_z.exp()
    chosen = torch.cat([indices[:, None], drawn.expand(4, -1)], dim=1)
    supplement = {"s": {"output": student.float()}, "empty": {"input": {"pos_idx": indices, "contrast_idx": chosen}}}
    expected = theirs(supplement, {"t": {"output": teacher.float()}})
    keys = [Keys(bank[indices].float(), bank[drawn].float(), log_z) for bank in (bank_t, bank_s)]
    own = drawn[None] == indices[:, None]
    ours = losses.crd(student.float(), teacher.float(), *keys, own, 50)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
