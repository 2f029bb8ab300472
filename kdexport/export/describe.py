"""What an ONNX file says of itself and what its graph shows: ``kdexport export --describe FILE``."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from kdexport import artifacts
from kdexport.errors import SourceError
from kdexport.export import files, metadata, runtimes


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
        raise SourceError(f"{path} is no ONNX file", hint="give a file that ends in .onnx") from error
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), None)
    operators = dict(Counter(node.op_type for node in metadata.nodes(model.graph)).most_common())
    return Description(
        file=str(path),
        size_bytes=files.size_bytes(path),
        sha256=artifacts.sha256(path),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        opset=opset,
        ir_version=model.ir_version,
        oldest_runtime=runtimes.oldest_runtime(opset or 0, model.ir_version, operators),
        inputs={item.name: _value(item) for item in model.graph.input},
        outputs={item.name: _value(item) for item in model.graph.output},
        operators=operators,
        weights=sum(_elements(item) for item in model.graph.initializer),
        metadata={item.key.removeprefix(metadata.PREFIX): _read(item.value) for item in model.metadata_props},
    )


def _value(item: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = item.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    return {"type": onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), "shape": shape}


def _elements(tensor: onnx.TensorProto) -> int:
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
    except ValueError:
        return text
