"""Preprocessing inside the graph: what a camera gives goes in, uint8 NHWC, of a fixed size or of any.

The operators are put before the finished graph, so the proof has an independent reference: the same network in
PyTorch behind the same preprocessing in Python.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from kdexport.errors import KDExportError
from kdexport.sources.preprocessing import Preprocessing


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
        pixels = _resized(graph, pixels, preprocessing.resize, preprocessing.crop_share, target)
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


class _Front:
    """Nodes that will stand before all others."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._nodes: list[ir.Node] = []

    def add(self, operator: str, *inputs: ir.Value | None, **attributes: str | int | Sequence[int]) -> ir.Value:
        name = f"preprocessing/{operator}"
        same = sum(node.op_type == operator for node in self._nodes)
        node = ir.node(operator, list(inputs), attributes, name=name if not same else f"{name}_{same + 1}")
        node.outputs[0].name = f"{node.name}_output"
        self._nodes.append(node)
        return node.outputs[0]

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        value = ir.Value(name=f"preprocessing.{name}", const_value=ir.tensor(array, name=f"preprocessing.{name}"))
        self._graph.register_initializer(value)
        return value

    def place(self) -> None:
        self._graph.insert_before(self._graph[0], self._nodes)


def _resized(graph: _Front, pixels: ir.Value, how: str, crop_share: float, target: tuple[int, int]) -> ir.Value:
    """Resize like ``Preprocessing.apply``: antialiased where it shrinks, which Resize does by itself."""
    whole = target if how == "squash" else tuple(round(side / crop_share) for side in target)
    resized = graph.add(
        "Resize",
        pixels,
        None,
        None,
        graph.constant("sizes", np.array(whole, np.int64)),
        mode="linear",
        antialias=1,
        axes=[2, 3],
        coordinate_transformation_mode="half_pixel",
        keep_aspect_ratio_policy="stretch" if how == "squash" else "not_smaller",
    )
    if how == "squash":
        return resized
    wanted = graph.constant("crop", np.array(target, np.int64))
    room = graph.add("Sub", graph.add("Shape", resized, start=2, end=4), wanted)
    start = graph.add("Div", room, graph.constant("half", np.array([2], np.int64)))
    axes = graph.constant("axes", np.array([2, 3], np.int64))
    return graph.add("Slice", resized, start, graph.add("Add", start, wanted), axes)


def _fixed(shape: ir.Shape) -> tuple[int, int] | None:
    height, width = shape[2], shape[3]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None
