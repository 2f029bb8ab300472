"""What an ONNX file says of itself: the ``ModelFile`` of a bare path. Reads the graph, runs nothing."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import onnx

from kdexport import artifacts
from kdexport.errors import KDExportError, SourceError, check_readable
from kdexport.onnx import files, metadata
from kdexport.onnx.graphs import nodes
from kdexport.onnx.runtimes import oldest_runtime
from kdexport.results import ModelFile

N = TypeVar("N", int, None)
FLOAT16 = 10  # onnx.TensorProto.FLOAT16
INT8_OPERATORS = ("QLinearConv", "QLinearMatMul", "QGemm", "DequantizeLinear", "QLinearAdd")
DYNAMIC_OPERATORS = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul")

INTEGERS = (2, 3, 4, 5, 6, 7, 12, 13)  # onnx.TensorProto: uint8 int8 uint16 int16 int32 int64 uint32 uint64
UINT8 = 2
SAME_SHAPE = ("Cast", "Identity", "DequantizeLinear")
KEEP_VALUES = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand")


def describe_file(path: Path, name: str | None = None) -> ModelFile:
    """Return what can be read off an ONNX file.

    Args:
        path: The file.
        name: What to call the model; its file name without ``.onnx`` where none is given.

    Raises:
        KDExportError: It isn't there, is not ONNX or is cut off, or its external data are missing or lie elsewhere.
    """
    model = load_graph(path)
    graph = model.graph
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    operators = Counter(node.op_type for node in _nodes(graph))
    external = external_files(model, path)
    size = path.stat().st_size + sum(file.stat().st_size for file in external)
    counted = sum(_elements(tensor) for tensor in initializers.values())
    return ModelFile(
        name=name or path.name.removesuffix(".onnx"),
        file=str(path),
        sha256=artifacts.sha256(path),
        precision=metadata.get("kdexport.precision") or _precision(operators, initializers.values()),
        size_bytes=size,
        parameters=_integer(metadata.get("kdexport.parameters"), counted),
        macs=_integer(metadata.get("kdexport.macs"), None),
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None),
        inputs={value.name: _shape(value) for value in graph.input if value.name not in initializers},
        operators=dict(operators.most_common()),
    )


def integer_limits(path: Path) -> dict[str, int | None]:
    """Return, for each integer input that selects rows of a table (token ids), how many rows that table has.

    Followed forward from the input through what keeps values as they are, up to the first Gather from a weight. None
    where nothing tells; pixels (uint8) and masks, which hold what they hold, are left out then.
    """
    graph = load_graph(path).graph
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            sizes[node.output[0]] = list(node.attribute[0].t.dims)
        elif node.op_type in SAME_SHAPE and node.input[0] in sizes:
            sizes[node.output[0]] = sizes[node.input[0]]
    weights = {tensor.name for tensor in graph.initializer}
    limits: dict[str, int | None] = {}
    for value in graph.input:
        kind = value.type.tensor_type.elem_type
        if value.name in weights or kind not in INTEGERS:
            continue
        if kind != UINT8 and "mask" not in value.name.lower():
            limits[value.name] = None
        same = {value.name}
        for node in graph.node:  # in topological order
            if node.op_type in KEEP_VALUES and node.input[0] in same:
                same.update(node.output)
            elif node.op_type == "Gather" and node.input[1] in same and node.input[0] in sizes:
                axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
                rows = sizes[node.input[0]][axis]
                limits[value.name] = min(rows, limits.get(value.name) or rows)
    return limits


def external_files(model: Any, path: Path) -> list[Path]:
    """Return the files beside the model that hold its weights, as paths in the model's own folder.

    The model and its data may be symbolic links, as in the cache of the Hugging Face hub.

    Raises:
        KDExportError: One is missing, or lies outside the model's folder.
    """
    folder = path.absolute().parent
    # Where links may lead: what ONNX Runtime too opens (ValidateExternalDataPath).
    allowed = (folder.resolve(), path.resolve().parent)
    needed: dict[str, int] = {}  # location -> bytes that are read from it
    for tensor in _tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if "location" in entries:
            end = _integer(entries.get("offset"), 0) + _integer(entries.get("length"), 0)
            needed[entries["location"]] = max(end, needed.get(entries["location"], 0))
    files = []
    for location in sorted(needed):
        inside = Path(os.path.normpath(location))  # by its words: the folder itself may be reached through links
        file = folder / inside
        try:
            linked_away = not any(file.resolve().is_relative_to(place) for place in allowed)
            there = file.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # too long, NUL in it, links in a loop
            raise KDExportError(
                f"{path} names a file for its weights that no folder can hold: {error}",
                hint="a model that reads elsewhere is not opened; save it again with its data beside it",
            ) from None
        if inside.is_absolute() or inside.parts[:1] == ("..",) or linked_away:
            raise KDExportError(
                f"{path} takes weights from outside its own folder: {location}",
                hint="a model that reads elsewhere is not opened; save it again with its data beside it",
            )
        if not there:
            own = path.with_name(f"{path.name}.data")
            hint = f"put {location} beside {path.name}"
            if own.is_file():
                hint = f"{own.name} is there: if those are its weights, rename that file to {location}"
            raise KDExportError(f"{path} keeps its weights in {location}, which is not there", hint=hint)
        if (size := file.stat().st_size) < needed[location]:
            raise KDExportError(
                f"{path} keeps its weights in {location}, which is cut off: "
                f"it holds {size:,} of {needed[location]:,} bytes",
                hint=f"copy {location} again",
            )
        files.append(file)
    return files


def load_graph(path: Path) -> Any:
    """Return the ``onnx.ModelProto`` without its external data; raises as ``describe_file``."""
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise KDExportError(
            f"there is no file {path}", hint="check the path; bench takes ONNX files and run directories"
        )
    check_readable(path)
    try:
        # Not by the file's name: of a .json or .txt onnx would expect another form, with errors of its own.
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise KDExportError(
            f"{path} is not ONNX, or is cut off: {error}",
            hint="write it again, e.g. with `kdexport export MODEL --onnx --out PATH`",
        ) from None
    if not model.graph.node or not model.opset_import:
        raise KDExportError(
            f"{path} holds no ONNX graph", hint="give an .onnx file, e.g. one that kdexport export wrote"
        )
    return model


def _nodes(graph: Any) -> Iterator[Any]:
    """Walk the nodes, those of the bodies of If, Loop and Scan too."""
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from _nodes(body)


def _bodies(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _tensors(model: Any) -> Iterator[Any]:
    """Walk every tensor that can have external data: weights and constants, in bodies and functions too."""
    yield from _tensors_of(model.graph)
    for function in model.functions:
        yield from _tensors_of(function)


def _tensors_of(graph: Any) -> Iterator[Any]:
    """Walk the tensors of a graph or of a function, which is a graph without weights of its own."""
    sparse = list(getattr(graph, "sparse_initializer", ()))
    yield from getattr(graph, "initializer", ())
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("sparse_tensor"):
                sparse.append(attribute.sparse_tensor)
            yield from attribute.tensors
            sparse += attribute.sparse_tensors
        for body in _bodies(node):
            yield from _tensors_of(body)
    for tensor in sparse:
        yield tensor.values
        yield tensor.indices


def _shape(value: Any) -> list[str | int]:
    """Return the axes; one without a size is ``"?"``, and so is one of 0 or -1, which some exporters write for that."""
    axes = value.type.tensor_type.shape.dim
    return [axis.dim_param or (axis.dim_value if axis.dim_value > 0 else "?") for axis in axes]


def _elements(tensor: Any) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _precision(operators: Counter[str], initializers: Any) -> str:
    if any(operators[name] for name in DYNAMIC_OPERATORS):
        return "int8-dynamic"
    if any(operators[name] for name in INT8_OPERATORS):
        return "int8"
    sizes: Counter[bool] = Counter()
    for tensor in initializers:
        sizes[tensor.data_type == FLOAT16] += _elements(tensor)
    return "fp16" if sizes[True] > sizes[False] else "fp32"


def _integer(text: str | None, otherwise: N) -> int | N:
    return int(text) if text and text.isdecimal() and len(text) < 20 else otherwise


@dataclass(frozen=True)
class Description:
    """One ONNX file, by whomever it was written."""

    file: str
    size_bytes: int
    sha256: str
    producer: str
    opset: int | None
    ir_version: int
    oldest_runtime: str | None
    inputs: dict[str, dict[str, Any]]  # name -> type and shape
    outputs: dict[str, dict[str, Any]]
    operators: dict[str, int]
    weights: int  # elements of all constants
    metadata: dict[str, Any] = field(default_factory=dict)  # without the prefix kdexport.; JSON is read


def describe(path: Path) -> Description:
    """Read a file without running it.

    Raises:
        SourceError: There is no such file, or it is no ONNX file.
    """
    if not path.is_file():
        raise SourceError(f"there is no file {path}", hint="check the path")
    try:
        model = onnx.load(path, load_external_data=False)
        if not model.graph.output:  # an empty file parses too
            raise ValueError("no outputs")
    except Exception as error:
        raise SourceError(
            f"{path} is no ONNX file", hint="it may be cut off or another format: give a whole .onnx file"
        ) from error
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), None)
    operators = dict(Counter(node.op_type for node in nodes(model.graph)).most_common())
    return Description(
        file=str(path),
        size_bytes=files.size_bytes(path),
        sha256=artifacts.sha256(path),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        opset=opset,
        ir_version=model.ir_version,
        oldest_runtime=oldest_runtime(opset or 0, model.ir_version, operators),
        inputs={item.name: _value(item) for item in model.graph.input},
        outputs={item.name: _value(item) for item in model.graph.output},
        operators=operators,
        weights=sum(_element_count(item) for item in model.graph.initializer),
        metadata={
            _text(item.key).removeprefix(metadata.PREFIX): _read(_text(item.value)) for item in model.metadata_props
        },
    )


def _text(value: str | bytes) -> str:
    """Return a text of a file; protobuf gives bytes where it is no UTF-8."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _value(item: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = item.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    try:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    except ValueError:  # of a newer ONNX, or damaged
        kind = f"type {tensor.elem_type}"
    return {"type": kind, "shape": shape}


def _element_count(tensor: onnx.TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count


def _read(text: str) -> Any:
    """Return a value as JSON where it is an object or a list, else as it stands."""
    if text[:1] not in ("{", "["):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
