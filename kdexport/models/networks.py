"""Networks by reference. Whatever one comes from, it takes its inputs as tensors and returns logits."""

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdexport.errors import KDExportError, SourceError, did_you_mean
from kdexport.models.checkpoints import SUFFIXES
from kdexport.models.hub import load_classifier, load_embedder
from kdexport.models.transformer_cut import Cut
from kdexport.recipe.text import PRETRAINED
from kdexport.references import Reference, call, load_object, parse
from kdexport.tasks.base import Task

SAFE_CHANNELS = 16  # see ``needs_channels_first``
AUXILIARY = ("deeplabv3_", "fcn_")  # torchvision's that have an auxiliary head in their own weights
TWO_HEADED = ("googlenet", "inception_v3")  # torchvision's with a second head for training


def load_network(reference: str, args: Mapping[str, Any], num_classes: int | None = None) -> nn.Module:
    """Build a network; with fresh weights, unless the reference stands for a network with its weights.

    Args:
        reference: A model reference, with an absolute path where it has one.
        args: For the class or factory.
        num_classes: Given to the factory where it takes it and ``args`` doesn't say otherwise.

    Returns:
        A module called as ``network(*inputs)`` that returns logits ``[batch, classes]``.

    Raises:
        SourceError: There is no such network, or it cannot be built.
    """
    return load_with_fresh(reference, args, num_classes)[0]


def load_with_fresh(
    reference: str,
    args: Mapping[str, Any],
    num_classes: int | None = None,
    *,
    embeds: bool = False,
    cut: Cut | None = None,
) -> tuple[nn.Module, tuple[str, ...] | None]:
    """Build a network as ``load_network`` does, and say which of its weights are fresh: None stands for all.

    Args:
        reference: As ``load_network``.
        args: As ``load_network``.
        num_classes: As ``load_network``.
        embeds: Whether a transformer is to embed, not to classify.
        cut: Which layers and tokens of a transformer are kept; it is then built without weights.
    """
    parsed = parse(reference)
    if parsed.kind == "hf" and embeds:
        return load_embedder(parsed.target, args, cut)
    if parsed.kind == "hf":
        return load_classifier(parsed.target, args, num_classes, cut)
    if parsed.kind == "path":
        return _program(parsed, args), ()
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
    return network, None


def pretrained_weights(reference: str, args: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the library's own weights of a network: ``weights = "pretrained"``.

    Raises:
        SourceError: The library has none, or they cannot be downloaded.
    """
    parsed = parse(reference)
    if parsed.kind not in ("torchvision", "timm"):
        raise SourceError(
            f'weights = "pretrained" is for torchvision: and timm: networks, not for {reference}',
            hint="give a weights file; hf: networks bring their own weights",
        )
    try:
        if parsed.kind == "timm":
            options = {key: value for key, value in args.items() if key != "num_classes"}
            return dict(import_timm().create_model(parsed.target, pretrained=True, **options).state_dict())
        from torchvision import models

        weights = models.get_model_weights(parsed.target).DEFAULT.get_state_dict(progress=False, check_hash=True)
        return _as_torchvision_loads(parsed.target, weights)
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(
            f"the pretrained weights of {reference} cannot be had: {error}",
            hint='go online once so that they are kept, or give them as a file: weights = "file.safetensors"',
        ) from error


def with_pretrained_args(reference: str, args: Mapping[str, Any], weights: str | None) -> dict[str, Any]:
    """Return a network's arguments with those that its library sets for its own weights: torchvision normalizes within
    GoogLeNet and Inception v3 then, and gives DeepLab and FCN an auxiliary head.
    """
    library, _, name = reference.partition(":")
    if weights == PRETRAINED and library == "torchvision" and name.startswith(AUXILIARY):
        return {"aux_loss": True, **args}
    own = weights == PRETRAINED and library == "torchvision" and name in TWO_HEADED
    return {"transform_input": True, "init_weights": False, **args} if own else dict(args)


def _as_torchvision_loads(name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a file's weights under the names that torchvision gives them while it loads them.

    DenseNet's files say ``norm.1`` for ``norm1`` (torchvision/models/densenet.py); the second heads of GoogLeNet and
    Inception v3, which only their training uses, are left out.
    """
    if name.startswith("densenet"):
        return {
            re.sub(r"(\.denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", key): weights[key] for key in weights
        }
    if name in TWO_HEADED:
        return {key: weights[key] for key in weights if not key.startswith(("aux1.", "aux2.", "AuxLogits."))}
    return dict(weights)


def needs_channels_first(network: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether a network must be given images that lie channels first in memory.

    Two reasons: it calls ``view`` on what it computes; or it has a 1x1 convolution with a stride that takes fewer than
    16 channels. Of such a one torch 2.15's gradients on CPUs with AVX-512 and more than one thread write beyond their
    memory where images lie channels last, and the process ends with a segmentation fault.
    """
    return any(_breaks_channels_last(module) for module in network.modules()) or _views_its_layers(network, inputs)


def _breaks_channels_last(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d):
        return False
    return set(module.kernel_size) == {1} and max(module.stride) > 1 and module.in_channels < SAFE_CHANNELS


def _views_its_layers(network: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            network(*inputs)
    except Exception as error:  # noqa: BLE001 - any other fault is told by ``check_output``
        return "view size is not compatible" in str(error)
    finally:
        network.train(was_training)
    return False


def not_taken(role: str, inputs: tuple[Tensor, ...], error: Exception) -> SourceError:
    """Return what to say where a network raises an error on data."""
    shapes = ", ".join(f"{list(item.shape)} {str(item.dtype).removeprefix('torch.')}" for item in inputs)
    return SourceError(
        f"the {role} does not take the data ({shapes}): {type(error).__name__}: {str(error).partition(chr(10))[0]}",
        hint="give its args or its preprocessing (size, mean, std) in the recipe, so that it fits the data",
    )


def check_output(network: nn.Module, inputs: tuple[Tensor, ...], task: Task, names: Sequence[str], role: str) -> None:
    """Run one batch and hold that the network gives what the task asks for.

    Raises:
        SourceError: It raises, or its output has another shape.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            output = network(*inputs)
    except KDExportError:
        raise
    except Exception as error:
        raise not_taken(role, inputs, error) from error
    finally:
        network.train(was_training)
    if not isinstance(output, Tensor):
        raise SourceError(
            f"the {role}'s output is a {type(output).__name__}, not a tensor",
            hint="let its forward return a tensor, or tensors by name, and set output to the one that is meant",
        )
    task.check_outputs(tuple(output.shape), inputs[0].shape[0], names, f"the {role}")


def _torchvision(reference: Reference, args: dict[str, Any], num_classes: int | None) -> Any:
    from torchvision import models

    segments = models.list_models(module=models.segmentation)
    known = [*models.list_models(module=models), *segments]
    if reference.target not in known:
        near = did_you_mean(reference.target, known) or "torchvision.models.list_models() names them all"
        raise SourceError(
            f"torchvision has no classifier '{reference.target}', and no segmentation network", hint=near.strip()
        )
    if reference.target in segments:  # else the backbone's weights would be downloaded
        args.setdefault("weights_backbone", None)
    if num_classes is not None:
        args.setdefault("num_classes", num_classes)
    if reference.target in TWO_HEADED:  # a second head for training would make the output a tuple
        args = {"aux_logits": False, "init_weights": True, **args}
    args.setdefault("weights", None)
    return call(reference, models.get_model_builder(reference.target), args)


def _timm(reference: Reference, args: dict[str, Any], num_classes: int | None) -> Any:
    timm = import_timm()
    if not timm.is_model(reference.target):
        near = did_you_mean(reference.target, timm.list_models()) or "timm.list_models() names them all"
        raise SourceError(f"timm has no network '{reference.target}'", hint=near.strip())
    if num_classes is not None:
        args.setdefault("num_classes", num_classes)
    return call(reference, timm.create_model, {"model_name": reference.target, "pretrained": False, **args})


def import_timm() -> Any:
    """Import timm, which is optional.

    Raises:
        SourceError: It is not installed.
    """
    try:
        import timm
    except ImportError:
        raise SourceError(
            "a timm: network needs timm, which is not installed", hint="pip install 'kdexport[timm]'"
        ) from None
    return timm


def _program(reference: Reference, args: Mapping[str, Any]) -> nn.Module:
    path = Path(reference.target)
    if args:
        raise SourceError(f"{path} is a network already and takes no args", hint="take the args out")
    if path.suffix == ".pt2":
        from kdexport.models.programs import Program

        return Program(path)
    if path.suffix == ".onnx":  # only here: a training needs no ONNX Runtime otherwise
        from kdexport.models.checkpoints import OnnxNetwork

        return OnnxNetwork(path)
    hint = f"a model reference is one of: {', '.join(_FORMS)}"
    if path.suffix in SUFFIXES:
        hint = f"weights alone are no network: name the network (file.py:Name), and give {path.name} as its weights"
    raise SourceError(f"'{path}' is no network that can be built", hint=hint)


def _python(reference: Reference, args: dict[str, Any], num_classes: int | None) -> Any:
    found = load_object(reference)
    if isinstance(found, nn.Module):
        if args:
            raise SourceError(f"{reference} is a network already and takes no args", hint="take the args out")
        return _own_copy(found, reference)
    if not callable(found):
        raise SourceError(
            f"{reference} is a {type(found).__name__}, not a class or function",
            hint="name a class that derives from torch.nn.Module, or a function that returns one",
        )
    if num_classes is not None and "num_classes" not in args and _takes(found, "num_classes"):
        args["num_classes"] = num_classes
    made = call(reference, found, args)
    try:  # the function may hand out one network each time, or keep what it made
        return copy.deepcopy(made)
    except Exception:  # noqa: BLE001 - then it is its own to begin with, as a fresh one is
        return made


def _own_copy(network: nn.Module, reference: Reference) -> nn.Module:
    """Return a copy: what one role trains, the other roles, and the next to begin with it, must not see."""
    try:
        return copy.deepcopy(network)
    except Exception as error:
        raise SourceError(
            f"{reference} is a network that cannot be copied ({error}), and each role needs its own",
            hint="name a function that makes it in place of the object itself",
        ) from error


def takes(reference: str, argument: str) -> bool:
    """Whether the class or function that a reference names has an argument of that name."""
    parsed = parse(reference)
    return parsed.kind in ("file", "module") and _takes(load_object(parsed), argument)


def _takes(function: Any, argument: str) -> bool:
    try:
        return argument in inspect.signature(function).parameters
    except (TypeError, ValueError):  # no signature to be had
        return False


_BUILDERS = {"torchvision": _torchvision, "timm": _timm, "file": _python, "module": _python, "object": _python}
_FORMS = (
    "torchvision:NAME",
    "timm:NAME",
    "hf:NAME_OR_DIR",
    "file.py:Name",
    "package.module:Name",
    "model.pt2",
    "model.onnx",
)
