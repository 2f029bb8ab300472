"""The losses on a GPU, under bf16 autocast as the trainer runs them, against the CPU's."""

import pytest
import torch

from kdexport.distill import losses
from kdexport.distill.losses.features import Keys

LOGIT_METHODS = ["soft_targets", "hard_targets", "logit_mse", "dkd", "dist", "binary_soft_targets"]
FEATURE_METHODS = ["hint", "attention", "similarity", "relational", "cosine"]


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


@pytest.mark.parametrize("name", LOGIT_METHODS + FEATURE_METHODS)
def test_agrees_with_the_cpu_under_autocast(name: str) -> None:
    torch.manual_seed(0)
    shape = (16, 10) if name in LOGIT_METHODS else (16, 8, 4, 4)
    student, teacher = torch.randn(shape, requires_grad=True), torch.randn(shape)
    labels = (torch.randint(10, (16,)),) if name == "dkd" else ()
    expected = getattr(losses, name)(student, teacher, *labels)
    expected.backward()
    on_gpu = student.detach().cuda().requires_grad_()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        value = getattr(losses, name)(on_gpu, teacher.cuda(), *(label.cuda() for label in labels))
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    assert torch.allclose(on_gpu.grad.cpu(), student.grad, rtol=1e-3, atol=1e-5)


def test_review_agrees_with_the_cpu_under_autocast() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    expected = losses.review([student], [teacher])
    with torch.autocast("cuda", dtype=torch.bfloat16):
        value = losses.review([student.cuda()], [teacher.cuda()])
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


def test_crd_agrees_with_the_cpu_under_autocast() -> None:
    torch.manual_seed(0)
    student, teacher, bank = (torch.nn.functional.normalize(torch.randn(n, 8), dim=1) for n in (4, 4, 30))
    own = torch.zeros(4, 20, dtype=torch.bool)

    def value(device: str) -> float:
        keys = Keys(bank[:4].to(device), bank[10:].to(device), torch.tensor(5.0, device=device))
        return losses.crd(student.to(device), teacher.to(device), keys, keys, own.to(device), 30).item()

    with torch.autocast("cuda", dtype=torch.bfloat16):
        on_gpu = value("cuda")
    assert on_gpu == pytest.approx(value("cpu"), rel=1e-4)
