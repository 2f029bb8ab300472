"""`kdexport export`: its flags; what they ask for is made in ``export_request``."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdexport.cli.console import Console, Json, Quiet, Verbose, command, task_option
from kdexport.errors import KDExportError

if TYPE_CHECKING:
    from kdexport.cli.export_request import Written

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
    label_column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=SOURCE,
            help="Column of a table (--data table:FILE) that is estimated; may be repeated. By default what the file "
            "itself says.",
        ),
    ] = None,
    task: Annotated[str | None, task_option(SOURCE)] = None,
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
            help="Smaller variant to write: int8, int8-dynamic, fp16 or int4, or auto, of each operator what measured "
            "time says; may be repeated. By default what the recipe says, else none.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=SMALLER,
            help="Where auto measures, as bench names it: cpu, openvino, web:wasm. By default cpu; of a run what its "
            "recipe's \\[bench] names first.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=SMALLER,
            help="Threads that auto measures with. By default 1; of a run as above.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=SMALLER,
            help="Samples of a call that auto measures. By default 1; of a run as above.",
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
      kdexport export net.onnx --quantize auto --input samples.npz --threads 2
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
    from kdexport.cli.export_request import ReferenceFlags, opset_for, written

    own = ReferenceFlags(
        out=out,
        weights=weights,
        arg=tuple(arg or ()),
        input_shape=tuple(input_shape or ()),
        data=data,
        label_column=tuple(label_column or ()),
        task=task,
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
        device=device,
        threads=threads,
        batch_size=batch_size,
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
            settings["opset"] = opset_for(for_runtime, opset)
        _show(console, written(model, settings, own, ort=ort, progress=console.progress), ort=ort)


def _show(console: Console, written: "Written", *, ort: bool) -> None:
    from kdexport.cli.tables import exported

    result = written.result
    if ort:
        from kdexport.onnx import files

        result = dataclasses.replace(
            result, models=tuple(files.noted(model, written.folder) for model in result.models)
        )
    console.result(result, exported(result, written.again, console.width))
    if result.failures:
        lines = [f"  {failure.model}: {failure.reason}\n    hint: {failure.hint}" for failure in result.failures]
        count = "one file" if len(lines) == 1 else f"{len(lines)} files"
        raise KDExportError(
            "\n".join([f"{count} could not be written:", *lines]),
            hint="the files above are complete; change what the hints say and give the same command again",
        )


def _describe(console: Console, path: Path) -> None:
    from kdexport.cli.tables import described
    from kdexport.onnx.describe import describe

    found = describe(path)
    console.result(found, described(found))
