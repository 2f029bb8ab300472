"""A teacher that came as an ONNX file: it takes its place among the others as it is, with the run's metadata."""

from pathlib import Path

import onnx_ir as ir

from kdexport.export import files, metadata
from kdexport.results import ModelFile, TrainedNetwork
from kdexport.sources.preprocessing import Preprocessing


def write(source: Path, network: TrainedNetwork, path: Path, preprocessing: Preprocessing, *, key: str) -> ModelFile:
    """Copy a given file, its graph untouched, under a run's name for it.

    Args:
        source: The user's file.
        network: Its entry.
        path: Where it goes.
        preprocessing: What it takes, where its metadata do not say.
        key: Stands for all that it is made from.
    """
    model = ir.load(source)
    image = model.graph.inputs[0].dtype == ir.DataType.UINT8
    own = metadata.entries(
        key=key, precision="fp32", opset=model.opset_imports[""], preprocessing=preprocessing, baked=image
    )
    model.metadata_props.update({name: text for name, text in own.items() if name not in model.metadata_props})
    model.metadata_props.update({name: own[name] for name in ("kdexport.key", "kdexport.version")})
    made: list[ModelFile] = []

    def entry(temporary: Path) -> None:
        made.append(
            metadata.model_file(
                network.name,
                temporary,
                shown_as=path.name,
                precision=model.metadata_props["kdexport.precision"],
                parameters=network.parameters or None,
                macs=network.macs,
                parity=None,
                notes=("given as ONNX: its graph is as it was",),
            )
        )

    files.write(model, path, entry)
    return made[0]
