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

from kdexport.data.samples import Dataset
from kdexport.errors import KDExportError
from kdexport.export import example, network_export, parity, variants
from kdexport.export.target import ExportTarget, Form
from kdexport.models.fitted_data import load_fitted_data
from kdexport.models.loading import inferred_preprocessing, load_model
from kdexport.models.networks import load_with_fresh, pretrained_weights, with_pretrained_args
from kdexport.models.preprocessing import Preprocessing, with_spec
from kdexport.models.weights import fit_weights, load_weights
from kdexport.onnx.sessions import Arrays
from kdexport.progress import Progress
from kdexport.recipe import PRETRAINED, Data, PreprocessingSpec, Student
from kdexport.references import parse
from kdexport.results import ExportResult

RANDOM_SAMPLES = 10  # batches of 1, 2 and 7
SHAPE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*):)?(?P<dims>\d+(?:[,x]\d+)*)(?::(?P<type>\w+))?")
TYPES: dict[str, Any] = {
    "float32": np.float32,
    "int64": np.int64,
    "int32": np.int32,
    "uint8": np.uint8,
    "bool": np.bool_,
}
LARGEST_TOKEN = 100  # of random integer inputs: any vocabulary has that many


@dataclass(frozen=True)
class InputShape:
    """One input of a network, without the batch: ``[NAME:]3,224,224[:TYPE]``."""

    name: str
    dims: tuple[int, ...]
    type: str = "float32"


@dataclass(frozen=True)
class Request:
    """What is to be exported."""

    reference: str  # with an absolute path where it has one
    out: Path
    args: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None  # a path, or "pretrained"
    inputs: tuple[InputShape, ...] = ()
    data: str | None = None
    preprocessing: PreprocessingSpec = field(default_factory=PreprocessingSpec)
    quantize: tuple[str, ...] = ()
    calibration: str = "auto"
    calibration_samples: int = 256
    weight_bits: int = 7
    max_accuracy_drop: float | None = None
    dynamic: tuple[str, ...] = ()  # NAME:AXIS=LABEL
    force: bool = False
    seed: int = 0
    license: str | None = None


def parse_shape(text: str, number: int) -> InputShape:
    """Parse one ``--input-shape``.

    Args:
        text: ``3,224,224``, ``pixels:3x224x224`` or ``ids:128:int64``; the batch is left out.
        number: Which input it is, counted from 0: names an input that has no name.

    Raises:
        KDExportError: It has another form.
    """
    match = SHAPE.fullmatch(text.strip())
    if match is None or (match["type"] or "float32") not in TYPES:
        raise KDExportError(
            f"--input-shape {text!r} is no shape",
            hint=f"e.g. 3,224,224 or ids:128:int64, without the batch; types: {', '.join(TYPES)}",
        )
    dims = tuple(int(part) for part in re.split("[,x]", match["dims"]))
    return InputShape(
        match["name"] or ("input" if number == 0 else f"input_{number}"), dims, match["type"] or "float32"
    )


def export(request: Request, form: Form, progress: Progress) -> ExportResult:
    """Export a network by reference, prove the file, and make the variants asked for.

    Raises:
        ParityError: A file differs from its PyTorch model.
        KDExportError: A file is there already, the network cannot be had or exported, or int8 has no data.
    """
    paths = {precision: _variant_path(request.out, precision) for precision in request.quantize}
    _check(request, [request.out, *paths.values()])
    with tempfile.TemporaryDirectory(prefix="kdexport.") as cache:
        dataset = None
        if request.data is not None:
            dataset = load_fitted_data(Data(source=request.data), (_spec(request),), request.seed, Path(cache))
        subject = _subject(request, form, dataset, progress)
        form = _with_axes(form, request, subject)
        progress.say(f"{request.reference} -> {request.out}")
        models = [network_export.write(subject, form, request.out)]
        material = _material(request, form, subject, dataset)
        for precision in request.quantize:
            wanted = variants.VariantSpec(
                precision, request.calibration, request.weight_bits, max_accuracy_drop=request.max_accuracy_drop
            )
            path = paths[precision]
            models.append(variants.write(request.out, models[0], wanted, path, material, progress, key=None))
    example.write(request.out)
    return ExportResult(request.out.stem, tuple(models))


def _check(request: Request, paths: list[Path]) -> None:
    if request.out.is_dir():
        raise KDExportError(
            f"{request.out} is a folder", hint=f"give a file's name, e.g. --out {request.out / 'net.onnx'}"
        )
    there = [str(path) for path in paths if path.exists()]
    if there and not request.force:
        raise KDExportError(f"there is a file already: {', '.join(there)}", hint="give --force to replace it, or --out")
    if request.data is None and "int8" in request.quantize:
        raise KDExportError(
            "int8 needs samples to calibrate on, and there are none",
            hint="give data with --data REF, e.g. --data imagefolder:photos; int8-dynamic and fp16 need none",
        )
    if request.data is None and request.max_accuracy_drop is not None:
        raise KDExportError("--max-accuracy-drop needs labelled data", hint="give data with --data REF")
    if request.data is None and not request.inputs:
        raise KDExportError(
            "the shape of the network's input is not known",
            hint="give it with --input-shape, e.g. 3,224,224 (without the batch), or real data with --data REF",
        )


def _variant_path(out: Path, precision: str) -> Path:
    return out.with_name(f"{out.stem}.{precision}{out.suffix}")


def _subject(request: Request, form: Form, dataset: Dataset | None, progress: Progress) -> ExportTarget:
    if dataset is not None:
        spec = _spec(request)
        torch.manual_seed(request.seed)
        model = load_model("network", spec, dataset)
        for line in model.left_out:
            progress.warn(f"exported without weights for {line}")
        for line in model.notes:
            progress.say(line)
        for line in model.warnings:
            progress.warn(line)
        samples, kind = parity.samples_of(dataset.val.inputs, dataset.train.inputs), "real"
        network, preprocessing, names = model.network, model.preprocessing, dataset.input_names
        labels = dataset.class_names
    else:
        network = _network(request, progress)
        preprocessing, samples = _random(request, form)
        names, labels, kind = tuple(item.name for item in request.inputs), (), "random"
    return ExportTarget(
        request.out.stem,
        network,
        preprocessing,
        names,
        samples,
        samples_are=kind,
        class_names=labels,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        macs=_macs(network, preprocessing, samples),
        license=request.license,
    )


def _spec(request: Request) -> Student:
    return Student(
        model=request.reference, args=request.args, weights=request.weights, preprocessing=request.preprocessing
    )


def _network(request: Request, progress: Progress) -> nn.Module:
    torch.manual_seed(request.seed)
    network, fresh = load_with_fresh(
        request.reference, with_pretrained_args(request.reference, request.args, request.weights)
    )
    if request.weights is None and fresh is None and parse(request.reference).kind in ("torchvision", "timm"):
        progress.warn(f"no weights are given: {request.reference} is exported as it starts, untrained")
    elif request.weights is None and fresh:
        progress.warn(f"not in the files of {request.reference}, and exported as they start: {', '.join(fresh)}")
    if request.weights == PRETRAINED:
        fit_weights(network, pretrained_weights(request.reference, request.args), "the pretrained weights")
    elif request.weights is not None:
        load_weights(network, Path(request.weights))
    return network.eval()


def _random(request: Request, form: Form) -> tuple[Preprocessing, Arrays]:
    """Return the preprocessing, and random inputs of the given shapes; pixels where the file is to take images."""
    generator = np.random.default_rng(request.seed)
    first, *others = request.inputs
    arrays = [_draw(generator, item) for item in others]
    if not form.bake:
        if request.preprocessing != PreprocessingSpec():
            raise KDExportError(
                "mean, std, size and resize go into the graph, and the graph is to have no preprocessing",
                hint="leave --no-bake-preprocessing out",
            )
        return Preprocessing("none"), (_draw(generator, first), *arrays)
    if len(first.dims) != 3:
        raise KDExportError(
            f"preprocessing is for images, and {first.name} has the shape {list(first.dims)}",
            hint="leave --bake-preprocessing out, or give channels,height,width as --input-shape",
        )
    channels, height, width = first.dims
    pixels = generator.integers(0, 256, (RANDOM_SAMPLES, height, width, channels), dtype=np.uint8)
    plain = Preprocessing("image", (height, width))
    own = inferred_preprocessing(request.reference, request.args, request.weights, plain)
    return with_spec(own or plain, request.preprocessing), (pixels, *arrays)


def _draw(generator: np.random.Generator, item: InputShape) -> NDArray[Any]:
    shape = (RANDOM_SAMPLES, *item.dims)
    if item.type == "float32":
        return generator.standard_normal(shape, dtype=np.float32)
    high = {"uint8": 256, "bool": 2}.get(item.type, LARGEST_TOKEN)
    return generator.integers(0, high, shape).astype(TYPES[item.type])


def _with_axes(form: Form, request: Request, subject: ExportTarget) -> Form:
    """Return the form with the axes that ``--dynamic NAME:AXIS[=LABEL]`` adds to the batch."""
    if not request.dynamic:
        return form
    axes = {name: {0: "batch"} for name in subject.input_names}
    for text in request.dynamic:
        match = re.fullmatch(r"(\w+):(\d+)(?:=([A-Za-z_]\w*))?", text)
        if match is None or match[1] not in axes:
            raise KDExportError(
                f"--dynamic {text!r} names no axis of an input",
                hint=f"e.g. {subject.input_names[0]}:2=height, axes counted from 0, the batch; "
                f"inputs: {', '.join(subject.input_names)}",
            )
        axes[match[1]][int(match[2])] = match[3] or f"{match[1]}_{match[2]}"
    return dataclasses.replace(form, dynamic=tuple(axes[name] for name in subject.input_names))


def _material(request: Request, form: Form, subject: ExportTarget, dataset: Dataset | None) -> variants.CalibrationData:
    baked = form.bake and subject.preprocessing.kind == "image"

    def ready(raw: Arrays) -> Arrays:
        return raw if baked else network_export.numpy_inputs(subject, raw)

    def calibration() -> Arrays:
        if dataset is None:  # _check has refused int8 without data
            return ready(subject.samples)
        count = min(request.calibration_samples, len(dataset.train))
        chosen = np.random.default_rng(request.seed).choice(len(dataset.train), count, replace=False)
        return ready(dataset.train.take(np.sort(chosen)).inputs)

    def validation() -> tuple[Arrays, NDArray[np.int64]] | None:
        if dataset is None or dataset.val.labels is None or dataset.multi_label:
            return None
        few = dataset.val.take(parity.spread(len(dataset.val), variants.VALIDATION_SAMPLES))
        return None if few.labels is None else (ready(few.inputs), few.labels)

    return variants.CalibrationData(lambda: ready(subject.samples), calibration, validation)


def _macs(network: nn.Module, preprocessing: Preprocessing, samples: Arrays) -> int | None:
    """Return the multiply-accumulates of one sample; None where the network cannot be run, which export will say."""
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            network(*preprocessing.apply(tuple(np.ascontiguousarray(array[:1]) for array in samples)))
    except Exception:  # noqa: BLE001 the user's own code may raise anything, and is run again, with a message
        return None
    return counter.get_total_flops() // 2 or None
