"""One network becomes one fp32 file: exported, completed, written under a temporary name, proved, renamed."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdexport.errors import KDExportError, SourceError
from kdexport.export import diagnosis, graph, parity, random_inputs
from kdexport.export.diagnosis import first_difference
from kdexport.export.target import HALF, ExportTarget, Form, keys_of, parameters_of, tensors_of, unwrapped
from kdexport.export.to_onnx import Exported, in_order, to_onnx
from kdexport.models.outputs import output_of
from kdexport.onnx import files, metadata
from kdexport.onnx.sessions import Arrays, OnnxSession, first_line
from kdexport.progress import SILENT, Progress
from kdexport.references import place
from kdexport.results import ModelFile, Parity

ROUNDINGS = 4  # of a half-precision network's own type: what its proof allows
# onnxruntime 28310: by a ratio that is no whole number, another pixel is the nearest in either.
NEAREST = (
    'interpolate(mode="nearest") rounds otherwise in ONNX Runtime where sizes are not multiples of each other: '
    'mode="nearest-exact" and "bilinear" are the same in both'
)
OTHER_SIZES = 2  # at which each dynamic axis is proved, besides the one in the data


def write(
    target: ExportTarget, form: Form, path: Path, *, key: str | None = None, progress: Progress = SILENT
) -> ModelFile:
    """Write and prove a network's file.

    Args:
        target: The network and the samples to prove its file on.
        form: What the file is to look like.
        path: Its final name; a file of that name is replaced, once the new one is proved.
        key: Stands for all that the file is made from.
        progress: Where outputs that are no answers are warned of.

    Raises:
        ParityError: The file differs from the network; nothing is left under ``path``.
        KDExportError: The network does not take the inputs, is random or depends on the batch, or cannot be exported.
    """
    target = dataclasses.replace(target, network=unwrapped(target.network))
    _check_no_script(target)
    form = dataclasses.replace(form, tolerance=max(form.tolerance, ROUNDINGS * _epsilon(target)))
    example = _example(target, form)
    names = form.output_names or ()
    names = _checked_names(target, names, _run(target, example))
    form = dataclasses.replace(form, output_names=names)
    exported = _export(target, form, example)
    diagnosis.check(target, static=form.static)
    baked = form.bake and target.preprocessing.fits_in_graph
    if baked and target.preprocessing.kind == "features":
        graph.prepend_features(exported.model, target.preprocessing)
    elif baked:
        raw = target.samples[0]
        size = None if form.any_image_size else (int(raw.shape[1]), int(raw.shape[2]))
        graph.prepend(exported.model, target.preprocessing, channels=int(raw.shape[3]), size=size)
    output = output_of(target.network)
    if output is not None and output.postprocessing is not None and output.postprocessing.kind == "scale":
        graph.name_scaling(exported.model)
    graph.append(
        exported.model,
        softmax=form.softmax,
        top_k=form.top_k,
        labels=target.class_names,
        activation=target.activation,
    )
    exported.model.ir_version = form.ir
    exported.model.metadata_props.update(
        metadata.entries(
            key=key,
            precision="fp32",
            opset=exported.model.opset_imports[""],
            labels=target.class_names,
            features=target.feature_names,
            task=target.task,
            preprocessing=target.preprocessing,
            baked=baked,
            recipe=target.recipe,
            parameters=target.parameters,
            macs=target.macs,
            license=target.license,
            val_score=target.val_score,
        )
    )
    proofs: list[ModelFile] = []

    def fill(temporary: Path) -> None:
        proof = _prove(target, form, temporary, path.name, baked=baked)
        if not proof.passed:
            parity.demand(proof, path.name, where=_where(exported, target, form, baked=baked))
        if target.stamp is not None:
            target.stamp(temporary)
        proofs.append(
            metadata.model_file(
                target.name,
                temporary,
                shown_as=path.name,
                precision="fp32",
                parameters=target.parameters,
                macs=target.macs,
                parity=proof,
                operators_before=exported.operators_before,
                notes=_notes(target, form, proof),
            )
        )

    files.write(exported.model, path, fill)
    if (proof := proofs[0].parity) is not None:
        for doubt in parity.doubts(proof):
            progress.warn(f"{path.name}: {doubt}")
    return proofs[0]


def _check_no_script(target: ExportTarget) -> None:
    """Refuse a network that is TorchScript, or that has a part which is."""
    for path, module in target.network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise KDExportError(
                f"{path or target.name} is TorchScript, which torch.export does not capture",
                hint="give the nn.Module that it was made from"
                + (" in its place" if path else ", as file.py:Name, with its weights as a file"),
            )


def _epsilon(target: ExportTarget) -> float:
    """Return the rounding error of the network's own type, where that is coarser than float32; else 0."""
    kind = target.lowest_precision
    return torch.finfo(kind).eps if kind in HALF else 0.0


def _notes(target: ExportTarget, form: Form, proof: Parity) -> tuple[str, ...]:
    notes = [*target.notes]
    if target.samples_are != "real":
        notes.append("proved on random inputs: no data were given")
    if target.lowest_precision in HALF:
        kind = str(target.lowest_precision).removeprefix("torch.")
        notes.append(f"the network computes in {kind}: proved to {form.tolerance:.1g}, some roundings of that type")
    for number in proof.constant_outputs:
        name = (
            form.output_names[number] if form.output_names and number < len(form.output_names) else f"output {number}"
        )
        notes.append(f"{name} is the same for every sample")
    return (*notes, *parity.doubts(proof))


def _example(target: ExportTarget, form: Form) -> tuple[Tensor, ...]:
    """Return two samples (one where nothing is dynamic) as the network takes them."""
    count = 1 if form.static else 2
    return tuple(map(in_order, target.tensors(tuple(array[:count] for array in target.samples))))


def _axes(target: ExportTarget, form: Form, example: tuple[Tensor, ...]) -> tuple[dict[int, str], ...]:
    """Return the dynamic axes of each input, as the network takes it."""
    if form.static:
        return tuple({} for _ in example)
    if form.dynamic is not None:
        return form.dynamic
    text = target.preprocessing.kind == "tokens"
    first = target.batch_axes or (0,) * len(example)
    return tuple(
        {axis: "batch", 1: "length"} if text and item.ndim > 1 else {axis: "batch"}
        for item, axis in zip(example, first, strict=True)
    )


def _export(target: ExportTarget, form: Form, example: tuple[Tensor, ...]) -> Exported:
    return to_onnx(
        target.network,
        example,
        input_names=target.input_names,
        output_names=form.output_names or (),
        opset=form.opset,
        dynamic=_axes(target, form, example),
        parameter_names=target.parameter_names,
    )


def _run(target: ExportTarget, example: tuple[Tensor, ...]) -> Any:
    """Run the network once: what does not fit shows here, in the user's terms."""
    name = type(target.network).__name__
    try:
        with torch.no_grad():
            return target.call(example)
    except KDExportError:
        raise
    except Exception as error:  # the user's own code may raise anything
        shapes = ", ".join(f"{list(item.shape)} {str(item.dtype).removeprefix('torch.')}" for item in example)
        raise KDExportError(
            f"{name} does not take inputs of shape {shapes}: {first_line(error)}{place(error)}",
            hint=parity.SEVERAL_IN_ONE
            if len(example) == 1 and parity.AS_A_LIST.search(str(error))
            else "give the shape of one sample, without the batch: --input-shape 3,224,224, t::int64 for one number a "
            "sample, h:2,batch,64 where the batch is not the first axis"
            + (f"; its forward takes {', '.join(takes)}" if (takes := parameters_of(target.network)) else ""),
        ) from error


def _checked_names(target: ExportTarget, requested: tuple[str, ...], output: Any) -> tuple[str, ...]:
    """Return a name for each output.

    Raises:
        KDExportError: The network gives no tensors, or the names requested are too few, too many or not unique.
    """
    tensors = tensors_of(output)
    if not tensors:
        kind = type(output).__name__
        fields = keys_of(output)
        keys = f" with {', '.join(fields)}" if fields else ""
        raise KDExportError(
            f"the network returns a {kind}{keys}; ONNX outputs are tensors in a fixed order",
            hint=(f"choose among them with --output-name, e.g. --output-name {fields[0]}, or " if fields else "")
            + "wrap it in a class whose forward returns the tensor (or a tuple of tensors) to export, "
            "and give that as file.py:Name",
        )
    default = (target.output_name,) if isinstance(output, Tensor) else tuple(f"output_{k}" for k in range(len(tensors)))
    names = requested or default
    if len(names) != len(tensors):
        raise KDExportError(
            f"{len(names)} output names ({', '.join(names)}) are given, and the network has {len(tensors)} outputs",
            hint="give --output-name once for each output, in their order, or leave it out",
        )
    both = [*target.input_names, *names]
    twice = sorted({name for name in both if both.count(name) > 1})
    if twice:
        raise KDExportError(
            f"two inputs or outputs are called {', '.join(twice)}; each needs a name of its own",
            hint="give other names with --output-name, or NAME:SHAPE in --input-shape",
        )
    return names


def _prove(target: ExportTarget, form: Form, file: Path, shown_as: str, *, baked: bool) -> Parity:
    session = _loaded(target, file, shown_as)
    adds_outputs = form.softmax or form.top_k

    def outputs(network: nn.Module, inputs: tuple[Tensor, ...]) -> Arrays:
        with torch.no_grad():
            arrays = tuple(as_numpy(item) for item in tensors_of(target.call(inputs, network)) or ())
        if not adds_outputs:
            return arrays
        first = graph.reference(
            arrays[0],
            softmax=form.softmax,
            top_k=form.top_k,
            labels=target.class_names,
            activation=target.activation,
        )
        return (first[0], *arrays[1:], *first[1:])

    def torch_model(inputs: Arrays) -> Arrays:
        return outputs(target.network, target.tensors(inputs))

    doubled: list[nn.Module] = []

    def precise(inputs: Arrays) -> Arrays:
        if not doubled:
            doubled.append(copy.deepcopy(target.network).double())
        tensors = target.tensors(inputs)
        return outputs(doubled[0], tuple(item.double() if item.is_floating_point() else item for item in tensors))

    def onnx_model(inputs: Arrays) -> Arrays:
        return session(inputs if baked else numpy_inputs(target, inputs))

    return parity.compare(
        torch_model,
        onnx_model,
        target.samples,
        tolerance=form.tolerance,
        batch_sizes=(1,) if form.static else parity.BATCH_SIZES,
        label=shown_as,
        hard=random_inputs.hard(target.samples, target.input_names),
        resized=_resized(target, form, torch_model),
        precise=precise,
    )


def _loaded(target: ExportTarget, file: Path, shown_as: str) -> OnnxSession:
    """Open a freshly written file; its temporary name is of no use to the user."""
    try:
        return OnnxSession(file)
    except SourceError as error:
        hint = "try another --opset, or a newer onnxruntime"
        if target.lowest_precision is torch.bfloat16:
            hint = "it computes in bfloat16, of which ONNX Runtime's CPU has no kernels: take .bfloat16() out of its "
            hint += "forward, and give a function that returns network.float()"
        raise KDExportError(error.message.replace(file.name, shown_as), hint=hint) from error


def _resized(target: ExportTarget, form: Form, run: parity.Predict) -> list[Arrays]:
    """Return batches of two samples in which each dynamic axis but the batch has two other sizes.

    Raises:
        KDExportError: The network itself takes no other size.
    """
    samples = tuple(np.ascontiguousarray(array[:2]) for array in target.samples)
    found: list[Arrays] = []
    for name, places in _other_axes(target, form).items():
        size = samples[places[0][0]].shape[places[0][1]]
        taken, refused = 0, ""
        for other in random_inputs.other_sizes(size):
            batch = list(samples)
            for number, axis in places:
                batch[number] = random_inputs.with_size(batch[number], axis, other)
            try:
                run(tuple(batch))
            except Exception as error:  # noqa: BLE001 the user's own code may raise anything at a size it does not take
                refused = first_line(error)
                continue
            found.append(tuple(batch))
            taken += 1
            if taken == OTHER_SIZES:
                break
        if not taken:
            raise KDExportError(
                f"{name} is to be dynamic, and the network takes no size of it but {size}: {refused}",
                hint="leave that axis fixed, or fix the size in its forward",
            )
    return found


def _other_axes(target: ExportTarget, form: Form) -> dict[str, list[tuple[int, int]]]:
    """Return the dynamic axes other than the batch by name: which input's, and which axis of its raw samples."""
    places: dict[str, list[tuple[int, int]]] = {}
    if form.bake and target.preprocessing.kind == "image":
        if form.any_image_size:
            places = {"height": [(0, 1)], "width": [(0, 2)]}
        return places
    if form.static or form.dynamic is None:  # text is cut at its longest sample: its batches have many lengths
        return places
    for number, axes in enumerate(form.dynamic):
        batch = target.batch_axes[number] if target.batch_axes else 0
        for axis, name in axes.items():
            if axis != batch:
                places.setdefault(name, []).append((number, axis if axis > batch else axis + 1))
    return places


def as_numpy(tensor: Tensor) -> np.ndarray:
    """Return a tensor as an array; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def numpy_inputs(target: ExportTarget, inputs: Arrays) -> Arrays:
    """Return raw inputs as a file without preprocessing takes them."""
    return tuple(tensor.numpy() for tensor in target.tensors(inputs))


def _where(exported: Exported, target: ExportTarget, form: Form, *, baked: bool) -> str | None:
    """Say where the file and the network part, once it is known that they do; None for a model beyond one file."""
    if files.weight_bytes(exported.model) > files.SINGLE_FILE_BYTES:
        return None
    example = _example(target, form)
    raw = tuple(np.ascontiguousarray(array[: 1 if form.static else 2]) for array in target.samples)
    fed = raw if baked else tuple(item.numpy() for item in example)
    found = first_difference(exported, example, fed, form.tolerance)
    return found or (NEAREST if any(map(_takes_nearest, exported.model.graph)) else None)


def _takes_nearest(node: Any) -> bool:
    """Whether a node is ``interpolate(mode="nearest")``."""
    mode = node.attributes.get("mode")
    return bool(node.op_type == "Resize" and mode is not None and mode.value == "nearest")
