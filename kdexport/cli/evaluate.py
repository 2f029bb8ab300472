"""`kdexport evaluate`: how good a model is on data, whatever form it has."""

from pathlib import Path
from typing import Annotated

import typer

from kdexport.cli.console import Json, Quiet, Verbose, command, task_option
from kdexport.cli.run import Set


def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="An ONNX file, or a reference: file.py:Name, torchvision:NAME, ..."),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="Where the samples come from, e.g. digits, imagefolder:photos, csv:rows.csv. By default what "
            "--recipe says; one of the two is needed.",
        ),
    ] = None,
    task: Annotated[str | None, task_option()] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Take data and seed from this recipe, in place of --data. By default from none."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Checkpoint of a module reference, or 'pretrained'. By default what its class builds."
        ),
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Argument of the model's class or function; may be repeated. By default none."
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            help="Take weights only where every name and shape matches, which is the default; else what fits is taken."
        ),
    ] = True,
    split: Annotated[
        str, typer.Option(metavar="NAME", help="Which split is scored: test, val or train. By default test.")
    ] = "test",
    batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Samples per forward pass. By default 128.")
    ] = 128,
    set_: Set = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score a model: accuracy with its interval, every class, and what it confuses.

    What a recipe can say of the data and of preprocessing goes into --set:
    --set data.tokenizer=hf:DIR, --set student.preprocessing.size=[224,224].

    Examples:
      kdexport evaluate student.onnx --data imagefolder:photos
      kdexport evaluate nets.py:Small --weights small.pt --recipe recipe.toml
    """
    with command(json=json, quiet=quiet, verbose=verbose) as console:
        from kdexport.cli.tables import evaluated
        from kdexport.errors import KDExportError
        from kdexport.progress import load
        from kdexport.recipe import EvaluationRequest, Recipe

        if (data is None) == (recipe is None):
            raise KDExportError("give the data as one of --data and --recipe", hint="e.g. --data imagefolder:photos")
        if split not in ("train", "val", "test"):
            raise KDExportError(f"there is no split '{split}'", hint="--split is test, val or train")
        overrides = [f"student.model={_text(model)}", *(f"student.args.{item}" for item in arg or ())]
        overrides += [f"student.weights={_text(weights)}"] if weights else []
        overrides += [] if strict else ["student.strict=false"]
        overrides += [f"task={_text(task)}"] if task is not None else []
        request: Recipe | EvaluationRequest
        if recipe is not None:
            request = Recipe.load(recipe, ["name=evaluation", "student={}", *overrides, *(set_ or ())])
        else:
            request = EvaluationRequest.parse([f"data.source={_text(data or '')}", *overrides, *(set_ or ())])
        console.progress.message(f"{model} on {request.data.source}")
        if not model.endswith(".onnx"):
            load("torch", console.progress)
        from kdexport.data.datasets import cache_folder
        from kdexport.models.fitted_data import as_files_say, load_fitted_data
        from kdexport.models.predictors import load_predictor
        from kdexport.scoring import evaluate as score
        from kdexport.scoring import own_scores

        spec, cache = request.student, cache_folder(request.data)
        data_, task = as_files_say(request.data, request.task, [Path(model), Path(weights or "")])
        dataset = load_fitted_data(data_, (spec,), request.seed, cache, console.progress, task=task)
        predictor = load_predictor(spec, dataset)
        for note in (*dataset.notes, *predictor.notes):
            console.progress.message(note)
        skipped = (f"left out, it cannot be decoded: {reason}" for reason in dataset.skipped)
        for warning in (*skipped, *(dataset.warnings if split == "test" else ()), *predictor.warnings):
            console.progress.warn(warning)
        samples = getattr(dataset, split)
        further = own_scores(request.scores)
        scores, outputs = score(
            predictor.predict, samples, dataset.class_names, batch_size, name=split, further=further
        )
        if doubt := dataset.task.doubt(outputs, samples.labels, dataset.class_names):
            console.progress.warn(doubt)
        console.result(scores, evaluated(scores, dataset.splits_made_by[split]))


def _text(value: str) -> str:
    """Return a value of --set that is read as text whatever is in it."""
    import json as jsonlib

    return jsonlib.dumps(value, ensure_ascii=False)
