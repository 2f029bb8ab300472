"""What `kdexport export` is asked to write: files of a run, of a model reference, or smaller ones of an ONNX file."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from kdexport import artifacts, references
from kdexport.artifacts import RunDirectory, held
from kdexport.errors import KDExportError, whole_number
from kdexport.precisions import AUTO
from kdexport.progress import Progress, load
from kdexport.recipe import Bench, Recipe, StandaloneExport
from kdexport.recipe.text import PRETRAINED
from kdexport.results import DistillResult, ExportResult, from_json

if TYPE_CHECKING:
    from kdexport.export.variant_inputs import TimerMaker

Settings = Mapping[str, object]  # keys of the recipe's [export] that flags set


@dataclass(frozen=True)
class ReferenceFlags:
    """The flags that are for a bare model reference alone, as they were typed."""

    out: Path | None
    weights: str | None
    arg: tuple[str, ...]
    input_shape: tuple[str, ...]
    data: str | None
    label_column: tuple[str, ...]
    task: str | None
    seed: int | None
    dynamic: tuple[str, ...]
    static: bool
    output_name: tuple[str, ...]
    size: str | None
    resize: str | None
    mean: str | None
    std: str | None
    force: bool
    input: Path | None
    device: str | None
    threads: int | None
    batch_size: int | None

    @property
    def given(self) -> list[str]:
        """The names of those that were typed."""
        return [
            item.name.replace("_", "-") for item in fields(self) if getattr(self, item.name) not in (None, (), False)
        ]

    @property
    def where(self) -> dict[str, object]:
        """Where auto measures, by the names of [bench]."""
        told = {"devices": self.device, "threads": self.threads, "batch_sizes": self.batch_size}
        return {name: [value] for name, value in told.items() if value is not None}

    @property
    def pixels(self) -> dict[str, object]:
        """What the flags say of preprocessing, by its names."""
        told = {
            "size": _pair(self.size),
            "resize": self.resize,
            "mean": _numbers("mean", self.mean),
            "std": _numbers("std", self.std),
        }
        return {name: value for name, value in told.items() if value is not None}


@dataclass(frozen=True)
class Written:
    """What was written, and what to do with it."""

    result: ExportResult
    folder: Path  # that its paths are relative to
    again: str  # the command that measures it


def written(model: str, settings: Settings, own: ReferenceFlags, *, ort: bool, progress: Progress) -> Written:
    """Write what the flags ask for.

    Args:
        model: A run directory, a reference or an ONNX file.
        settings: Keys of [export].
        own: Flags that a run has no use for.
        ort: Whether the ORT mobile format is written as well.
        progress: Where to say how it goes.

    Raises:
        KDExportError: A flag, a reference or a file is not what it should be, or nothing could be exported.
    """
    if Path(model).is_dir():
        return _of_run(Path(model), settings, own, progress)
    references.parse(model)
    is_file = model.endswith(".onnx")
    if own.input is not None and not is_file:
        raise KDExportError(
            "--input is for an ONNX file",
            hint="give the network's samples as data: --data npz:FILE or --data FILE.py:NAME",
        )
    if own.label_column and own.data is None:
        raise KDExportError("--label-column is of --data, which is not given", hint="add --data table:FILE")
    if own.task is not None and own.data is None:
        raise KDExportError("--task is of --data, which is not given", hint="add --data REF, or leave --task out")
    told = {"label_columns": own.label_column} if own.label_column else {}
    data = {} if own.data is None else {"data": {"source": own.data, **told}}
    checked = StandaloneExport.parse(
        {**data, "preprocessing": own.pixels, "export": {"quantize": (), **settings}, "bench": own.where}
    )
    if own.where and AUTO not in checked.export.quantize:
        flag = next(name for name in ("device", "threads", "batch-size") if name in own.given)
        raise KDExportError(f"--{flag} is where auto measures, which is not asked for", hint="add --quantize auto")
    if is_file:
        return _of_file(model, settings, own, checked, progress)
    return _of_reference(model, settings, own, checked, ort=ort, progress=progress)


def opset_for(runtime: str, opset: int | None) -> int:
    """Return the opset for a release of ONNX Runtime: what is asked for, where it reads that.

    Raises:
        KDExportError: It does not.
    """
    from kdexport.onnx.runtimes import for_runtime

    newest = for_runtime(runtime).opset
    if opset is not None and opset > newest:
        raise KDExportError(
            f"onnxruntime {runtime} reads opsets up to {newest}, and --opset asks for {opset}",
            hint="leave one of the two out",
        )
    return newest if opset is None else opset


def _of_run(root: Path, settings: Settings, own: ReferenceFlags, progress: Progress) -> Written:
    """Bring a run's files up to date with the settings."""
    if own.given:
        raise KDExportError(
            f"--{own.given[0]} is for a bare model reference; {root} is a run, whose recipe says that",
            hint="leave it out, or change the recipe and run it",
        )
    directory = RunDirectory(root)
    with held(root, "."):  # from before it is read: locking makes a directory
        distilled = distilled_in(directory)
        current = Recipe.load(directory.recipe)
        quantize = settings.get("quantize")
        if isinstance(quantize, tuple):  # more variants, beside those that the run has
            settings = {**settings, "quantize": tuple(dict.fromkeys([*current.export.quantize, *quantize]))}
        recipe = Recipe.load(directory.recipe, [f"export.{name}={_toml(value)}" for name, value in settings.items()])
        load("torch", progress)
        with directory.lock():
            from kdexport.export.stage import export as run_export

            recipe.write(directory.recipe)  # so that `kdexport run` finds nothing to undo
            result = run_export(recipe, distilled, directory, progress, _timer(recipe.bench))
    return Written(result, root, f"kdexport bench {root}")


def distilled_in(directory: RunDirectory) -> DistillResult:
    """Return what a run has trained.

    Raises:
        KDExportError: It is no run directory, or its distill.json is damaged.
    """
    record = directory.stage("distill")
    missing = next((path.name for path in (record, directory.recipe) if not path.is_file()), None)
    if missing is not None:
        raise KDExportError(
            f"{directory.root} is no run directory: it has no {missing}",
            hint="make one with `kdexport run RECIPE` or `kdexport distill`, or give a model reference",
        )
    try:
        document = {**(artifacts.read_json(record) or {})}
        document.pop("key", None)
        return from_json(DistillResult, document)
    except ValidationError:
        raise KDExportError(
            f"{record} cannot be read: it is damaged, or of another version of kdexport",
            hint=f"give `kdexport run {directory.recipe}` again: it makes it anew, and trains nothing twice",
        ) from None


def _of_reference(
    reference: str, settings: Settings, own: ReferenceFlags, checked: StandaloneExport, *, ort: bool, progress: Progress
) -> Written:
    """Export a model by reference."""
    parsed = references.parse(reference)
    load("torch", progress)
    from kdexport.export import standalone
    from kdexport.export.random_inputs import parse_shape
    from kdexport.export.target import Form
    from kdexport.onnx import runtimes

    wanted = checked.export
    wants_images = bool(own.pixels) or wanted.any_image_size or own.data is not None
    bake = settings.get("bake_preprocessing", wants_images)
    form = Form(
        wanted.opset,
        runtimes.ir_for(wanted.opset),
        wanted.parity_tolerance,
        bake=bool(bake),
        any_image_size=wanted.any_image_size,
        softmax=wanted.softmax,
        top_k=wanted.top_k,
        output_names=own.output_name or None,
        static=own.static,
    )
    if own.static and own.dynamic:
        raise KDExportError("--static and --dynamic ask for opposite things", hint="leave one of them out")
    if form.any_image_size and not form.bake:
        raise KDExportError("--any-image-size needs the preprocessing in the graph", hint="add --bake-preprocessing")
    weights = own.weights
    request = standalone.Request(
        references.absolute(reference, Path.cwd()),
        own.out or Path(f"{parsed.name or Path(parsed.target).stem}.onnx"),
        args=dict(_argument(text) for text in own.arg),
        weights=weights if weights in (None, PRETRAINED) else str(Path(weights).expanduser().resolve()),
        inputs=tuple(parse_shape(text, number) for number, text in enumerate(own.input_shape)),
        data=checked.data,
        task=own.task,
        preprocessing=checked.preprocessing,
        quantize=wanted.quantize,
        calibration=wanted.calibration,
        calibration_samples=wanted.calibration_samples,
        weight_bits=wanted.weight_bits,
        max_drop=wanted.max_drop,
        max_output_error=wanted.max_output_error,
        dynamic=own.dynamic,
        timer=_timer(checked.bench),
        ort=ort,
        force=own.force,
        seed=own.seed or 0,
        license=wanted.license,
    )
    result = standalone.export(request, form, progress)
    return Written(result, request.out.parent, f"kdexport bench {request.out}")


def _of_file(
    reference: str, settings: Settings, own: ReferenceFlags, checked: StandaloneExport, progress: Progress
) -> Written:
    """Quantize an ONNX file."""
    wanted = checked.export
    if not wanted.quantize:
        raise KDExportError(
            f"{reference} is ONNX already",
            hint="say what to make of it, e.g. --quantize int8 --input calibration.npz; or see "
            f"kdexport export --describe {reference}, kdexport bench {reference}",
        )
    usable = {"out", "data", "label-column", "task", "input", "seed", "force", "size", "resize", "mean", "std"}
    usable |= {"device", "threads", "batch-size"}
    variant = {"quantize", "calibration", "calibration_samples", "weight_bits", "max_drop", "max_output_error"}
    idle = [name for name in own.given if name not in usable]
    idle += [name.replace("_", "-") for name in settings if name not in variant]
    if idle:
        raise KDExportError(
            f"--{idle[0]} is for a network that becomes ONNX; {reference} is a file already", hint="leave it out"
        )
    from kdexport import memory
    from kdexport.export import given
    from kdexport.export.variant_inputs import VariantSpec

    memory.hold()

    specs = tuple(
        VariantSpec(
            precision,
            wanted.calibration,
            wanted.weight_bits,
            max_drop=wanted.max_drop,
            max_output_error=wanted.max_output_error,
        )
        for precision in wanted.quantize
    )
    request = given.Request(
        Path(reference).expanduser(),
        specs,
        own.out,
        checked.data,
        own.input,
        wanted.calibration_samples,
        checked.preprocessing,
        task=own.task,
        timer=_timer(checked.bench),
        force=own.force,
        seed=own.seed or 0,
    )
    result = given.export(request, progress)
    folder = (request.out or request.file).parent
    made = " ".join(str(folder / model.file) for model in result.models)
    return Written(result, folder, f"kdexport bench {reference} {made}")


def _timer(settings: Bench) -> "TimerMaker":
    """Return what times files for auto; nothing is looked for before it is called."""
    from kdexport.bench.comparison import Comparison

    return partial(Comparison, settings)


def _argument(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise KDExportError(f"--arg {text!r} is not of the form key=value", hint="e.g. --arg num_classes=10")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise KDExportError(f"--{name} {text!r} is no list of numbers", hint="e.g. 0.485,0.456,0.406") from None


def _pair(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().replace(",", "x").split("x")
    sizes = [size for part in parts if (size := whole_number(part)) is not None]
    if len(sizes) != 2 or len(parts) != 2:
        raise KDExportError(f"--size {text!r} is no size", hint="height x width, e.g. 224x224")
    return sizes[0], sizes[1]


def _toml(value: Any) -> str:
    import tomli_w

    return tomli_w.dumps({"value": value}).partition("=")[2].strip()
