"""Preprocessing inside the graph: what a camera gives goes in, uint8 NHWC, of a fixed size or of any.

The operators are put before the finished graph, so the proof has an independent reference: the same network in
PyTorch behind the same preprocessing in Python.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from kdexport.errors import KDExportError
from kdexport.models.preprocessing import Preprocessing
from kdexport.tasks.base import Activation


def prepend_features(model: ir.Model, preprocessing: Preprocessing) -> None:
    """Put the standardization of features before the first input of a graph, in place; its shape and type stay."""
    old = model.graph.inputs[0]
    graph = _Front(model)
    numbers = ir.Value(name=old.name, shape=old.shape, type=ir.TensorType(ir.DataType.FLOAT))
    old.name = f"{old.name}_standardized"
    scale, offset = preprocessing.feature_scale_and_offset()
    scaled = graph.add("Mul", numbers, graph.constant("scale", scale.reshape(1, -1)))
    old.replace_all_uses_with(graph.add("Add", scaled, graph.constant("offset", offset.reshape(1, -1))))
    model.graph.inputs[0] = numbers
    graph.place()


def prepend(model: ir.Model, preprocessing: Preprocessing, *, channels: int, size: tuple[int, int] | None) -> None:
    """Put the preprocessing before the first input of a graph, in place.

    Args:
        model: Its first input is float32 [batch, channels, height, width].
        preprocessing: Of kind ``image``.
        channels: Of the images.
        size: Height and width of the images that will come; None for any.

    Raises:
        KDExportError: Images of any size are wanted and the network's size is not fixed.
    """
    old = model.graph.inputs[0]
    shape = old.shape or ir.Shape([None] * 4)
    target = preprocessing.size or _fixed(shape)
    if size is None and target is None:
        raise KDExportError(
            "images of any size cannot be resized in the graph: the network's own size is not known",
            hint="give preprocessing.size in the recipe, or leave any_image_size out",
        )
    graph = _Front(model)
    image = ir.Value(
        name=old.name,
        shape=ir.Shape([shape[0], *(size or ("height", "width")), channels]),
        type=ir.TensorType(ir.DataType.UINT8),
    )
    old.name = f"{old.name}_normalized"
    pixels = graph.add("Cast", graph.add("Transpose", image, perm=[0, 3, 1, 2]), to=int(ir.DataType.FLOAT))
    if target is not None and size != target:
        pixels = _resized(graph, image, pixels, preprocessing, target)
    # (x / 255 - mean) / std as one multiplication and one addition, rounded once, from float64
    mean = np.array(preprocessing.mean or (0.0,) * channels)
    std = np.array(preprocessing.std or (1.0,) * channels)
    scaled = graph.add(
        "Mul", pixels, graph.constant("scale", (1 / (255 * std)).astype(np.float32).reshape(1, -1, 1, 1))
    )
    ready = graph.add("Add", scaled, graph.constant("offset", (-mean / std).astype(np.float32).reshape(1, -1, 1, 1)))
    old.replace_all_uses_with(ready)
    model.graph.inputs[0] = image
    graph.place()


# Before the names of nodes and constants that are kdexport's own. No module's can begin so: each name on the path to a
# module has a character at least, and none of them a dot.
OWN = ".kdexport/"


class _Front:
    """Nodes that will stand before all others."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._nodes: list[ir.Node] = []

    def add(self, operator: str, *inputs: ir.Value | None, **attributes: str | int | float | Sequence[int]) -> ir.Value:
        name = f"{OWN}preprocessing/{operator}"
        same = sum(node.op_type == operator for node in self._nodes)
        node = ir.node(operator, list(inputs), attributes, name=name if not same else f"{name}_{same + 1}")
        node.outputs[0].name = f"{node.name}_output"
        self._nodes.append(node)
        return node.outputs[0]

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        value = ir.Value(
            name=f"{OWN}preprocessing/{name}", const_value=ir.tensor(array, name=f"{OWN}preprocessing/{name}")
        )
        self._graph.register_initializer(value)
        return value

    def place(self) -> None:
        self._graph.insert_before(self._graph[0], self._nodes)


def _resized(
    graph: _Front, image: ir.Value, pixels: ir.Value, preprocessing: Preprocessing, target: tuple[int, int]
) -> ir.Value:
    """Resize like ``Preprocessing.apply``: antialiased where it shrinks, which Resize does by itself."""
    wanted = graph.constant("size", np.array(target, np.int64))
    squash = preprocessing.resize == "squash"
    channels = image.shape[3] if image.shape else None
    outer = graph.add("Shape", image, start=0, end=1), graph.constant("channels", np.array([channels], np.int64))
    whole = wanted if squash else _covering(graph, image, wanted, preprocessing.crop_share, target)
    resized = graph.add(
        "Resize",
        pixels,
        None,
        None,
        # All four: ONNX Runtime's layout optimizer forgets the attribute ``axes`` and takes two sizes for none.
        graph.add("Concat", *outer, whole, axis=0),
        mode="linear" if preprocessing.resample == "bilinear" else "cubic",
        antialias=1,
        cubic_coeff_a=-0.5,
        exclude_outside=1,  # at the border, like PIL and torch: what lies outside has no weight
        coordinate_transformation_mode="half_pixel",
    )
    if squash:
        return resized
    room = graph.add("Cast", graph.add("Sub", whole, wanted), to=int(ir.DataType.DOUBLE))
    half = graph.add("Mul", room, graph.constant("half", np.array(0.5)))
    start = graph.add("Cast", graph.add("Round", half), to=int(ir.DataType.INT64))
    axes = graph.constant("axes", np.array([2, 3], np.int64))
    return graph.add("Slice", resized, start, graph.add("Add", start, wanted), axes)


def _covering(graph: _Front, image: ir.Value, wanted: ir.Value, crop_share: float, target: tuple[int, int]) -> ir.Value:
    """Return the size, of the image's own shape, whose middle is cut out.

    Resize could keep the shape by itself (``keep_aspect_ratio_policy``), but then maps coordinates by the unrounded
    scale, unlike PIL and torch.
    """
    whole = graph.constant("whole", np.array([round(side / crop_share) for side in target], np.float64))
    given = graph.add("Shape", image, start=1, end=3)
    sides = graph.add("Cast", given, to=int(ir.DataType.DOUBLE))
    scale = graph.add("ReduceMax", graph.add("Div", whole, sides), keepdims=1)
    scaled = graph.add("Add", graph.add("Mul", sides, scale), graph.constant("epsilon", np.array(1e-6)))
    whole_sides = graph.add("Cast", graph.add("Floor", scaled), to=int(ir.DataType.INT64))
    # An image that has the network's size already is taken as it is.
    same = graph.add("Cast", graph.add("Equal", given, wanted), to=int(ir.DataType.INT64))
    ready = graph.add("Cast", graph.add("ReduceMin", same, keepdims=1), to=int(ir.DataType.BOOL))
    return graph.add("Where", ready, wanted, graph.add("Max", whole_sides, wanted))


def _fixed(shape: ir.Shape) -> tuple[int, int] | None:
    height, width = shape[2], shape[3]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


PROBABILITIES, TOP_SCORES, TOP_LABELS = "probabilities", "top_scores", "top_labels"


def name_scaling(model: ir.Model) -> None:
    """Name the last multiplication and addition of a graph, which scale its output, as no layers of the network.

    They stay in fp32 then: a price of 70,000 is beyond half precision, and 8 bits of one are steps of hundreds.
    """
    value: ir.Value | None = model.graph.outputs[0]
    for operator in ("Add", "Mul"):
        node = None if value is None else value.producer()
        if node is None or node.op_type != operator:
            return
        node.name = f"{OWN}postprocessing/{operator}"
        value = next((item for item in node.inputs if item is not None and item.producer() is not None), None)


MAP_AXES = 4  # of [batch, classes, h, w]: classes are the second


def append(
    model: ir.Model, *, softmax: bool, top_k: int, labels: tuple[str, ...], activation: Activation = "softmax"
) -> None:
    """Put softmax and top-k after the first output of a graph, in place.

    With ``softmax``, ``probabilities`` take the place of the logits: where a sample can have several labels
    (``activation`` sigmoid) a sigmoid of each. With ``top_k``, two outputs are added:
    ``top_scores`` and, where labels are known, ``top_labels`` (strings), both [batch, k], best first; ``top_indices``
    (int64) stand in for labels that are not known.

    Raises:
        KDExportError: More classes are wanted than there are, or the best of a map's.
    """
    shape = model.graph.outputs[0].shape
    axis = 1 if shape is not None and len(shape) == MAP_AXES else -1
    if top_k and axis == 1:
        raise KDExportError(
            "top_k lists the best classes of a sample, and this network gives a map",
            hint="take top_k out; infer.py shows how a map becomes a mask",
        )
    classes = shape[-1] if shape else len(labels)
    if isinstance(classes, int) and top_k > classes:
        raise KDExportError(f"top_k = {top_k}, but there are {classes} classes", hint=f"choose at most {classes}")
    scores = model.graph.outputs[0]
    if softmax:
        sigmoid = activation == "sigmoid"
        made = _node(model, "Sigmoid", [scores]) if sigmoid else _node(model, "Softmax", [scores], axis=axis)
        probabilities = made[0]
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


def reference(
    logits: np.ndarray, *, softmax: bool, top_k: int, labels: tuple[str, ...], activation: Activation = "softmax"
) -> tuple[np.ndarray, ...]:
    """Return what a file with these outputs must give for logits [batch, classes] or maps, worked out in float64."""
    axis = 1 if logits.ndim == MAP_AXES else -1
    scores = logits.astype(np.float64)
    if softmax and activation == "sigmoid":
        scores = 1 / (1 + np.exp(-scores))
    elif softmax:
        shifted = np.exp(scores - scores.max(axis=axis, keepdims=True))
        scores = shifted / shifted.sum(axis=axis, keepdims=True)
    if not top_k:
        return (scores,)
    best = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
    named = np.array(labels, dtype=object)[best] if labels else best
    return scores, np.take_along_axis(scores, best, axis=-1), named


def _node(
    model: ir.Model, operator: str, inputs: list[ir.Value], outputs: int = 1, **attributes: str | int | Sequence[int]
) -> list[ir.Value]:
    node = ir.node(operator, inputs, attributes, num_outputs=outputs, name=f"{OWN}output/{operator}")
    for number, value in enumerate(node.outputs):
        value.name = f"{node.name}_{number}"
    model.graph.append(node)
    return list(node.outputs)


def _constant(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(name=f"{OWN}output/{name}", const_value=tensor)
    tensor.name = value.name
    model.graph.register_initializer(value)
    return value


def _output(model: ir.Model, value: ir.Value, name: str, shape: ir.Shape, kind: ir.DataType) -> None:
    value.name, value.shape, value.type = name, shape, ir.TensorType(kind)
    model.graph.outputs.append(value)
