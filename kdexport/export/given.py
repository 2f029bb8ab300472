"""Variants of an ONNX file that anyone wrote: calibrated on data or on inputs as the file takes them; no labels needed.

The file itself is only read. Without samples, what needs no calibration is judged on random inputs, and says so.
"""

import tempfile
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx

from kdexport.data.npz_files import read_arrays
from kdexport.errors import KDExportError, SourceError
from kdexport.export import parity, quantize, variants
from kdexport.export.fitted_entries import stamp_for
from kdexport.export.variant_inputs import CalibrationData, TimerMaker, VariantSpec
from kdexport.models.fitted_data import as_files_say, load_fitted_data
from kdexport.models.preprocessing import with_spec
from kdexport.onnx import metadata
from kdexport.onnx.isolated import IsolatedRunner
from kdexport.onnx.sessions import TYPES, Arrays, OnnxSession
from kdexport.precisions import PRECISIONS
from kdexport.progress import Progress
from kdexport.recipe import Data, PreprocessingSpec, Student
from kdexport.references import parse
from kdexport.results import ExportResult

RANDOM_SAMPLES = 16
DYNAMIC_SIZE = 16  # of a dynamic axis that is not the batch, in random inputs
LARGEST_TOKEN = 100  # of random integer inputs: any vocabulary has that many


@dataclass(frozen=True)
class Request:
    """What is to be made of a file."""

    file: Path
    specs: tuple[VariantSpec, ...]
    out: Path | None = None  # the variant's file, or the name that several are made from
    data: Data | None = None
    inputs: Path | None = None  # .npz with an array per input, or .npy; first axis samples
    calibration_samples: int = 256
    preprocessing: PreprocessingSpec = field(default_factory=PreprocessingSpec)
    task: str | None = None  # what the data are for; None: what the file or they themselves say
    timer: TimerMaker | None = None  # what times files for auto
    force: bool = False
    seed: int = 0


def export(request: Request, progress: Progress) -> ExportResult:
    """Write the variants of an ONNX file.

    Raises:
        KDExportError: The file cannot be loaded or is quantized already, there are no samples for int8, they do not fit
            the file's inputs, or a file is there already.
    """
    request = _unlabelled_as_inputs(request)
    paths = _paths(request)
    there = [str(path) for path in paths.values() if path.exists()]
    if there and not request.force:
        raise KDExportError(f"there is a file already: {', '.join(there)}", hint="give --force to replace it, or --out")
    if request.file.resolve() in {path.resolve() for path in paths.values()}:
        raise KDExportError(f"--out names {request.file} itself", hint="give --out another name")
    if request.file.is_file():
        IsolatedRunner(request.file)  # what ends the runtime must not end this process
    session = OnnxSession(request.file)
    found = quantize.census(_graph(request.file))
    if found.quantized:
        raise KDExportError(
            f"{request.file} is in fewer bits already: {found}", hint="give the fp32 file that it was made from"
        )
    needing = [spec.precision for spec in request.specs if PRECISIONS[spec.precision].needs_calibration]
    if needing and request.data is None and request.inputs is None:
        raise KDExportError(
            f"{needing[0]} needs samples to calibrate on, and there are none",
            hint="give inputs as the file takes them with --input calibration.npz, an array per input "
            f"({', '.join(session.input_names)}), or data with --data REF",
        )
    fp32 = metadata.model_file(
        request.file.stem, request.file, shown_as=str(request.file), precision="fp32", parameters=None, macs=None,
        parity=None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="kdexport.", ignore_cleanup_errors=True) as cache:
        data = _samples(request, session, Path(cache))
        progress.message(f"{request.file} -> {', '.join(map(str, paths.values()))}")
        made, failures = variants.write_all(request.file, fp32, request.specs, paths, data, progress, request.timer)
    if data.samples_are == "random":
        made = tuple(
            replace(model, notes=(*model.notes, "judged on random inputs: no data were given")) for model in made
        )
    return ExportResult(request.file.stem, made, failures)


def _graph(file: Path) -> onnx.ModelProto:
    """Return a file that ONNX Runtime loads, with its weights.

    Raises:
        KDExportError: onnx refuses it: its weights have another name elsewhere (a hard link), for one.
    """
    try:
        return onnx.load(file)
    except onnx.checker.ValidationError as error:
        raise KDExportError(
            f"{file} is refused by onnx: {next(iter(str(error).splitlines()), '')}",
            hint="copy it and its weights to a folder of their own (cp -L, without links), and give the copy",
        ) from None


def _unlabelled_as_inputs(request: Request) -> Request:
    """Return the request with data that have no labels, ``npz:FILE`` without a ``y_...``, as inputs: what they are."""
    reference = None if request.data is None else parse(request.data.source)
    if reference is None or reference.kind != "npz" or not Path(reference.target).is_file():
        return request
    try:
        with zipfile.ZipFile(reference.target) as archive:
            labelled = any(name.startswith("y_") for name in archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):  # told where the data are read
        return request
    return request if labelled else replace(request, data=None, inputs=Path(reference.target))


def _paths(request: Request) -> dict[str, Path]:
    if request.out is not None and len(request.specs) == 1:
        return {request.specs[0].precision: request.out}
    base = request.out or request.file
    return {spec.precision: base.with_name(f"{base.stem}.{spec.precision}.onnx") for spec in request.specs}


def _samples(request: Request, session: OnnxSession, cache: Path) -> CalibrationData:
    """Return the samples, cut to whole batches where the file fixes the batch size."""

    def whole(arrays: Arrays, most: int | None = None) -> Arrays:
        size, count = session.fixed_batch or 1, len(arrays[0])
        if count < size:
            raise KDExportError(
                f"{session.name} takes batches of {size}, and there are {count} samples", hint="give more samples"
            )
        chosen = parity.spread(count, most or count)
        return tuple(array[chosen[: len(chosen) - len(chosen) % size]] for array in arrays)

    if request.data is not None:
        spec = Student(model=str(request.file.resolve()), preprocessing=request.preprocessing)
        data, task = as_files_say(request.data, request.task, [request.file])
        try:
            dataset = load_fitted_data(data, (spec,), request.seed, cache, task=task)
        except SourceError as error:
            if "--input" in error.hint:
                raise
            without = "without labels, a file is quantized by its inputs alone: --input FILE.npz, an array per input"
            raise SourceError(
                error.message, hint=f"{error.hint}; {without} ({', '.join(session.input_names)})"
            ) from error
        fitted = OnnxSession(request.file, with_spec(dataset.preprocessing, request.preprocessing))
        val, train = dataset.val, dataset.train
        few = val.spread(variants.VALIDATION_SAMPLES)
        labelled = few.labels is not None and session.fixed_batch in (None, 1)
        return CalibrationData(
            lambda: whole(parity.samples_of(val.inputs, train.inputs, dataset.values_per_sample)),
            lambda: whole(train.inputs, request.calibration_samples),
            lambda: (few.inputs, few.labels) if labelled and few.labels is not None else None,
            lambda batch: tuple(fitted.feeds(batch).values()),
            task=dataset.task,
            classes=dataset.num_classes,
            stamp=stamp_for(dataset, with_spec(dataset.preprocessing, request.preprocessing)),
        )
    arrays = _random(request, session) if request.inputs is None else _read(request.inputs, session)
    return CalibrationData(
        lambda: whole(arrays, parity.SAMPLES),
        lambda: whole(arrays, request.calibration_samples),
        lambda: None,
        samples_are="random" if request.inputs is None else "given",
    )


def _read(path: Path, session: OnnxSession) -> Arrays:
    """Return the arrays of a file, one per input, in the types that the graph takes."""
    hint = "write it with numpy.savez(FILE, NAME=ARRAY, ...), an array per input, first axis samples: "
    inputs = {item.name: item for item in session.session.get_inputs()}
    hint += ", ".join(f"{name} {item.shape}" for name, item in inputs.items())
    try:
        arrays = read_arrays(path, single=True)
    except SourceError as error:
        raise KDExportError(error.message, hint=hint) from None
    if len(inputs) == 1 and (len(arrays) == 1 or "x_train" in arrays):  # whatever its name is; of data, what trains
        arrays = dict.fromkeys(inputs, arrays.get("x_train", next(iter(arrays.values()))))
    missing = [name for name in inputs if name not in arrays]
    if missing:
        raise KDExportError(
            f"{path} has no array for the input {missing[0]}; it has {', '.join(arrays) or 'none'}", hint=hint
        )
    found = []
    for name, item in inputs.items():
        array, fixed = arrays[name], item.shape
        fits = array.ndim == len(fixed) and all(
            not isinstance(size, int) or size == have for size, have in zip(fixed[1:], array.shape[1:], strict=False)
        )
        if not fits or len(array) != len(arrays[next(iter(inputs))]):
            raise KDExportError(f"{path}: {name} is {list(array.shape)}; the file takes {fixed}", hint=hint)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise KDExportError(f"{path}: {name} holds NaN or infinity", hint="take those samples out")
        found.append(np.ascontiguousarray(array, dtype=TYPES.get(item.type, array.dtype)))
    return tuple(found)


def _random(request: Request, session: OnnxSession) -> Arrays:
    """Return random inputs, for what needs no calibration.

    Raises:
        KDExportError: The file does not take them.
    """
    rng = np.random.default_rng(request.seed)
    size = session.fixed_batch or 1
    count = max(RANDOM_SAMPLES // size, 1) * size
    arrays = []
    for item in session.session.get_inputs():
        shape = (count, *(axis if isinstance(axis, int) else DYNAMIC_SIZE for axis in item.shape[1:]))
        kind = np.dtype(TYPES.get(item.type, np.float32))
        if kind.kind == "f":
            arrays.append(rng.standard_normal(shape).astype(kind))
        else:
            high = {"uint8": 256, "bool": 2, "int8": 128}.get(kind.name, LARGEST_TOKEN)
            arrays.append(rng.integers(0, high, shape).astype(kind))
    try:
        IsolatedRunner(request.file)(tuple(array[: size if session.fixed_batch else 2] for array in arrays))
    except KDExportError as error:
        raise KDExportError(
            f"{session.name} does not take random inputs: {error.message}",
            hint="give real ones as the file takes them with --input FILE.npz, an array per input: "
            + ", ".join(f"{item.name} {item.shape}" for item in session.session.get_inputs()),
        ) from None
    return tuple(arrays)
