"""`kdexport run RECIPE`: distill, export, bench and report."""

from pathlib import Path
from typing import Annotated

import typer

from kdexport.cli.console import Json, Quiet, Verbose, command

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe in TOML; `kdexport init --list` has some.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Run directory; runs/NAME by default.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe, e.g. distill.epochs=10.")
]
Track = Annotated[
    list[str] | None, typer.Option("--track", metavar="NAME", help="Show the epochs in tensorboard or wandb.")
]


def run(
    recipe: RecipePath,
    out: Out = None,
    track: Track = None,
    set_: Set = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Distill, export, benchmark and report: the whole way, from a recipe to a file to ship.

    The same command again goes on where a run stopped, and does nothing twice.
    """
    with command(json=json, quiet=quiet, verbose=verbose, resumes=True) as console:
        from kdexport import artifacts, pipeline
        from kdexport.recipe import Recipe
        from kdexport.report.stage import enforce
        from kdexport.report.terminal import terminal

        asked = Recipe.load(recipe, [*tracked(track), *(set_ or ())])
        if not artifacts.is_main():
            pipeline.join_training(asked, out)
            return
        report = pipeline.run(asked, out, console.progress)
        console.result(report, terminal(report))
        enforce(report)


def tracked(names: list[str] | None) -> list[str]:
    """Return the recipe override that --track stands for, or none."""
    return [] if names is None else [f"distill.track={names!r}"]  # Python's quotes are TOML's literal strings
