"""Micro-batches: the same gradients in smaller parts."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from kdexport.distill.batches import Batch
from kdexport.distill.objective import Objective
from kdexport.distill.trainer import Step
from kdexport.models.preprocessing import Preprocessing
from kdexport.progress import SILENT
from kdexport.recipe import Training
from kdexport.tasks import TASKS
from kdexport.terms import Hint


def gradients(micro_batch_size: int | None) -> tuple[list[torch.Tensor], float, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    batch = Batch(np.arange(10), 0, (torch.randn(10, 5),), torch.arange(10) % 3)
    setup = SimpleNamespace(
        training=Training(micro_batch_size=micro_batch_size),
        preprocessing=Preprocessing(),
        objective=Objective(1.0),
        teacher=None,
        hooks=None,
        heads=None,
        beside=(),
        phase="student",
    )
    loss, terms, _ = Step(network, setup, Accelerator(cpu=True), SILENT)(batch, 0.0)
    return [parameter.grad for parameter in network.parameters()], float(loss), terms


def test_parts_add_up_to_the_batch() -> None:
    whole, loss, terms = gradients(None)
    for size in (1, 3, 4, 10, 99):
        parts, loss_in_parts, terms_in_parts = gradients(size)
        for one, other in zip(whole, parts, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)
        assert abs(loss_in_parts - loss) < 1e-6
        assert abs(float(terms_in_parts["labels"]) - float(terms["labels"])) < 1e-6


def test_processes_can_average_gradients_of_layers_that_are_not_compared() -> None:
    """Each waits for every parameter's gradient: one that never comes would stop them all."""
    torch.manual_seed(0)
    first, head = nn.Linear(5, 7), nn.Linear(7, 3)
    network = nn.Sequential(first, head)
    captured: list[torch.Tensor] = []
    first.register_forward_hook(lambda *call: captured.append(call[2]))
    target = torch.zeros(10, 7)
    hooks = SimpleNamespace(student=nullcontext, features=lambda _: {"hint": (captured[-1], target)}, parameters=list)
    setup = SimpleNamespace(
        training=Training(),
        preprocessing=Preprocessing(),
        objective=Objective(0.0, [Hint(method="hint")]),
        teacher=None,
        hooks=hooks,
        heads=None,
        beside=(),
        phase="student",
    )
    batch = Batch(np.arange(10), 0, (torch.randn(10, 5),), None)
    for processes, expected in ((1, False), (2, True)):
        network.zero_grad()
        alike = SimpleNamespace(
            num_processes=processes,
            mixed_precision="no",
            scaler=None,
            autocast=nullcontext,
            no_sync=lambda _: nullcontext(),
            backward=lambda loss: loss.backward(),
        )
        Step(network, setup, alike, SILENT)(batch, 0.0)
        assert float(first.weight.grad.abs().sum()) > 0
        assert (head.weight.grad is not None) is expected
        assert head.weight.grad is None or not head.weight.grad.any()


def test_parts_of_a_partly_labelled_batch_count_each_label_alike() -> None:
    def gradient(micro_batch_size: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        network = nn.Linear(5, 3)
        labels = torch.tensor([0, 1, 2, 1, -1, -1, -1, 2, -1, -1])  # 4, 1 and 0 in parts of 4, 3 and 3
        setup = SimpleNamespace(
            training=Training(micro_batch_size=micro_batch_size),
            preprocessing=Preprocessing(),
            objective=Objective(1.0),
            teacher=None,
            hooks=None,
            heads=None,
            beside=(),
            phase="student",
        )
        batch = Batch(np.arange(10), 0, (torch.randn(10, 5),), labels)
        Step(network, setup, Accelerator(cpu=True), SILENT)(batch, 0.0)
        return network.weight.grad

    torch.testing.assert_close(gradient(4), gradient(None), rtol=1e-5, atol=1e-7)


def test_samples_count_alike_where_processes_have_unequal_shares() -> None:
    """Three samples on two processes: the mean of both gradients is the whole batch's."""
    torch.manual_seed(0)
    network = nn.Linear(5, 3)
    inputs, labels = torch.randn(3, 5), torch.tensor([0, 1, 2])
    setup = SimpleNamespace(
        training=Training(),
        preprocessing=Preprocessing(),
        objective=Objective(1.0),
        teacher=None,
        hooks=None,
        heads=None,
        beside=(),
        phase="student",
    )
    alike = SimpleNamespace(
        num_processes=2, mixed_precision="no", scaler=None, autocast=nullcontext, backward=lambda loss: loss.backward()
    )
    gradients = []
    for rows in ([0, 2], [1]):
        network.zero_grad()
        Step(network, setup, alike, SILENT)(Batch(np.array(rows), 0, (inputs[rows],), labels[rows], whole=3), 0.0)
        gradients.append(network.weight.grad.clone())
    network.zero_grad()
    nn.functional.cross_entropy(network(inputs), labels).backward()
    torch.testing.assert_close(sum(gradients) / 2, network.weight.grad)


def test_numbers_without_a_label_leave_the_others_their_weight() -> None:
    """However the batch is cut: the labels' loss is the mean over all that have one."""
    found = []
    for size in (None, 3, 5):
        torch.manual_seed(0)
        network = nn.Linear(5, 2)
        targets = torch.randn(10, 2)
        targets[[0, 4, 5, 6, 7]] = float("nan")
        setup = SimpleNamespace(
            training=Training(micro_batch_size=size),
            preprocessing=Preprocessing(),
            objective=Objective(1.0, task=TASKS["regression"]),
            teacher=None,
            hooks=None,
            heads=None,
            beside=(),
            phase="student",
        )
        batch = Batch(np.arange(10), 0, (torch.randn(10, 5),), targets)
        loss, _, _ = Step(network, setup, Accelerator(cpu=True), SILENT)(batch, 0.0)
        found.append((network.weight.grad.clone(), float(loss)))
    for gradient, loss in found[1:]:
        torch.testing.assert_close(gradient, found[0][0])
        assert abs(loss - found[0][1]) < 1e-6
