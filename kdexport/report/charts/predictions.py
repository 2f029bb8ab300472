"""Predicted against true values: how near to the diagonal a model's numbers lie."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdexport import figures
from kdexport.report.charts.classes import evaluation_of, shown_model
from kdexport.report.charts.marks import WIDE, Drawing, Mark, Picture, glyph
from kdexport.report.charts.svg import Scale, picture, short, tag, text, text_width
from kdexport.results import Report, TargetScore

CAPTION = "Each mark is a sample of the test split; on the line, what is predicted is true."
MOST_TARGETS, MOST_POINTS = 4, 250  # panels; marks of one model in a panel
HEIGHT, GAP = 300.0, 24.0  # of a panel, between two; pixels


@dataclass(frozen=True)
class Panel:
    """One target and what models give for it."""

    name: str
    models: tuple[tuple[Mark, TargetScore], ...]

    @property
    def true(self) -> list[float]:
        """The true values that are shown."""
        return [value for _, score in self.models for value in thinned(score.true)]


def panels_of(report: Report, look: Mapping[str, Mark]) -> list[Panel]:
    """Return a panel per target, of the baseline and the model that is looked at."""
    names = [name for name in dict.fromkeys((report.baseline, shown_model(report))) if name in look]
    scored = [(look[name], found) for name in names if (found := evaluation_of(report, name)) and found.per_target]
    targets = dict.fromkeys(score.name for _, found in scored for score in found.per_target if score.true)
    return [
        Panel(
            target,
            tuple((mark, score) for mark, found in scored for score in found.per_target if score.name == target),
        )
        for target in list(targets)[:MOST_TARGETS]
    ]


def thinned(values: Sequence[float]) -> list[float]:
    """Return at most ``MOST_POINTS`` of the values, evenly spread."""
    step = max(1, -(-len(values) // MOST_POINTS))
    return list(values[::step])


Points = Callable[[TargetScore], list[tuple[float, float]]]


def draw_panels(
    panels: Sequence[Panel],
    points: Points,
    *,
    label: str,
    width: int,
    across_title: str,
    up_title: str,
    reference: Callable[[Scale, Scale], Markup],
    square: bool,
) -> Markup:
    """Draw a panel per target, side by side where there is room.

    Args:
        panels: At least one.
        points: The places ``(x, y)`` of a model's marks.
        label: The picture in a sentence.
        width: In pixels.
        across_title: What lies across.
        up_title: What lies up.
        reference: Draws the line that the marks are held against.
        square: Whether both axes have one range.
    """
    columns = 1 if width < 500 or len(panels) == 1 else 2
    each = (width - GAP * (columns - 1)) / columns
    rows = -(-len(panels) // columns)
    drawn: list[Markup] = []
    at = 4.0
    for mark, _ in panels[0].models:
        drawn.append(glyph(mark, at + 4, 10.0, 4))
        drawn.append(text(at + 13, 14.0, short(mark.name, 16), class_="name"))
        at += 32 + text_width(short(mark.name, 16))
    for index, panel in enumerate(panels):
        x0, y0 = (index % columns) * (each + GAP), 28.0 + (index // columns) * (HEIGHT + GAP)
        left, right, top, bottom = x0 + 62.0, x0 + each - 12.0, y0 + 22.0, y0 + HEIGHT - 40.0
        placed = [(mark, points(score)) for mark, score in panel.models]
        across, up = _scales([point for _, found in placed for point in found], (left, right, top, bottom), square)
        drawn.append(text(left, y0 + 12, short(panel.name, 40), class_="name"))
        for tick in up.ticks(5):
            drawn.append(tag("line", x1=left, x2=right, y1=up(tick), y2=up(tick), class_="grid"))
            drawn.append(text(left - 8, up(tick) + 4, f"{tick:g}", "end", class_="tick"))
        for tick in across.ticks(4 if each < 500 else 6):
            drawn.append(tag("line", x1=across(tick), x2=across(tick), y1=bottom, y2=bottom + 5, class_="axis"))
            drawn.append(text(across(tick), bottom + 18, f"{tick:g}", "middle", class_="tick"))
        drawn.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
        drawn.append(reference(across, up))
        drawn.append(text(right, bottom + 34, across_title, "end", class_="title"))
        drawn.append(text(x0 + 4, y0 + HEIGHT - 6, f"↑ {up_title}", class_="title"))
        for mark, found in placed:
            marks = [glyph(mark, across(x), up(y), 3.0) for x, y in found]
            drawn.append(tag("g", *marks, data_model=mark.name, opacity=0.6, aria_hidden="true"))
    return picture(width, 28.0 + rows * (HEIGHT + GAP), label, *drawn)


def _scales(
    points: Sequence[tuple[float, float]], box: tuple[float, float, float, float], square: bool
) -> tuple[Scale, Scale]:
    left, right, top, bottom = box
    low_x, high_x = _padded([x for x, _ in points])
    low_y, high_y = _padded([y for _, y in points])
    if square:
        low_x, high_x = low_y, high_y = min(low_x, low_y), max(high_x, high_y)
    return Scale(low_x, high_x, left, right), Scale(low_y, high_y, bottom, top)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.04 * (high - low) or 0.04 * abs(high) or 1.0
    return low - pad, high + pad


def diagonal(across: Scale, up: Scale) -> Markup:
    """Draw the line on which both are equal."""
    ends = {"x1": across(across.low), "x2": across(across.high), "y1": up(up.low), "y2": up(up.high)}
    return tag("line", **ends, class_="limit")


def in_words(panels: Sequence[Panel]) -> str:
    """Say what the panels show: each model's MAE and R² on each target."""
    told = [
        f"{panel.name}: {mark.name} MAE {figures.plain(score.mae)}"
        + (f", R² {score.r2:.2f}" if score.r2 is not None else "")
        for panel in panels
        for mark, score in panel.models
    ]
    return "; ".join(told)


def draw(report: Report, look: Mapping[str, Mark], width: int) -> Iterator[Drawing]:
    """Draw predicted against true values of the baseline and the student."""
    panels = panels_of(report, look)
    if not panels:
        return
    drawn = draw_panels(
        panels,
        lambda score: list(zip(thinned(score.true), thinned(score.predicted), strict=True)),
        label=f"Predicted against true values. {in_words(panels)}.",
        width=width,
        across_title="true value",
        up_title="predicted value",
        reference=diagonal,
        square=True,
    )
    yield Drawing(drawn, CAPTION)


PICTURE = Picture("predictions", "Predicted and true values", draw, wide=WIDE)
