"""ONNX files, and their ORT form: written so that they are whole or absent.

protobuf ends at 2 GiB: a larger model's weights go to ``NAME.onnx.data``, and the two are put in place together.
"""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir

from kdexport import artifacts
from kdexport.errors import StorageError
from kdexport.onnx.graphs import nodes
from kdexport.results import ModelFile

SINGLE_FILE_BYTES = 2**31 - 2**20  # 2 GiB, less a MiB for everything but the weights


def write(model: ir.Model, path: Path, prove: Callable[[Path], None]) -> None:
    """Write a model under a temporary name, prove it, and give it its final name.

    Args:
        model: What to write.
        path: The final name.
        prove: Called with the temporary file; what it raises leaves ``path`` as it was.

    Raises:
        StorageError: The disk is full or the folder cannot be written to.
    """
    if weight_bytes(model) <= SINGLE_FILE_BYTES:

        def fill(temporary: Path) -> None:
            ir.save(model, temporary)
            prove(temporary)

        artifacts.write_atomically(path, fill)
        data_of(path).unlink(missing_ok=True)  # of a larger model that had this name before
        return
    folder = artifacts.temporary_of(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        whole = folder / path.name
        ir.save(model, whole, external_data=data_of(path).name)
        prove(whole)
        # The model without its weights would be broken, the weights without the model are only in the way.
        data_of(whole).replace(data_of(path))
        whole.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path} could not be written: {error.strerror or error}",
            hint="free some space or choose another place with --out, then give the same command again",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def data_of(path: Path) -> Path:
    """Return where the weights of a file lie that does not hold them itself."""
    return path.with_name(path.name + ".data")


def size_bytes(path: Path) -> int:
    """Return the size of a model, external weights included."""
    data = data_of(path)
    return path.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of a graph's constants."""
    constants = (value.const_value for value in model.graph.initializers.values())
    return sum(constant.nbytes for constant in constants if constant is not None)


def ort_files(model: Path) -> tuple[Path, Path]:
    """Return where the ORT form of a file and the list of its operators go."""
    return model.with_suffix(".ort"), model.with_name(f"{model.stem}.required_operators.config")


def write_ort(model: Path) -> tuple[Path, Path]:
    """Write ``NAME.ort`` and ``NAME.required_operators.config`` beside an ONNX file.

    Only optimizations that hold on every processor are baked in. The list has the form of onnxruntime's reduced
    builds: ``domain;opset;operators``.
    """
    target, listed = ort_files(model)
    artifacts.write_atomically(target, lambda temporary: _convert(model, temporary))
    with tempfile.TemporaryDirectory(prefix="kdexport.", ignore_cleanup_errors=True) as folder:
        optimized = Path(folder) / "optimized.onnx"
        _convert(model, optimized)
        artifacts.write_text(listed, _operators(onnx.load(optimized, load_external_data=False)))
    return target, listed


def noted(model: ModelFile, folder: Path) -> ModelFile:
    """Write the ORT form of a file and return its entry with a note that says so."""
    target, listed = write_ort(folder / model.file)
    note = f"in ORT format as {target.name} ({target.stat().st_size / 1024:.1f} KiB), operators in {listed.name}"
    return dataclasses.replace(model, notes=(*model.notes, note))


def _convert(model: Path, target: Path) -> None:
    import onnxruntime  # here: who only reads files does not wait for it

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(target)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    if target.suffix == ".ort":
        options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _operators(model: onnx.ModelProto) -> str:
    opsets = {item.domain or "ai.onnx": item.version for item in model.opset_import}
    used: dict[str, set[str]] = {}
    for node in nodes(model.graph):
        used.setdefault(node.domain or "ai.onnx", set()).add(node.op_type)
    lines = [f"{domain};{opsets.get(domain, 1)};{','.join(sorted(names))}" for domain, names in sorted(used.items())]
    return "\n".join(["# domain;opset;operators", *lines]) + "\n"
