"""Export without a run: a model reference, with weights and data where the user has them.

Real data make the proof real and int8 possible; without them the network is proved on random inputs, and the result
says so.
"""

import dataclasses
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdexport.artifacts import write_text
from kdexport.data.samples import Dataset
from kdexport.errors import KDExportError, SourceError, whole_number
from kdexport.export import network_export, parity, random_inputs, variants
from kdexport.export.fitted_entries import stamp_for
from kdexport.export.random_inputs import BATCH, InputShape
from kdexport.export.target import ExportTarget, Form, bind, parameters_of, select_outputs, unwrapped
from kdexport.export.variant_inputs import CalibrationData, TimerMaker, VariantSpec
from kdexport.models.fitted_data import as_files_say, load_fitted_data
from kdexport.models.loading import Model, inferred_preprocessing, load_model
from kdexport.models.networks import load_with_fresh, pretrained_weights, with_pretrained_args
from kdexport.models.outputs import Output, install
from kdexport.models.own_vocabulary import TOKENIZER_FILE, tokenizer_beside
from kdexport.models.preprocessing import Preprocessing, with_spec
from kdexport.models.weights import fit_weights, load_weights
from kdexport.onnx import example, files
from kdexport.onnx.sessions import Arrays
from kdexport.precisions import PRECISIONS
from kdexport.progress import Progress
from kdexport.recipe import Data, PreprocessingSpec, Student
from kdexport.recipe.text import PRETRAINED
from kdexport.references import parse
from kdexport.results import ExportResult


@dataclass(frozen=True)
class Request:
    """What is to be exported."""

    reference: str  # with an absolute path where it has one
    out: Path
    args: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None  # a path, or "pretrained"
    inputs: tuple[InputShape, ...] = ()
    data: Data | None = None
    task: str | None = None  # what the data are for; None: what the weights or they themselves say
    preprocessing: PreprocessingSpec = field(default_factory=PreprocessingSpec)
    quantize: tuple[str, ...] = ()
    calibration: str = "auto"
    calibration_samples: int = 256
    weight_bits: int = 7
    max_drop: float | None = None
    max_output_error: float | None = None
    dynamic: tuple[str, ...] = ()  # NAME:AXIS=LABEL
    timer: TimerMaker | None = None  # what times files for auto
    ort: bool = False  # the ORT format is written, too
    force: bool = False
    seed: int = 0
    license: str | None = None


def export(request: Request, form: Form, progress: Progress) -> ExportResult:
    """Export a network by reference, prove the file, and make the variants asked for.

    Raises:
        ParityError: A file differs from its PyTorch model.
        KDExportError: A file is there already, the network cannot be had or exported, or int8 has no data.
    """
    if request.out.is_dir():
        raise KDExportError(
            f"{request.out} is a folder", hint=f"give a file's name, e.g. --out {request.out / 'net.onnx'}"
        )
    paths = {precision: _variant_path(request.out, precision) for precision in request.quantize}
    _check(request, [made for path in (request.out, *paths.values()) for made in _made_with(path, ort=request.ort)])
    with tempfile.TemporaryDirectory(prefix="kdexport.", ignore_cleanup_errors=True) as cache:
        dataset = None
        if request.data is not None:
            known, task = as_files_say(request.data, request.task, [Path(request.weights or "")])
            dataset = load_fitted_data(known, (_spec(request),), request.seed, Path(cache), task=task)
        tokenizer = _tokenizer(request, dataset)
        target = _target(request, form, dataset, progress)
        if tokenizer is not None:
            told = dataclasses.replace(target.preprocessing, tokenizer_file=TOKENIZER_FILE)
            target = dataclasses.replace(target, preprocessing=told)
        form = _with_axes(form, request, target)
        progress.message(f"{request.reference} -> {request.out}")
        models = [network_export.write(target, form, request.out, progress=progress)]
        data = _calibration_data(request, form, target, dataset)
        smaller, failures = variants.write_all(
            request.out, models[0], _specs(request), paths, data, progress, request.timer
        )
    if tokenizer is not None:
        write_text(request.out.with_name(TOKENIZER_FILE), tokenizer)
    if example.write(request.out, force=request.force) is None:
        progress.warn("there is an infer.py that kdexport did not write: it is left as it is; --force replaces it")
    return ExportResult(request.out.stem, (*models, *smaller), failures)


def _tokenizer(request: Request, dataset: Dataset | None) -> str | None:
    """Return the tokenizer.json that goes beside a file which takes text; None for any other.

    Raises:
        KDExportError: There is another one, which is the user's.
    """
    if dataset is None or request.data is None or request.data.tokenizer is None or dataset.vocabulary is not None:
        return None
    if dataset.preprocessing.kind != "tokens":
        return None
    text = tokenizer_beside(request.data.tokenizer, request.data.text_length)
    path = request.out.with_name(TOKENIZER_FILE)
    if text is not None and path.exists() and not request.force and path.read_bytes() != text.encode():
        raise KDExportError(
            f"there is another {path} already", hint="give --force to replace it, or --out in another folder"
        )
    return text


def _specs(request: Request) -> list[VariantSpec]:
    return [
        VariantSpec(
            precision,
            request.calibration,
            request.weight_bits,
            max_drop=request.max_drop,
            max_output_error=request.max_output_error,
        )
        for precision in request.quantize
    ]


def _check(request: Request, paths: list[Path]) -> None:
    there = [str(path) for path in paths if path.exists()]
    if there and not request.force:
        raise KDExportError(f"there is a file already: {', '.join(there)}", hint="give --force to replace it, or --out")
    if request.quantize and any(item.batch_axis for item in request.inputs):
        raise KDExportError(
            "smaller variants are compared sample by sample, and the batch of an input is not its first axis",
            hint="leave --quantize out, or wrap the network so that its inputs have the batch first",
        )
    needing = [name for name in request.quantize if PRECISIONS[name].needs_calibration]
    if request.data is None and needing:
        raise KDExportError(
            f"{needing[0]} needs samples to calibrate on, and there are none",
            hint=f"give data with --data REF, e.g. --data imagefolder:photos; or leave {needing[0]} out, then make it "
            f"of the ONNX file: kdexport export {request.out.name} --onnx --quantize {needing[0]} --input "
            "calibration.npz, an array per input; int8-dynamic and fp16 need none",
        )
    if request.data is None and request.max_drop is not None:
        raise KDExportError("--max-drop needs labelled data", hint="give data with --data REF")
    if request.data is None and not request.inputs:
        raise KDExportError(
            "the shape of the network's input is not known",
            hint="give it with --input-shape, e.g. 3,224,224 (without the batch), or real data with --data REF",
        )


def _variant_path(out: Path, precision: str) -> Path:
    return out.with_name(f"{out.stem}.{precision}{out.suffix}")


def _made_with(path: Path, *, ort: bool) -> list[Path]:
    """Return every file that writing a model puts in place, or removes."""
    return [path, files.data_of(path), *(files.ort_files(path) if ort else ())]


def _target(request: Request, form: Form, dataset: Dataset | None, progress: Progress) -> ExportTarget:
    if dataset is not None:
        spec = _spec(request)
        torch.manual_seed(request.seed)
        model = load_model("network", spec, dataset, any_output=True)
        for line in model.left_out:
            progress.warn(f"exported without weights for {line}")
        for line in model.notes:
            progress.message(line)
        for line in model.warnings:
            progress.warn(line)
        names = dataset.input_names
        if not form.output_names:
            _pick_map(model, dataset)
        embeds = dataset.task.embeds
        classifies = embeds or _classifies(model, dataset)
        if not classifies:
            progress.message(
                f"the network gives no logits of the data's {dataset.num_classes} classes: no labels are written"
            )
        by_name = len(names) > 1 and set(names) <= set(parameters_of(model.network))
        target = ExportTarget(
            request.out.stem,
            model.network,
            model.preprocessing,
            names,
            parity.samples_of(dataset.val.inputs, dataset.train.inputs, dataset.values_per_sample),
            class_names=dataset.class_names if classifies and not embeds else (),
            feature_names=dataset.feature_names,
            task=dataset.task.name if classifies else None,
            output_name=dataset.task.output_name if classifies else "logits",
            activation=dataset.task.activation if classifies else "softmax",
            license=request.license,
            parameter_names=names if by_name else None,
            stamp=stamp_for(dataset, model.preprocessing) if embeds else None,
        )
    else:
        target = _random_target(request, form, progress)
    return dataclasses.replace(
        target, parameters=sum(parameter.numel() for parameter in target.network.parameters()), macs=_macs(target)
    )


def _classifies(model: Model, dataset: Dataset) -> bool:
    """Whether a network gives logits of the data's classes; one that cannot be run is told by the export."""
    inputs = model.preprocessing.apply(dataset.train.take(slice(0, 2)).inputs)
    try:
        with torch.no_grad():
            output = model.network(*inputs)
    except Exception:  # noqa: BLE001 the user's own code may raise anything, and is run again, with a message
        return True
    first = output[0] if isinstance(output, tuple | list) and output else output
    return isinstance(first, torch.Tensor) and _is_of_task(first, len(inputs[0]), dataset)


def _is_of_task(output: torch.Tensor, samples: int, dataset: Dataset) -> bool:
    try:
        dataset.task.check_outputs(tuple(output.shape), samples, dataset.class_names, "the network")
    except SourceError:
        return False
    return True


def _pick_map(model: Model, dataset: Dataset) -> None:
    """Let a segmentation network give its map alone, in the size of the masks, as in a run."""
    if dataset.task.map_size is None:
        return
    inputs = model.preprocessing.apply(dataset.train.take(slice(0, 2)).inputs)
    shape = dataset.train.inputs[0].shape[1:]
    pick = Output(None, dataset.task.postprocessing(shape, fresh=False), "network")
    try:
        with torch.no_grad():
            found = pick(model.network, inputs, model.network(*inputs))
    except Exception:  # noqa: BLE001 what it gives is exported as it is, or told by the export
        return
    if isinstance(found, torch.Tensor) and _is_of_task(found, len(inputs[0]), dataset):
        install(model.network, pick)


def _random_target(request: Request, form: Form, progress: Progress) -> ExportTarget:
    network = _network(request, progress)
    if form.output_names:
        select_outputs(network, form.output_names)
    names = tuple(item.name for item in request.inputs)
    parameters = bind(network, names, named=any(item.named for item in request.inputs))
    target = ExportTarget(
        request.out.stem,
        network,
        _preprocessing(request, form),
        names,
        (),
        samples_are="random",
        license=request.license,
        parameter_names=parameters,
        batch_axes=tuple(item.batch_axis for item in request.inputs),
    )
    return random_inputs.drawn(target, request.inputs, seed=request.seed, pixels=form.bake)


def _spec(request: Request) -> Student:
    return Student(
        model=request.reference, args=request.args, weights=request.weights, preprocessing=request.preprocessing
    )


def _network(request: Request, progress: Progress) -> nn.Module:
    torch.manual_seed(request.seed)
    network, fresh = load_with_fresh(
        request.reference, with_pretrained_args(request.reference, request.args, request.weights)
    )
    if request.weights is None and fresh is None and parse(request.reference).kind in ("torchvision", "timm", "hf"):
        progress.warn(f"no weights are given: {request.reference} is exported as it starts, untrained")
    elif request.weights is None and fresh:
        progress.warn(f"not in the files of {request.reference}, and exported as they start: {', '.join(fresh)}")
    if request.weights == PRETRAINED:
        fit_weights(network, pretrained_weights(request.reference, request.args), "the pretrained weights")
    elif request.weights is not None:
        load_weights(network, Path(request.weights))
    return unwrapped(network).eval()


def _preprocessing(request: Request, form: Form) -> Preprocessing:
    """Return the preprocessing of a network that no data are given for."""
    if not form.bake:
        if request.preprocessing != PreprocessingSpec():
            raise KDExportError(
                "mean, std, size and resize go into the graph, and the graph is to have no preprocessing",
                hint="leave --no-bake-preprocessing out",
            )
        return Preprocessing("none")
    first = request.inputs[0]
    if len(first.dims) != 3:
        raise KDExportError(
            f"preprocessing is for images, and {first.name} has the shape {list(first.dims)}",
            hint="leave --bake-preprocessing out, or give channels,height,width as --input-shape",
        )
    plain = Preprocessing("image", (first.dims[1], first.dims[2]))
    own = inferred_preprocessing(request.reference, request.args, request.weights, plain)
    return with_spec(own or plain, request.preprocessing)


def _with_axes(form: Form, request: Request, target: ExportTarget) -> Form:
    """Return the form with the axes that ``--dynamic NAME:AXIS[=LABEL]`` adds to the batch."""
    if not request.dynamic:
        return form
    batch_axes = target.batch_axes or (0,) * len(target.input_names)
    axes = {name: {axis: BATCH} for name, axis in zip(target.input_names, batch_axes, strict=True)}
    ranks = {name: array.ndim for name, array in zip(target.input_names, target.samples, strict=True)}
    for text in request.dynamic:
        match = re.fullmatch(r"(\w+):(\d+)(?:=([A-Za-z_]\w*))?", text)
        axis = None if match is None else whole_number(match[2])
        if match is None or axis is None or match[1] not in axes or axis >= ranks[match[1]]:
            raise KDExportError(
                f"--dynamic {text!r} names no axis of an input",
                hint=f"e.g. {target.input_names[0]}:2=height, axes counted from 0, the batch; "
                f"inputs: {', '.join(f'{name} with {rank} axes' for name, rank in ranks.items())}",
            )
        label = match[3] or f"{match[1]}_{match[2]}"
        if axes[match[1]].get(axis) == BATCH:  # one batch, whatever it is called
            axes = {name: {at: label if old == BATCH else old for at, old in of.items()} for name, of in axes.items()}
        axes[match[1]][axis] = label
    return dataclasses.replace(form, dynamic=tuple(axes[name] for name in target.input_names))


def _calibration_data(request: Request, form: Form, target: ExportTarget, dataset: Dataset | None) -> CalibrationData:
    baked = form.bake and target.preprocessing.fits_in_graph

    def feed(raw: Arrays) -> Arrays:
        return raw if baked else network_export.numpy_inputs(target, raw)

    def calibration() -> Arrays:
        if dataset is None:  # _check has refused int8 without data
            return target.samples
        count = min(request.calibration_samples, len(dataset.train))
        chosen = np.random.default_rng(request.seed).choice(len(dataset.train), count, replace=False)
        return dataset.train.take(np.sort(chosen)).inputs

    def validation() -> tuple[Arrays, NDArray[Any]] | None:
        if dataset is None or dataset.val.labels is None:
            return None
        few = dataset.val.spread(variants.VALIDATION_SAMPLES)
        return None if few.labels is None else (few.inputs, few.labels)

    return CalibrationData(
        lambda: target.samples,
        calibration,
        validation,
        feed,
        task=None if dataset is None else dataset.task,
        classes=None if dataset is None else dataset.num_classes,
        stamp=target.stamp,
        samples_are="validation" if dataset is not None else "random",
    )


def _macs(target: ExportTarget) -> int | None:
    """Return the multiply-accumulates of one sample; None where the network cannot be run, which export will say."""
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            target.call(target.tensors(tuple(array[:1] for array in target.samples)))
    except Exception:  # noqa: BLE001 the user's own code may raise anything, and is run again, with a message
        return None
    return counter.get_total_flops() // 2 or None
