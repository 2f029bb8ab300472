"""How wide an embedding is: ``embedding_dim`` goes to a factory that takes it; else a linear layer is added at the end.

The layer is part of the network: of its weights, its file, its parameters. A layer that is needed in training alone is
``distill.heads``'.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdexport.data.samples import Dataset
from kdexport.errors import RecipeError, SourceError
from kdexport.models.networks import takes
from kdexport.models.outputs import PROJECTION, Output, install, output_of
from kdexport.models.weights import Fit
from kdexport.recipe import Student, TeacherSpec
from kdexport.references import parse


def arguments(spec: TeacherSpec | Student, args: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Return a factory's arguments with the width of the embedding, where it takes one.

    Raises:
        RecipeError: A width is asked for and the network is to embed nothing.
        SourceError: A classifier of torchvision's, of which neither says how wide its last layer is to be.
    """
    width, kind = spec.embedding_dim, parse(spec.model).kind
    if not dataset.task.embeds:
        if width is not None:
            raise RecipeError(
                f"embedding_dim would do nothing: the task is {dataset.task.name}",
                hint='take it out, or set task = "embedding"',
            )
        return dict(args)
    if kind == "torchvision" and width is None and "num_classes" not in args:
        raise SourceError(
            f"{spec.model} is a classifier, and nothing says how wide its embedding is to be",
            hint="set embedding_dim, e.g. student.embedding_dim = 128; its last layer then gives the embedding",
        )
    if kind == "timm":  # without a width, the pooled features
        return {"num_classes": width or 0, **args}
    return {"embedding_dim": width, **args} if width is not None and takes(spec.model, "embedding_dim") else dict(args)


def with_width(
    network: nn.Module, spec: TeacherSpec | Student, load: Callable[[], Fit], inputs: tuple[Tensor, ...], *, first: bool
) -> Fit:
    """Load a network's weights, and bring what it gives to ``embedding_dim`` by a layer where it gives another width.

    Args:
        network: Called as ``network(*inputs)``.
        spec: The recipe's table.
        load: Loads the weights.
        inputs: A few samples.
        first: Whether the weights are of a network that has the layer already.

    Returns:
        What came of loading, the layer among what is fresh where it is.
    """
    if spec.embedding_dim is None:
        return load()
    if first:
        _add(network, spec, inputs)
        return load()
    fitted = load()
    added = _add(network, spec, inputs)
    return replace(fitted, fresh=(*fitted.fresh, PROJECTION)) if added else fitted


def _add(network: nn.Module, spec: TeacherSpec | Student, inputs: tuple[Tensor, ...]) -> bool:
    """Add the layer where it is needed; a network that does not run, or gives no vectors, is told of elsewhere."""
    given = output_of(network)
    trained = isinstance(spec, Student) or spec.train is not None
    install(network, Output(spec.output, None, "network", trained=trained))
    training = network.training
    try:
        with torch.no_grad():
            output = network.eval()(*inputs)
    except Exception:  # noqa: BLE001 - ``check_output`` runs it again, with a message
        return False
    finally:
        network.train(training)
        if given is not None:
            install(network, given)
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] == spec.embedding_dim:
        return False
    network.add_module(PROJECTION, nn.Linear(output.shape[1], int(spec.embedding_dim or 0)))
    return True
