"""What comes out besides logits: probabilities, and the best classes by name."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from kdexport.errors import KDExportError

PROBABILITIES, TOP_SCORES, TOP_LABELS = "probabilities", "top_scores", "top_labels"


def append(model: ir.Model, *, softmax: bool, top_k: int, labels: tuple[str, ...]) -> None:
    """Put softmax and top-k after the first output of a graph, in place.

    With ``softmax``, ``probabilities`` take the place of the logits. With ``top_k``, two outputs are added:
    ``top_scores`` and, where labels are known, ``top_labels`` (strings), both [batch, k], best first; ``top_indices``
    (int64) stand in for labels that are not known.

    Raises:
        KDExportError: More classes are wanted than there are.
    """
    classes = model.graph.outputs[0].shape[-1] if model.graph.outputs[0].shape else len(labels)
    if isinstance(classes, int) and top_k > classes:
        raise KDExportError(f"top_k = {top_k}, but there are {classes} classes", hint=f"choose at most {classes}")
    scores = model.graph.outputs[0]
    if softmax:
        probabilities = _node(model, "Softmax", [scores], axis=-1)[0]
        probabilities.name, probabilities.shape, probabilities.type = PROBABILITIES, scores.shape, scores.type
        scores.shape = scores.type = None
        model.graph.outputs[0] = probabilities
        scores = probabilities
    if top_k:
        k = _constant(model, "top_k", ir.tensor(np.array([top_k], np.int64)))
        values, indices = _node(model, "TopK", [scores, k], outputs=2, axis=-1)
        batch = scores.shape[0] if scores.shape else None
        _output(model, values, TOP_SCORES, ir.Shape([batch, top_k]), ir.DataType.FLOAT)
        if labels:
            names = ir.StringTensor([label.encode() for label in labels], shape=ir.Shape([len(labels)]))
            table = _constant(model, "labels", names)
            found = _node(model, "Gather", [table, indices], axis=0)[0]
            _output(model, found, TOP_LABELS, ir.Shape([batch, top_k]), ir.DataType.STRING)
        else:
            _output(model, indices, "top_indices", ir.Shape([batch, top_k]), ir.DataType.INT64)


def reference(logits: np.ndarray, *, softmax: bool, top_k: int, labels: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """Return what a file with these outputs must give for logits [batch, classes], worked out in float64."""
    scores = logits.astype(np.float64)
    if softmax:
        shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores = shifted / shifted.sum(axis=-1, keepdims=True)
    if not top_k:
        return (scores,)
    best = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
    named = np.array(labels, dtype=object)[best] if labels else best
    return scores, np.take_along_axis(scores, best, axis=-1), named


def _node(
    model: ir.Model, operator: str, inputs: list[ir.Value], outputs: int = 1, **attributes: str | int | Sequence[int]
) -> list[ir.Value]:
    node = ir.node(operator, inputs, attributes, num_outputs=outputs, name=f"output/{operator}")
    for number, value in enumerate(node.outputs):
        value.name = f"{node.name}_{number}"
    model.graph.append(node)
    return list(node.outputs)


def _constant(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(name=f"output.{name}", const_value=tensor)
    tensor.name = value.name
    model.graph.register_initializer(value)
    return value


def _output(model: ir.Model, value: ir.Value, name: str, shape: ir.Shape, kind: ir.DataType) -> None:
    value.name, value.shape, value.type = name, shape, ir.TensorType(kind)
    model.graph.outputs.append(value)
