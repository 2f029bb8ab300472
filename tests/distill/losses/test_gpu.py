"""The losses on a GPU, under bf16 autocast as the trainer runs them, against the CPU's."""

import pytest
import torch

from kdexport.distill import losses

LOGIT_METHODS = ["soft_targets", "hard_targets", "logit_mse", "dkd", "dist", "binary_soft_targets"]
FEATURE_METHODS = ["hint", "attention", "similarity", "relational", "cosine"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
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
