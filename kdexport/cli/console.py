"""What every command shares: its three output flags, where text goes, and how faults become exit codes."""

import codecs
import errno
import io
import json as json_module
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from kdexport import artifacts, memory, terminal
from kdexport.cli.help import OUTPUT
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
    from rich.console import Console as RichConsole
    from rich.console import ConsoleOptions
    from rich.segment import Segment

    from kdexport.progress import Progress, Task


LONGEST_NAME = 200  # characters of a path in a message
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

            document = "".join(map(_in_json, results.dumps(result).splitlines(keepends=True)))
            self.stdout.write(document if "utf" in (self.stdout.encoding or "utf").lower() else as_ascii(document))
        elif isinstance(shown, str):
            self.stdout.write(terminal.printable(shown.rstrip("\n")) + "\n")
        else:
            from rich.console import Console as RichConsole

            RichConsole(file=self.stdout, highlight=False).print(_Printable(shown))


@dataclass(frozen=True)
class _Printable:
    """What Rich draws, without the control characters of names in it: a class of a stranger's sets no title."""

    shown: Any

    def __rich_console__(self, console: "RichConsole", options: "ConsoleOptions") -> "Iterator[Segment]":
        for segment in console.render(self.shown, options):
            yield segment if segment.control else segment._replace(text=terminal.printable(segment.text))


def _in_json(line: str) -> str:
    """Return a line of a JSON document of the same values, with characters that steer a terminal as escapes."""
    text = line.removesuffix("\n")
    return line if text.isprintable() else "".join(map(_escaped, text)) + line[len(text) :]


def _escaped(character: str) -> str:
    return character if character.isprintable() else json_module.dumps(character)[1:-1]


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
        _complain(f"the system refuses: {error.strerror}{name}", _way_out(error))
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


def _way_out(error: OSError) -> str:
    """Return what to do about what the system refuses."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "allow more open files: ulimit -n 4096"
    try:
        Path.cwd()
    except FileNotFoundError:
        return "the working directory was removed: change to one that is there, then give the same command again"
    return "check the path, who may use it, and the disk's space"


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
