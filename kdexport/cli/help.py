"""The page of ``--help``, and what is said of a flag that is nearly right.

It shows usage, purpose, examples, then every flag by its sentence, whole in 80 columns: Typer's own page spends a third
of the width on frames and on types such as <bool>.
"""

from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

OUTPUT = "Output"  # the panel of the flags that every command has
MAX_WIDTH = 100  # characters; longer lines are hard to read
FLAGS_WIDTH = 23  # characters; a longer flag has a line of its own
EXAMPLES = "Examples:"  # the paragraph of a command's docstring that is printed as it is
UsageError: Any = typer.BadParameter.__mro__[1]  # click's, or that of the click inside Typer


class Command(TyperCommand):
    """A command with a page of this kind, and a suggestion for a flag that is nearly right."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and put what was probably meant into the message."""
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            if near := getattr(error, "possibilities", None):
                error.message = f"{error.message.rstrip('.')}. Did you mean {' or '.join(near)}?"
                error.possibilities = None
            elif any("--set" in item.opts for item in self.params) and (key := _recipe_key(error)):
                error.message = f"{error.message.rstrip('.')}. It is a key of the recipe: --set {key}=VALUE"
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what follows the command's name in its usage."""
        return [*(_metavar(item) for item in self.get_params(ctx) if item.param_type_name == "argument"), "[OPTIONS]"]

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Print the page."""
        parameters = [item for item in self.get_params(ctx) if not getattr(item, "hidden", False)]
        arguments = [item for item in parameters if item.param_type_name == "argument"]
        options = [item for item in parameters if item.param_type_name == "option"]
        panels: dict[str, list[Any]] = {"Arguments": arguments, "Options": []}
        for item in options:
            own = OUTPUT if item.name == "help" else getattr(item, "rich_help_panel", None)
            panels.setdefault(own or "Options", []).append(item)
        panels[OUTPUT] = panels.pop(OUTPUT)  # what all commands have comes last
        usage = " ".join([ctx.command_path, *self.collect_usage_pieces(ctx)])
        rows = {title: [(_flags(item), item.help or "") for item in items] for title, items in panels.items()}
        _print(usage, self.help or "", rows)


class Group(TyperGroup):
    """The page of ``kdexport`` alone: its commands by panel."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Print the page."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            purpose = str(command.help or "").partition("\n\n")[0].replace("\n", " ")
            panels.setdefault(getattr(command, "rich_help_panel", None) or "Commands", []).append((name, purpose))
        options = [(_flags(item), str(getattr(item, "help", ""))) for item in self.get_params(ctx)]
        _print(f"{ctx.command_path} COMMAND [OPTIONS]", self.help or "", {**panels, "Options": options})


def _recipe_key(error: Any) -> str | None:
    """Return the recipe's key that an unknown flag is called like, if there is one."""
    from kdexport.recipe import Recipe

    name = str(getattr(error, "option_name", None)).lstrip("-").replace("-", "_")
    for section, field in Recipe.model_fields.items():
        if name in getattr(field.annotation, "model_fields", {}):
            return f"{section}.{name}"
    return None


def _metavar(argument: Any) -> str:
    name = str(argument.metavar or argument.name.upper())
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _flags(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return _metavar(parameter)
    names = sorted(parameter.opts, key=len) + list(parameter.secondary_opts)
    flag = getattr(parameter, "is_flag", False)
    return ", ".join(names) + ("" if flag else f" {parameter.metavar or parameter.name.upper()}")


def _print(usage: str, purpose: str, sections: dict[str, list[tuple[str, str]]]) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    console.width = min(console.width, MAX_WIDTH)
    console.print(Text.assemble(("usage: ", "bold"), usage))
    for paragraph in purpose.split("\n\n"):
        console.print()
        if paragraph.startswith(EXAMPLES):
            console.print(Text(EXAMPLES.rstrip(":"), style="bold"))
            console.print(Text(paragraph.removeprefix(EXAMPLES).lstrip("\n"), style="cyan"))
        else:
            console.print(Text(paragraph.replace("\n", " ")))
    width = min(FLAGS_WIDTH, max(len(name) for rows in sections.values() for name, _ in rows))
    for title, rows in sections.items():
        if rows:
            console.print()
            console.print(Text(title, style="bold"))
            for parts in _laid_out(rows, width):
                console.print(Padding(parts, (0, 0, 0, 2)))


def _laid_out(rows: Iterable[tuple[str, str]], width: int) -> Iterable[Any]:
    from rich.table import Table
    from rich.text import Text

    for name, text in rows:
        table = Table.grid(padding=(0, 2, 0, 0), expand=True)
        table.add_column(width=width, no_wrap=True, overflow="ignore")
        table.add_column(ratio=1)
        if len(name) > width:
            yield Text(name, style="cyan")
            name = ""
        table.add_row(Text(name, style="cyan"), Text(text))
        yield table
