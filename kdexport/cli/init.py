"""`kdexport init`: a reference pair to start from."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kdexport.cli.console import Json, Quiet, Verbose, command


def init(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Name of a reference pair; --list shows them.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Folder to write to. By default ./NAME.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the reference pairs.")] = False,
    reference: Annotated[
        bool, typer.Option("--reference", help="Print every key of a recipe; with --json, its JSON Schema.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Copy a reference pair, a recipe with its networks, to start from.

    Examples:
      kdexport init --list
      kdexport init digits mine
      kdexport init --reference
    """
    with command(json=json, quiet=quiet, verbose=verbose) as console:
        from kdexport.errors import KDExportError
        from kdexport.models.reference_pairs import copy_pair, reference_pairs

        if reference:
            from kdexport.recipe_reference import markdown, schema

            console.result(schema(), markdown())
            return
        pairs = reference_pairs()
        if list_:
            console.result(pairs, _table(pairs))
            return
        if name is None:
            raise KDExportError("no reference pair is named", hint=f"there are: {', '.join(_names(pairs))}")
        target = folder or Path(name)
        copied = copy_pair(name, target)
        console.result(copied, "\n".join([*copied.files, "", f"next: kdexport run {target / 'recipe.toml'}"]))


def _table(pairs: Any) -> Any:
    from rich.table import Table

    shown = Table.grid(padding=(0, 2))
    for pair in pairs.pairs:
        shown.add_row(pair.name, pair.description)
    return shown


def _names(pairs: Any) -> list[str]:
    return [pair.name for pair in pairs.pairs]
