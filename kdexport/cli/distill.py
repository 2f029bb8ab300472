"""`kdexport distill`: train a student, from a recipe or from flags."""

import json as jsonlib
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdexport.cli.console import Json, Quiet, Verbose, command
from kdexport.cli.run import Extend, Out, Restart, Set, Track, on_change, tracked
from kdexport.errors import KDExportError

if TYPE_CHECKING:
    from kdexport.distill.show_layers import ShownLayers

DISTILL_WEIGHT = 0.9  # what --method terms share; the labels have the rest by default
TEACHER, STUDENT, TRAINING = "Teacher", "Student", "Training"


def distill(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe in TOML; flags change it.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="REF", help="e.g. digits, imagefolder:photos, npz:data.npz")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Names the run directory; the student's by default.")] = None,
    out: Out = None,
    seed: Annotated[int | None, typer.Option(help="Of every random choice.")] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="REF", rich_help_panel=TEACHER, help="e.g. torchvision:resnet50, nets.py:Big")
    ] = None,
    teacher_weights: Annotated[str | None, typer.Option(metavar="FILE", rich_help_panel=TEACHER)] = None,
    teacher_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", rich_help_panel=TEACHER, help="For its factory; repeatable."),
    ] = None,
    teacher_epochs: Annotated[
        int | None, typer.Option(rich_help_panel=TEACHER, help="No weights? Fit it on the labels first, for so long.")
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(metavar="REF", rich_help_panel=STUDENT, help="e.g. torchvision:resnet18, nets.py:Small"),
    ] = None,
    student_weights: Annotated[str | None, typer.Option(metavar="FILE", rich_help_panel=STUDENT)] = None,
    student_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", rich_help_panel=STUDENT, help="For its factory; repeatable."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(rich_help_panel=TRAINING)] = None,
    batch_size: Annotated[int | None, typer.Option(rich_help_panel=TRAINING)] = None,
    optimizer: Annotated[str | None, typer.Option(rich_help_panel=TRAINING, help="adamw or sgd")] = None,
    lr: Annotated[float | None, typer.Option(rich_help_panel=TRAINING, help="Learning rate.")] = None,
    weight_decay: Annotated[float | None, typer.Option(rich_help_panel=TRAINING)] = None,
    schedule: Annotated[
        str | None, typer.Option(rich_help_panel=TRAINING, help="cosine, step, linear or constant")
    ] = None,
    precision: Annotated[str | None, typer.Option(rich_help_panel=TRAINING, help="fp32, bf16 or fp16")] = None,
    augment: Annotated[
        list[str] | None, typer.Option(rich_help_panel=TRAINING, help="e.g. shift, flip, crop; repeatable.")
    ] = None,
    views: Annotated[
        int | None, typer.Option(rich_help_panel=TRAINING, help="Augmented views whose logits are kept.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=TRAINING, help="A distillation term, e.g. soft_targets; repeatable."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(rich_help_panel=TRAINING, help="Of every term that has one.")
    ] = None,
    label_weight: Annotated[
        float | None, typer.Option(rich_help_panel=TRAINING, help="Of the labels' own loss.")
    ] = None,
    baseline: Annotated[
        bool | None,
        typer.Option("--baseline/--no-baseline", rich_help_panel=TRAINING, help="Also train it without the teacher."),
    ] = None,
    show_layers: Annotated[
        bool,
        typer.Option(
            "--show-layers", help="Train nothing: list both networks' layers, and pairs that feature terms fit."
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
    """
    with command(json=json, quiet=quiet, verbose=verbose, resumes=True) as console:
        flags = [
            *_flag("name", name if name or recipe or not student else student.rpartition(":")[2].rpartition("/")[2]),
            *_flag("seed", seed),
            *_flag("data.source", data),
            *_flag("teacher.model", teacher),
            *_flag("teacher.weights", teacher_weights),
            *_flag("teacher.train.epochs", teacher_epochs),
            *(f"teacher.args.{argument}" for argument in teacher_arg or ()),
            *_flag("student.model", student),
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
        if recipe is None and not (teacher and student and data):
            raise KDExportError(
                "there is nothing to distill: neither a recipe nor all of --teacher, --student and --data",
                hint="e.g. kdexport distill recipe.toml, or kdexport init --list for reference recipes",
            )
        from kdexport import artifacts
        from kdexport.artifacts import RunDirectory
        from kdexport.pipeline import default_directory
        from kdexport.recipe import Recipe

        whole = (
            Recipe.load(recipe, flags) if recipe else Recipe.parse({}, overrides=flags, origin="what the flags ask for")
        )
        directory = RunDirectory(out or default_directory(whole))
        progress = console.progress
        if show_layers:
            from kdexport.distill.show_layers import show_layers as listed

            layers = listed(whole, directory.cache, progress)
            console.result(layers, shown(layers))
            return
        progress.say(f"{whole.name} -> {directory.root}/")
        with directory.lock():
            from kdexport.distill.stage import distill as stage

            text = whole.to_toml(relative_to=directory.root)
            with directory.holding(text) if artifacts.is_main() else nullcontext():
                what = on_change(restart=restart, extend=extend)
                result = stage(whole, directory, progress, on_change=what)
        if artifacts.is_main():
            console.result(result, _shown(result, directory.root))


def _flag(key: str, value: Any) -> list[str]:
    """Return the recipe override that a flag stands for, or none where the flag was not given."""
    return [] if value is None else [f"{key}={_toml(value)}"]


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


def _shown(result: Any, root: Path) -> Any:
    from rich.console import Group
    from rich.table import Table

    table = Table(title=f"{result.name}: trained", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("network")
    for column in ("parameters", "epochs", "best", "val accuracy", "seconds"):
        table.add_column(column, justify="right")
    for network in result.networks:
        table.add_row(
            network.name,
            f"{network.parameters:,}",
            str(network.epochs) if network.epochs else "given",
            "" if network.best_epoch is None else str(network.best_epoch + 1),
            "" if network.val_score is None else f"{network.val_score:.4f}",
            "" if network.seconds is None else f"{network.seconds:.1f}",
        )
    weights = ", ".join(network.weights for network in result.networks)  # as a column they'd wrap at 80 columns
    return Group(table, "", f"weights in {root}/: {weights}", f"next: kdexport export {root} --onnx")


def shown(layers: "ShownLayers") -> Any:
    """Return both networks' layers and the suggested pairs, ready to print."""
    from rich.console import Group
    from rich.table import Table

    parts: list[Any] = []
    for title, rows in (("student", layers.student), ("teacher", layers.teacher)):
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("stage", justify="right")
        for column in ("layer", "kind", "gives"):
            table.add_column(column, overflow="fold")
        for row in rows:
            gives = " x ".join(map(str, row.shape)) if row.usable else "runs several times: cannot be named"
            table.add_row("" if row.stage is None else str(row.stage), row.path, row.kind, gives)
        parts += [table, ""]
    pairs = Table(
        title="pairs to begin with (student_layer, teacher_layer)", title_justify="left", title_style="bold", box=None
    )
    pairs.add_column("student")
    pairs.add_column("teacher")
    for student, teacher in layers.suggested:
        pairs.add_row(student, teacher)
    return Group(*parts, pairs)
