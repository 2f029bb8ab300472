"""How a model looks wherever it is drawn: its color says which network it is, its shape in which precision."""

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from kdexport.report.charts.svg import tag
from kdexport.results import Report

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
