"""Whether an ONNX file's scores are logits, or have been through a softmax or a sigmoid already; of which classes they
are, where a classifier's operator lists them; and what its metadata say.

Read off the graph's last operators and the metadata, straight from the file's protobuf wire format
(https://protobuf.dev/programming-guides/encoding): the onnx package is not there where a packed benchmark runs. Only
the nodes are looked at; weights are skipped over.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Activation = Literal["none", "softmax", "sigmoid"]

MODEL_GRAPH, MODEL_METADATA, GRAPH_NODE = 7, 14, 1  # field numbers of onnx.proto
NODE_INPUT, NODE_OUTPUT, NODE_TYPE, NODE_ATTRIBUTE = 1, 2, 4, 5
ATTRIBUTE_NAME, ATTRIBUTE_STRINGS = 1, 9
LABELS = b"classlabels_strings"  # of ZipMap, LinearClassifier, TreeEnsembleClassifier, ... (ai.onnx.ml)
PASSED_THROUGH = frozenset(
    ("Identity", "Cast", "CastLike", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Dropout", "Clip",
     "QuantizeLinear", "DequantizeLinear", "ZipMap")
)  # fmt: skip
ACTIVATIONS: dict[str, Activation] = {
    "Softmax": "softmax",
    "QLinearSoftmax": "softmax",
    "Sigmoid": "sigmoid",
    "QLinearSigmoid": "sigmoid",
    "LogSoftmax": "none",  # softmax of it gives the probabilities, as of logits
}
# What these give lies between 0 and 1 by chance at most.
LINEAR = frozenset(("Gemm", "MatMul", "Conv", "Add", "Sub", "QGemm", "QLinearMatMul", "QLinearConv", "QLinearAdd"))


class Node(NamedTuple):
    """An operator and the names of its values."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    labels: tuple[str, ...] = ()  # of the classes, that a classifier of ai.onnx.ml carries


def class_labels(model: Path | bytes) -> tuple[str, ...] | None:
    """Return the class names that a file's own operators carry (scikit-learn's), in the order of its scores.

    None where there are none, or the graph cannot be read. A ZipMap's dictionaries are read in the order of their keys.
    """
    try:
        listed = [node for node in _nodes(model) if node.labels]
    except (OSError, ValueError, IndexError):
        return None
    if not listed:
        return None
    last = listed[-1]
    return tuple(sorted(last.labels)) if last.operator == "ZipMap" else last.labels


def metadata_of(path: Path) -> dict[str, str]:
    """Return a file's metadata; none where it cannot be read."""
    found: dict[str, str] = {}
    try:
        for number, entry in _fields(memoryview(_content(path))):
            if number == MODEL_METADATA:
                texts = {field: bytes(text).decode(errors="replace") for field, text in _fields(entry)}
                found[texts.get(1, "")] = texts.get(2, "")
    except (OSError, ValueError, IndexError):
        return {}
    return found


def last_operator(model: Path | bytes, output: str) -> str | None:
    """Return the operator that computes an output, past those that only pass values on.

    None where the graph cannot be read or does not tell.
    """
    try:
        makers = {name: node for node in _nodes(model) for name in node.outputs}
    except (OSError, ValueError, IndexError):
        return None
    name = output
    for _ in range(len(makers)):
        node = makers.get(name)
        if node is None:
            return None
        if node.operator not in PASSED_THROUGH or not node.inputs:
            return node.operator
        name = node.inputs[0]
    return None


def activation_of(operator: str | None, scores: NDArray[np.float32]) -> Activation:
    """Return what scores ``[batch, classes]`` have been through.

    By the operator that made them where it tells (``last_operator``), else by their values: a file may compute its
    softmax in several operators.
    """
    if operator in ACTIVATIONS:
        return ACTIVATIONS[operator]
    if scores.size == 0 or not (scores.min() >= 0 and scores.max() <= 1 + 1e-3):  # NaN is neither
        return "none"
    if bool((np.abs(scores.sum(axis=1) - 1) < 1e-3).all()) and scores.shape[1] > 1:
        return "softmax"
    return "none" if operator in LINEAR else "sigmoid"


def to_logits(scores: NDArray[np.float32], activation: Activation) -> NDArray[np.float32]:
    """Return scores of which a softmax (or a sigmoid, of each) gives the probabilities back."""
    if activation == "softmax":
        return np.log(np.maximum(scores, 1e-8))
    if activation == "sigmoid":
        shares = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)
        odds: NDArray[np.float32] = np.log(shares / (1 - shares)).astype(np.float32)
        return odds
    return scores


def _nodes(model: Path | bytes) -> Iterator[Node]:
    """Yield the nodes of the main graph."""
    for number, graph in _fields(memoryview(model if isinstance(model, bytes) else _content(model))):
        if number != MODEL_GRAPH:
            continue
        for kind, body in _fields(graph):
            if kind == GRAPH_NODE:
                texts: dict[int, list[str]] = {NODE_INPUT: [], NODE_OUTPUT: [], NODE_TYPE: []}
                labels: tuple[str, ...] = ()
                for field, text in _fields(body):
                    if field in texts:
                        texts[field].append(bytes(text).decode())
                    elif field == NODE_ATTRIBUTE:
                        labels = labels or _labels(text)
                operator = texts[NODE_TYPE][0] if texts[NODE_TYPE] else ""
                yield Node(operator, tuple(texts[NODE_INPUT]), tuple(texts[NODE_OUTPUT]), labels)


def _content(path: Path) -> mmap.mmap:
    with path.open("rb") as handle:
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)


def _labels(attribute: memoryview) -> tuple[str, ...]:
    name, strings = b"", []
    for field, value in _fields(attribute):
        if field == ATTRIBUTE_NAME:
            name = bytes(value)
            if name != LABELS:  # a constant's tensor may be large
                return ()
        elif field == ATTRIBUTE_STRINGS:
            strings.append(bytes(value).decode())
    return tuple(strings) if name == LABELS else ()


def _fields(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of a message's length-delimited fields; others are skipped."""
    position = 0
    while position < len(view):
        tag, position = _varint(view, position)
        wire = tag & 7
        if wire == 0:
            _, position = _varint(view, position)
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        elif wire == 2:
            length, position = _varint(view, position)
            if position + length > len(view):
                raise ValueError("a field is longer than its message")
            yield tag >> 3, view[position : position + length]
            position += length
        else:
            raise ValueError(f"no protobuf wire type is {wire}")


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """Return a base-128 number and the position after it."""
    value = shift = 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
