"""What a picture of the report is: a name, where it stands, and a function that draws it.

A new picture is one module with a ``PICTURE`` and one line in ``catalog.py``; page and report.md then show it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from kdexport.report.charts.marks import Mark
from kdexport.report.join import Condition
from kdexport.results import Report

# Pixels. The page shows a wide or a narrow drawing: text in a picture must not shrink with the screen.
FULL, WIDE, NARROW = 1180, 700, 350


@dataclass(frozen=True)
class Drawing:
    """A picture drawn once."""

    svg: Markup
    caption: str  # what the marks mean; plain text
    conditions: tuple[Condition, ...] = ()  # shown with these alone; empty: whatever condition is looked at


@dataclass(frozen=True)
class Picture:
    """A kind of picture."""

    name: str  # of its file beside report.md: report-NAME.svg
    title: str  # of its section on the page; pictures of one title stand side by side
    draw: Callable[[Report, Mapping[str, Mark], int], Iterable[Drawing]]  # report, looks, width in pixels
    wide: int = FULL
    narrow: int = NARROW
    where: Literal["answer", "section"] = "section"  # beside the answer, or in a section of its own
    in_markdown: bool = True
