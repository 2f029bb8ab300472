"""A network with its weights and its preprocessing, held against the data: what every stage that computes starts
from.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdexport.recipe import Student, Teacher
from kdexport.sources.networks import check_output, load_network
from kdexport.sources.preprocessing import Preprocessing, with_spec
from kdexport.sources.samples import Dataset
from kdexport.sources.weights import load_weights


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode, called as ``network(*preprocessing.apply(raw_inputs))``."""

    network: nn.Module
    preprocessing: Preprocessing


def load_model(role: str, spec: Teacher | Student, dataset: Dataset, weights: Path | None = None) -> Model:
    """Build a recipe's network for a data set.

    Args:
        role: ``"teacher"``, ``"student"`` or ``"student-plain"``: for messages.
        spec: The recipe's table.
        dataset: Gives the classes and the preprocessing that the recipe does not.
        weights: Weights to load instead of the recipe's: those that a run has trained.

    Raises:
        SourceError: It cannot be built, the weights do not fit, or its output does not fit the data's classes.
    """
    network = load_network(spec.model, spec.args, dataset.num_classes)
    if weights is not None:
        load_weights(network, weights)
    elif spec.weights is not None:
        load_weights(network, Path(spec.weights), spec.strict)
    model = Model(network.eval(), with_spec(dataset.preprocessing, spec.preprocessing))
    check_output(network, model.preprocessing.apply(dataset.train.take(slice(0, 2)).inputs), dataset.num_classes, role)
    return model


def count_macs(model: Model, dataset: Dataset) -> int | None:
    """Return the multiply-accumulates of one sample, or None where torch cannot count them.

    torch's counter counts a multiply-accumulate as two operations, in matrix products and convolutions alone.
    """
    inputs = model.preprocessing.apply(dataset.train.take(slice(0, 1)).inputs)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.network(*inputs)
    return counter.get_total_flops() // 2 or None
