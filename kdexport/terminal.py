"""How everything looks on a terminal: one kind of table, one kind of warning, one line of facts, whole in 80 columns.

What is said is for others: figures are written by ``figures``, scores by their task. Rich is imported where something
is drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

Justify = Literal["left", "right"]

# For a terminal that has ASCII alone: a minus that became "?" would be another figure.
SPELLINGS = {"−": "-", "–": "..", "×": "x", "±": "+/-", "µ": "u", "²": "2", "·": "-", "…": "...", "▶": ">", "✓": "ok",
             "✗": "x", "≤": "<=", "≥": ">=", **dict.fromkeys("█▉▊▋▌▍▎▏", "#"), **dict.fromkeys("─—", "-")}  # fmt: skip
WIDTH = 80
SEPARATOR = " · "
MARK = "! "  # before a warning, in yellow as it is
GAP = 2  # characters between two columns
FOLD_WIDTH = 24  # of a column that folds, at least: a name in shorter pieces cannot be read


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    cells: Sequence[str | Text]
    left: bool = False  # names stand left, figures right
    spare: int = 0  # where the table is too wide, the column with the highest goes first; 0 always stays
    folds: bool = False  # breaks where it is too long for the terminal; figures stay whole


def fit(facts: Iterable[str], width: int) -> str:
    """Return facts in one line, the one with the most worth first; what has no room is dropped from the right.

    The first always stays, cut off if need be.
    """
    shown, *rest = [fact for fact in facts if fact] or [""]
    for fact in rest:
        if len(shown) + len(SEPARATOR) + len(fact) > width:
            break
        shown += SEPARATOR + fact
    return shown if len(shown) <= width else shown[: max(width - 1, 0)] + "…"


def spelled(error: UnicodeError) -> tuple[str, int]:
    """Write what an encoding lacks in ASCII, as ``codecs.register_error`` wants it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(SPELLINGS.get(character, "?") for character in lacking), error.end


def heading(text: str, width: int = 9) -> str:
    """Return a column's heading in lines: a score's long name would leave none for the names beside it."""
    return "\n".join(textwrap.wrap(text, width, break_long_words=False))


def line(text: str) -> str:
    """Return text on one line and without control characters: a name can then do nothing to a terminal."""
    return "".join(character if character.isprintable() else " " for character in " ".join(text.split()))


def printable(text: str) -> str:
    """Return text without control characters but its line breaks: what a file calls itself sets no title."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def warning(text: str) -> Text:
    """Return a warning: a yellow mark and yellow words."""
    from rich.text import Text

    return Text(f"{MARK}{line(text)}", style="yellow")


def note(text: str) -> Text:
    """Return what is beside the point, dimmed."""
    from rich.text import Text

    return Text(line(text), style="dim")


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """Return the columns that a terminal has room for: spare ones go, first that with the highest number."""
    kept = list(columns)
    for column in sorted((one for one in columns if one.spare), key=lambda one: -one.spare):
        if sum(_width(one) + GAP for one in kept) - GAP <= width:
            break
        kept.remove(column)
    return kept


def table(
    columns: Iterable[Column], *, title: str = "", width: int = WIDTH, styles: Sequence[str] | None = None
) -> Group:
    """Return a title and a table of the columns that fit into ``width``; ``styles`` are the rows'."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    kept = fitting(list(columns), width)
    for column in kept:
        justify: Justify = "left" if column.left else "right"
        shown.add_column(column.name, justify=justify, no_wrap=not column.folds, overflow="fold")
    for number, row in enumerate(zip(*(column.cells for column in kept))):
        cells = (Text(cell) if isinstance(cell, str) else cell for cell in row)  # names are no markup
        shown.add_row(*cells, style=styles[number] if styles else None)
    return Group(*([Text(line(title), style="bold")] if title else []), shown)


def _width(column: Column) -> int:
    longest = max(len(text) for cell in (column.name, *column.cells) for text in str(cell).split("\n"))
    return max(len(column.name), min(longest, FOLD_WIDTH)) if column.folds else longest
