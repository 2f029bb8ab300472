"""`kdexport init`: a reference pair to start from.

A pair is a folder of a recipe, its networks and a card with measured results. In a wheel they lie inside the package,
in a checkout beside it.
"""

import filecmp
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from kdexport.cli.console import Json, Quiet, Verbose, command
from kdexport.errors import KDExportError, did_you_mean

RECIPE = "recipe.toml"
DIRECTIVE = "#:schema"  # for editors; the schema lies beside the recipe, as a link that is copied as a file


@dataclass(frozen=True)
class Pair:
    """One reference pair."""

    name: str
    description: str


@dataclass(frozen=True)
class Pairs:
    """Those that there are."""

    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Copied:
    """What was written."""

    name: str
    folder: str
    files: tuple[str, ...]


def reference_pairs() -> Pairs:
    """Return the pairs that come with this installation, by name."""
    folders = sorted(recipe.parent for recipe in _root().glob(f"*/{RECIPE}"))
    return Pairs(tuple(Pair(folder.name, _description(folder)) for folder in folders))


def copy_pair(name: str, folder: Path) -> Copied:
    """Copy a pair into a folder that doesn't exist yet, is empty, or holds just that pair: then nothing is left to do.

    Raises:
        KDExportError: No such pair, the folder holds something, or it cannot be written to.
    """
    names = [pair.name for pair in reference_pairs().pairs]
    if name not in names:
        near = did_you_mean(name, names) or f"there are: {', '.join(names)}"
        raise KDExportError(f"no reference pair is called '{name}'", hint=near.strip())
    source = _root() / name
    files = [path for path in _files(source) if not any(map(_stays, path.parts))]
    copied = Copied(name, str(folder), tuple(str(folder / path) for path in files))
    if folder.is_dir() and _is_that(folder, source, files):
        return copied
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise KDExportError(f"{folder} is there already and is not empty", hint=f"kdexport init {name} OTHER_DIR")
    is_new = not folder.exists()
    try:
        shutil.copytree(source, folder, ignore=lambda _, names: set(filter(_stays, names)), dirs_exist_ok=True)
    except OSError as error:  # of several, shutil gives the words: [(source, target, why), ...]
        for half in [folder] if is_new else list(folder.iterdir()):
            shutil.rmtree(half, ignore_errors=True) if half.is_dir() else half.unlink(missing_ok=True)
        why = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or error
        raise KDExportError(
            f"{folder} cannot be written: {why}", hint="free some space, or name another folder: kdexport init NAME DIR"
        ) from error
    return copied


def _is_that(folder: Path, source: Path, files: list[Path]) -> bool:
    """Whether a folder holds a pair's files as they are, and nothing beside them."""
    return {item.name for item in folder.iterdir()} == {path.parts[0] for path in files} and all(
        (folder / path).is_file() and filecmp.cmp(source / path, folder / path, shallow=False) for path in files
    )


def _files(folder: Path) -> list[Path]:
    """Return the places of all files in a folder."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _stays(name: str) -> bool:
    """Whether a file or folder is no part of a pair: what runs have left."""
    return name in ("__pycache__", "runs") or name.startswith(".") or name.endswith(".pyc")


def _root() -> Path:
    package = Path(__file__).parents[1]
    installed = package / "_models"
    return installed if installed.is_dir() else package.parent / "models"


def _description(folder: Path) -> str:
    """Return the recipe's first comment that is not for editors: it says what the pair is."""
    for line in (folder / RECIPE).read_text(encoding="utf-8").splitlines():
        if not line.startswith(DIRECTIVE):
            return line.removeprefix("#").strip() if line.startswith("#") else ""
    return ""


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

        if reference:
            from kdexport.recipe.reference import markdown, schema

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
