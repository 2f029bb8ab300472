"""The layers of a network as one forward pass shows them: paths, shapes, order, and how a recipe names them.

``kdexport distill --show-layers`` prints both networks' layers, by the names that a term may give.
"""

import fnmatch
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdexport.data.samples import Dataset
from kdexport.distill import lineage
from kdexport.errors import KDExportError, did_you_mean, whole_number
from kdexport.models import outputs
from kdexport.models.fitted_data import load_run_data
from kdexport.models.loading import evaluating, load_model
from kdexport.models.outputs import PREFIX as OUTPUT
from kdexport.progress import SILENT, Progress
from kdexport.recipe import Recipe

SHOWN = 40  # layers in an error message


@dataclass(frozen=True)
class Layer:
    """One module that ran and gave a tensor, or another output of the network beside the one that is scored."""

    path: str  # as in ``network.get_submodule``, or ``output:NAME``
    kind: str  # its class, or "output"
    shape: tuple[int, ...]  # of what it gives, without the batch
    calls: int  # how often it ran in one pass
    stage: int | None  # its place among the stages, from 0; None for a layer within one
    feature: bool = True  # False where the network gives a map and this is its logits, or leads to another output


def trace(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Layer, ...]:
    """Return the layers in the order in which they first ended; the network is left as it was.

    Stages are a network's children, ``layer1`` to ``fc`` of a ResNet. A child that is alone (a wrapper's), one that is
    only a list, and a sequence that passes through several resolutions stand for what they hold.

    Args:
        network: Any module.
        inputs: What it takes, a small batch.

    Raises:
        KDExportError: No module within it was seen to run.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    calls: Counter[str] = Counter()

    def note(path: str, output: Tensor) -> None:
        calls[path] += 1
        shapes.setdefault(path, tuple(output.shape[1:]))

    paths = [name for name, _ in network.named_modules() if name]
    others: dict[str, Tensor] = {}
    capturing = capture_outputs(network, {path: path for path in paths}, note)
    with evaluating(network), capturing, outputs.listening(network, others.update):
        output = network(*inputs)
    if not shapes:
        raise KDExportError(
            f"a {type(network).__name__} shows no layers when it runs",
            hint="features come from networks of PyTorch modules, not from .pt2 or .onnx files: use a method on logits",
        )
    features = _features(network, inputs, output, shapes)
    stages = set(_stages(network, shapes))
    numbers = {path: number for number, path in enumerate(path for path in shapes if path in stages)}
    modules = (
        Layer(
            path,
            type(network.get_submodule(path)).__name__,
            shape,
            calls[path],
            numbers.get(path),
            feature=features is None or path in features,
        )
        for path, shape in shapes.items()
    )
    further = (Layer(f"{OUTPUT}{name}", "output", tuple(item.shape[1:]), 1, None) for name, item in others.items())
    return (*modules, *further)


def _features(
    network: nn.Module, inputs: tuple[Tensor, ...], output: Any, shapes: Mapping[str, tuple[int, ...]]
) -> set[str] | None:
    """Return the layers that are features of a network which gives a map; None of any other, or where none is seen.

    Logits that are made larger by a convolution have weights behind them too: the last layers of as many channels as
    the output are taken for logits.
    """
    if not isinstance(output, Tensor) or output.ndim != 4:
        return None
    made_by: dict[str, Any] = {}

    def note(path: str, tensor: Tensor) -> None:
        made_by[path] = tensor.grad_fn

    try:
        with evaluating(network), capture_outputs(network, {path: path for path in shapes}, note):
            found = lineage.weighable(network, lambda: network(*(item[:1] for item in inputs)))
    except Exception:  # noqa: BLE001 - the user's own code may take neither gradients nor a batch of one
        return None
    features = [path for path in shapes if path in lineage.weighed_later(found, made_by)]
    while features and shapes[features[-1]][0] == output.shape[1] and len(shapes[features[-1]]) == 3:
        features.pop()
    return set(features) or None


@contextmanager
def capture_outputs(network: nn.Module, paths: Mapping[str, str], note: Any) -> Iterator[None]:
    """Call ``note(name, output)`` whenever one of the modules has run; no hook is left behind.

    Args:
        network: Whose modules.
        paths: Name -> module path, or ``output:NAME`` for another of the network's outputs.
        note: Gets the name and the module's output: the tensor, or the first tensor of a tuple or dict.
    """

    def hook(name: str) -> Any:
        def captured(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
            tensor = first_tensor(output)
            if tensor is not None:
                note(name, tensor)

        return captured

    def others(named: Mapping[str, Tensor]) -> None:
        for name, path in paths.items():
            if path.startswith(OUTPUT) and path.removeprefix(OUTPUT) in named:
                note(name, named[path.removeprefix(OUTPUT)])

    modules = {name: path for name, path in paths.items() if not path.startswith(OUTPUT)}
    handles = [network.get_submodule(path).register_forward_hook(hook(name)) for name, path in modules.items()]
    try:
        with outputs.listening(network, others):
            yield
    finally:
        for handle in handles:
            handle.remove()


def first_tensor(output: Any) -> Tensor | None:
    """Return the tensor that a module's output is, or holds first, if it has a batch and something beside it."""
    if isinstance(output, Tensor):
        return output if output.ndim >= 2 else None
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, Sequence) and output:
        return first_tensor(output[0])
    return None


def find(layers: Sequence[Layer], wanted: str | int, whose: str) -> tuple[Layer, ...]:
    """Return the layers that a path, a glob or a stage's number names, in the order in which they run.

    ``*`` stands for anything between two dots.

    Raises:
        KDExportError: None is called so, or one runs more than once in a pass: which of its outputs is meant?
    """
    stages = [layer for layer in layers if layer.stage is not None]
    text = str(wanted)
    number = whole_number(text.removeprefix("-"))
    if number is not None and not any(layer.path == text for layer in layers):
        number = -number if text.startswith("-") else number
        if not -len(stages) <= number < len(stages):
            raise KDExportError(
                f"the {whose} has {len(stages)} stages, and {text} is not one of them",
                hint=f"stages are numbered 0 to {len(stages) - 1} or -1 to {-len(stages)}: {_listed(stages)}",
            )
        found = [stages[number]]
    else:
        found = [layer for layer in layers if _matches(layer.path, text)]
    if not found:
        near = did_you_mean(text, [layer.path for layer in layers])
        raise KDExportError(f"the {whose} has no layer '{text}'", hint=f"{near}it has: {_listed(layers)}")
    for layer in found:
        if layer.calls > 1:
            raise KDExportError(
                f"the {whose}'s layer '{layer.path}' runs {layer.calls} times in one pass, so it gives no one feature",
                hint="choose the layer that holds it or one that follows it; --show-layers lists them",
            )
    return tuple(found)


def stage_ends(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return the last map of each resolution, in order: where a network's stages end, however it is written."""
    ends: dict[tuple[int, ...], Layer] = {}
    for layer in layers:
        if layer.kind == "output" or not layer.feature:
            continue
        if layer.calls == 1 and len(layer.shape) == 3 and max(layer.shape[1:]) > 1:
            ends.pop(layer.shape[1:], None)
            ends[layer.shape[1:]] = layer
    return tuple(ends.values())


def suggested_pairs(student: Sequence[Layer], teacher: Sequence[Layer]) -> tuple[tuple[Layer, Layer], ...]:
    """Return pairs of layers that hold comparable things: maps counted from the last, then the embeddings."""
    maps = tuple(zip(reversed(stage_ends(student)), reversed(stage_ends(teacher)), strict=False))
    # Where no pooling module stands before the head, the embedding is the last map: named once.
    return tuple(dict.fromkeys([*reversed(maps), (embedding(student, "student"), embedding(teacher, "teacher"))]))


def embedding(layers: Sequence[Layer], whose: str) -> Layer:
    """Return the last stage before the one that gives the logits."""
    stages = [layer for layer in layers if layer.stage is not None and layer.calls == 1]
    features = [layer for layer in stages if layer.feature]
    if features and len(features) < len(stages):  # of a network that gives a map, which has told its head
        return features[-1]
    if len(stages) < 2:
        raise KDExportError(
            f"the {whose} has only {len(stages)} stages, so none is left when the logits are taken off",
            hint=f"name {whose}_layer: {_listed(layers)}",
        )
    return stages[-2]


def last_map(layers: Sequence[Layer], whose: str) -> Layer:
    """Return the last layer to run that still has positions: a map or tokens; an embedding where there is neither.

    Of a transformer on patches these are its last tokens: its only map is the patch embedding, before any block.
    """
    inner = [layer for layer in layers if layer.kind != "output" and layer.feature]
    tokens = [layer for layer in inner if layer.calls == 1 and len(layer.shape) == 2 and layer.shape[0] > 1]
    positions = [*tokens[-1:], *stage_ends(layers)[-1:]]
    return max(positions, key=layers.index) if positions else embedding(layers, whose)


def fusible_stages(layers: Sequence[Layer], whose: str) -> tuple[Layer, ...]:
    """Return ``stage_ends`` of a network that computes with maps to its end.

    Raises:
        KDExportError: Tokens follow its maps, as in a transformer whose only map is the patch embedding.
    """
    ends = stage_ends(layers)
    if ends and len(last_map(layers, whose).shape) == 2:
        raise KDExportError(
            f"the {whose} computes with tokens after {ends[-1].path}: it has no stages of maps to fuse",
            hint=f"name its {whose}_layers, or use hint or similarity, which take tokens",
        )
    return ends


def _stages(network: nn.Module, shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> list[str]:
    """Return the paths of the stages below a module, unordered."""
    ran = {path for path in shapes if path.startswith(prefix)}
    children = [
        f"{prefix}{name}"
        for name, _ in network.get_submodule(prefix.removesuffix(".")).named_children()
        if any(path == f"{prefix}{name}" or path.startswith(f"{prefix}{name}.") for path in ran)
    ]
    stages: list[str] = []
    for child in children:
        below = [shape for path, shape in shapes.items() if path.rpartition(".")[0] == child]
        resolutions = {shape[1:] for shape in below if len(shape) == 3 and max(shape[1:]) > 1}
        listing = isinstance(network.get_submodule(child), nn.Sequential) and len(resolutions) > 1
        if (len(children) == 1 and below) or child not in shapes or listing:
            stages += _stages(network, shapes, f"{child}.")
        else:
            stages.append(child)
    return stages


def _matches(path: str, pattern: str) -> bool:
    parts, patterns = path.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _listed(layers: Sequence[Layer]) -> str:
    names = [f"{layer.path} {list(layer.shape)}" for layer in layers]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


@dataclass(frozen=True)
class LayerRow:
    """One layer that a term can name."""

    path: str
    kind: str  # its class
    shape: tuple[int, ...]  # of what it gives, without the batch
    stage: int | None  # its number, by which it can be named as well
    usable: bool  # False where it runs several times in one pass


@dataclass(frozen=True)
class ShownLayers:
    """Both networks' layers in the order in which they run."""

    student: tuple[LayerRow, ...]
    teacher: tuple[LayerRow, ...]
    suggested: tuple[tuple[str, str], ...]  # (student's path, teacher's path), first stage first


def show_layers(recipe: Recipe, cache: Path, progress: Progress = SILENT) -> ShownLayers:
    """Return the layers of a recipe's networks, from one pass of two samples; nothing is trained.

    Args:
        recipe: Whose networks and data.
        cache: Folder for decoded samples.
        progress: Where long reading shows.

    Raises:
        KDExportError: A network or the data cannot be had.
    """
    dataset = load_run_data(recipe, cache, progress)
    student = _trace(recipe, "student", dataset)
    teacher = _trace(recipe, "teacher", dataset)
    return ShownLayers(
        tuple(map(_row, student)),
        tuple(map(_row, teacher)),
        tuple((ours.path, theirs.path) for ours, theirs in suggested_pairs(student, teacher)),
    )


def _trace(recipe: Recipe, role: str, dataset: Dataset) -> tuple[Layer, ...]:
    spec = recipe.student if role == "student" else recipe.teacher
    model = load_model(role, spec, dataset)
    return trace(model.network, model.preprocessing.apply(dataset.train.take(slice(0, 2)).inputs))


def _row(layer: Layer) -> LayerRow:
    return LayerRow(layer.path, layer.kind, layer.shape, layer.stage, usable=layer.calls == 1)
