"""A student that is a part of another network: some layers of a transformer, its vocabulary cut to the corpus.

Its weights are the whole network's until it is trained; then it is built from its configuration alone, and needs
neither the teacher nor the teacher's weights.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdexport.data.samples import Dataset
from kdexport.errors import SourceError
from kdexport.models.checkpoints import read
from kdexport.models.networks import load_with_fresh, takes
from kdexport.models.outputs import PROJECTION
from kdexport.models.transformer_cut import Cut, take_weights
from kdexport.models.weights import Fit, carve_as, fit, load_weights
from kdexport.recipe import Student
from kdexport.references import parse


def load_cut(
    spec: Student, args: Mapping[str, Any], dataset: Dataset, weights: Path | None, start: Path | None
) -> tuple[nn.Module, Callable[[], Fit]]:
    """Build a student whose ``layers`` or ``vocabulary`` the recipe gives.

    Args:
        spec: The recipe's table.
        args: Of the whole network.
        dataset: Gives the cut vocabulary.
        weights: Of the student itself, where it has been trained: the whole network is not looked at.
        start: Of the whole network, where the run has trained that; else its own files are taken.

    Returns:
        The network, and what gives it its weights: to be called once it has the layer of ``embedding_dim``, where its
        weights have one.

    Raises:
        SourceError: It is no transformer that could be cut; when it gets its weights: the whole network's do not fit.
    """
    reference = parse(spec.model)
    if spec.vocabulary is not None and dataset.vocabulary is None:
        raise SourceError(
            f"the data {dataset.name} were loaded without the student's vocabulary '{spec.vocabulary}'",
            hint="give the data as a reference, e.g. csv:FILE, so that their texts can be tokenized again",
        )
    kept = None if dataset.vocabulary is None or spec.vocabulary is None else dataset.vocabulary.kept
    outputs, embeds = dataset.task.num_outputs(dataset.class_names), dataset.task.embeds
    if reference.kind != "hf":
        return _of_ones_own(spec, args, outputs, weights, None if kept is None else len(kept))
    cut = Cut(spec.layers, kept)
    small, _ = load_with_fresh(spec.model, args, outputs, embeds=embeds, cut=cut)

    def load() -> Fit:
        if weights is not None:
            load_weights(small, weights)
            return Fit()
        if spec.weights is not None and _is_its_own(small, spec):
            return Fit()
        whole, fresh = load_with_fresh(spec.model, args, outputs, embeds=embeds)
        return _taken(small, whole, fresh, cut, spec, start)

    return small, load


def _taken(
    small: nn.Module, whole: nn.Module, fresh: tuple[str, ...] | None, cut: Cut, spec: Student, start: Path | None
) -> Fit:
    """Give a cut network the weights of the whole one, which first gets those that the run or the recipe has."""
    fitted = Fit()
    if start is not None:
        _fit_whole(whole, small, start, strict=True, key=None)
    elif spec.weights is not None:
        fitted = _fit_whole(whole, small, Path(spec.weights), spec.strict, spec.weights_key)
    elif fresh:
        fitted = Fit(tuple(f"{name}: fresh, not in the files of {spec.model}" for name in fresh), fresh)
    config: Any = whole.model.config  # type: ignore[union-attr]
    layers = cut.layers_of(config, spec.model)
    take_weights(small, whole, layers, cut.kept, spec.model)
    target = parse(spec.model).target
    told = f"of {target if not Path(target).is_dir() else Path(target).name}"
    parts = [] if layers is None else [f"layers {', '.join(map(str, layers))} of {config.num_hidden_layers}"]
    parts += [] if cut.kept is None else [f"{len(cut.kept):,} tokens"]
    began = "as they are at their start" if fresh is None and start is None and spec.weights is None else "with weights"
    small.notes = (*getattr(small, "notes", ()), f"{' and '.join(parts)} {told}, {began}")  # type: ignore[assignment]
    return fitted


def _fit_whole(whole: nn.Module, small: nn.Module, path: Path, strict: bool, key: str | None) -> Fit:
    """Load the whole network's weights; the layer of its ``embedding_dim`` goes to a cut network that is as wide."""
    carve_as(whole, path)
    document = read(path)
    layer: dict[str, Tensor] = {}
    if isinstance(document, Mapping):
        layer = {name: item for name, item in document.items() if str(name).startswith(f"{PROJECTION}.")}
        document = {name: item for name, item in document.items() if name not in layer}
    own = small.state_dict()
    if layer and all(name in own and own[name].shape == tensor.shape for name, tensor in layer.items()):
        small.load_state_dict(layer, strict=False)
    return fit(whole, document, str(path), strict, key)


def _of_ones_own(
    spec: Student, args: Mapping[str, Any], outputs: int | None, weights: Path | None, tokens: int | None
) -> tuple[nn.Module, Callable[[], Fit]]:
    """Build a network of the user's own for a cut vocabulary; it is told how many tokens there are."""
    if spec.layers is not None:
        raise SourceError(
            f"student.layers takes layers out of a transformer of transformers, and student.model is {spec.model}",
            hint='set model = "hf:NAME_OR_DIR" under [student], or take layers out; a network of your own has its '
            "number of layers in its args",
        )
    if tokens is not None and takes(spec.model, "vocab_size"):
        args = {"vocab_size": tokens, **args}
    network, _ = load_with_fresh(spec.model, args, outputs)

    def load() -> Fit:
        if weights is not None:
            load_weights(network, weights)
        elif spec.weights is not None:
            return fit(network, read(Path(spec.weights)), spec.weights, spec.strict, spec.weights_key)
        return Fit()

    return network, load


def _is_its_own(small: nn.Module, spec: Student) -> bool:
    """Whether the recipe's weights are those of a student that was cut and trained before; they are then loaded."""
    try:
        fit(small, read(Path(str(spec.weights))), str(spec.weights), strict=True, key=spec.weights_key)
    except SourceError:
        return False
    return True
