"""Whose output is which class: the names that a model carries, held against the data's.

A model that lists its classes in another order than the data is as good as ever and scores near zero by position.
numpy alone is imported here; what has to be asked for a model's names is imported where it is asked.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdexport.errors import SourceError, whole_number
from kdexport.recipe import Student, TeacherSpec
from kdexport.recipe.text import PRETRAINED
from kdexport.references import parse
from kdexport.scoring import Predict

SHOWN = 12
COMPARED = 200  # names; each with each takes long with more
PREFIX = 3  # letters of a name that stand for a longer one
# Under which trainers and exporters keep class names: timm, mmlab, Ultralytics, Hugging Face, torchvision's folders.
KEYS = ("class_names", "classes", "names", "label_names", "categories", "labels", "class_to_idx", "idx_to_class",
        "id2label", "label2id", "class_labels", "idx2label")  # fmt: skip
NESTS = ("meta", "dataset_meta", "hyper_parameters", "hparams", "args", "config", "metadata")
PLACEHOLDER = re.compile(r"(label|class|category|output)[_ -]?\d+", re.IGNORECASE)
NUMBER = re.compile(r"[+-]?\d+(\.0*)?", re.ASCII)


@dataclass(frozen=True)
class ClassOrder:
    """How a model's outputs stand to the data's classes."""

    outputs: tuple[int, ...] | None = None  # which output each of the data's classes is; None: the same order
    note: str | None = None


def order_of(own: Sequence[str] | None, data: Sequence[str], what: str) -> ClassOrder:
    """Return which of a model's outputs each class of the data is.

    Names that differ in case, spaces, hyphens or underscores alone are the same, and so is one that the other begins
    with where that leaves no doubt (``pos``, ``positive``). Placeholders (``LABEL_0``) and bare
    numbers beside real names say nothing: then the order is the data's.

    Args:
        own: The model's names in the order of its outputs, or None where it carries none.
        data: The data's.
        what: The model, for messages.

    Raises:
        SourceError: As many names, and others.
    """
    if own is None or len(own) != len(data) or _say_nothing(own):
        return ClassOrder()
    theirs, ours = [_plain(name) for name in own], [_plain(name) for name in data]
    if theirs == ours:
        return ClassOrder()
    if len(set(theirs)) == len(theirs) and (place := _matched(theirs, ours)) is not None:
        note = f"{what} has the data's classes as {shown(own)}: they are matched by name, not by position"
        return ClassOrder(None if place == sorted(place) else tuple(place), note)
    if _numbers(own) != _numbers(data):
        numbered, named = (data, own) if _numbers(data) else (own, data)
        return ClassOrder(
            note=f"{what} and the data share no class names ({shown(named)} and the numbers {shown(numbered)}): "
            "output i is taken for class i"
        )
    raise SourceError(
        f"{what} has other classes than the data: {shown(own)} against {shown(data)}",
        hint="rename the classes of one of them; or, where their order is the same all the same, set "
        'class_order = "by_position" beside the model (for evaluate: --set student.class_order=by_position)',
    )


def by_name(predict: Predict, own: Sequence[str] | None, data: Sequence[str], what: str) -> Predict:
    """Return a function from inputs to outputs with its classes in the data's order; ``order_of`` says which are.

    Raises:
        SourceError: As many names, and others.
    """
    outputs = order_of(own, data, what).outputs
    if outputs is None:
        return predict
    columns = list(outputs)
    return lambda inputs: predict(inputs)[:, columns]


def names_in(document: Any, depth: int = 2) -> tuple[str, ...] | None:
    """Return the class names in a checkpoint or in a file's metadata, or None."""
    if not isinstance(document, Mapping):
        document = getattr(document, "__dict__", None) or {}
    for key in KEYS:
        found = _names(document.get(key))
        if found is not None:
            return found
    for nest in NESTS if depth else ():
        found = names_in(document.get(nest), depth - 1)
        if found is not None:
            return found
    return None


def names_of(spec: TeacherSpec | Student) -> tuple[str, ...] | None:
    """Return the class names that a recipe's model carries: Hugging Face's ``id2label``, names in an ONNX file's
    metadata or in its checkpoint; None where it carries none or they are not to be looked at.
    """
    reference = parse(spec.model)
    if spec.class_order == "by_position":
        return None
    if reference.kind == "path" and reference.target.endswith(".onnx"):
        from kdexport.onnx.sessions import OnnxSession, Unloaded

        path = Path(reference.target)
        session = OnnxSession(path, session=Unloaded(path))
        return session.class_names or names_in({key: _parsed(value) for key, value in session.metadata.items()})
    if spec.weights is not None and spec.weights != PRETRAINED:
        from kdexport.models.checkpoints import read

        return names_in(read(Path(spec.weights)))
    if reference.kind == "hf" and spec.args.get("pretrained", True):
        from kdexport.models.hub import label_names

        return label_names(reference.target)
    return None


def shown(names: Sequence[str]) -> str:
    """Return the first dozen names."""
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")


def _names(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, list | tuple) and len(value) > 1 and all(isinstance(item, str) for item in value):
        return tuple(value)
    if not isinstance(value, Mapping) or len(value) < 2:
        return None
    pairs = list(value.items())
    if all(isinstance(number, int) for _, number in pairs):  # name -> number
        pairs = [(number, name) for name, number in pairs]
    numbers = [key if isinstance(key, int) else whole_number(str(key)) for key, _ in pairs]
    numbered = {number: name for number, (_, name) in zip(numbers, pairs, strict=True) if number is not None}
    if sorted(numbered) != list(range(len(pairs))):
        return None
    return tuple(str(numbered[index]) for index in range(len(pairs)))


def _matched(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
    """Return where each of our names stands in theirs, by the whole or by its beginning; None where one is unclear."""
    exact = {name: index for index, name in enumerate(theirs)}
    if exact.keys() == set(ours):
        return [exact[name] for name in ours]
    if len(theirs) > COMPARED:
        return None
    places = []
    for name in ours:
        near = [exact[name]] if name in exact else [i for i, other in enumerate(theirs) if _begins(name, other)]
        if len(near) != 1:
            return None
        places += near
    return places if len(set(places)) == len(places) else None


def _begins(one: str, other: str) -> bool:
    return min(len(one), len(other)) >= PREFIX and (other.startswith(one) or one.startswith(other))


def _parsed(text: str) -> Any:
    """Return a metadata value as JSON, or as the Python literal that Ultralytics writes; else the text."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _plain(name: str) -> str:
    number = NUMBER.fullmatch(name.strip())
    return str(int(float(name))) if number else re.sub(r"[\s_-]+", " ", name.casefold()).strip()


def _numbers(names: Sequence[str]) -> bool:
    return all(NUMBER.fullmatch(name.strip()) for name in names)


def _say_nothing(names: Sequence[str]) -> bool:
    counted = [_plain(name) for name in names] == [str(index) for index in range(len(names))]
    return counted or all(PLACEHOLDER.fullmatch(name.strip()) for name in names)
