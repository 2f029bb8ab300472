"""`kdexport doctor`."""

from typing import TYPE_CHECKING, Any

import typer

from kdexport.cli.console import Json, Quiet, Verbose, command

if TYPE_CHECKING:
    from kdexport.bench.doctor import Diagnosis

MARKS = {"ok": ("✓", "green"), "note": ("·", "yellow"), "fault": ("✗", "bold red")}


def doctor(json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Check versions and devices by running a tiny model on each, and show the command that fixes each fault.

    Exit code 1 where there is a fault.

    Examples:
      kdexport doctor
      kdexport doctor --json
    """
    with command(json=json, quiet=quiet, verbose=verbose) as console:
        from kdexport.bench.doctor import diagnose

        with console.progress.task("looking"):
            diagnosis = diagnose()
        console.result(diagnosis, _shown(diagnosis, quiet))
        if diagnosis.faults:
            raise typer.Exit(1)


def _shown(diagnosis: "Diagnosis", quiet: bool) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = Table.grid(padding=(0, 1))
    shown.add_column(no_wrap=True)
    shown.add_column(no_wrap=True)
    shown.add_column()
    for check in diagnosis.checks:
        if quiet and check.status != "fault":
            continue
        mark, style = MARKS[check.status]
        message = Text(check.message)
        if check.fix:
            message.append(f"\n{check.fix}", style="cyan")
        shown.add_row(Text(mark, style=style), check.name, message)
    count = len(diagnosis.faults)
    last = "no faults" if count == 0 else "one fault" if count == 1 else f"{count} faults"
    return Group(shown, Text(last, style="bold red" if count else "bold green"))
