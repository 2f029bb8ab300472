"""The preprocessing that a network was trained with, where its library knows it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdexport.recipe import PRETRAINED
from kdexport.references import parse
from kdexport.sources.hugging_face import image_preprocessing
from kdexport.sources.networks import import_timm
from kdexport.sources.preprocessing import Preprocessing


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
    return Preprocessing("image", (crop, crop), "crop", crop / whole, tuple(said.mean), tuple(said.std))


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
    )


def _of_onnx(path: Path) -> Preprocessing | None:
    from kdexport.sources.onnx_model import OnnxModel

    model = OnnxModel(path)
    return Preprocessing("none") if model.takes_raw_images else model.preprocessing
