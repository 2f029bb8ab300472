"""Micro-batches: the same gradients in smaller parts."""

from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from kdexport.distill.batches import Batch
from kdexport.distill.objective import Objective
from kdexport.distill.step import Step
from kdexport.progress import SILENT
from kdexport.recipe import Training
from kdexport.sources.preprocessing import Preprocessing


def gradients(micro_batch_size: int | None) -> tuple[list[torch.Tensor], float, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    batch = Batch(np.arange(10), 0, (torch.randn(10, 5),), torch.arange(10) % 3)
    job = SimpleNamespace(
        training=Training(micro_batch_size=micro_batch_size),
        preprocessing=Preprocessing(),
        objective=Objective(1.0),
        teacher=None,
        taps=None,
        phase="student",
    )
    loss, terms, _ = Step(network, job, Accelerator(cpu=True), SILENT)(batch, 0.0)
    return [parameter.grad for parameter in network.parameters()], float(loss), terms


def test_parts_add_up_to_the_batch() -> None:
    whole, loss, terms = gradients(None)
    for size in (1, 3, 4, 10, 99):
        parts, loss_in_parts, terms_in_parts = gradients(size)
        for one, other in zip(whole, parts, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)
        assert abs(loss_in_parts - loss) < 1e-6
        assert abs(float(terms_in_parts["labels"]) - float(terms["labels"])) < 1e-6
