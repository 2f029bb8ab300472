"""Weights in the forms that users have them, loaded without ever running what is in them."""

import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kdexport.artifacts import write_atomically
from kdexport.errors import SourceError

SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".ckpt", ".bin")
# Where trainers put a state dict, the one to deploy first. Lightning: state_dict; timm: state_dict or state_dict_ema;
# torchvision's references: model and model_ema; diffusers and others: ema.
NESTS = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "ema_state_dict",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "params",
    "weights",
)
PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.", "student.", "teacher.", "backbone.", "ema_model.")
MAX_WRAPPERS = 3  # e.g. model._orig_mod.module.
MAX_SHOWN = 20
ALLOWED = {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"}


def load_weights(network: nn.Module, path: Path, strict: bool = True) -> tuple[str, ...]:
    """Load a file's weights into a network, in place.

    Args:
        network: Receives them.
        path: ``.safetensors``, ``.pt``, ``.pth``, ``.th``, ``.ckpt`` or ``.bin``.
        strict: Whether everything must match; else what doesn't is left out.

    Returns:
        What was left out, a line each.

    Raises:
        SourceError: The file is absent or no weights file, it has code in it, or (with ``strict``) it doesn't match;
            each difference is listed.
    """
    return fit_weights(network, read_weights(path), str(path), strict)


def fit_weights(network: nn.Module, given: Mapping[str, Tensor], origin: str, strict: bool = True) -> tuple[str, ...]:
    """Load named tensors into a network as ``load_weights`` does; ``origin`` is what messages call them."""
    own = network.state_dict()
    given = _without_prefixes(given, own)
    faults = [f"{name}: missing in the file, {_shape(own[name])} in the network" for name in own if name not in given]
    faults += [f"{name}: not in the network, {_shape(given[name])} in the file" for name in given if name not in own]
    both = [name for name in own if name in given]
    differing = [name for name in both if given[name].shape != own[name].shape]
    faults += [f"{name}: {_shape(given[name])} in the file, {_shape(own[name])} in the network" for name in differing]
    if faults and strict:
        shown = [f"  {fault}" for fault in faults[:MAX_SHOWN]]
        if len(faults) > MAX_SHOWN:
            shown.append(f"  ... and {len(faults) - MAX_SHOWN} more")
        raise SourceError(
            "\n".join([f"{origin} does not fit the network:", *shown]), hint=_hint(own, given, both, differing)
        )
    fitting = {name: given[name] for name in both if name not in differing}
    if own and not fitting:
        raise SourceError(
            f"nothing in {origin} fits the network", hint="give the weights of this network, or other args"
        )
    network.load_state_dict(fitting, strict=False)
    return tuple(faults)


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's weights as safetensors, whole or not at all; equal weights give equal bytes."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    write_atomically(path, lambda temporary: _write_safetensors(state, temporary))


def _write_safetensors(state: dict[str, Tensor], path: Path) -> None:
    try:
        safetensors.torch.save_file(state, str(path))
    except SafetensorError as error:  # what its writer makes of a full disk
        raise OSError(str(error)) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a weights file, out of whatever they are nested in.

    Raises:
        SourceError: Absent, no weights file, or a pickle that would run code; it is not run.
    """
    if not path.is_file():
        raise SourceError(
            f"there is no weights file {path}", hint="check the path; in a recipe it is relative to the recipe"
        )
    _check_no_web_page(path)
    if path.suffix == ".safetensors":
        try:
            return dict(safetensors.torch.load_file(str(path)))
        except Exception as error:
            raise SourceError(
                f"{path} is no whole safetensors file: {error}", hint="download or save it again"
            ) from error
    found = _state_dict(_unpickled(path))
    if not found:
        raise SourceError(f"no weights are found in {path}", hint="save network.state_dict() into it")
    return found


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an unusual pickle protocol: it loads, or says why not
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        refused = _refused(path)
        if refused:
            raise SourceError(
                f"{path} holds code besides weights ({', '.join(refused)}) and was not loaded: nothing in it was run",
                hint="where you trust it, load it yourself and save network.state_dict() alone, "
                "e.g. with safetensors.torch.save_file",
            ) from None
        raise SourceError(
            f"{path} is no weights file that can be loaded safely",
            hint="save network.state_dict() alone, with torch.save or safetensors.torch.save_file",
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{path} is no whole weights file: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            hint="download or save it again",
        ) from error


def _refused(path: Path) -> list[str]:
    """Return the names that a pickle would import and that weights do not need; a TorchScript file is one such name."""
    if not zipfile.is_zipfile(path):  # older than torch 1.6, or a bare pickle
        return sorted(set(_globals(path)) - ALLOWED)
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 the file is damaged; torch has refused it already
        return []
    if names:
        return sorted(names)
    with zipfile.ZipFile(path) as archive:
        script = any(name.endswith("/constants.pkl") for name in archive.namelist())
    return ["a TorchScript program"] if script else []


def _globals(path: Path) -> Iterator[str]:
    """Yield what the pickles of a file would import, without unpickling them."""
    strings: list[str] = []
    with path.open("rb") as handle:
        while True:
            try:
                for code, argument, _ in pickletools.genops(handle):
                    if code.name == "GLOBAL":
                        yield str(argument).replace(" ", ".")
                    elif code.name == "STACK_GLOBAL" and len(strings) > 1:
                        yield ".".join(strings[-2:])
                    elif isinstance(argument, str):
                        strings.append(argument)
            except (ValueError, IndexError):  # its end, or the raw tensors after the pickles
                return


def _state_dict(document: Any, depth: int = 4) -> dict[str, Tensor]:
    """Return the tensors of a state dict, or of the first nest that holds one."""
    if not isinstance(document, Mapping) or depth == 0:
        return {}
    for nest in NESTS:
        found = _state_dict(document.get(nest), depth - 1)
        if found:
            return found
    return {str(name): value for name, value in document.items() if isinstance(value, Tensor)}


def _without_prefixes(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off, or put on, the prefixes that wrappers put before the names, one inside another, where more then fit."""
    best = dict(given)
    layer = [best]
    for _ in range(MAX_WRAPPERS):
        layer = [names for candidate in layer for names in _renamed(candidate)]
        best = max([best, *layer], key=lambda names: sum(name in own for name in names))
        if all(name in best for name in own):
            break
    kept = {name: tensor for name, tensor in best.items() if name in own or not _is_extra(name)}
    return kept or best


def _renamed(names: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in names):
            shorter = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
            # A Lightning checkpoint holds the model under one prefix and metrics under others.
            yield shorter if len(shorter) == len(names) else _only(names, prefix)
    yield {f"model.{name}": tensor for name, tensor in names.items()}  # a wrapper of ours around the same network


def _only(names: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in names.items() if name.startswith(prefix)}


def _is_extra(name: str) -> bool:
    """Whether a tensor is known to be no weight: counters that averages and profilers leave behind."""
    return name in ("n_averaged", "total_ops", "total_params") or name.endswith((".total_ops", ".total_params"))


def _hint(own: Mapping[str, Tensor], given: Mapping[str, Tensor], both: list[str], differing: list[str]) -> str:
    heads = {name.rpartition(".")[0] for name in differing}
    if len(both) == len(own) == len(given) and len(heads) == 1:
        name = differing[0]
        return (
            f"only {heads.pop()} differs: the weights are for {given[name].shape[0]} classes, the data have "
            f"{own[name].shape[0]}; set strict = false to keep all but it, and train it"
        )
    return "check the model's args, or set strict = false to load what fits"


def _check_no_web_page(path: Path) -> None:
    with path.open("rb") as handle:
        start = handle.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise SourceError(
            f"{path} is a web page, not weights: the download went to a page about the file",
            hint="open the address in a browser, and download the file itself (the raw link)",
        )
    if start.startswith(b"version https://git-lfs"):
        raise SourceError(f"{path} is a Git LFS pointer, not weights", hint="fetch the file itself: git lfs pull")


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
