"""What a file says of itself: the ``kdexport.*`` entries of its metadata, and what its graph shows."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from kdexport import __version__, artifacts, results
from kdexport.onnx.files import size_bytes
from kdexport.onnx.graphs import nodes
from kdexport.onnx.runtimes import oldest_runtime

if TYPE_CHECKING:
    from kdexport.models.preprocessing import Preprocessing

PREFIX = "kdexport."


def entries(
    *,
    key: str | None,
    precision: str,
    opset: int,
    labels: tuple[str, ...] = (),
    features: tuple[str, ...] = (),
    task: str | None = None,
    preprocessing: "Preprocessing | None" = None,
    baked: bool = False,
    recipe: str | None = None,
    parameters: int | None = None,
    macs: int | None = None,
    license: str | None = None,
    val_score: float | None = None,
) -> dict[str, str]:
    """Return the metadata of a file; what is not known is left out.

    Args:
        key: Stands for all that the file was made from: the same key, the same file.
        precision: ``fp32``, ``fp16``, ``int8``, ``int8-dynamic``.
        opset: ONNX operator set version.
        labels: Names of the classes or targets, in the order of the outputs.
        task: What the network is for, as the recipe names it.
        features: Names of a table's columns, in the order in which they are fed.
        preprocessing: What turns raw inputs into the network's.
        baked: Whether that is part of the graph already.
        recipe: Hash of the recipe that the network was trained by.
        parameters: Of the network.
        macs: Multiply-accumulates of one sample.
        license: Of the weights.
        val_score: Of the network on the validation split.
    """
    import torch  # here: who only reads files does not wait for it

    known: dict[str, Any] = {
        "version": __version__,
        "torch": torch.__version__,
        "opset": opset,
        "key": key,
        "precision": precision,
        "labels": json.dumps(labels, ensure_ascii=False) if labels else None,
        "task": task,
        "features": json.dumps(features, ensure_ascii=False) if features else None,
        "preprocessing": None if preprocessing is None else json.dumps(preprocessing.to_json()),
        "baked": None if preprocessing is None else json.dumps(baked),
        "recipe": recipe,
        "parameters": parameters,
        "macs": macs,
        "license": license,
        "val_score": val_score,
    }
    return {PREFIX + name: str(value) for name, value in known.items() if value is not None}


def read(path: Path) -> dict[str, str]:
    """Return a file's metadata; empty where it is absent or not ONNX."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # noqa: BLE001 - protobuf's errors differ from version to version
        return {}
    return {item.key: item.value for item in model.metadata_props}


def stamp(path: Path, metadata: Mapping[str, str]) -> None:
    """Replace a file's metadata.

    The shapes that quantizers have noted stay: without them ONNX Runtime 1.31 crashes on some graphs of mixed
    precision.
    """
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)


def add(path: Path, entries: Mapping[str, str]) -> None:
    """Put entries into a file's metadata in place of those of the same names; weights beside the file stay there."""
    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, {item.key: item.value for item in model.metadata_props} | dict(entries))
    onnx.save(model, path)


def model_file(
    name: str,
    path: Path,
    *,
    shown_as: str,
    precision: str,
    parameters: int | None,
    macs: int | None,
    parity: results.Parity | None,
    operators_before: dict[str, int] | None = None,
    notes: tuple[str, ...] = (),
    quantized: tuple[int, int] | None = None,
) -> results.ModelFile:
    """Return the entry of a finished file, its opset, inputs and operators read off its graph.

    Args:
        name: ``teacher``, ``student.int8``, ...
        path: The file.
        shown_as: Its path in the result.
        precision: Of its weights.
        parameters: Of the network that it was made from.
        macs: Multiply-accumulates of one sample.
        parity: The proof.
        operators_before: Of the graph before it was optimized.
        notes: What the user should know, in words.
        quantized: How many operators with weights are in fewer bits, of how many.
    """
    model = onnx.load(path, load_external_data=False)
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    operators = dict(Counter(node.op_type for node in nodes(model.graph)).most_common())
    return results.ModelFile(
        name=name,
        file=shown_as,
        sha256=artifacts.sha256(path),
        precision=precision,
        size_bytes=size_bytes(path),
        parameters=parameters,
        macs=macs,
        opset=opset,
        inputs={item.name: _shape(item) for item in model.graph.input},
        operators=operators,
        operators_before=operators_before or {},
        oldest_runtime=oldest_runtime(opset, model.ir_version, operators),
        parity=parity,
        notes=notes,
        quantized=quantized,
    )


def _shape(item: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or (dim.dim_value if dim.dim_value > 0 else "?") for dim in item.type.tensor_type.shape.dim]
