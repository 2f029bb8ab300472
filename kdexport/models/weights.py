"""Weights in the forms that users have them: found in whatever they are nested in, and held against a network."""

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from kdexport.artifacts import write_atomically
from kdexport.errors import SourceError
from kdexport.models.checkpoints import read, state_dicts
from kdexport.models.outputs import output_of
from kdexport.models.pruned import carve, metadata_of, plan_in, plan_of
from kdexport.tasks.postprocessing import Postprocessing

WRAPPERS = {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
OWN_BEST = "state.loop.best.2"  # of a run's checkpoints: the weights that scored best, which the run would ship
COUNTER = "num_batches_tracked"  # absent before PyTorch 0.4.1; BatchNorm's own loading forgives it by version
POSTPROCESSING = "kdexport.postprocessing"  # in the metadata of a safetensors file
MAX_SHOWN = 20
MAX_PREFIXES = 64  # that are tried


@dataclass(frozen=True)
class Fit:
    """What came of loading weights."""

    left_out: tuple[str, ...] = ()  # a line for each name that differs between file and network
    fresh: tuple[str, ...] = ()  # names of the network that the file gave nothing for
    taken_from: str = ""  # the nest and prefix in the file, "" where there is none


def load_weights(network: nn.Module, path: Path, strict: bool = True, key: str | None = None) -> tuple[str, ...]:
    """Load a file's weights into a network, in place.

    Args:
        network: Receives them.
        path: ``.safetensors``, ``.pt``, ``.pth``, ``.th``, ``.ckpt`` or ``.bin``.
        strict: Whether everything must match; else what doesn't is left out.
        key: Which of the state dicts in the file, by its nest or its prefix; None: the one that fits best.

    Returns:
        What was left out, a line each.

    Raises:
        SourceError: The file is absent or no weights file, it has code in it, several state dicts in it fit equally,
            or (with ``strict``) it doesn't match; each difference is listed.
    """
    carve_as(network, path)
    return fit(network, read(path), str(path), strict, key).left_out


def carve_as(network: nn.Module, path: Path) -> None:
    """Give a network the shape that its weights have, where a file says that they are a pruned network's."""
    plan = plan_in(path)
    if plan is not None and plan_of(network) is None:
        carve(network, plan, str(path))


def fit_weights(network: nn.Module, given: Mapping[str, Tensor], origin: str, strict: bool = True) -> tuple[str, ...]:
    """Load named tensors into a network as ``load_weights`` does; ``origin`` is what messages call them."""
    return fit(network, given, origin, strict).left_out


def fit(network: nn.Module, document: Any, origin: str, strict: bool = True, key: str | None = None) -> Fit:
    """Load what a checkpoint holds into a network as ``load_weights`` does, and say what came of it."""
    own = network.state_dict()
    if not own:  # an ONNX file at work: there is nothing to load
        return Fit()
    lazy = [name for name, tensor in own.items() if isinstance(tensor, UninitializedParameter | UninitializedBuffer)]
    if lazy:
        raise SourceError(
            f"{origin} cannot be loaded: {', '.join(lazy[:4])} of the network has no shape before its first call",
            hint="call it once where it is made, e.g. network(torch.zeros(1, 3, 224, 224)), or write the layer's sizes",
        )
    candidates = [view for place, given in state_dicts(document) for view in _views(place, given, own)]
    if not candidates:
        raise SourceError(f"no weights are found in {origin}", hint="save network.state_dict() into it")
    if key is not None:
        candidates = _named(candidates, key, origin)
    chosen = _best(candidates, origin, strict)
    given = chosen.tensors
    differing = [name for name, tensor in own.items() if name in given and not _same_shape(given[name], tensor)]
    fitting = OrderedDict((name, tensor) for name, tensor in given.items() if name not in differing)
    fitting._metadata = chosen.versions  # type: ignore[attr-defined]  # what older files lack is forgiven by these
    try:
        missing, unexpected = network.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        reason = next((line.strip() for line in str(error).splitlines()[1:]), str(error))
        raise SourceError(f"{origin} does not fit the network: {reason}", hint="check the model's args") from error
    loaded = {_place(own[name]) for name in fitting if name in own}  # a tied weight is written once by some
    missing = [name for name in missing if name not in differing and _place(own[name]) not in loaded]
    faults = [f"{name}: missing in the file, {_shape(own[name])} in the network" for name in missing if name in own]
    faults += [f"{name}: not in the network, {_shape(given[name])} in the file" for name in unexpected]
    shapes = [(name, _shape(given[name], own[name]), _shape(own[name])) for name in differing]
    faults += [f"{name}: {there} in the file, {wanted} in the network" for name, there, wanted in shapes]
    fresh = tuple(name for name in (*missing, *differing) if not name.endswith(COUNTER))
    if faults and strict:
        raise SourceError(
            "\n".join([f"{origin} does not fit the network:", *_shortened(faults, chosen.others)]),
            hint=_hint(own, given, differing, len(faults)),
        )
    if fresh and len(fresh) == sum(not name.endswith(COUNTER) for name in own):
        raise SourceError(
            "\n".join([f"nothing in {origin} fits the network:", *_shortened(faults, chosen.others)]),
            hint="give the weights of this network, or other args",
        )
    return Fit(tuple(faults), fresh, chosen.where)


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's weights as safetensors, whole or not at all; equal weights give equal bytes.

    What is done to the network's output stands in the file's metadata: without it the weights mean something else.
    """
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    output = output_of(network)
    metadata = metadata_of(network)
    if output is not None and output.postprocessing is not None:
        metadata[POSTPROCESSING] = json.dumps(output.postprocessing.to_json())
    write_atomically(path, lambda temporary: _write_safetensors(state, metadata or None, temporary))


def postprocessing_in(path: Path) -> Postprocessing | None:
    """Return what weights that ``save_weights`` has written want done to the output; None where they say nothing.

    Raises:
        SourceError: What they say cannot be read.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            text = (file.metadata() or {}).get(POSTPROCESSING)
        return None if text is None else Postprocessing.from_json(json.loads(text))
    except (OSError, SafetensorError, ValueError, RecursionError):  # a damaged file is told when its weights are read
        return None


def _write_safetensors(state: dict[str, Tensor], metadata: dict[str, str] | None, path: Path) -> None:
    try:
        safetensors.torch.save_file(state, str(path), metadata)
    except SafetensorError as error:  # what its writer makes of a full disk
        raise OSError(str(error)) from error


@dataclass(frozen=True)
class _Candidate:
    """One reading of a state dict: its names as the network would have them."""

    place: str  # the nest
    prefix: str  # taken off
    tensors: dict[str, Tensor]
    versions: Mapping[str, Any]  # of the modules, as state_dict notes them
    matching: tuple[str, ...]  # names that are in the network, in the same shape
    complete: bool  # all of the network's
    others: tuple[str, ...]  # names without the prefix

    @property
    def where(self) -> str:
        return ": ".join(part for part in (self.place, f"{self.prefix}*" if self.prefix else "") if part)

    @property
    def size(self) -> tuple[int, int]:
        """How much of it is in the network: names, then numbers."""
        return len(self.matching), sum(self.tensors[name].numel() for name in self.matching)

    @property
    def averaged(self) -> bool:
        return "ema" in self.where.lower().replace(".", "_").replace(": ", "_").split("_")


def _views(place: str, state: Mapping[Any, Any], own: Mapping[str, Tensor]) -> Iterator[_Candidate]:
    """Yield a state dict as it is, and without or with the prefixes under which more names fit the network's."""
    named = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    named = {name: tensor for name, tensor in named.items() if not _is_extra(name)} or named
    versions = _versions(getattr(state, "_metadata", None))
    heads = {name.partition(".")[0] for name in own}
    wrapper = f"{heads.pop()}." if len(heads) == 1 and all("." in name for name in own) else ""
    seen: set[tuple[str, str, bool]] = set()
    for unwrapped in (False, True):  # DataParallel and torch.compile leave their names, at any depth
        given = {_unwrapped(name): tensor for name, tensor in named.items()} if unwrapped else named
        if unwrapped and given.keys() == named.keys():
            continue
        for added in dict.fromkeys(("", wrapper)):
            inner = [name.removeprefix(added) for name in own]
            for prefix in ("", *_prefixes(given, inner)):
                if (added, prefix, unwrapped) in seen:
                    continue
                seen.add((added, prefix, unwrapped))
                yield _candidate(place, prefix, added, given, versions, own)


def _versions(metadata: Any) -> dict[str, dict[str, int]]:
    """Return what a file notes of its modules' versions, and nothing else that it notes."""
    if not isinstance(metadata, Mapping):
        return {}
    noted = {str(name): value.get("version") for name, value in metadata.items() if isinstance(value, Mapping)}
    return {name: {"version": version} for name, version in noted.items() if isinstance(version, int)}


def _candidate(
    place: str,
    prefix: str,
    added: str,
    given: Mapping[str, Tensor],
    versions: Mapping[str, Any],
    own: Mapping[str, Tensor],
) -> _Candidate:
    cut = len(prefix)
    tensors = {added + name[cut:]: tensor for name, tensor in given.items() if name.startswith(prefix)}
    matching = tuple(name for name, tensor in own.items() if name in tensors and _same_shape(tensors[name], tensor))
    needed = sum(not name.endswith(COUNTER) for name in own)
    there = sum(not name.endswith(COUNTER) for name in matching)
    renamed = {
        (added + f"{_unwrapped(name)}.".removeprefix(prefix)).rstrip("."): value for name, value in versions.items()
    }
    others = tuple(name for name in given if not name.startswith(prefix))
    return _Candidate(place, prefix, tensors, renamed, matching, there == needed, others)


def _prefixes(given: Mapping[str, Tensor], wanted: list[str]) -> list[str]:
    """Return what stands before the network's names in a file, commonest first, by looking for a few of them."""
    found: dict[str, int] = {}
    weights = [name for name in wanted if not name.endswith(COUNTER)] or wanted
    for anchor in dict.fromkeys([*weights[:1], *weights[len(weights) // 2 :][:1], *weights[-1:]]):
        for name in given:
            if name.endswith(anchor) and name[: -len(anchor)].endswith("."):
                found[name[: -len(anchor)]] = found.get(name[: -len(anchor)], 0) + 1
    return sorted(found, key=lambda prefix: -found[prefix])[:MAX_PREFIXES]


def _best(candidates: list[_Candidate], origin: str, strict: bool) -> _Candidate:
    """Return the reading that fits best.

    Raises:
        SourceError: Several with different values fit equally.
    """
    most = max(candidate.size for candidate in candidates)
    tied = [candidate for candidate in candidates if candidate.size == most]
    chosen = tied[0]
    rivals: list[_Candidate] = []
    for other in tied[1:]:
        if all(_differs(other, known) for known in (chosen, *rivals)):
            rivals.append(other)
        if len(rivals) == MAX_SHOWN:  # to compare all with all takes the square of their number
            break
    if not rivals or not chosen.matching or (strict and not chosen.complete):
        return chosen
    best = next((candidate for candidate in (chosen, *rivals) if candidate.place == OWN_BEST), None)
    if best is not None:  # a checkpoint of kdexport's: beside the last weights and their average
        return best
    averaged = [candidate for candidate in (chosen, *rivals) if candidate.averaged]
    if len(averaged) == 1 and len(rivals) == 1:  # an average of the weights, which is what one deploys, beside them
        return averaged[0]
    places = [candidate.where or "the top" for candidate in (chosen, *rivals)]
    example = rivals[0].prefix.rstrip(".") or rivals[0].place
    raise SourceError(
        f"{origin} holds {len(places)} sets of weights{' and more' * (len(rivals) == MAX_SHOWN)} that fit the network "
        f"equally: {', '.join(places[:MAX_SHOWN])}",
        hint=f'say which one with weights_key beside weights, e.g. weights_key = "{example}"; '
        f"for evaluate --set student.weights_key={example}",
    )


def _differs(one: _Candidate, other: _Candidate) -> bool:
    return one.matching != other.matching or any(
        not torch.equal(one.tensors[name], other.tensors[name]) for name in one.matching
    )


def _named(candidates: list[_Candidate], key: str, origin: str) -> list[_Candidate]:
    wanted = key.rstrip(".*")
    found = [one for one in candidates if wanted in (one.place, one.prefix.rstrip("."), one.where.rstrip(".*"))]
    if not found:
        there = dict.fromkeys(one.where or "the top" for one in candidates)
        raise SourceError(
            f"{origin} has no weights under '{key}'", hint=f"weights_key is one of: {', '.join([*there][:MAX_SHOWN])}"
        )
    return found


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Stands for a tensor's memory: tied weights share it. One without any is alone."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.data_ptr() else (id(tensor),)


def _same_shape(given: Tensor, own: Tensor) -> bool:
    """Whether ``load_state_dict`` takes one for the other, values and all: one of one element also for a number."""
    if _kind(given, own):
        return False
    return given.shape == own.shape or (given.shape == (1,) and own.shape == ())


def _kind(given: Tensor, own: Tensor | None = None) -> str:
    """Say in which form a tensor is no plain weight; empty where it is.

    Integers, truth values and complex numbers in the place of a network's floats would be cast without a word.
    """
    if given.is_nested:
        return "nested"
    if given.is_meta:
        return "without data (device meta)"
    if given.is_quantized or given.layout is not torch.strided:
        return "quantized" if given.is_quantized else str(given.layout).removeprefix("torch.")
    cast = own is not None and own.is_floating_point() and not given.is_floating_point()
    return f"of {str(given.dtype).removeprefix('torch.')}" if cast else ""


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _is_extra(name: str) -> bool:
    """Whether a tensor is known to be no weight: counters that averages and profilers leave behind."""
    return name in ("n_averaged", "total_ops", "total_params") or name.endswith((".total_ops", ".total_params"))


def _shortened(faults: list[str], others: tuple[str, ...]) -> list[str]:
    lines = [f"  {fault}" for fault in faults[:MAX_SHOWN]]
    if len(faults) > MAX_SHOWN:
        lines.append(f"  ... and {len(faults) - MAX_SHOWN} more")
    if others:
        more = ", ..." if len(others) > MAX_SHOWN else ""
        lines.append(f"  the file also holds {', '.join(others[:MAX_SHOWN])}{more}")
    return lines


def _hint(own: Mapping[str, Tensor], given: Mapping[str, Tensor], differing: list[str], faults: int) -> str:
    heads = {name.rpartition(".")[0] for name in differing}
    if any(_kind(given[name], own[name]) for name in differing):
        return "save the weights as plain floats: tensor.to_dense(), .dequantize() or .float() before torch.save"
    if faults == len(differing) and len(heads) == 1 and own[differing[0]].ndim and given[differing[0]].ndim:
        name = differing[0]
        return (
            f"only {heads.pop()} differs: the weights are for {given[name].shape[0]} classes, the network for "
            f"{own[name].shape[0]}; set strict = false to keep all but it, and train it"
        )
    return "check the model's args, or set strict = false to load what fits"


def _shape(tensor: Tensor, own: Tensor | None = None) -> str:
    kind = _kind(tensor, own)
    return " ".join(part for part in ("" if tensor.is_nested else str(list(tensor.shape)), kind) if part)
