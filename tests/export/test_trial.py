"""What cannot be exported is told before it is trained."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kdexport.data.samples import Dataset
from kdexport.errors import KDExportError
from kdexport.export.diagnosis import try_export
from kdexport.models.loading import Model
from kdexport.recipe import Export


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(image.flatten(1))
        return logits


class Branches(Plain):
    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) if image.sum() > 0 else super().forward(-image)


class BatchOfTwo(Plain):
    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image.reshape(2, 1, 8, 8))


class NoOperator(Plain):
    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) + torch.linalg.eigvalsh(image[:, 0] @ image[:, 0].mT)[:, :1]


class Dropping(Plain):
    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(image), 0.5)


class OfTheBatch(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(10, affine=False, track_running_stats=False)

    def forward(self, image: Tensor) -> Tensor:
        logits = super().forward(image)
        return self.norm(logits) if len(image) > 1 else logits


@pytest.mark.parametrize(
    ("network", "match"),
    [
        (Branches, "depends on the data"),
        (BatchOfTwo, "fixes it at 2"),
        (NoOperator, "ONNX has no"),
        (Dropping, "its forward is random"),
        (OfTheBatch, r"depends on the (batch|data)|specialized|fixes"),
    ],
)
def test_a_network_that_onnx_cannot_hold_is_refused(
    load: Callable[..., Dataset], network: type[Plain], match: str
) -> None:
    data = load("digits")
    with pytest.raises(KDExportError, match=match) as caught:
        try_export(Export(), "student", Model(network().train(), data.preprocessing), data)
    assert caught.value.message.startswith("the student, before it is trained: ")
    assert caught.value.hint


def test_a_network_that_can_is_left_as_it_was(load: Callable[..., Dataset]) -> None:
    data, network = load("digits"), Plain().train()
    try_export(Export(), "student", Model(network, data.preprocessing), data)
    assert network.training
