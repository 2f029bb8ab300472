"""What is shown while long work goes on: bars on a terminal, plain lines elsewhere, nothing with --quiet.

Everything goes to stderr; stdout is for results. Stages get a ``Progress`` and know nothing of terminals.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PLAIN_SECONDS = 2.0  # least time between two plain lines of one task: a log stays readable
SPEED_SECONDS = 600.0  # that the time left is judged by: a step may take minutes
WIDE = 100  # columns of a terminal that has room for long bars


class Task(Protocol):
    """One piece of long work."""

    def advance(self, steps: float = 1, note: str = "") -> None:
        """Count steps as done and say how it stands, e.g. ``"loss 0.31, accuracy 0.97"``."""


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
    def advance(self, steps: float = 1, note: str = "") -> None:
        pass


SILENT: Progress = Silent()


class PlainLines:
    """A line now and then: for logs, pipes and CI."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def message(self, message: str) -> None:
        """Print one line with the seconds since the start."""
        print(f"[{time.monotonic() - self._start:7.1f}s] {message}", file=sys.stderr, flush=True)  # noqa: T201

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
        self._done, self._note, self._shown, self._pending = 0.0, "", time.monotonic(), False
        self._first: tuple[float, float] | None = None  # when, and how much was done: some may have been before

    def advance(self, steps: float = 1, note: str = "") -> None:
        self._done += steps
        self._first = self._first or (time.monotonic(), self._done)
        self._note = note or self._note
        self._pending = True
        if time.monotonic() - self._shown >= PLAIN_SECONDS:
            self._show()

    def end(self) -> None:
        if self._pending:
            self._show()

    def _show(self) -> None:
        done = f"{round(self._done, 1):g}"
        parts = [f"{self._name} {done}/{self._total:g}" if self._total else f"{self._name} {done}"]
        self._lines.message("  ".join(part for part in (*parts, self._note, self._left()) if part))
        self._shown, self._pending = time.monotonic(), False

    def _left(self) -> str:
        if self._first is None or self._total is None or not self._first[1] < self._done < self._total:
            return ""
        then, before = self._first
        seconds = (time.monotonic() - then) * (self._total - self._done) / (self._done - before)
        return f"{seconds:.0f} s left" if seconds < 100 else f"{seconds / 60:,.0f} min left"


class Bars:
    """Rich progress bars on a terminal."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._live: RichProgress | None = None

    def message(self, message: str) -> None:
        """Print one line above the bars."""
        self._console.print(message, markup=False, highlight=False)

    def warn(self, message: str) -> None:
        """Print one yellow line above the bars."""
        self._console.print(f"warning: {message}", style="yellow", markup=False, highlight=False)

    @contextmanager
    def task(self, name: str, total: float | None = None, *, still: bool = False) -> Iterator[Task]:
        """Show a bar with steps, time spent, time left and a note.

        A still one has no thread that draws it ten times a second; within another task it moves as that one does.
        """
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        if self._live is not None:  # a task within a task shares the display
            yield _BarTask(self._live, self._live.add_task(name, total=total, note=""))
            return
        # The note takes the room that is left and is cut off there: the figures before it stay whole.
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24 if self._console.width >= WIDE else 10),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", style="dim", markup=False, table_column=rest),
        )
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
                yield _BarTask(live, live.add_task(name, total=total, note=""))
            finally:
                self._live = None


class _BarTask:
    def __init__(self, live: "RichProgress", identity: "TaskID") -> None:
        self._live, self._identity = live, identity

    def advance(self, steps: float = 1, note: str = "") -> None:
        still = not self._live.live.auto_refresh
        if note:
            self._live.update(self._identity, advance=steps, refresh=still, note=note)
        else:
            self._live.update(self._identity, advance=steps, refresh=still)


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
