"""Many samples in evaluation mode: as many at a time as the memory holds, the same answers however many."""

import numpy as np
import pytest
import torch
from torch import nn

from kdexport.data.samples import Split
from kdexport.distill.batches import at_once, in_parts, out_of_memory, predict_all
from kdexport.errors import KDExportError
from kdexport.models.preprocessing import Preprocessing


class Small(nn.Module):
    """Stands for a device whose memory holds so many samples and no more."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.room = room
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError("no room")
        self.sizes.append(len(x))
        return self.linear(x)


def test_fewer_go_through_together_where_the_memory_is_small():
    samples = np.random.default_rng(0).normal(size=(700, 4)).astype(np.float32)
    network = Small(room=100).train()
    logits = predict_all(network, Preprocessing(), Split((samples,)), torch.device("cpu"))
    assert max(network.sizes) <= 100
    assert network.training
    expected = network.linear(torch.from_numpy(samples)).detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_memory_that_does_not_hold_one_sample_is_reported():
    with pytest.raises(KDExportError, match="not enough memory for one sample"):
        predict_all(Small(room=0), Preprocessing(), Split((np.zeros((5, 4), np.float32),)), torch.device("cpu"))


def test_other_faults_are_not_taken_for_it():
    def broken(indices: np.ndarray) -> np.ndarray:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        in_parts(broken, np.arange(8), 4)


def test_the_machines_own_memory_counts():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)  # a pebibyte
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("something else"))


@pytest.mark.parametrize(
    ("shape", "count"), [((8, 8, 1), 64), ((32, 32, 3), 64), ((224, 224, 3), 13), ((9000, 9000, 3), 1)]
)
def test_large_samples_go_a_few_at_a_time(shape: tuple[int, ...], count: int):
    split = Split((np.broadcast_to(np.uint8(0), (1000, *shape)),))
    assert at_once(split, torch.device("cpu")) == count
