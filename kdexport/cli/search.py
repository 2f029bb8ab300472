"""`kdexport search RECIPE`: a budget in, a student out."""

from pathlib import Path
from typing import Annotated

import typer

from kdexport.cli.console import Json, Quiet, Verbose, command
from kdexport.cli.run import RecipePath, Set

Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="The search's directory. By default searches/NAME.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be tried, and how long it would take, from a few steps.")
]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Where Optuna keeps the study, e.g. sqlite:///study.db or postgresql://... By default in the directory.",
    ),
]


def search(
    recipe: RecipePath,
    out: Out = None,
    dry_run: DryRun = False,
    storage: Storage = None,
    set_: Set = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find the student that fits a budget: measure candidates first, then train those that fit.

    The recipe's [search] says the budget and the spaces of students. The same
    command again goes on where a search stopped; several at a time share it.
    The picked student is in DIR/picked, a run directory with its own recipe.
    Exits with 3 where nothing is within the budget.

    Examples:
      kdexport search recipe.toml
      kdexport search recipe.toml --set search.budget.latency_ms=2.0
      kdexport search recipe.toml --dry-run
    """
    with command(json=json, quiet=quiet, verbose=verbose, resumes=True) as console:
        from kdexport.progress import load
        from kdexport.recipe import Recipe

        given = [] if storage is None else [f"search.storage='{storage}'"]
        settings = Recipe.load(recipe, [*given, *(set_ or ())])
        load("torch", console.progress)
        from kdexport.search.stage import search as find

        if dry_run:
            from kdexport.search.dry_run import dry_run as estimate
            from kdexport.search.terminal import planned

            plan = estimate(settings, console.progress)
            console.result(plan, planned(plan, console.width))
            return
        from kdexport.search.final import enforce
        from kdexport.search.terminal import terminal

        result = find(settings, out, console.progress)
        console.result(result, terminal(result, console.width))
        enforce(result)
