"""A network with its weights and its preprocessing, held against the data: what every stage that computes starts
from.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils.flop_counter import FlopCounterMode

from kdexport.data.samples import Dataset
from kdexport.errors import SourceError
from kdexport.models import embedding_dim
from kdexport.models.checkpoints import OnnxNetwork, read
from kdexport.models.hub import image_preprocessing
from kdexport.models.networks import (
    TWO_HEADED,
    check_output,
    import_timm,
    load_with_fresh,
    needs_channels_first,
    pretrained_weights,
    with_pretrained_args,
)
from kdexport.models.outputs import PROJECTION, Output, install
from kdexport.models.preprocessing import AS_THEY_ARE, TEXT_INPUTS, Preprocessing, resample_of, with_spec
from kdexport.models.students import load_cut
from kdexport.models.weights import Fit, carve_as, fit, load_weights, postprocessing_in
from kdexport.recipe import Prune, Student, TeacherSpec
from kdexport.recipe.text import PRETRAINED
from kdexport.references import parse
from kdexport.tasks.postprocessing import Postprocessing


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode, called as ``network(*preprocessing.apply(raw_inputs))``."""

    network: nn.Module
    preprocessing: Preprocessing
    left_out: tuple[str, ...] = ()  # of the weights that were to be loaded, a line each
    notes: tuple[str, ...] = ()  # what was chosen for want of anything said
    warnings: tuple[str, ...] = ()  # and what is likely to be wrong


def load_model(
    role: str,
    spec: TeacherSpec | Student,
    dataset: Dataset,
    weights: Path | None = None,
    *,
    learns: bool = False,
    any_output: bool = False,
    start: Path | None = None,
    seed: int = 0,
) -> Model:
    """Build a recipe's network for a data set.

    Args:
        role: ``"teacher"``, ``"student"`` or ``"student-plain"``: for messages.
        spec: The recipe's table.
        dataset: Gives the classes and the preprocessing that neither the recipe nor the network's own library gives.
        weights: Weights to load instead of the recipe's: those that a run has trained.
        learns: Whether it is going to be trained on the data: a head without weights then learns scaled targets.
        any_output: Whether it may give something else than the task's outputs; it is then left as it is, unless the
            recipe names one of its outputs.
        start: Of a student that is cut out of its teacher: the weights that the run has trained that to.
        seed: Of what is drawn where a network is pruned.

    Raises:
        SourceError: It cannot be built, the weights do not fit, or its output does not fit the data's classes.
    """
    if isinstance(spec, Student) and spec.prune is not None and weights is None:
        whole = load_model(role, spec.model_copy(update={"prune": None}), dataset, start, any_output=any_output)
        return _pruned(role, spec.prune, whole, dataset, seed)
    args = embedding_dim.arguments(spec, with_pretrained_args(spec.model, spec.args, spec.weights), dataset)
    network, fresh, fitted = _with_its_weights(spec, args, dataset, weights, start)
    if isinstance(network, OnnxNetwork):
        network.onnx.expects, network.onnx.output_ndim = dataset.task.activation, dataset.task.output_ndim
        network.onnx.width = dataset.task.num_outputs(dataset.class_names)
    bare = parse(spec.model).kind == "hf" and fresh is None and weights is None and spec.weights is None
    if bare and isinstance(spec, TeacherSpec) and spec.train is None:
        raise SourceError(
            f"the teacher {spec.model} has no weights: it would teach noise",
            hint="name a folder that holds them beside its config.json, or fit it on the labels with [teacher.train]",
        )
    if fitted.fresh and isinstance(spec, TeacherSpec) and spec.train is None:
        shown = ", ".join(fitted.fresh[:4]) + (", ..." if len(fitted.fresh) > 4 else "")
        raise SourceError(
            f"the teacher {spec.model} comes without {shown}: it would teach noise",
            hint="fit it on the labels with a [teacher.train] table, or name a model that classifies these data",
        )
    postprocessing = _postprocessing_of(spec, dataset, weights, learns=learns)
    told = postprocessing is not None and weights is None and spec.weights is not None and _file_says(spec.weights)
    if not any_output or spec.output is not None or told:
        table = "teacher" if isinstance(spec, TeacherSpec) else "student"
        trained = isinstance(spec, Student) or spec.train is not None
        install(network, Output(spec.output, postprocessing, role, f"{table}.output", trained=trained))
    preprocessing = preprocessing_of(spec, dataset)
    few = dataset.train.take(slice(0, 2)).inputs
    if needs_channels_first(network, preprocessing.apply(few)):
        preprocessing = replace(preprocessing, contiguous=True)
    _check_tokens(role, spec, network, dataset, preprocessing)
    if not any_output:
        hardest = preprocessing.apply(_hardest(dataset, preprocessing))
        check_output(network, hardest, dataset.task, dataset.class_names, role)
    notes, warnings = _said_of(role, spec, args, preprocessing, dataset)
    notes = (*notes, *(f"{role}: {line}" for line in getattr(network, "notes", ())))
    if fitted.taken_from:
        notes = (*notes, f"{role}: weights taken from {fitted.taken_from} in {spec.weights}")
    return Model(network.eval(), preprocessing, fitted.left_out, notes, warnings)


def _pruned(role: str, settings: Prune, whole: Model, dataset: Dataset, seed: int) -> Model:
    """Return a network without what the recipe takes out of it."""
    from kdexport.models.importance import loss_gradients
    from kdexport.models.pruning import prune

    inputs = whole.preprocessing.apply(dataset.train.take(slice(0, 2)).inputs)
    network, notes = prune(
        whole.network,
        settings,
        inputs,
        f"the {role}",
        seed=seed,
        gradients=partial(loss_gradients, whole.preprocessing, dataset, seed=seed),
        macs=lambda network: count_macs(replace(whole, network=network), dataset),
    )
    preprocessing = whole.preprocessing
    if needs_channels_first(network, inputs):
        preprocessing = replace(preprocessing, contiguous=True)
    said = tuple(f"{role}: {note}" for note in notes)
    return replace(whole, network=network, preprocessing=preprocessing, notes=(*whole.notes, *said))


def _with_its_weights(
    spec: TeacherSpec | Student, args: Mapping[str, Any], dataset: Dataset, weights: Path | None, start: Path | None
) -> tuple[nn.Module, tuple[str, ...] | None, Fit]:
    """Return a recipe's network, which weights its own files lack (None: all) and what came of loading others."""
    if isinstance(spec, Student) and spec.cuts:
        network, load_cut_weights = load_cut(spec, args, dataset, weights, start)
        given = None if weights is not None or spec.weights is None else read(Path(spec.weights))
        first = weights is not None or _has_projection(given) or start is not None
        inputs = () if spec.embedding_dim is None else _few(spec, dataset)
        return network, (), embedding_dim.with_width(network, spec, load_cut_weights, inputs, first=first)
    outputs = spec.embedding_dim or dataset.task.num_outputs(dataset.class_names)
    network, fresh = load_with_fresh(spec.model, args, outputs, embeds=dataset.task.embeds)
    lazy = any(
        isinstance(item, UninitializedParameter | UninitializedBuffer)
        for item in (*network.parameters(), *network.buffers())
    )
    few: tuple[torch.Tensor, ...] = ()
    if lazy or spec.embedding_dim is not None:
        few = _few(spec, dataset)
    if lazy:
        with evaluating(network):  # lazy layers have no shape before a first call
            network(*few)
    given = None if weights is not None or spec.weights in (None, PRETRAINED) else read(Path(str(spec.weights)))

    def load() -> Fit:
        if weights is not None:
            load_weights(network, weights)
        elif spec.weights == PRETRAINED and fresh is None:
            origin = f"what {spec.model} was pretrained to"
            return fit(network, pretrained_weights(spec.model, spec.args), origin, spec.strict)
        elif given is not None:
            carve_as(network, Path(str(spec.weights)))
            return fit(network, given, str(spec.weights), spec.strict, spec.weights_key)
        elif fresh:
            return Fit(tuple(f"{name}: fresh, not in the files of {spec.model}" for name in fresh), fresh)
        return Fit()

    first = weights is not None or _has_projection(given)
    return network, fresh, embedding_dim.with_width(network, spec, load, few, first=first)


def _few(spec: TeacherSpec | Student, dataset: Dataset) -> tuple[torch.Tensor, ...]:
    return preprocessing_of(spec, dataset).apply(dataset.train.take(slice(0, 2)).inputs)


def _has_projection(given: Any) -> bool:
    """Whether weights are those of a network that has the layer of ``embedding_dim`` already."""
    return isinstance(given, Mapping) and f"{PROJECTION}.weight" in given


def _postprocessing_of(
    spec: TeacherSpec | Student, dataset: Dataset, weights: Path | None, *, learns: bool
) -> Postprocessing | None:
    """Return what is done to a network's output: what its weights say, else what the task asks for."""
    given = None if spec.weights in (None, PRETRAINED) else Path(str(spec.weights))
    file = weights or given
    kept = None if file is None else postprocessing_in(file)
    if kept is not None:
        return kept
    shape = dataset.train.inputs[0].shape[1:]
    return dataset.task.postprocessing(shape, fresh=learns and file is None)


def _file_says(weights: str) -> bool:
    """Whether a weights file says what is done to the output: without it the weights mean something else."""
    return weights != PRETRAINED and postprocessing_in(Path(weights)) is not None


def _hardest(dataset: Dataset, preprocessing: Preprocessing) -> tuple[NDArray[Any], ...]:
    """Return a few samples that a network may choke on: of text the longest and the one with the largest id."""
    few = dataset.train.take(slice(0, 2)).inputs
    if dataset.preprocessing.kind != "tokens":
        return few
    chosen = []
    for split in (dataset.train, dataset.val, dataset.test):
        ids, mask = preprocessing.own(split.inputs)
        picked = [int(mask.sum(axis=1).argmax()), int(ids.max(axis=1).argmax())]
        chosen.append((ids[picked], mask[picked]))
    width = max(inputs[0].shape[1] for inputs in chosen)
    padded = [[np.pad(array, ((0, 0), (0, width - array.shape[1]))) for array in inputs] for inputs in chosen]
    return tuple(np.concatenate(arrays) for arrays in zip(*padded, strict=True))


def _check_tokens(
    role: str, spec: TeacherSpec | Student, network: nn.Module, dataset: Dataset, preprocessing: Preprocessing
) -> None:
    """Hold texts against what a Hugging Face model can take: its positions and its vocabulary.

    Raises:
        SourceError: A text is longer, or has a word that the model does not know.
    """
    config = getattr(getattr(network, "model", None), "config", None)
    if config is None or dataset.preprocessing.kind != "tokens":
        return
    texts = [preprocessing.own(split.inputs) for split in (dataset.train, dataset.val, dataset.test)]
    longest = max(int(mask.sum(axis=1).max()) for _, mask in texts)
    largest = max(int(ids.max()) for ids, _ in texts)
    positions, words = getattr(config, "max_position_embeddings", None), getattr(config, "vocab_size", None)
    if positions and any(name in str(config.model_type) for name in ("roberta", "camembert", "longformer", "mpnet")):
        positions -= (getattr(config, "pad_token_id", 1) or 0) + 1  # their positions begin behind the padding's
    if isinstance(words, int) and largest >= words:
        raise SourceError(
            f"the {role} {spec.model} knows {words} tokens, and the texts hold the token {largest}",
            hint=f"the tokenizer is another model's: set data.tokenizer to the {role}'s own, e.g. \"{spec.model}\"",
        )
    if isinstance(positions, int) and 0 < positions < longest:
        raise SourceError(
            f"the {role} {spec.model} takes texts of at most {positions} tokens, and the longest here has {longest}",
            hint=f"set text_length = {positions} under [data] (--set data.text_length={positions})",
        )


def _said_of(
    role: str, spec: TeacherSpec | Student, args: Mapping[str, Any], preprocessing: Preprocessing, dataset: Dataset
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what is to be said of a network's normalization: notes, and warnings where it is likely another's."""
    notes, warnings = [], []
    if preprocessing.kind == "none" and dataset.preprocessing.assumed:
        notes.append(f"{role}: {AS_THEY_ARE}")
    from_file = spec.weights is not None and spec.weights != PRETRAINED
    given = spec.preprocessing.mean is not None or spec.preprocessing.std is not None
    if dataset.measured and not given and preprocessing.mean == dataset.preprocessing.mean:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
        line = f"{role}: normalized with your data's mean ({mean}) and std ({std}), because nothing says otherwise"
        if from_file or parse(spec.model).kind == "path":
            table = "teacher" if isinstance(spec, TeacherSpec) else "student"
            fix = f"its weights come from a file: give the mean and std they were trained with ({table}.preprocessing)"
            warnings.append(f"{line}; {fix}")
        else:
            notes.append(line)
    kind, _, name = spec.model.partition(":")
    if from_file and kind == "torchvision" and name in TWO_HEADED and "transform_input" not in args:
        warnings.append(
            f"{role}: {name} is built with transform_input = false; where its weights began as torchvision's own, "
            "set args = { transform_input = true }"
        )
    return tuple(notes), tuple(warnings)


def preprocessing_of(spec: TeacherSpec | Student, dataset: Dataset) -> Preprocessing:
    """Return a network's preprocessing: what the recipe says, else what its library says, else the data's own."""
    own = inferred_preprocessing(spec.model, spec.args, spec.weights, dataset.preprocessing)
    if own is None and dataset.preprocessing.assumed and spec.model.endswith(".onnx"):
        own = Preprocessing("none")
    found = with_spec(own or dataset.preprocessing, spec.preprocessing)
    if found.kind == "tokens" and isinstance(spec, Student) and spec.vocabulary is not None:
        return replace(found, first_input=TEXT_INPUTS)
    return found


def count_macs(model: Model, dataset: Dataset) -> int | None:
    """Return the multiply-accumulates of one sample, or None where torch cannot count them.

    torch's counter counts a multiply-accumulate as two operations, in matrix products and convolutions alone.
    """
    inputs = model.preprocessing.apply(dataset.train.take(slice(0, 1)).inputs)
    counter = FlopCounterMode(display=False)
    try:
        with evaluating(model.network), counter:  # as it is used: a batch of one has no statistics to normalize by
            model.network(*inputs)
    except Exception:  # noqa: BLE001 the user's own code may raise anything for a batch of one: it is no fault of a training
        return None
    return counter.get_total_flops() // 2 or None


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Bring a network into evaluation mode, without gradients; every module of it then gets its own mode back."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def inferred_preprocessing(
    reference: str, args: Mapping[str, Any], weights: str | None, data: Preprocessing
) -> Preprocessing | None:
    """Return what a network's library says of its preprocessing, or None where it says nothing that holds here.

    A library's word is about its own weights: a network trained afresh, or with weights from elsewhere, takes the
    data's preprocessing unless the recipe says otherwise.

    Args:
        reference: Of the network.
        args: Of the network.
        weights: Of the recipe: None, ``"pretrained"`` or a path.
        data: The data's own preprocessing.
    """
    parsed = parse(reference)
    if parsed.kind == "path" and parsed.target.endswith(".onnx"):
        return _of_onnx(Path(parsed.target))
    if data.kind != "image":
        return None
    if parsed.kind == "hf" and args.get("pretrained", True):
        return image_preprocessing(parsed.target)
    if weights != PRETRAINED:
        return None
    if parsed.kind == "torchvision":
        return _of_torchvision(parsed.target)
    return _of_timm(parsed.target, args) if parsed.kind == "timm" else None


def _of_torchvision(name: str) -> Preprocessing:
    from torchvision import models

    settings = models.get_model_weights(name).DEFAULT.transforms()
    if not hasattr(settings, "crop_size"):  # a segmentation network, which takes any size
        return Preprocessing("image", mean=tuple(settings.mean), std=tuple(settings.std))
    crop, whole = settings.crop_size[0], settings.resize_size[0]
    mean, std, resample = tuple(settings.mean), tuple(settings.std), resample_of(settings.interpolation.value)
    return Preprocessing("image", (crop, crop), "crop", crop / whole, mean, std, resample=resample)


def _of_timm(name: str, args: Mapping[str, Any]) -> Preprocessing:
    timm = import_timm()
    model = timm.create_model(name, pretrained=False, **{key: args[key] for key in args if key != "num_classes"})
    settings = timm.data.resolve_model_data_config(model)
    size = (int(settings["input_size"][1]), int(settings["input_size"][2]))
    cuts = settings["crop_mode"] != "squash"
    return Preprocessing(
        "image",
        size,
        "crop" if cuts else "squash",
        float(settings["crop_pct"]) if cuts else 1.0,
        tuple(settings["mean"]),
        tuple(settings["std"]),
        resample=resample_of(settings["interpolation"]),
    )


def _of_onnx(path: Path) -> Preprocessing | None:
    from kdexport.onnx.isolated import IsolatedSession
    from kdexport.onnx.sessions import OnnxSession

    model = OnnxSession(path, open_with=IsolatedSession)
    return Preprocessing("none") if model.takes_raw_images else model.preprocessing
