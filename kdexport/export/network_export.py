"""One network becomes one fp32 file: exported, dressed, written under a temporary name, proved, renamed."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdexport.errors import KDExportError
from kdexport.export import graph, parity
from kdexport.export.diagnosis import first_difference
from kdexport.export.target import ExportTarget, Form
from kdexport.export.to_onnx import Exported, to_onnx
from kdexport.onnx import files, metadata
from kdexport.onnx.sessions import Arrays, OnnxSession
from kdexport.results import ModelFile, Parity


def write(subject: ExportTarget, form: Form, path: Path, *, key: str | None = None) -> ModelFile:
    """Write and prove a network's file.

    Args:
        subject: The network and the samples to prove its file on.
        form: What the file is to look like.
        path: Its final name; a file of that name is replaced, once the new one is proved.
        key: Stands for all that the file is made from.

    Raises:
        ParityError: The file differs from the network; nothing is left under ``path``.
        KDExportError: The network does not take the inputs, or cannot be exported.
    """
    example = _example(subject, form)
    exported = _export(subject, form, example)
    baked = form.bake and subject.preprocessing.kind == "image"
    if baked:
        raw = subject.samples[0]
        size = None if form.any_image_size else (int(raw.shape[1]), int(raw.shape[2]))
        graph.prepend(exported.model, subject.preprocessing, channels=int(raw.shape[3]), size=size)
    graph.append(exported.model, softmax=form.softmax, top_k=form.top_k, labels=subject.class_names)
    exported.model.ir_version = form.ir
    exported.model.metadata_props.update(
        metadata.entries(
            key=key,
            precision="fp32",
            opset=form.opset,
            labels=subject.class_names,
            preprocessing=subject.preprocessing,
            baked=baked,
            recipe=subject.recipe,
            parameters=subject.parameters,
            macs=subject.macs,
            license=subject.license,
            val_accuracy=subject.accuracy,
        )
    )
    proofs: list[ModelFile] = []

    def fill(temporary: Path) -> None:
        proof = _prove(subject, form, temporary, path.name, baked=baked)
        if not proof.passed:
            parity.demand(proof, path.name, where=_where(exported, subject, form, baked=baked))
        proofs.append(
            metadata.model_file(
                subject.name,
                temporary,
                shown_as=path.name,
                precision="fp32",
                parameters=subject.parameters,
                macs=subject.macs,
                parity=proof,
                operators_before=exported.operators_before,
                notes=() if subject.samples_are == "real" else ("proved on random inputs: no data were given",),
            )
        )

    files.write(exported.model, path, fill)
    return proofs[0]


def _example(subject: ExportTarget, form: Form) -> tuple[Tensor, ...]:
    """Return two samples (one where nothing is dynamic) as the network takes them."""
    count = 1 if form.static else 2
    return subject.preprocessing.apply(tuple(np.ascontiguousarray(array[:count]) for array in subject.samples))


def _export(subject: ExportTarget, form: Form, example: tuple[Tensor, ...]) -> Exported:
    names = form.output_names or _output_names(_run(subject, example))
    dynamic = form.dynamic
    if form.static:
        dynamic = tuple({} for _ in example)
    elif dynamic is None:
        text = subject.preprocessing.kind == "tokens"
        dynamic = tuple({0: "batch", 1: "length"} if text and item.ndim > 1 else {0: "batch"} for item in example)
    return to_onnx(
        subject.network, example, input_names=subject.input_names, output_names=names, opset=form.opset, dynamic=dynamic
    )


def _run(subject: ExportTarget, example: tuple[Tensor, ...]) -> Any:
    """Run the network once: what does not fit shows here, in the user's terms."""
    name = type(subject.network).__name__
    try:
        with torch.no_grad():
            return subject.network(*example)
    except Exception as error:  # the user's own code may raise anything
        shapes = ", ".join(f"{list(item.shape)} {str(item.dtype).removeprefix('torch.')}" for item in example)
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise KDExportError(
            f"{name} does not take inputs of shape {shapes}: {said[0]}",
            hint="give the shape of one sample, without the batch, e.g. --input-shape 3,224,224",
        ) from error


def _output_names(output: Any) -> tuple[str, ...]:
    if isinstance(output, Tensor):
        return ("logits",)
    if isinstance(output, tuple | list) and all(isinstance(item, Tensor) for item in output):
        return tuple(f"output_{number}" for number in range(len(output)))
    kind = type(output).__name__
    keys = f" with {', '.join(map(str, output))}" if isinstance(output, dict) else ""
    raise KDExportError(
        f"the network returns a {kind}{keys}; ONNX outputs are tensors in a fixed order",
        hint="wrap it in a class whose forward returns the tensor (or a tuple of tensors) to export, "
        "and give that as file.py:Name",
    )


def _prove(subject: ExportTarget, form: Form, file: Path, shown_as: str, *, baked: bool) -> Parity:
    session = OnnxSession(file)
    dressed = form.softmax or form.top_k

    def torch_model(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            output = subject.network(*subject.preprocessing.apply(inputs))
        arrays = tuple(item.numpy() for item in (output if isinstance(output, tuple | list) else (output,)))
        if not dressed:
            return arrays
        first = graph.reference(arrays[0], softmax=form.softmax, top_k=form.top_k, labels=subject.class_names)
        return (first[0], *arrays[1:], *first[1:])

    def onnx_model(inputs: Arrays) -> Arrays:
        return session(inputs if baked else numpy_inputs(subject, inputs))

    sizes = (1,) if form.static else parity.BATCH_SIZES
    return parity.compare(
        torch_model, onnx_model, subject.samples, tolerance=form.tolerance, batch_sizes=sizes, subject=shown_as
    )


def numpy_inputs(subject: ExportTarget, inputs: Arrays) -> Arrays:
    """Return raw inputs as a file without preprocessing takes them."""
    return tuple(tensor.numpy() for tensor in subject.preprocessing.apply(inputs))


def _where(exported: Exported, subject: ExportTarget, form: Form, *, baked: bool) -> str | None:
    """Say where the file and the network part, once it is known that they do; None for a model beyond one file."""
    if files.weight_bytes(exported.model) > files.SINGLE_FILE_BYTES:
        return None
    example = _example(subject, form)
    raw = tuple(np.ascontiguousarray(array[: len(example[0])]) for array in subject.samples)
    fed = raw if baked else tuple(item.numpy() for item in example)
    return first_difference(exported, example, fed, form.tolerance)
