"""A student that is a part of another network: some layers of a transformer, its vocabulary cut to the corpus.

Its weights are the whole network's until it is trained; then it is built from its configuration alone, and needs
neither the teacher nor the teacher's weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kdexport.data.samples import Dataset
from kdexport.errors import SourceError
from kdexport.models.checkpoints import read
from kdexport.models.networks import load_with_fresh, takes
from kdexport.models.transformer_cut import Cut, take_weights
from kdexport.models.weights import Fit, fit, load_weights
from kdexport.recipe import Student
from kdexport.references import parse


def load_cut(
    spec: Student, args: Mapping[str, Any], dataset: Dataset, weights: Path | None, start: Path | None
) -> tuple[nn.Module, tuple[str, ...] | None, Fit]:
    """Build a student whose ``layers`` or ``vocabulary`` the recipe gives.

    Args:
        spec: The recipe's table.
        args: Of the whole network.
        dataset: Gives the cut vocabulary.
        weights: Of the student itself, where it has been trained: the whole network is not looked at.
        start: Of the whole network, where the run has trained that; else its own files are taken.

    Returns:
        As ``load_with_fresh``, and what came of loading the recipe's weights.

    Raises:
        SourceError: It is no transformer that could be cut, or the whole network's weights do not fit it.
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
    if weights is not None:
        load_weights(small, weights)
        return small, (), Fit()
    if spec.weights is not None and _is_its_own(small, spec):
        return small, (), Fit()
    whole, fresh = load_with_fresh(spec.model, args, outputs, embeds=embeds)
    fitted = Fit()
    if start is not None:
        load_weights(whole, start)
    elif spec.weights is not None:
        fitted = fit(whole, read(Path(spec.weights)), spec.weights, spec.strict, spec.weights_key)
    elif fresh:
        fitted = Fit(tuple(f"{name}: fresh, not in the files of {spec.model}" for name in fresh), fresh)
    config: Any = whole.model.config  # type: ignore[union-attr]
    layers = cut.layers_of(config, spec.model)
    take_weights(small, whole, layers, kept, spec.model)
    told = f"of {reference.target if not Path(reference.target).is_dir() else Path(reference.target).name}"
    parts = [] if layers is None else [f"layers {', '.join(map(str, layers))} of {config.num_hidden_layers}"]
    parts += [] if kept is None else [f"{len(kept):,} tokens"]
    began = "as they are at their start" if fresh is None and start is None and spec.weights is None else "with weights"
    small.notes = (*getattr(small, "notes", ()), f"{' and '.join(parts)} {told}, {began}")  # type: ignore[assignment]
    return small, fresh, fitted


def _of_ones_own(
    spec: Student, args: Mapping[str, Any], outputs: int | None, weights: Path | None, tokens: int | None
) -> tuple[nn.Module, tuple[str, ...] | None, Fit]:
    """Build a network of the user's own for a cut vocabulary; it is told how many tokens there are."""
    if spec.layers is not None:
        raise SourceError(
            f"student.layers takes layers out of a transformer of transformers, and student.model is {spec.model}",
            hint='set model = "hf:NAME_OR_DIR" under [student], or take layers out; a network of your own has its '
            "number of layers in its args",
        )
    if tokens is not None and takes(spec.model, "vocab_size"):
        args = {"vocab_size": tokens, **args}
    network, fresh = load_with_fresh(spec.model, args, outputs)
    if weights is not None:
        load_weights(network, weights)
    elif spec.weights is not None:
        return network, fresh, fit(network, read(Path(spec.weights)), spec.weights, spec.strict, spec.weights_key)
    return network, fresh, Fit()


def _is_its_own(small: nn.Module, spec: Student) -> bool:
    """Whether the recipe's weights are those of a student that was cut and trained before; they are then loaded."""
    try:
        fit(small, read(Path(str(spec.weights))), str(spec.weights), strict=True, key=spec.weights_key)
    except SourceError:
        return False
    return True
