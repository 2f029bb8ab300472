"""`kdexport distill`: train a student, from a recipe or from flags."""

import json as jsonlib
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from kdexport.cli.console import Json, Quiet, Verbose, command
from kdexport.cli.run import Extend, Out, Restart, Set, Track, on_change, tracked
from kdexport.errors import KDExportError

DISTILL_WEIGHT = 0.9  # what --method terms share; the labels have the rest by default
TEACHER, STUDENT, TRAINING = "Teacher", "Student", "Training"


def distill(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe in TOML, which the flags below change.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="Where the samples come from, e.g. digits, imagefolder:photos, npz:data.npz. By default what "
            "the recipe says.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Name of the run and its directory. By default the recipe's, else the student's."
        ),
    ] = None,
    out: Out = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Seed of every random choice. By default what the recipe says, else 0."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            rich_help_panel=TEACHER,
            help="The network to learn from, e.g. torchvision:resnet50, nets.py:Big. By default what the recipe says.",
        ),
    ] = None,
    teacher_weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=TEACHER,
            help="Checkpoint of the teacher, or 'pretrained'. By default what the recipe says.",
        ),
    ] = None,
    teacher_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            rich_help_panel=TEACHER,
            help="Argument of the teacher's class or function; may be repeated. By default none.",
        ),
    ] = None,
    teacher_epochs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=TEACHER,
            help="Fit the teacher on the labels first, for so many epochs. By default it is used as it is.",
        ),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            rich_help_panel=STUDENT,
            help="The network to ship, e.g. torchvision:resnet18, nets.py:Small. By default what the recipe says.",
        ),
    ] = None,
    student_weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=STUDENT,
            help="Checkpoint that the student starts from, or 'pretrained'. By default new weights.",
        ),
    ] = None,
    student_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            rich_help_panel=STUDENT,
            help="Argument of the student's class or function; may be repeated. By default none.",
        ),
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            rich_help_panel=STUDENT,
            help="Make the student from the teacher: take channels out until this share of the parameters is left, "
            "e.g. 0.4. By default what the recipe says.",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=TRAINING,
            help="Passes over the training split. By default what the recipe says, else 30.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=TRAINING,
            help="Samples per step, over all processes. By default what the recipe says, else 128.",
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=TRAINING,
            help="The optimizer, adamw or sgd. By default what the recipe says, else adamw.",
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            rich_help_panel=TRAINING,
            help="Learning rate, at its peak. By default what the recipe says, else 0.002, and 5e-5 for a "
            "pretrained transformer under adamw.",
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            rich_help_panel=TRAINING,
            help="Weight decay of the optimizer. By default what the recipe says, else 0.01.",
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=TRAINING,
            help="How the learning rate falls: cosine, step, linear or constant. By default what the recipe "
            "says, else cosine.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=TRAINING,
            help="Number format of the training: fp32, bf16 or fp16. By default what the recipe says, else fp32.",
        ),
    ] = None,
    augment: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=TRAINING,
            help="Augmentation, e.g. shift, flip, crop; may be repeated. By default what the recipe says, else none.",
        ),
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=TRAINING,
            help="Augmented views of each sample whose teacher logits are kept. By default what the recipe "
            "says, else 4.",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=TRAINING,
            help="Distillation method, e.g. soft_targets; may be repeated. By default what the recipe says, else dist.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            rich_help_panel=TRAINING,
            help="Temperature of every term that has one. By default the method's own.",
        ),
    ] = None,
    label_weight: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            rich_help_panel=TRAINING,
            help="Weight of the labels' own loss. By default what the recipe says, else 0.1.",
        ),
    ] = None,
    baseline: Annotated[
        bool | None,
        typer.Option(
            "--baseline/--no-baseline",
            rich_help_panel=TRAINING,
            help="Also train the same student without the teacher, to compare with. By default what the recipe "
            "says, else yes.",
        ),
    ] = None,
    show_layers: Annotated[
        bool,
        typer.Option(
            "--show-layers", help="Train nothing: list both networks' layers, and pairs that suit feature terms."
        ),
    ] = False,
    track: Track = None,
    set_: Set = None,
    restart: Restart = False,
    extend: Extend = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a student from a teacher: from a recipe, or from --teacher, --student and --data.

    Writes weights, metrics.jsonl and distill.json into the run directory.
    The same command again goes on where a run stopped.
    Next: kdexport export DIR --onnx.

    Examples:
      kdexport distill recipe.toml --epochs 100
      kdexport distill --data digits --teacher net.onnx --student nets.py:Small
      kdexport distill --data digits --teacher nets.py:Big --prune 0.4
      kdexport distill recipe.toml --show-layers
    """
    with command(json=json, quiet=quiet, verbose=verbose, resumes=True) as console:
        if prune is not None and student:
            raise KDExportError(
                "--prune makes the student from the teacher, and --student names another", hint="give one of the two"
            )
        named = f"{teacher}-pruned" if teacher and prune is not None else student
        flags = [
            *_flag("name", name if name or recipe or not named else named.rpartition(":")[2].rpartition("/")[2]),
            *_flag("seed", seed),
            *_flag("data.source", data),
            *_flag("teacher.model", teacher),
            *_flag("teacher.weights", teacher_weights),
            *_flag("teacher.train.epochs", teacher_epochs),
            *(f"teacher.args.{argument}" for argument in teacher_arg or ()),
            *_flag("student.model", student),
            *_pruned(recipe, prune),
            *_flag("student.weights", student_weights),
            *(f"student.args.{argument}" for argument in student_arg or ()),
            *_flag("distill.epochs", epochs),
            *_flag("distill.batch_size", batch_size),
            *_flag("distill.optimizer", optimizer),
            *_flag("distill.lr", lr),
            *_flag("distill.weight_decay", weight_decay),
            *_flag("distill.schedule", schedule),
            *_flag("distill.precision", precision),
            *_flag("distill.augment", augment),
            *_flag("distill.views", views),
            *_terms(recipe, method, temperature),
            *_flag("distill.label_weight", label_weight),
            *_flag("distill.baseline", baseline),
            *tracked(track),
            *(set_ or ()),
        ]
        if recipe is None and not (teacher and named and data):
            raise KDExportError(
                "there is nothing to distill: neither a recipe nor all of --teacher, --student (or --prune) and --data",
                hint="e.g. kdexport distill recipe.toml, or kdexport init --list for reference recipes",
            )
        from kdexport import artifacts
        from kdexport.artifacts import RunDirectory
        from kdexport.cli import tables
        from kdexport.pipeline import default_directory
        from kdexport.progress import load
        from kdexport.recipe import Recipe

        whole = (
            Recipe.load(recipe, flags) if recipe else Recipe.parse({}, overrides=flags, origin="what the flags ask for")
        )
        directory = RunDirectory(out or default_directory(whole))
        progress = console.progress
        load("torch", progress)
        if show_layers:
            from kdexport.distill.layers import show_layers as listed

            layers = listed(whole, directory.cache, progress)
            console.result(layers, tables.layers(layers))
            return
        progress.message(f"{whole.name} -> {directory.root}/")
        if code := whole.code():
            progress.message(code)
        with directory.lock():
            from kdexport.distill.stage import distill as stage

            text = whole.to_toml(relative_to=directory.root)
            with directory.holding(text) if artifacts.is_main() else nullcontext():
                what = on_change(restart=restart, extend=extend)
                result = stage(whole, directory, progress, on_change=what)
        if artifacts.is_main():
            console.result(result, tables.trained(result, directory.root))


def _flag(key: str, value: Any) -> list[str]:
    """Return the recipe override that a flag stands for, or none where the flag was not given."""
    return [] if value is None else [f"{key}={_toml(value)}"]


def _pruned(recipe: Path | None, keep: float | None) -> list[str]:
    """Return the overrides for --prune: of a pruned student its share, else a pruned student in place of the other."""
    from kdexport.recipe import Recipe

    if keep is None:
        return []
    if recipe is not None and Recipe.load(recipe).student.prune is not None:
        return _flag("student.prune.keep", keep)
    return _flag("student", {"model": "teacher", "prune": {"keep": keep}})


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return jsonlib.dumps(value, ensure_ascii=False)  # text, numbers and booleans read alike in TOML


def _terms(recipe: Path | None, methods: list[str] | None, temperature: float | None) -> list[str]:
    """Return the overrides for --method and --temperature; a temperature alone changes the terms that are there."""
    from kdexport.recipe import Recipe
    from kdexport.terms import METHODS

    def takes_temperature(name: str) -> bool:
        return temperature is not None and name in METHODS and "temperature" in METHODS[name].model_fields

    if methods is None and temperature is None:
        return []
    if methods is None and recipe is not None:
        terms = Recipe.load(recipe).distill.terms
        return [
            f"distill.terms.{index}.temperature={temperature}"
            for index, term in enumerate(terms)
            if takes_temperature(term.method)
        ]
    share = DISTILL_WEIGHT / len(methods or ["soft_targets"])
    return _flag(
        "distill.terms",
        [
            {"method": name, "weight": share, **({"temperature": temperature} if takes_temperature(name) else {})}
            for name in methods or ["soft_targets"]
        ],
    )
