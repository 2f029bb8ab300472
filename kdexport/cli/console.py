"""What every command shares: its three output flags, where text goes, and how faults become exit codes."""

import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from kdexport import artifacts
from kdexport.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, KDExportError, Terminated

if TYPE_CHECKING:
    from kdexport.progress import Progress

OUTPUT = "Output"  # the panel of the flags that every command has
Json = Annotated[
    bool,
    typer.Option(
        "--json", rich_help_panel=OUTPUT, help="Print one JSON document on stdout, and everything else on stderr."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", rich_help_panel=OUTPUT, help="Print results and errors only.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", rich_help_panel=OUTPUT, help="Show the traceback of an error.")
]


@dataclass(frozen=True)
class Console:
    """Where one command's words go: results to stdout, all else to stderr."""

    json: bool
    quiet: bool
    verbose: bool
    stdout: TextIO  # the results' alone: what the user's code prints goes to stderr

    @property
    def progress(self) -> "Progress":
        """The ``Progress`` that suits the flags and the terminal."""
        from kdexport.artifacts import is_main
        from kdexport.progress import for_terminal

        return for_terminal(quiet=self.quiet or not is_main())

    def result(self, result: Any, shown: Any) -> None:
        """Print a result: its JSON document with --json, else ``shown`` (a Rich renderable or text)."""
        if self.json:
            from kdexport import results

            self.stdout.write(results.dumps(result))
        elif isinstance(shown, str):
            self.stdout.write(shown.rstrip("\n") + "\n")
        else:
            from rich.console import Console as RichConsole

            RichConsole(file=self.stdout, highlight=False).print(shown)


@contextmanager
def command(*, json: bool, quiet: bool, verbose: bool, resumes: bool = False) -> Iterator[Console]:
    """Run a command's body: a ``KDExportError`` becomes its message, its hint and its exit code.

    Args:
        json: Whether the result is printed as JSON.
        quiet: Whether progress is hidden.
        verbose: Whether an error shows its traceback.
        resumes: Whether the same command goes on after Ctrl-C.
    """
    stdout = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield Console(json, quiet, verbose, stdout)
    except KDExportError as error:
        if verbose:
            traceback.print_exc()
        _complain(error.message, error.hint)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt as stop:
        if verbose:
            traceback.print_exc()
        if artifacts.is_main():  # of several, one says it
            _complain("interrupted", f"go on with: {_given()}" if resumes else "give the same command to start again")
        raise typer.Exit(EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED) from None


def _given() -> str:
    """Return the command that was given; started by torchrun, this process does not know it."""
    if "TORCHELASTIC_RUN_ID" in os.environ or "RANK" in os.environ:
        return "the same command"
    return shlex.join(["kdexport", *sys.argv[1:]])


def _complain(message: str, hint: str) -> None:
    if sys.stderr.isatty():
        from rich.console import Console as RichConsole
        from rich.text import Text

        console = RichConsole(stderr=True, highlight=False)
        console.print(Text.assemble(("error: ", "bold red"), message))
        console.print(Text.assemble(("hint:  ", "bold cyan"), hint))
    else:
        sys.stderr.write(f"error: {message}\nhint: {hint}\n")
