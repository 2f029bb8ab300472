"""Networks by reference: torchvision, a Python file or module. What comes back takes its inputs and returns logits."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdexport.errors import SourceError, did_you_mean
from kdexport.references import Reference, parse
from kdexport.sources.python_file import call, load_object


def load_network(reference: str, args: Mapping[str, Any], num_classes: int | None = None) -> nn.Module:
    """Build a network with fresh weights.

    Args:
        reference: ``torchvision:NAME``, ``file.py:Name`` or ``package.module:Name``.
        args: For the class or factory.
        num_classes: Given to the factory where it takes it and ``args`` doesn't say otherwise.

    Returns:
        A module called as ``network(*inputs)`` that returns logits ``[batch, classes]``.

    Raises:
        SourceError: There is no such network, or it cannot be built.
    """
    parsed = parse(reference)
    builder = _BUILDERS.get(parsed.kind)
    if builder is None:
        raise SourceError(
            f"'{reference}' is no network that can be built",
            hint=f"a model reference is one of: {', '.join(_FORMS)}",
        )
    network = builder(parsed, dict(args), num_classes)
    if not isinstance(network, nn.Module):
        raise SourceError(
            f"{reference} gives a {type(network).__name__}, not a torch.nn.Module",
            hint="name a class that derives from torch.nn.Module, or a function that returns one",
        )
    return network


def check_output(network: nn.Module, inputs: tuple[Tensor, ...], num_classes: int, role: str) -> None:
    """Run one batch and hold that the network gives logits for these classes.

    Raises:
        SourceError: It raises, or its output is a tuple, a dict or has another shape.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            output = network(*inputs)
    except Exception as error:
        shapes = ", ".join(f"{list(item.shape)} {str(item.dtype).removeprefix('torch.')}" for item in inputs)
        raise SourceError(
            f"the {role} does not take the data ({shapes}): {type(error).__name__}: {str(error).splitlines()[0]}",
            hint="give its args or its preprocessing (size, mean, std) in the recipe, so that it fits the data",
        ) from error
    finally:
        network.train(was_training)
    if not isinstance(output, Tensor):
        raise SourceError(
            f"the {role}'s output is a {type(output).__name__}, not a tensor of logits",
            hint="wrap it in a class whose forward returns the logits alone, and name that as file.py:Name",
        )
    batch = inputs[0].shape[0]
    if output.shape != (batch, num_classes):
        raise SourceError(
            f"the {role} gives {list(output.shape)} for {batch} samples; the data have {num_classes} classes",
            hint=f"it must give [batch, {num_classes}]: set its args, e.g. args = {{ num_classes = {num_classes} }}",
        )


def _torchvision(reference: Reference, args: dict[str, Any], num_classes: int | None) -> Any:
    from torchvision import models

    known = models.list_models(module=models)
    if reference.target not in known:
        near = did_you_mean(reference.target, known) or "torchvision.models.list_models() names them all"
        raise SourceError(f"torchvision has no classifier '{reference.target}'", hint=near.strip())
    if num_classes is not None:
        args.setdefault("num_classes", num_classes)
    if reference.target in ("googlenet", "inception_v3"):  # a second head for training would make the output a tuple
        args = {"aux_logits": False, "init_weights": True, **args}
    args.setdefault("weights", None)
    return call(reference, getattr(models, reference.target), args)


def _python(reference: Reference, args: dict[str, Any], num_classes: int | None) -> Any:
    found = load_object(reference)
    if isinstance(found, nn.Module):
        if args:
            raise SourceError(f"{reference} is a network already and takes no args", hint="take the args out")
        return found
    if not callable(found):
        raise SourceError(
            f"{reference} is a {type(found).__name__}, not a class or function",
            hint="name a class that derives from torch.nn.Module, or a function that returns one",
        )
    if num_classes is not None and "num_classes" not in args and _takes(found, "num_classes"):
        args["num_classes"] = num_classes
    return call(reference, found, args)


def _takes(function: Any, argument: str) -> bool:
    try:
        return argument in inspect.signature(function).parameters
    except (TypeError, ValueError):  # no signature to be had
        return False


_BUILDERS = {"torchvision": _torchvision, "file": _python, "module": _python}
_FORMS = ("torchvision:NAME", "file.py:Name", "package.module:Name")
