"""Weights in the forms that users have them, loaded without ever running what is in them."""

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from kdexport.artifacts import write_atomically
from kdexport.errors import SourceError

NESTS = ("state_dict", "model_state_dict", "model", "net", "module", "ema")
PREFIXES = ("module.", "model.", "_orig_mod.", "net.")
MAX_WRAPPERS = 3  # e.g. model._orig_mod.module.


def load_weights(network: nn.Module, path: Path, strict: bool = True) -> tuple[str, ...]:
    """Load a file's weights into a network, in place.

    Args:
        network: Receives them.
        path: ``.safetensors``, ``.pt``, ``.pth``, ``.th`` or ``.ckpt``.
        strict: Whether everything must match; else what doesn't is left out.

    Returns:
        What was left out, a line each.

    Raises:
        SourceError: The file is absent or no weights file, or (with ``strict``) doesn't match; each difference is
            listed.
    """
    own = network.state_dict()
    given = _fitted(read_weights(Path(path)), own)
    faults = [f"{name}: missing in the file, {_shape(own[name])} in the network" for name in own if name not in given]
    faults += [
        f"{name}: not in the network, {_shape(tensor)} in the file" for name, tensor in given.items() if name not in own
    ]
    faults += [
        f"{name}: {_shape(given[name])} in the file, {_shape(own[name])} in the network"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    if faults and strict:
        shown = [f"  {fault}" for fault in faults[:20]] + (
            [f"  ... and {len(faults) - 20} more"] if len(faults) > 20 else []
        )
        raise SourceError(
            "\n".join([f"{path} does not fit the network:", *shown]),
            hint="check the model's args, or set strict = false to load what fits",
        )
    fitting = {name: tensor for name, tensor in given.items() if name in own and tensor.shape == own[name].shape}
    if not fitting:
        raise SourceError(f"nothing in {path} fits the network", hint="give the weights of this network, or other args")
    network.load_state_dict(fitting, strict=False)
    return tuple(faults)


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's weights as safetensors, whole or not at all; equal weights give equal bytes."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    write_atomically(path, lambda temporary: safetensors.torch.save_file(state, str(temporary)))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a weights file, out of whatever they are nested in.

    Raises:
        SourceError: Absent, or no weights file.
    """
    if not path.is_file():
        raise SourceError(
            f"there is no weights file {path}", hint="check the path; in a recipe it is relative to the recipe"
        )
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(str(path))
        except Exception as error:
            raise SourceError(f"{path} is no safetensors file: {error}", hint="download or save it again") from error
    document = torch.load(path, map_location="cpu", weights_only=True)
    while isinstance(document, dict):
        tensors = {str(name): value for name, value in document.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
        document = next((document[nest] for nest in NESTS if nest in document), None)
    raise SourceError(f"no weights are found in {path}", hint="save network.state_dict() into it")


def _fitted(given: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off the prefixes that wrappers put before the names, one inside another, where more names then fit."""
    best, candidates = given, [given]
    for _ in range(MAX_WRAPPERS):
        candidates = [
            {name.removeprefix(prefix): tensor for name, tensor in names.items()}
            for names in candidates
            for prefix in PREFIXES
            if any(name.startswith(prefix) for name in names)
        ]
        candidates = [names for names in candidates if len(names) == len(given)]  # no two became one
        best = max([best, *candidates], key=lambda names: sum(name in own for name in names))
    return best


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
