"""Writing an ONNX file so that it is whole or absent: one file below 2 GB, else the weights beside it.

protobuf ends at 2 GiB. A larger model's weights go to ``NAME.onnx.data``, and the two are put in place together.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from kdexport import artifacts
from kdexport.errors import KDExportError

SINGLE_FILE_BYTES = 2**31 - 2**20  # 2 GiB, less a MiB for everything but the weights


def write(model: ir.Model, path: Path, prove: Callable[[Path], None]) -> None:
    """Write a model under a temporary name, prove it, and give it its final name.

    Args:
        model: What to write.
        path: The final name.
        prove: Called with the temporary file; what it raises leaves ``path`` as it was.

    Raises:
        KDExportError: The disk is full or the folder cannot be written to.
    """
    if weight_bytes(model) <= SINGLE_FILE_BYTES:

        def fill(temporary: Path) -> None:
            ir.save(model, temporary)
            prove(temporary)

        artifacts.write_atomically(path, fill)
        data_of(path).unlink(missing_ok=True)  # of a larger model that had this name before
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
            whole = Path(folder) / path.name
            ir.save(model, whole, external_data=data_of(path).name)
            prove(whole)
            # The model without its weights would be broken, the weights without the model are only in the way.
            data_of(whole).replace(data_of(path))
            whole.replace(path)
    except OSError as error:
        raise KDExportError(
            f"{path} could not be written: {error.strerror or error}",
            hint="free some space or choose another place with --out, then give the same command again",
        ) from error


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
