"""`kdexport run RECIPE`: distill, export, bench and report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdexport.cli.console import Json, Quiet, Verbose, command
from kdexport.errors import KDExportError

if TYPE_CHECKING:
    from kdexport.results import OnChange

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe in TOML; `kdexport init --list` shows some to start from.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Run directory. By default runs/NAME.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key of the recipe, e.g. distill.epochs=10; may be repeated. By default none is "
        "changed; `kdexport init --reference` lists all keys.",
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="NAME",
        help="Show the epochs in tensorboard, wandb or mlflow as well; may be repeated. By default in none.",
    ),
]

Restart = Annotated[
    bool, typer.Option("--restart", help="Train again what a changed recipe touches, though training would be lost.")
]
Extend = Annotated[
    bool, typer.Option("--extend", help="Go on from the last weights where epochs, lr or the schedule have changed.")
]


def run(
    recipe: RecipePath,
    out: Out = None,
    track: Track = None,
    set_: Set = None,
    restart: Restart = False,
    extend: Extend = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Distill, export, benchmark and report: the whole way, from a recipe to a file to ship.

    The same command again goes on where a run stopped, and does nothing twice.
    Exits with 3 where a requirement of the recipe does not hold.

    Examples:
      kdexport run models/digits/recipe.toml
      kdexport run recipe.toml --set distill.epochs=100 --out runs/long
      kdexport run recipe.toml --set distill.epochs=200 --extend
    """
    with command(json=json, quiet=quiet, verbose=verbose, resumes=True) as console:
        from kdexport import artifacts, pipeline
        from kdexport.progress import load
        from kdexport.recipe import Recipe
        from kdexport.report.stage import enforce
        from kdexport.report.terminal import terminal

        settings = Recipe.load(recipe, [*tracked(track), *(set_ or ())])
        if not artifacts.is_main():
            pipeline.join_training(settings, out, on_change=on_change(restart=restart, extend=extend))
            return
        load("torch", console.progress)
        report = pipeline.run(settings, out, console.progress, on_change=on_change(restart=restart, extend=extend))
        console.result(report, terminal(report, console.width))
        enforce(report)


def tracked(names: list[str] | None) -> list[str]:
    """Return the recipe override that --track stands for, or none."""
    return [] if names is None else [f"distill.track={names!r}"]  # Python's quotes are TOML's literal strings


def on_change(*, restart: bool, extend: bool) -> "OnChange":
    """Return what --restart and --extend stand for.

    Raises:
        KDExportError: Both were given.
    """
    if restart and extend:
        raise KDExportError("--restart and --extend exclude each other", hint="give one of them")
    return "restart" if restart else "extend" if extend else "ask"
