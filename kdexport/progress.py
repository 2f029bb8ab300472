"""What is shown while long work goes on: bars on a terminal, plain lines elsewhere, nothing with --quiet.

Everything goes to stderr; stdout is for results. Stages get a ``Progress`` and know nothing of terminals.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, Union

from kdexport import figures, memory, terminal
from kdexport.errors import KDExportError, without_temporary_folder

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn, TaskID
    from rich.progress import Task as RichTask
    from rich.text import Text

PLAIN_SECONDS = 2.0  # least time between two plain lines of one task: a log stays readable
SPEED_SECONDS = 600.0  # that the time left is judged by: a step may take minutes
NAME_WIDTH = len("student-plain")  # what tasks are called stands in a column of its own
NOTE_WIDTH = 60  # of a training's facts, all of them; a terminal that is wider has room for a bar
BAR_WIDTHS = (10, 24)  # least and most


# Facts of one line, the one with the most worth first: a narrow terminal drops the last.
Note = Union[str, Sequence[str]]


class Task(Protocol):
    """One piece of long work."""

    def advance(self, steps: float = 1, note: Note = "") -> None:
        """Count steps as done and say how it stands, e.g. ``("97.9 % val", "loss 0.31")``."""


class Progress(Protocol):
    """Where a stage says what it does."""

    def message(self, message: str) -> None:
        """Report one fact."""

    def warn(self, message: str) -> None:
        """Report one thing that the user should know about."""

    def task(self, name: str, total: float | None = None, *, still: bool = False) -> AbstractContextManager[Task]:
        """Open a piece of long work of ``total`` steps; a still one is drawn anew only where it is advanced."""


class Silent:
    """Says nothing."""

    def message(self, message: str) -> None:
        """Drop it."""

    def warn(self, message: str) -> None:
        """Drop it."""

    @contextmanager
    def task(self, name: str, total: float | None = None, *, still: bool = False) -> Iterator[Task]:  # noqa: ARG002
        """Open a task that shows nothing."""
        yield _SilentTask()


class _SilentTask:
    def advance(self, steps: float = 1, note: Note = "") -> None:
        pass


SILENT: Progress = Silent()


class PlainLines:
    """A line now and then: for logs, pipes and CI."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def message(self, message: str) -> None:
        """Print one line with the seconds since the start."""
        print(f"[{time.monotonic() - self._start:7.1f}s] {terminal.printable(message)}", file=sys.stderr, flush=True)  # noqa: T201

    def warn(self, message: str) -> None:
        """Print one line that begins with ``warning:``."""
        self.message(f"warning: {message}")

    @contextmanager
    def task(self, name: str, total: float | None = None, *, still: bool = False) -> Iterator[Task]:  # noqa: ARG002
        """Open a task that prints a line at most every few seconds, and one at its end."""
        self.message(name)
        task = _PlainTask(self, name, total)
        yield task
        task.end()


class _PlainTask:
    def __init__(self, lines: PlainLines, name: str, total: float | None) -> None:
        self._lines, self._name, self._total = lines, name, total
        self._done, self._shown, self._pending = 0.0, time.monotonic(), False
        self._note: tuple[str, ...] = ()
        self._first: tuple[float, float] | None = None  # when, and how much was done: some may have been before

    def advance(self, steps: float = 1, note: Note = "") -> None:
        self._done += steps
        self._first = self._first or (time.monotonic(), self._done)
        self._note = _facts(note) or self._note
        self._pending = True
        if time.monotonic() - self._shown >= PLAIN_SECONDS:
            self._show()

    def end(self) -> None:
        if self._pending:
            self._show()

    def _show(self) -> None:
        facts = terminal.SEPARATOR.join([*self._note, *self._left()])
        self._lines.message(f"{self._name} {_count(self._done, self._total)}  {facts}".rstrip())
        self._shown, self._pending = time.monotonic(), False

    def _left(self) -> list[str]:
        if self._first is None or self._total is None or not self._first[1] < self._done < self._total:
            return []
        then, before = self._first
        seconds = (time.monotonic() - then) * (self._total - self._done) / (self._done - before)
        return [f"{figures.duration(seconds)} left"]


class Bars:
    """Rich progress bars on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: RichProgress | None = None

    def message(self, message: str) -> None:
        """Print one line above the bars."""
        self._console.print(terminal.printable(message), markup=False, highlight=False)

    def warn(self, message: str) -> None:
        """Print one yellow line above the bars."""
        self._console.print(terminal.warning(message))

    @contextmanager
    def task(self, name: str, total: float | None = None, *, still: bool = False) -> Iterator[Task]:
        """Show the steps, a note, the time left, and a bar where there is room.

        A still one has no thread that draws it ten times a second; within another task it moves as that one does.
        """
        from rich.progress import BarColumn, ProgressColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        if self._live is not None:  # a task within a task shares the display
            yield _BarTask(self._live, self._live.add_task(name, total=total, note=()))
            return

        class Facts(ProgressColumn):
            """What is known of the task, as far as there is room."""

            def render(self, task: RichTask) -> _Fitted:
                return _Fitted([*task.fields["note"], *_time_of(task)])

        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False, table_column=Column(min_width=NAME_WIDTH, no_wrap=True)),
            _counts(),
            Facts(table_column=Column(ratio=1, no_wrap=True)),
        ]
        spare = self._console.width - NAME_WIDTH - NOTE_WIDTH - len(" 20/20 ") - 1
        if spare >= BAR_WIDTHS[0]:
            columns.insert(1, BarColumn(bar_width=min(spare, BAR_WIDTHS[1])))
        with RichProgress(
            *columns,
            console=self._console,
            auto_refresh=not still,
            expand=True,
            transient=total is None,
            speed_estimate_period=SPEED_SECONDS,
        ) as live:
            self._live = live
            try:
                yield _BarTask(live, live.add_task(name, total=total, note=()))
            finally:
                self._live = None


class _BarTask:
    def __init__(self, live: RichProgress, identity: TaskID) -> None:
        self._live, self._identity = live, identity

    def advance(self, steps: float = 1, note: Note = "") -> None:
        still = not self._live.live.auto_refresh
        if facts := _facts(note):
            self._live.update(self._identity, advance=steps, refresh=still, note=facts)
        else:
            self._live.update(self._identity, advance=steps, refresh=still)


class _Fitted:
    """Facts in the room that the terminal leaves them."""

    def __init__(self, facts: Sequence[str]) -> None:
        self.facts = facts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        yield Text(terminal.fit(self.facts, options.max_width), style="dim", no_wrap=True)


def _counts() -> ProgressColumn:
    from rich.progress import TextColumn

    class Counts(TextColumn):
        """Steps done, of how many."""

        def render(self, task: RichTask) -> Text:
            from rich.text import Text

            return Text("" if task.total is None else _count(task.completed, task.total), style="progress.download")

    return Counts("")


def _count(done: float, total: float | None) -> str:
    """Return ``3/20``: a training's steps within an epoch count in its share of the epoch."""
    return f"{round(done, 1):g}" + (f"/{total:g}" if total else "")


def _facts(note: Note) -> tuple[str, ...]:
    return tuple(part for part in ([note] if isinstance(note, str) else note) if part)


def _time_of(task: RichTask) -> list[str]:
    """Return how long a task still takes, or how long it took."""
    if task.finished:
        return [figures.duration(task.finished_time or 0.0)]
    return [] if task.time_remaining is None else [f"{figures.duration(task.time_remaining)} left"]


def load(module: str, progress: Progress) -> None:
    """Import a library that takes seconds to come, and say so meanwhile.

    Raises:
        KDExportError: It is installed and cannot be loaded: too little memory, a broken installation.
    """
    if module not in sys.modules:
        with progress.task(f"loading {module}..."):
            try:
                importlib.import_module(module)
            except (ImportError, OSError, MemoryError) as error:
                raise without_temporary_folder(error) or KDExportError(
                    f"{module} cannot be loaded: {error}",
                    hint="free some memory, or raise its limit (`ulimit -v`); where there is enough of it, "
                    f"pip install --force-reinstall {module}",
                ) from error
    memory.hold()


def for_python() -> Progress:
    """Return what suits a call from Python: bars in a notebook, else silence."""
    if "ipykernel" not in sys.modules:
        return SILENT
    from rich.console import Console

    return Bars(Console())


def for_terminal(*, quiet: bool) -> Progress:
    """Return what suits where stderr goes."""
    if quiet:
        return Silent()
    if not sys.stderr.isatty():
        return PlainLines()
    from rich.console import Console

    # The file itself, not whatever sys.stderr will be: what a stage catches of a talkative library is not the bars'.
    return Bars(Console(file=sys.stderr))
