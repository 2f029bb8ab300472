"""What the report's pictures share: how a model looks, how a requirement looks, and what a picture is.

A model's color says which network it is, its shape in which precision. A picture is a name, where it stands, and a
function that draws it. A new picture is one module with a ``PICTURE`` and one line in ``catalog.py``; page and
report.md then show it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from kdexport.report.charts.svg import Scale, picture, tag
from kdexport.report.join import Condition
from kdexport.results import Gate, Report

COLORS = 8  # besides the baseline's grey; they then repeat, and the labels tell models apart


@dataclass(frozen=True)
class Mark:
    """A model's color (0 is the baseline's, 1 to 8 the others') and shape."""

    name: str
    color: int
    shape: str
    network: str = ""  # the name without its precision


def marks_of(models: Iterable[tuple[str, str]], baseline: str) -> dict[str, Mark]:
    """Give every model a mark.

    Args:
        models: Name and precision of each.
        baseline: The model that the others are held against.
    """
    networks: dict[str, int] = {baseline: 0}
    found = {}
    for name, precision in models:
        network = name.removesuffix(f".{precision}")
        if network not in networks:
            networks[network] = (len(networks) - 1) % COLORS + 1
        found[name] = Mark(name, networks[network], SHAPES.get(precision, "circle"), network)
    return found


def marks(report: Report) -> dict[str, Mark]:
    """Return how each model of a report looks."""
    return marks_of(((model.name, model.precision) for model in report.models), report.baseline)


SHAPES = {"fp32": "circle", "fp16": "square", "int8": "diamond", "int8-dynamic": "triangle", "int4": "wedge"}


def legend(looks: Iterable[Mark]) -> list[tuple[Markup, str]]:
    """Return what colors and shapes mean: each network's color, then each precision's shape where there are several."""
    every = list(looks)
    networks: dict[int, Mark] = {}
    for mark in every:
        networks.setdefault(mark.color, mark)
    found = [(swatch(Mark(mark.name, color, "circle")), mark.network) for color, mark in networks.items()]
    shapes = list(dict.fromkeys(mark.shape for mark in every))
    if len(shapes) > 1:
        precisions = {shape: precision for precision, shape in SHAPES.items()}
        found += [(swatch(Mark("", 0, shape)), precisions[shape]) for shape in shapes]
    return found


def glyph(mark: Mark, x: float, y: float, radius: float, *, hollow: bool = False) -> Markup:
    """Draw a model's mark."""
    style = f"{'hollow' if hollow else 'solid'} c{mark.color}"
    if mark.shape == "square":
        side = radius * 0.9
        return tag("rect", x=x - side, y=y - side, width=2 * side, height=2 * side, class_=style)
    if mark.shape in ("diamond", "triangle", "wedge"):
        r = radius * 1.25
        corners = [(x, y - r), (x + r, y), (x, y + r), (x - r, y)]
        if mark.shape != "diamond":
            up = 1 if mark.shape == "triangle" else -1
            corners = [(x, y - up * r), (x + r * 0.95, y + up * r * 0.75), (x - r * 0.95, y + up * r * 0.75)]
        return tag("path", d="M" + "L".join(f"{cx:.1f} {cy:.1f}" for cx, cy in corners) + "Z", class_=style)
    return tag("circle", cx=x, cy=y, r=radius, class_=style)


def swatch(mark: Mark) -> Markup:
    """Draw a mark small, to stand before a name."""
    return tag(
        "svg", glyph(mark, 6, 6, 4), class_="swatch", viewBox="0 0 12 12", width=12, height=12, aria_hidden="true"
    )


def bullet(gate: Gate, *, label: str, width: int = 220) -> Markup:
    """Draw the limit as a line, what it allows as a band, the figure as a dot, its interval as a whisker."""
    value = gate.value if gate.value is not None else gate.limit
    low, high = gate.ci95 or (value, value)
    ends = [low, high, gate.limit, value]
    ends += [] if gate.requirement == "min_score" else [0.0]
    pad = (max(ends) - min(ends)) * 0.08 or 1.0
    across = Scale(
        min(ends) - (pad if min(ends) < 0 or gate.requirement == "min_score" else 0),
        max(ends) + pad,
        3.0,
        width - 3.0,
    )
    limit, middle = across(gate.limit), 11.0
    at_least = gate.requirement.startswith("min_")
    start, end = (limit, across.end) if at_least else (across.start, limit)
    style = {"pass": "pass", "undecided": "undecided"}.get(gate.verdict, "fail")
    drawn = [
        tag("rect", x=across.start, y=middle - 3, width=across.end - across.start, height=6, rx=3, class_="rail"),
        tag("rect", x=start, y=middle - 3, width=max(end - start, 0.0), height=6, rx=3, class_="allowed"),
    ]
    if gate.value is not None:
        if gate.ci95 is not None:
            drawn.append(tag("line", x1=across(low), x2=across(high), y1=middle, y2=middle, class_=f"reaches {style}"))
        drawn.append(tag("circle", cx=across(value), cy=middle, r=5, class_=f"figure {style}"))
    drawn.append(tag("line", x1=limit, x2=limit, y1=1, y2=21, class_="bound"))
    return picture(width, 22, label, *drawn)


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
