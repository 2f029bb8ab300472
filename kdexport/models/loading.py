"""A network with its weights and its preprocessing, held against the data: what every stage that computes starts
from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdexport.data.samples import Dataset
from kdexport.errors import SourceError
from kdexport.models.checkpoints import read
from kdexport.models.hub import image_preprocessing
from kdexport.models.networks import (
    check_output,
    import_timm,
    load_with_fresh,
    needs_channels_first,
    pretrained_weights,
    with_pretrained_args,
)
from kdexport.models.preprocessing import Preprocessing, resample_of, with_spec
from kdexport.models.programs import OnnxNetwork
from kdexport.models.weights import Fit, fit, load_weights
from kdexport.recipe import PRETRAINED, Student, TeacherSpec
from kdexport.references import parse
from kdexport.scoring import Predict


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode, called as ``network(*preprocessing.apply(raw_inputs))``."""

    network: nn.Module
    preprocessing: Preprocessing
    left_out: tuple[str, ...] = ()  # of the weights that were to be loaded, a line each


def load_model(role: str, spec: TeacherSpec | Student, dataset: Dataset, weights: Path | None = None) -> Model:
    """Build a recipe's network for a data set.

    Args:
        role: ``"teacher"``, ``"student"`` or ``"student-plain"``: for messages.
        spec: The recipe's table.
        dataset: Gives the classes and the preprocessing that neither the recipe nor the network's own library gives.
        weights: Weights to load instead of the recipe's: those that a run has trained.

    Raises:
        SourceError: It cannot be built, the weights do not fit, or its output does not fit the data's classes.
    """
    network, fresh = load_with_fresh(
        spec.model, with_pretrained_args(spec.model, spec.args, spec.weights), dataset.num_classes
    )
    if isinstance(network, OnnxNetwork):
        network.onnx.multi_label = dataset.multi_label
    fitted = Fit()
    if weights is not None:
        load_weights(network, weights)
    elif spec.weights == PRETRAINED and fresh is None:
        origin = f"what {spec.model} was pretrained to"
        fitted = fit(network, pretrained_weights(spec.model, spec.args), origin, spec.strict)
    elif spec.weights is not None and spec.weights != PRETRAINED:
        fitted = fit(network, read(Path(spec.weights)), spec.weights, spec.strict, spec.weights_key)
    elif fresh:
        fitted = Fit(tuple(f"{name}: fresh, not in the files of {spec.model}" for name in fresh), fresh)
    if fitted.fresh and isinstance(spec, TeacherSpec) and spec.train is None:
        shown = ", ".join(fitted.fresh[:4]) + (", ..." if len(fitted.fresh) > 4 else "")
        raise SourceError(
            f"the teacher {spec.model} comes without {shown}: it would teach noise",
            hint="fit it on the labels with a [teacher.train] table, or name a model that classifies these data",
        )
    preprocessing = preprocessing_of(spec, dataset)
    few = dataset.train.take(slice(0, 2)).inputs
    if needs_channels_first(network, preprocessing.apply(few)):
        preprocessing = replace(preprocessing, contiguous=True)
    check_output(network, preprocessing.apply(few), dataset.num_classes, role)
    return Model(network.eval(), preprocessing, fitted.left_out)


def load_predictor(spec: Student, dataset: Dataset) -> tuple[Predict, tuple[str, ...]]:
    """Return a function from raw inputs to logits, of a module reference or an ONNX file, and what the user should
    know.

    Raises:
        SourceError: As ``load_model``.
    """
    reference = parse(spec.model)
    if reference.kind == "path" and reference.target.endswith(".onnx"):
        from kdexport.onnx.sessions import OnnxSession

        if spec.weights is not None:
            raise SourceError(f"{spec.model} holds its weights itself", hint="take --weights out")
        own = with_spec(dataset.preprocessing, spec.preprocessing)
        onnx = OnnxSession(Path(reference.target), own, multi_label=dataset.multi_label)
        names = onnx.class_names
        notes: tuple[str, ...] = ()
        if names is not None and names != dataset.class_names:
            notes = (f"the file's classes are {_shown(names)}, the data's are {_shown(dataset.class_names)}",)
        return onnx.predict, notes
    model = load_model("model", spec, dataset)

    def predict(inputs: tuple[NDArray[Any], ...]) -> NDArray[Any]:
        with torch.no_grad():
            return model.network(*model.preprocessing.apply(inputs)).float().numpy()  # type: ignore[no-any-return]

    bare = spec.weights is None and reference.kind not in ("path", "hf")
    warning = (f"no weights are given: the network is scored as {spec.model} makes it",) if bare else ()
    return predict, (*warning, *model.left_out)


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def preprocessing_of(spec: TeacherSpec | Student, dataset: Dataset) -> Preprocessing:
    """Return a network's preprocessing: what the recipe says, else what its library says, else the data's own."""
    own = inferred_preprocessing(spec.model, spec.args, spec.weights, dataset.preprocessing)
    return with_spec(own or dataset.preprocessing, spec.preprocessing)


def count_macs(model: Model, dataset: Dataset) -> int | None:
    """Return the multiply-accumulates of one sample, or None where torch cannot count them.

    torch's counter counts a multiply-accumulate as two operations, in matrix products and convolutions alone.
    """
    inputs = model.preprocessing.apply(dataset.train.take(slice(0, 1)).inputs)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.network(*inputs)
    return counter.get_total_flops() // 2 or None


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

    said = models.get_model_weights(name).DEFAULT.transforms()
    crop, whole = said.crop_size[0], said.resize_size[0]
    mean, std, resample = tuple(said.mean), tuple(said.std), resample_of(said.interpolation.value)
    return Preprocessing("image", (crop, crop), "crop", crop / whole, mean, std, resample=resample)


def _of_timm(name: str, args: Mapping[str, Any]) -> Preprocessing:
    timm = import_timm()
    model = timm.create_model(name, pretrained=False, **{key: args[key] for key in args if key != "num_classes"})
    said = timm.data.resolve_model_data_config(model)
    size = (int(said["input_size"][1]), int(said["input_size"][2]))
    cuts = said["crop_mode"] != "squash"
    return Preprocessing(
        "image",
        size,
        "crop" if cuts else "squash",
        float(said["crop_pct"]) if cuts else 1.0,
        tuple(said["mean"]),
        tuple(said["std"]),
        resample=resample_of(said["interpolation"]),
    )


def _of_onnx(path: Path) -> Preprocessing | None:
    from kdexport.onnx.sessions import OnnxSession

    model = OnnxSession(path)
    return Preprocessing("none") if model.takes_raw_images else model.preprocessing
