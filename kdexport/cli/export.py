"""`kdexport export`: ONNX files from a run or from a bare model reference, and what a file says of itself."""

import json
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdexport.cli.console import Console, Json, Quiet, Verbose, command
from kdexport.errors import KDExportError

if TYPE_CHECKING:
    from kdexport.onnx.describe import Description
    from kdexport.recipe import StandaloneExport
    from kdexport.results import ExportResult

SOURCE, FORM, IMAGES, SMALLER = "Bare model reference", "Form of the file", "Inputs and outputs", "Smaller variants"


def export(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN_OR_MODEL]", help="A run directory, or a model: torchvision:resnet18, nets.py:Small, ..."
        ),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX.")] = False,
    ort: Annotated[
        bool, typer.Option("--ort", help="Write the ORT mobile format and its list of operators, too.")
    ] = False,
    describe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Print what an ONNX file holds, and do nothing else. By default files are written."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where a model reference's file goes. By default NAME.onnx.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=SOURCE,
            help="Checkpoint of the model, or 'pretrained'. By default what its class builds.",
        ),
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            rich_help_panel=SOURCE,
            help="Argument of the model's class or function; may be repeated. By default none.",
        ),
    ] = None,
    input_shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHAPE",
            rich_help_panel=SOURCE,
            help="[NAME:]SIZES[:TYPE[<LIMIT]], one for each input of forward. Sizes leave the batch out: 3,224,224; "
            "none for one number a sample: timestep::int64; the word batch where it is not first: h:2,batch,64. NAME "
            "is a parameter of forward, which the input is passed to; without names they are passed in order. TYPE is "
            "float32 by default, or float16, float64, int64, int32, int8, uint8, bool; ids are drawn below LIMIT: "
            "ids:128:int64<30000.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            rich_help_panel=SOURCE,
            help="Real samples, to prove and to calibrate on. By default random ones.",
        ),
    ] = None,
    input: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            rich_help_panel=SMALLER,
            help="Samples as an ONNX file takes them, an .npz with an array per input: to calibrate and judge on. "
            "By default none.",
        ),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            rich_help_panel=FORM,
            help="License of the weights, which goes into the file. By default none.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=SOURCE,
            help="Seed of random inputs and of the choice of samples. By default 0.",
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(
            metavar="N", rich_help_panel=FORM, help="ONNX operator set. By default what the recipe says, else 18."
        ),
    ] = None,
    for_runtime: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            rich_help_panel=FORM,
            help="Oldest onnxruntime that must read the file, e.g. 1.16, which sets the opset. By default any.",
        ),
    ] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT:AXIS=NAME",
            rich_help_panel=FORM,
            help="One more dynamic axis, counted from 0, the batch: input:2=height; each is proved at two "
            "other sizes. By default the batch alone.",
        ),
    ] = None,
    static: Annotated[
        bool, typer.Option("--static", rich_help_panel=FORM, help="Make no axis dynamic: batches of 1.")
    ] = False,
    output_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=FORM,
            help="Names of the outputs, in their order; of a network that returns a dict or a dataclass, the entries "
            "to export, which have to be named. By default logits, or output_0, output_1, ... of several.",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            rich_help_panel=FORM,
            help="Largest relative difference that the parity proof passes. By default what the recipe says, "
            "else 0.0001.",
        ),
    ] = None,
    bake_preprocessing: Annotated[
        bool | None,
        typer.Option(
            "--bake-preprocessing/--no-bake-preprocessing",
            rich_help_panel=IMAGES,
            help="Put the preprocessing into the graph, so that uint8 NHWC images go in. By default for runs, "
            "and where a flag here or --data says what it is.",
        ),
    ] = None,
    any_image_size: Annotated[
        bool | None,
        typer.Option(
            "--any-image-size", rich_help_panel=IMAGES, help="Take images of any size, which are resized in the graph."
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            rich_help_panel=IMAGES,
            help="Height and width that the network takes, e.g. 224x224. By default what the model states.",
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=IMAGES,
            help="How an image becomes that size: squash or crop. By default what the model states.",
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="X,X,X",
            rich_help_panel=IMAGES,
            help="Mean per channel, of pixels in 0..1. By default what the model states.",
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(
            metavar="X,X,X",
            rich_help_panel=IMAGES,
            help="Standard deviation per channel, of pixels in 0..1. By default what the model states.",
        ),
    ] = None,
    softmax: Annotated[
        bool | None,
        typer.Option("--softmax", rich_help_panel=IMAGES, help="Let probabilities come out in place of logits."),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            rich_help_panel=IMAGES,
            help="Number of best classes that come out, too, by name. By default what the recipe says, else 0, none.",
        ),
    ] = None,
    quantize: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=SMALLER,
            help="Smaller variant to write: int8, int8-dynamic, fp16 or int4; may be repeated. By default what "
            "the recipe says, else none.",
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=SMALLER,
            help="How int8 ranges are found: auto, minmax, entropy or percentile. By default what the recipe "
            "says, else auto.",
        ),
    ] = None,
    calibration_samples: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=SMALLER,
            help="Samples that int8 ranges are found on. By default what the recipe says, else 256.",
        ),
    ] = None,
    weight_bits: Annotated[
        int | None,
        typer.Option(
            metavar="7|8",
            rich_help_panel=SMALLER,
            help="Bits of int8 weights; 8 overflows on x86 without VNNI. By default what the recipe says, else 7.",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            "--max-accuracy-drop",
            metavar="X",
            rich_help_panel=SMALLER,
            help="Largest loss of accuracy of a variant, on validation; operators return to fp32 until it "
            "holds. By default no limit.",
        ),
    ] = None,
    max_output_error: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            rich_help_panel=SMALLER,
            help="The same for what is no classifier: RMS of the difference from fp32, as a share of its "
            "output. By default no limit.",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write ONNX files, each proved against PyTorch, from a run or from any model.

    A run's own files are brought up to date in its directory; a bare
    reference gives a file of its own.

    Examples:
      kdexport export runs/digits --onnx --quantize int8 --quantize fp16
      kdexport export torchvision:resnet18 --weights pretrained --onnx
      kdexport export nets.py:Net --weights w.pt --input-shape 3,224,224 --onnx
      kdexport export --describe student.onnx
    """
    settings: dict[str, object] = {
        "opset": opset,
        "quantize": tuple(quantize) if quantize else None,
        "bake_preprocessing": bake_preprocessing,
        "any_image_size": any_image_size,
        "softmax": softmax,
        "top_k": top_k,
        "license": license,
        "parity_tolerance": tolerance,
        "calibration": calibration,
        "calibration_samples": calibration_samples,
        "weight_bits": weight_bits,
        "max_drop": max_drop,
        "max_output_error": max_output_error,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    own = _OfAReference(
        out=out,
        weights=weights,
        arg=tuple(arg or ()),
        input_shape=tuple(input_shape or ()),
        data=data,
        seed=seed,
        dynamic=tuple(dynamic or ()),
        static=static,
        output_name=tuple(output_name or ()),
        size=size,
        resize=resize,
        mean=mean,
        std=std,
        force=force,
        input=input,
    )
    with command(json=json, quiet=quiet, verbose=verbose) as console:
        if describe is not None:
            _describe(console, describe)
            return
        if model is None:
            raise typer.BadParameter("give a run directory or a model reference, or --describe FILE")
        onnx = onnx or model.endswith(".onnx")  # what is made of an ONNX file is ONNX
        if not (onnx or ort):
            raise typer.BadParameter("say what to write: --onnx, --ort or both")
        if for_runtime is not None:
            from kdexport.onnx.files import for_runtime as reads

            wanted = reads(for_runtime)
            if opset is not None and opset > wanted.opset:
                raise KDExportError(
                    f"onnxruntime {for_runtime} reads opsets up to {wanted.opset}, and --opset asks for {opset}",
                    hint="leave one of the two out",
                )
            settings.setdefault("opset", wanted.opset)
        if Path(model).is_dir():
            _run(console, Path(model), settings, own, ort=ort)
        else:
            _bare(console, model, settings, own, ort=ort)


@dataclass(frozen=True)
class _OfAReference:
    """The flags that are for a bare model reference alone, as they were typed."""

    out: Path | None
    weights: str | None
    arg: tuple[str, ...]
    input_shape: tuple[str, ...]
    data: str | None
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

    @property
    def given(self) -> list[str]:
        """The names of those that were typed."""
        return [
            item.name.replace("_", "-") for item in fields(self) if getattr(self, item.name) not in (None, (), False)
        ]


def _run(console: Console, root: Path, settings: dict[str, object], own: _OfAReference, *, ort: bool) -> None:
    """Bring a run's files up to date with the settings."""
    from kdexport import artifacts
    from kdexport.artifacts import RunDirectory
    from kdexport.recipe import Recipe
    from kdexport.results import DistillResult, from_json

    if own.given:
        raise KDExportError(
            f"--{own.given[0]} is for a bare model reference; {root} is a run, whose recipe says that",
            hint="leave it out, or change the recipe and run it",
        )
    directory = RunDirectory(root)
    document = artifacts.read_json(directory.stage("distill"))
    if document is None or not directory.recipe.is_file():
        raise KDExportError(
            f"{root} is no run directory: it has no {'recipe.toml' if document else 'distill.json'}",
            hint="make one with `kdexport run RECIPE` or `kdexport distill`, or give a model reference",
        )
    document.pop("key", None)
    asked = Recipe.load(directory.recipe)
    quantize = settings.get("quantize")
    if isinstance(quantize, tuple):  # more variants, beside those that the run has
        settings["quantize"] = tuple(dict.fromkeys([*asked.export.quantize, *quantize]))
    recipe = Recipe.load(directory.recipe, [f"export.{name}={_toml(value)}" for name, value in settings.items()])
    with directory.lock():
        from kdexport.export.stage import export as run_export

        recipe.write(directory.recipe)  # so that `kdexport run` finds nothing to undo
        result = run_export(recipe, from_json(DistillResult, document), directory, console.progress)
        _finish(console, result, root, ort=ort, again=f"kdexport bench {root}")


def _bare(console: Console, reference: str, settings: dict[str, object], own: _OfAReference, *, ort: bool) -> None:
    """Export a model by reference."""
    from kdexport import references
    from kdexport.recipe import PRETRAINED, StandaloneExport

    parsed = references.parse(reference)
    if own.input is not None and not reference.endswith(".onnx"):
        raise KDExportError(
            "--input is for an ONNX file",
            hint="give the network's samples as data: --data npz:FILE or --data FILE.py:NAME",
        )
    pixels = {
        "size": _pair(own.size),
        "resize": own.resize,
        "mean": _numbers("mean", own.mean),
        "std": _numbers("std", own.std),
    }
    pixels = {name: value for name, value in pixels.items() if value is not None}
    data = {} if own.data is None else {"data": {"source": own.data}}
    checked = StandaloneExport.parse({**data, "preprocessing": pixels, "export": {"quantize": (), **settings}})
    asked = checked.export
    if reference.endswith(".onnx"):
        _given(console, reference, settings, own, checked, ort=ort)
        return

    from kdexport.export import standalone
    from kdexport.export.random_inputs import parse_shape
    from kdexport.export.target import Form
    from kdexport.onnx import files

    wants_images = bool(pixels) or asked.any_image_size or own.data is not None
    bake = settings.get("bake_preprocessing", wants_images)
    form = Form(
        asked.opset,
        files.ir_for(asked.opset),
        asked.parity_tolerance,
        bake=bool(bake),
        any_image_size=asked.any_image_size,
        softmax=asked.softmax,
        top_k=asked.top_k,
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
        preprocessing=checked.preprocessing,
        quantize=asked.quantize,
        calibration=asked.calibration,
        calibration_samples=asked.calibration_samples,
        weight_bits=asked.weight_bits,
        max_drop=asked.max_drop,
        max_output_error=asked.max_output_error,
        dynamic=own.dynamic,
        ort=ort,
        force=own.force,
        seed=own.seed or 0,
        license=asked.license,
    )
    result = standalone.export(request, form, console.progress)
    _finish(console, result, request.out.parent, ort=ort, again=f"kdexport bench {request.out}")


def _given(
    console: Console,
    reference: str,
    settings: dict[str, object],
    own: _OfAReference,
    checked: "StandaloneExport",
    *,
    ort: bool,
) -> None:
    """Quantize an ONNX file."""
    asked = checked.export
    if not asked.quantize:
        raise KDExportError(
            f"{reference} is ONNX already",
            hint="say what to make of it, e.g. --quantize int8 --input calibration.npz; or see "
            f"kdexport export --describe {reference}, kdexport bench {reference}",
        )
    usable = {"out", "data", "input", "seed", "force", "size", "resize", "mean", "std"}
    variant = {"quantize", "calibration", "calibration_samples", "weight_bits", "max_drop", "max_output_error"}
    idle = [name for name in own.given if name not in usable]
    idle += [name.replace("_", "-") for name in settings if name not in variant]
    if idle:
        raise KDExportError(
            f"--{idle[0]} is for a network that becomes ONNX; {reference} is a file already", hint="leave it out"
        )
    from kdexport.export import given
    from kdexport.export.variants import VariantSpec

    specs = tuple(
        VariantSpec(
            precision,
            asked.calibration,
            asked.weight_bits,
            max_drop=asked.max_drop,
            max_output_error=asked.max_output_error,
        )
        for precision in asked.quantize
    )
    request = given.Request(
        Path(reference).expanduser(),
        specs,
        own.out,
        checked.data,
        own.input,
        asked.calibration_samples,
        checked.preprocessing,
        force=own.force,
        seed=own.seed or 0,
    )
    result = given.export(request, console.progress)
    folder = (request.out or request.file).parent
    made = " ".join(str(folder / model.file) for model in result.models)
    _finish(console, result, folder, ort=ort, again=f"kdexport bench {reference} {made}")


def _finish(console: Console, result: "ExportResult", folder: Path, *, ort: bool, again: str) -> None:
    import dataclasses

    if ort:
        from kdexport.onnx import files

        result = dataclasses.replace(result, models=tuple(files.noted(model, folder) for model in result.models))
    console.result(result, table(result, again))
    if result.failures:
        lines = [f"  {failure.model}: {failure.reason}\n    hint: {failure.hint}" for failure in result.failures]
        count = "one file" if len(lines) == 1 else f"{len(lines)} files"
        raise KDExportError(
            "\n".join([f"{count} could not be written:", *lines]),
            hint="the files above are complete; change what the hints say and give the same command again",
        )


def _describe(console: Console, path: Path) -> None:
    from kdexport.onnx.describe import describe

    found = describe(path)
    console.result(found, description(found))


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
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise KDExportError(f"--size {text!r} is no size", hint="height x width, e.g. 224x224")
    return int(parts[0]), int(parts[1])


def _toml(value: Any) -> str:
    import tomli_w

    return tomli_w.dumps({"value": value}).partition("=")[2].strip()


def table(result: "ExportResult", again: str) -> Any:
    """Return a table of files with their proofs, the notes on each, and what to do next."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=f"{result.name}: exported", title_justify="left", title_style="bold", box=None, pad_edge=False)
    shown.add_column("file", no_wrap=True, overflow="fold")
    for column in ("precision", "KiB", "nodes", "max rel", "argmax", "samples", "runtime"):
        shown.add_column(column, justify="right")
    notes = []
    for model in result.models:
        proof = model.parity
        shown.add_row(
            model.file,
            model.precision,
            f"{model.size_bytes / 1024:,.1f}",
            str(sum(model.operators.values())),
            "" if proof is None else f"{proof.max_rel:.1e}",
            "" if proof is None or proof.argmax_agreement is None else f"{proof.argmax_agreement:.4f}",
            "" if proof is None else str(proof.samples),
            "" if model.oldest_runtime is None else f">= {model.oldest_runtime}",
        )
        if model.operators_before:
            before = sum(model.operators_before.values())
            notes.append(f"{model.file}: {before} nodes before optimization")
        if model.quantized is not None and model.quantized[0] == model.quantized[1]:  # else a note says which are not
            notes.append(f"{model.file}: {model.quantized[0]} of {model.quantized[1]} operators quantized")
        notes += [f"{model.file}: {note}" for note in model.notes]
    notes += [f"{failure.model}: left out: {failure.reason}" for failure in result.failures]
    return Group(shown, "", *(Text(note) for note in notes), f"next: {again}")


def description(found: "Description") -> Any:
    """Return what a file holds, a line a fact."""
    from rich.table import Table

    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    shown.add_row("file", found.file)
    shown.add_row("size", f"{found.size_bytes:,} bytes, {found.weights:,} weights")
    shown.add_row("sha256", found.sha256)
    shown.add_row("written by", found.producer or "(not said)")
    runtime = f", loads in onnxruntime >= {found.oldest_runtime}" if found.oldest_runtime else ""
    shown.add_row("opset", f"{found.opset}, IR {found.ir_version}{runtime}")
    for kind, values in (("input", found.inputs), ("output", found.outputs)):
        for name, value in values.items():
            shown.add_row(kind, f"{name}: {value['type']} {value['shape']}")
    shown.add_row("operators", ", ".join(f"{name} {count}" for name, count in found.operators.items()))
    for name, value in found.metadata.items():
        shown.add_row(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return shown
