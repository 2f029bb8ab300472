"""Learning-rate schedules against numbers worked out by hand."""

import pytest
import torch

from kdexport.distill.optimization import accelerator_for, lr_factor, make_average, make_optimizer, repeatable
from kdexport.errors import KDExportError
from kdexport.recipe import Training


def factor(step: int, per_epoch: int = 10, **options: object) -> float:
    return lr_factor(Training.model_validate({"epochs": 24, **options}), step, per_epoch)


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("constant", 239, 1.0),
        ("cosine", 0, 1.0),
        ("cosine", 120, 0.5),
        ("cosine", 60, 0.8535533905932737),  # (1 + cos(pi/4)) / 2
        ("linear", 180, 0.25),
        ("step", 149, 1.0),  # 0.625 of 240 is 150
        ("step", 150, 0.1),
        ("step", 180, 0.01),
        ("step", 210, 0.001),
    ],
)
def test_schedules(schedule: str, step: int, expected: float) -> None:
    assert factor(step, schedule=schedule) == pytest.approx(expected, rel=1e-9)


def test_warm_up_climbs_and_hands_over_at_the_top() -> None:
    climb = [factor(step, schedule="cosine", warmup_epochs=0.4) for step in range(4)]
    assert climb == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factor(4, schedule="cosine", warmup_epochs=0.4) == pytest.approx(1.0)


def test_biases_and_normalization_do_not_decay() -> None:
    from torch import nn

    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    optimizer = make_optimizer(network, Training(weight_decay=0.5))
    shapes = {
        group["weight_decay"]: [parameter.ndim for parameter in group["params"]] for group in optimizer.param_groups
    }
    assert shapes == {0.5: [4, 2], 0.0: [1, 1, 1, 1]}


def test_the_running_average_follows_its_formula() -> None:
    import torch
    from torch import nn

    network = nn.Linear(1, 1, bias=False)
    average = make_average(network, Training(ema_decay=0.75))
    assert average is not None
    expected = None
    for value in (1.0, 2.0, 4.0):
        with torch.no_grad():
            network.weight.fill_(value)
        average.update_parameters(network)
        expected = value if expected is None else 0.75 * expected + 0.25 * value
    assert average.module.weight.item() == pytest.approx(expected)


def test_a_gpu_trains_with_kernels_that_can_be_repeated_and_gets_its_settings_back() -> None:
    def settings() -> tuple[bool, bool, bool]:
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        return torch.are_deterministic_algorithms_enabled(), warn_only, torch.backends.cudnn.benchmark

    torch.backends.cudnn.benchmark = True
    try:
        with repeatable(torch.device("cuda")):
            assert settings() == (True, True, False)
        assert settings() == (False, False, True)
        with pytest.raises(ValueError, match="in training"), repeatable(torch.device("cuda")):
            raise ValueError("in training")
        assert settings() == (False, False, True)
        with repeatable(torch.device("cpu")):
            assert settings() == (False, False, True)
    finally:
        torch.backends.cudnn.benchmark = False


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(KDExportError, match="2 processes on this machine need as many GPUs, and it has 1") as caught:
        accelerator_for("fp32")
    assert "--nproc_per_node 1" in caught.value.hint
