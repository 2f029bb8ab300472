"""The ORT format: what ONNX Runtime's mobile builds load, with the operators that such a build must hold."""

import dataclasses
import tempfile
from pathlib import Path

import onnx
import onnxruntime

from kdexport import artifacts
from kdexport.export import metadata
from kdexport.results import ModelFile


def write(model: Path) -> tuple[Path, Path]:
    """Write ``NAME.ort`` and ``NAME.required_operators.config`` beside an ONNX file.

    Only optimizations that hold on every processor are baked in. The list has the form of onnxruntime's reduced
    builds: ``domain;opset;operators``.
    """
    target, listed = model.with_suffix(".ort"), model.with_name(f"{model.stem}.required_operators.config")
    artifacts.write_atomically(target, lambda temporary: _convert(model, temporary))
    with tempfile.TemporaryDirectory(prefix="kdexport.") as folder:
        optimized = Path(folder) / "optimized.onnx"
        _convert(model, optimized)
        artifacts.write_text(listed, _operators(onnx.load(optimized, load_external_data=False)))
    return target, listed


def noted(model: ModelFile, folder: Path) -> ModelFile:
    """Write the ORT form of a file and return its entry with a note that says so."""
    target, listed = write(folder / model.file)
    note = f"in ORT format as {target.name} ({target.stat().st_size / 1024:.1f} KiB), operators in {listed.name}"
    return dataclasses.replace(model, notes=(*model.notes, note))


def _convert(model: Path, target: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(target)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    if target.suffix == ".ort":
        options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _operators(model: onnx.ModelProto) -> str:
    opsets = {item.domain or "ai.onnx": item.version for item in model.opset_import}
    used: dict[str, set[str]] = {}
    for node in metadata.nodes(model.graph):
        used.setdefault(node.domain or "ai.onnx", set()).add(node.op_type)
    lines = [f"{domain};{opsets.get(domain, 1)};{','.join(sorted(names))}" for domain, names in sorted(used.items())]
    return "\n".join(["# domain;opset;operators", *lines]) + "\n"
