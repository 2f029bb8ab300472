"""How much a channel matters: torch-pruning's measures, and the gradients that one of them asks for."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdexport.data.samples import Dataset
from kdexport.errors import SourceError
from kdexport.models.preprocessing import Preprocessing

TAYLOR_SAMPLES, TAYLOR_BATCH = 512, 32


def import_torch_pruning() -> Any:
    """Import torch-pruning, which is optional.

    Raises:
        SourceError: It is not installed.
    """
    try:
        import torch_pruning
    except ImportError:
        raise SourceError(
            "student.prune.keep needs torch-pruning, which is not installed", hint="pip install 'kdexport[prune]'"
        ) from None
    return torch_pruning


def importance(tp: Any, name: str) -> Any:
    """Return torch-pruning's measure of a recipe's name."""
    kinds = {
        "magnitude": tp.importance.GroupMagnitudeImportance,
        "taylor": tp.importance.GroupTaylorImportance,
        "random": tp.importance.RandomImportance,
    }
    return kinds[name]()


def loss_gradients(
    preprocessing: Preprocessing, dataset: Dataset, network: nn.Module, *, seed: int = 0
) -> dict[str, Tensor]:
    """Return the gradient of the labels' loss over some training samples, for every parameter of a network by name.

    The network stays in evaluation mode, so that its statistics are left alone (Molchanov et al. 2019 do likewise).

    Raises:
        SourceError: The samples have no labels, or the loss is not finite.
    """
    train = dataset.train
    chosen = np.sort(np.random.default_rng(seed).permutation(len(train))[:TAYLOR_SAMPLES])
    found = {name: torch.zeros_like(parameter) for name, parameter in network.named_parameters()}
    frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    for start in range(0, len(chosen), TAYLOR_BATCH):
        few = train.take(chosen[start : start + TAYLOR_BATCH])
        if few.labels is None:
            raise SourceError(
                'student.prune.importance = "taylor" needs labels, and the training samples have none',
                hint='set importance = "magnitude"',
            )
        targets = torch.from_numpy(np.ascontiguousarray(few.labels))
        with torch.enable_grad():
            loss = dataset.task.label_loss(network(*preprocessing.apply(few.inputs)).float(), targets)
            parts = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        if not bool(torch.isfinite(loss)):
            raise SourceError(
                "the labels' loss of the whole network is not finite: nothing can be said of what its channels matter",
                hint='look at its weights and its preprocessing, or set importance = "magnitude"',
            )
        for total, part in zip(found.values(), parts, strict=True):
            if part is not None:
                total += part
    for parameter in frozen:
        parameter.requires_grad_(False)
    return found
