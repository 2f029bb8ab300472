"""What would fail after hours is told before the first step, with the place in the user's code."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kdexport.artifacts import RunDirectory
from kdexport.data.samples import Split
from kdexport.distill import inference
from kdexport.distill.batches import Batches
from kdexport.distill.stage import distill
from kdexport.distill.teacher_verdict import warn_of_doubt
from kdexport.errors import KDExportError
from kdexport.models.loading import evaluating
from kdexport.models.networks import load_network
from kdexport.progress import Silent
from kdexport.recipe import Recipe
from kdexport.tasks import TASKS

Tiny = Callable[..., Recipe]

NETS = """
import torch
from torch import nn


class Base(nn.Module):
    def __init__(self, norm=nn.Identity):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))

    def forward(self, x):
        return self.net(x)


class TwoHeads(Base):
    def forward(self, x):
        return (self.net(x), self.net(x)) if self.training else self.net(x)


class Asserts(Base):
    def forward(self, x):
        assert not self.training or len(x) % 2 == 1
        return self.net(x)


class Frozen(Base):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class Detached(Base):
    def forward(self, x):
        with torch.no_grad():
            return self.net(x)


class NotANumber(Base):
    def forward(self, x):
        return self.net(x) * float("nan")


class NormOfOne(Base):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))


torch.manual_seed(0)
OBJECT = Base()


def cached():
    return OBJECT
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(NETS)
    return path


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("TwoHeads", r"in training mode the student gives a tuple of 2, not a tensor of logits"),
        ("Asserts", r"the student raises AssertionError in training mode, with a batch of 2 \(mine.py, line 22\)"),
        ("Frozen", "the student has no parameter that can be trained"),
        ("Detached", "the student's output has no gradient"),
        ("NotANumber", "the student gives NaN or infinity"),
    ],
)
def test_a_student_that_cannot_be_trained_is_told_before_the_teacher_is(
    tmp_path: Path, tiny: Tiny, nets: Path, name: str, match: str
) -> None:
    recipe = tiny(f"student.model={nets}:{name}", "student.args={}")
    with pytest.raises(KDExportError, match=match) as caught:
        distill(recipe, RunDirectory(tmp_path / "run"))
    assert caught.value.hint
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_batches_of_one_are_refused_by_a_network_that_normalizes_over_them(
    tmp_path: Path, tiny: Tiny, nets: Path
) -> None:
    single = ("distill.batch_size=1", "distill.terms=[{ method = 'soft_targets' }]")
    with pytest.raises(KDExportError, match="with a batch of 1") as caught:
        distill(tiny(f"student.model={nets}:NormOfOne", "student.args={}", *single), RunDirectory(tmp_path / "run"))
    assert "2 or more" in caught.value.hint


def test_a_layer_or_an_augmentation_that_is_not_there_shows_before_the_teacher_is_trained(
    tmp_path: Path, tiny: Tiny
) -> None:
    for fault in ("distill.terms=[{ method = 'hint', student_layer = 'blockz' }]", "distill.augment=['shiftt']"):
        with pytest.raises(KDExportError, match=r"blockz|shiftt"):
            distill(tiny(fault), RunDirectory(tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["OBJECT", "cached"])
def test_an_object_is_copied_for_each_role(nets: Path, name: str) -> None:
    """The plain student once began with the weights of the student that was taught."""
    first, second = (load_network(f"{nets}:{name}", {}) for _ in range(2))
    with torch.no_grad():
        first.net[1].weight.fill_(0.0)
    assert second.net[1].weight.abs().sum() > 0
    assert load_network(f"{nets}:{name}", {}).net[1].weight.abs().sum() > 0


def test_fp16_without_a_gpu_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator here")
    with pytest.raises(KDExportError, match="fp16") as caught:
        distill(tiny("distill.precision='fp16'"), RunDirectory(tmp_path))
    assert "bf16" in caught.value.hint


@pytest.mark.parametrize("count", [2, 3, 64, 65, 129, 193])
@pytest.mark.parametrize("size", [2, 64])
def test_no_part_and_no_batch_holds_one_sample(count: int, size: int) -> None:
    parts = inference.even_parts(np.arange(count), size)
    assert np.array_equal(np.concatenate(parts), np.arange(count))
    assert {len(part) for part in parts} <= set(range(2, size + 2))
    split = Split((np.zeros((count, 1), dtype=np.float32),))
    batches = Batches(split, batch_size=size, seed=0, augmentation=None, views=1, device=torch.device("cpu"))
    assert min(len(batch.indices) for batch in batches.epoch(0)) >= 2


def test_modes_come_back_after_an_error_in_inference() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout())
    network[1].eval()
    with pytest.raises(RuntimeError), evaluating(network):
        raise RuntimeError
    assert network.training
    assert not network[1].training


class Warnings(Silent):
    def __init__(self) -> None:
        self.told: list[str] = []

    def warn(self, message: str) -> None:
        self.told.append(message)


@pytest.mark.parametrize(("right", "guesses"), [(0.9, False), (0.52, True), (0.1, True)])
def test_a_teacher_that_guesses_is_a_warning(right: float, guesses: bool) -> None:
    labels = np.arange(200) % 2
    predicted = np.where(np.random.default_rng(0).permutation(200) < 200 * right, labels, 1 - labels)

    class Data:
        task, class_names = TASKS["classification"], ("even", "odd")

    class Context:
        progress, dataset = Warnings(), Data

    warn_of_doubt(Context, "teacher", np.eye(2, dtype=np.float32)[predicted], labels)  # type: ignore[arg-type]
    assert bool(Context.progress.told) is guesses
    if guesses:
        assert f"{right:.1%} of 200 samples" in Context.progress.told[0]
