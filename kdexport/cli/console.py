"""What every command shares: its three output flags, its --help, where text goes, and how faults become exit codes.

--help shows usage, purpose, examples, then every flag by its sentence, whole in 80 columns:
Typer's own page spends a third of the width on frames and on types such as <bool>.
"""

import codecs
import io
import json as json_module
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from kdexport import artifacts, memory, terminal
from kdexport.errors import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    EXIT_USER_ERROR,
    KDExportError,
    Terminated,
    without_temporary_folder,
)
from kdexport.onnx.orphans import signalled_at_parents_death

if TYPE_CHECKING:
    from kdexport.progress import Progress, Task


LONGEST_NAME = 200  # characters of a path in a message
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


def task_option(panel: str | None = None) -> Any:
    """Return the flag ``--task``, under a heading of the command's own."""
    return typer.Option(
        "--task",
        metavar="NAME",
        rich_help_panel=panel,
        help="What --data is for: classification, multilabel, regression, segmentation or embedding. By default what "
        "the model's own file says, else what the data show; identities look like classes: name embedding there.",
    )


@dataclass(frozen=True)
class Console:
    """Where one command's words go: results to stdout, all else to stderr."""

    json: bool
    quiet: bool
    verbose: bool
    stdout: TextIO  # the results' alone: what the user's code prints goes to stderr
    received: Sequence[int] = ()  # signals that are to end the command

    @property
    def progress(self) -> "Progress":
        """The ``Progress`` that suits the flags and the terminal."""
        from kdexport.artifacts import is_main
        from kdexport.progress import for_terminal

        return _Watched(for_terminal(quiet=self.quiet or not is_main()), self.received)

    @property
    def width(self) -> int:
        """Characters in a line of stdout."""
        from rich.console import Console as RichConsole

        return RichConsole(file=self.stdout).width

    def result(self, result: Any, shown: Any) -> None:
        """Print a result: its JSON document with --json, else ``shown`` (a Rich renderable or text).

        Raises:
            KDExportError: stdout takes no more; nothing that was made is lost by it.
        """
        try:
            self._print(result, shown)
            self.stdout.flush()
        except BrokenPipeError:  # `| head`: whoever read has enough
            raise
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stdout.fileno())  # what is left would fail again at the end
            raise KDExportError(
                f"the result could not be printed: stdout: {error.strerror}",
                hint="all that the command makes is in its files; the same command again, with room for stdout, prints",
            ) from error

    def _print(self, result: Any, shown: Any) -> None:
        if self.json:
            from kdexport import results

            document = results.dumps(result)
            self.stdout.write(document if "utf" in (self.stdout.encoding or "utf").lower() else as_ascii(document))
        elif isinstance(shown, str):
            self.stdout.write(shown.rstrip("\n") + "\n")
        else:
            from rich.console import Console as RichConsole

            RichConsole(file=self.stdout, highlight=False).print(shown)


def as_ascii(document: str) -> str:
    """Return a JSON document of the same values in ASCII."""
    return "".join(character if ord(character) < 128 else json_module.dumps(character)[1:-1] for character in document)


def prepare_streams() -> None:
    """Let no character that a terminal cannot show end a command, and refuse arguments that are no text.

    Raises:
        SystemExit: An argument is not in the encoding of file names: no report could name it.
    """
    for name in ("stdin", "stdout", "stderr"):  # closed by who started this (`>&-`): Python has None there, and the
        if getattr(sys, name) is None:  # next file that is opened would get its number, and what a library prints
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115, PTH123 - as long as we live
    codecs.register_error("spelled", terminal.spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spelled")
    for argument in sys.argv[1:]:
        if not argument.isascii() and any("\ud800" <= character <= "\udfff" for character in argument):
            _complain(
                f"an argument is not {sys.getfilesystemencoding()}: {argument!a}",
                "rename the file; or, where its name is in order, set LC_ALL=C.UTF-8",
            )
            raise SystemExit(EXIT_USER_ERROR)


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
    _end_with_torchrun()
    try:
        with _interruptible() as received, redirect_stdout(sys.stderr):
            yield Console(json, quiet, verbose, stdout, received)
    except KDExportError as error:
        if verbose:
            traceback.print_exc()
        _complain(error.message, error.hint)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        if error.errno is None or isinstance(error, BrokenPipeError):  # no fault of the system's; `| head` has enough
            raise
        if verbose:
            traceback.print_exc()
        if told := without_temporary_folder(error):
            _complain(told.message, told.hint)
            raise typer.Exit(EXIT_USER_ERROR) from None
        name = "" if error.filename is None else f": {_shortened(str(error.filename))}"
        _complain(f"the system refuses: {error.strerror}{name}", "check the path, who may use it, and the disk's space")
        raise typer.Exit(EXIT_USER_ERROR) from None
    except SystemExit as stop:  # of code that the user gave: the command line's own ends otherwise
        if verbose:
            traceback.print_exc()
        from kdexport.references import place

        _complain(f"code that kdexport called ends the program by sys.exit({stop.code!r}){place(stop)}", "take it out")
        raise typer.Exit(EXIT_USER_ERROR) from None
    except Exception as error:
        if not memory.exhausted(error):
            raise
        if verbose:
            traceback.print_exc()
        _complain(memory.message(), memory.HINT)
        raise typer.Exit(EXIT_USER_ERROR) from None
    except KeyboardInterrupt as stop:
        if verbose:
            traceback.print_exc()
        if artifacts.is_main():  # of several, one says it
            _complain("interrupted", f"go on with: {_given()}" if resumes else "give the same command to start again")
        raise typer.Exit(EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED) from None


def _end_with_torchrun() -> None:
    """Let torchrun's death, however it came, reach its workers as SIGTERM: they would train on, and hold the run."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        signalled_at_parents_death(signal.SIGTERM)


@contextmanager
def _interruptible() -> Iterator[Sequence[int]]:
    """Let SIGTERM end a command as Ctrl-C does: what is half-written goes, and workers end. Gives the signals so far.

    A library that is interrupted may say something else than that, or nothing, an import for one: after a signal every
    fault is the interruption, and the next word of a stage is.
    """
    usual: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    received: list[int] = []

    def end(number: int, _: object) -> None:
        received.append(number)
        raise _interruption(received)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    ours = [number for number, handler in usual.items() if signal.getsignal(number) == handler]
    for number in ours:
        signal.signal(number, end)
    try:
        yield received
    except Exception as error:
        if received:
            raise _interruption(received) from error
        raise
    finally:
        for number in ours:
            signal.signal(number, usual[number])


@dataclass(frozen=True)
class _Watched:
    """A ``Progress`` that ends the command where a library has swallowed the interruption of it."""

    progress: "Progress"
    received: Sequence[int]

    def message(self, message: str) -> None:
        self._check()
        self.progress.message(message)

    def warn(self, message: str) -> None:
        self._check()
        self.progress.warn(message)

    def task(self, name: str, total: float | None = None, *, still: bool = False) -> "AbstractContextManager[Task]":
        self._check()
        return self.progress.task(name, total, still=still)

    def _check(self) -> None:
        if self.received:
            raise _interruption(self.received)


def _interruption(received: Sequence[int]) -> KeyboardInterrupt:
    return Terminated() if signal.SIGTERM in received else KeyboardInterrupt()


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME // 2]}...{text[-LONGEST_NAME // 2 :]}"


def _given() -> str:
    """Return the command that was given; started by torchrun, this process does not know it."""
    if "TORCHELASTIC_RUN_ID" in os.environ or "RANK" in os.environ:
        return "the same command"
    return shlex.join(["kdexport", *sys.argv[1:]])


def _complain(message: str, hint: str) -> None:
    message, hint = terminal.printable(message), terminal.printable(hint)
    if sys.stderr.isatty():
        from rich.console import Console as RichConsole
        from rich.text import Text

        console = RichConsole(stderr=True, highlight=False)
        console.print(Text.assemble(("error: ", "bold red"), message))
        console.print(Text.assemble(("hint:  ", "bold cyan"), hint))
    else:
        sys.stderr.write(f"error: {message}\nhint: {hint}\n")


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
