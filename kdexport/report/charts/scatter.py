"""Score against latency, file size as area, the front of what nothing dominates, the limits."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from kdexport import figures
from kdexport.recipe import Require
from kdexport.report.charts.marks import WIDE, Drawing, Mark, Picture, glyph
from kdexport.report.charts.svg import Labels, Scale, picture, short, tag, text
from kdexport.report.scores import Metric
from kdexport.report.view import ConditionView, Row, condition_views
from kdexport.results import Interval, Report

CAPTION = (
    "Area is file size; hollow means dominated: another model is at least as good, as fast and as small. Nothing "
    "measured lies above the line. Whiskers are 95 % intervals. Color is the network, shape the precision. Marks "
    "that would cover each other stand side by side, a line leads to where they belong."
)
ACCURACY = Metric()
APART = 13.0  # pixels between two marks, at least
LEAD = 20.0  # pixels to its label beyond which a line leads there
LARGEST, SMALLEST = 30.0, 3.0  # radii of the halos, pixels


@dataclass(frozen=True)
class Point:
    """One model under one condition."""

    mark: Mark
    latency_ms: float
    score: float
    score_ci95: Interval | None
    size_bytes: int
    dominated: bool
    picked: bool
    tip: str  # lines separated by newlines: what a person who points at it reads


def scatter(
    points: Sequence[Point],
    front: Sequence[str],
    *,
    label: str,
    width: int = 700,
    height: int = 440,
    max_latency_ms: float | None = None,
    min_score: float | None = None,
    metric: Metric = ACCURACY,
    split: str = "test split",
) -> Markup:
    """Draw the picture.

    Args:
        points: At least one.
        front: Names on the front, fastest first.
        label: The picture in a sentence, for who does not see it.
        width: In pixels.
        height: In pixels.
        max_latency_ms: A limit to show, where it lies within reach of the points.
        min_score: A limit to show.
        metric: What the scores measure.
        split: Whose samples were scored.
    """
    left, right, top, bottom = 52.0, width - 14.0, 26.0, height - 44.0
    across = _across(points, max_latency_ms, left, right)
    up = _up(points, min_score, bottom, top, metric)
    unit = figures.Unit.of([across.low, across.high])
    drawn: list[Markup] = []
    for tick in up.ticks(5):
        drawn.append(tag("line", x1=left, x2=right, y1=up(tick), y2=up(tick), class_="grid"))
        drawn.append(text(left - 8, up(tick) + 4, metric.tick(tick), "end", class_="tick"))
    for tick in across.ticks(6 if width > 500 else 4):
        drawn.append(tag("line", x1=across(tick), x2=across(tick), y1=bottom, y2=bottom + 5, class_="axis"))
        drawn.append(text(across(tick), bottom + 19, f"{tick * unit.scale:g}", "middle", class_="tick"))
    drawn.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    drawn.append(
        text(
            right,
            height - 6,
            f"median latency, {unit.name}{' (log scale)' if across.log else ''}",
            "end",
            class_="title",
        )
    )
    drawn.append(text(left, height - 6, "← faster", class_="title"))
    better = "↑" if metric.higher_is_better else "↑ (lower is better)"
    drawn.append(text(left - 46, 12, f"{metric.label} on the {split} {better}", class_="title"))
    drawn += _limits(across, up, max_latency_ms, min_score, (left, right, top, bottom))
    drawn += _front(points, front, across, up, right, bottom)
    drawn += _points(points, across, up, Labels(width, bottom, left), top, bottom)
    return picture(width, height, label, *drawn, interactive=True)


def _across(points: Sequence[Point], limit: float | None, left: float, right: float) -> Scale:
    values = [point.latency_ms for point in points]
    low, high = min(values), max(values)
    if limit is not None and low / 2 < limit < high * 1.5:
        low, high = min(low, limit), max(high, limit)
    if high / low > 3:
        pad = (high / low) ** 0.12
        return Scale(low / pad, high * pad, left, right, log=True)
    pad = max((high - low) * 0.2, high * 0.05)
    return Scale(max(0.0, low - pad), high + pad, left, right)


def _up(points: Sequence[Point], limit: float | None, bottom: float, top: float, metric: Metric) -> Scale:
    values = [point.score for point in points]
    low, high = min(values), max(values)
    reach = 0.03 if metric.share else (high - low) / 2 or abs(high) * 0.1
    if limit is not None and low - reach < limit < high + reach:
        low, high = min(low, limit), max(high, limit)
    pad = max((high - low) * 0.25, 0.006 if metric.share else abs(high) * 0.02) or 1.0
    low, high = low - pad, high + pad
    if metric.share:
        low, high = max(0.0, low), min(1.0, high)
    return Scale(low, high, bottom, top) if metric.higher_is_better else Scale(low, high, top, bottom)


def _limits(
    across: Scale,
    up: Scale,
    max_latency_ms: float | None,
    min_score: float | None,
    frame: tuple[float, float, float, float],
) -> list[Markup]:
    left, right, top, bottom = frame
    drawn = []
    if min_score is not None and up.low < min_score < up.high:
        y = up(min_score)
        drawn.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="limit"))
        drawn.append(text(right, y + 14, "required: above this line", "end", class_="required"))
    if max_latency_ms is not None and across.low < max_latency_ms < across.high:
        x = across(max_latency_ms)
        drawn.append(tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="limit"))
        fits = x - left > 140  # else the words would lie on the axis
        drawn.append(
            text(
                x + (-6 if fits else 6),
                top + 10,
                "required: left of this line",
                "end" if fits else None,
                class_="required",
            )
        )
    return drawn


def _front(
    points: Sequence[Point], front: Sequence[str], across: Scale, up: Scale, right: float, bottom: float
) -> list[Markup]:
    """Draw what score can be had within each latency: steps, since nothing lies between two models."""
    by_name = {point.mark.name: point for point in points}
    steps = [(across(by_name[name].latency_ms), up(by_name[name].score)) for name in front if name in by_name]
    if not steps:
        return []
    path = f"M{steps[0][0]:.1f} {bottom:.1f}V{steps[0][1]:.1f}"
    path += "".join(f"H{x:.1f}V{y:.1f}" for x, y in steps[1:]) + f"H{right:.1f}"
    return [tag("path", d=f"{path}V{bottom:.1f}Z", class_="reach"), tag("path", d=path, class_="front")]


def _apart(at: Mapping[str, tuple[float, float]], labels: Labels) -> dict[str, tuple[float, float]]:
    """Return where marks are drawn: one that would cover another stands beside it, at its own height."""
    found: dict[str, tuple[float, float]] = {}
    cells: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)  # what is near lies in one beside
    across = range(1, min(len(at), math.ceil(labels.width / APART)) + 1)
    steps = [0.0, *(side * APART * step for step in across for side in (1, -1))]

    def near(x: float, y: float) -> Iterator[tuple[float, float]]:
        for column, row in itertools.product((-1, 0, 1), repeat=2):
            yield from cells.get((int(x // APART) + column, int(y // APART) + row), ())

    for name, (x, y) in at.items():
        free = (
            x + step
            for step in steps
            if labels.left < x + step < labels.width
            and all(math.hypot(x + step - other_x, y - other_y) >= APART for other_x, other_y in near(x + step, y))
        )
        place = next(free, x)
        found[name] = (place, y)
        cells[int(place // APART), int(y // APART)].append((place, y))
    return found


def _points(
    points: Sequence[Point], across: Scale, up: Scale, labels: Labels, top: float, bottom: float
) -> list[Markup]:
    largest = max(1, *(point.size_bytes for point in points))
    placed = [(point, across(point.latency_ms), up(point.score)) for point in points]
    radii = {point.mark.name: max(SMALLEST, LARGEST * math.sqrt(point.size_bytes / largest)) for point in points}
    beside = _apart({point.mark.name: (x, y) for point, x, y in placed}, labels)
    for x, y in beside.values():
        labels.occupy(x, y, 8)
    words = {}
    for point, _, _ in sorted(placed, key=lambda item: (not item[0].picked, item[0].dominated)):
        name = short(point.mark.name)
        words[point.mark.name] = (name, labels.place(*beside[point.mark.name], name, 13, bold=point.picked))
    drawn = []
    fastest_first = sorted(placed, key=lambda item: item[0].latency_ms)
    for index, (point, x, y) in enumerate(fastest_first):
        parts = [tag("circle", cx=x, cy=y, r=radii[point.mark.name], class_=f"halo c{point.mark.color}")]
        if point.score_ci95 is not None:
            low, high = sorted(map(up, point.score_ci95))  # upwards is better, whichever that is
            parts.append(
                tag(
                    "line",
                    x1=x,
                    x2=x,
                    y1=max(low, top),
                    y2=min(high, bottom),
                    class_=f"whisker c{point.mark.color}",
                )
            )
        true_x, x = x, beside[point.mark.name][0]
        if x != true_x:
            parts.append(tag("line", x1=true_x, x2=x, y1=y, y2=y, class_=f"lead c{point.mark.color}"))
        name, spot = words[point.mark.name]
        if spot is not None and math.hypot(spot[0] - x, spot[1] - 4 - y) > LEAD:
            parts.append(tag("line", x1=x, x2=spot[0], y1=y, y2=spot[1] - 4, class_=f"lead c{point.mark.color}"))
        if point.picked:
            parts.append(tag("circle", cx=x, cy=y, r=10.5, class_=f"ring c{point.mark.color}"))
        parts.append(glyph(point.mark, x, y, 5.5, hollow=point.dominated))
        if spot is not None:
            style = "name picked" if point.picked else "name dominated" if point.dominated else "name"
            parts.append(text(spot[0], spot[1], name, spot[2], class_=style))
        parts.append(tag("circle", cx=x, cy=y, r=16.0, class_="target"))
        drawn.append(
            tag(
                "g",
                *parts,
                class_="point",
                data_model=point.mark.name,
                data_tip=point.tip,
                role="button",
                aria_pressed="false",
                aria_label=point.tip.replace("\n", ", "),
                tabindex="0" if index == 0 else "-1",
            )
        )
    return drawn


def draw(report: Report, look: Mapping[str, Mark], width: int) -> Iterator[Drawing]:
    """Draw each condition that a score is known for."""
    for view in condition_views(report):
        if any(row.model.score is not None for row in view.rows):
            yield Drawing(_drawn(report, view, look, width), f"{CAPTION} {view.title}.", (view.condition,))


def _drawn(report: Report, view: ConditionView, look: Mapping[str, Mark], width: int) -> Markup:
    points = [
        Point(
            look[row.name],
            row.measurement.latency_ms.p50,
            row.model.score.value,
            row.model.score.ci95,
            row.model.size_bytes,
            row.dominated is not None,
            row.picked,
            point_tip(row),
        )
        for row in view.rows
        if row.model.score is not None
    ]
    require = limits(report)
    base = view.base
    floor = require.min_score
    if require.max_drop is not None and base is not None and base.model.score is not None:
        least = base.model.score.value - view.metric.gain(require.max_drop)
        floor = least if floor is None else max(floor, least, key=view.metric.gain)
    label = (
        f"{view.metric.title} against median latency of {len(points)} models on {view.title}. "
        f"Not dominated, fastest first: {', '.join(view.front)}."
    )
    return scatter(
        points,
        view.front,
        label=label,
        width=width,
        height=450 if width >= WIDE else 380,
        max_latency_ms=require.max_latency_ms if require.latency_percentile == 50 else None,
        min_score=floor,
        metric=view.metric,
    )


def point_tip(row: Row) -> str:
    """Return what a person reads who points at a model, in lines."""
    latency = row.measurement.latency_ms
    lines = [
        row.name,
        f"{row.metric.label} {row.score} ({row.score_interval})",
        f"median {figures.ms(latency.p50)} ({figures.ms_interval(latency.p50_ci95)})",
        f"{figures.plain(row.measurement.throughput_per_s)} samples a second",
        f"file {figures.size(row.model.size_bytes)}, peak memory {figures.mib(row.memory)}",
    ]
    return "\n".join([*lines, row.status] if row.status else lines).replace(" ()", "")


def limits(report: Report) -> Require:
    """Return the limits on score and latency that the report's gates were held against."""
    limits = {gate.requirement: gate.limit for gate in report.gates}
    table = (report.recipe or {}).get("require")
    required: Any = table.get("latency_percentile", 50) if isinstance(table, dict) else 50
    return Require(
        max_drop=limits.get("max_drop"),
        min_score=limits.get("min_score"),
        max_latency_ms=limits.get("max_latency_ms"),
        latency_percentile=required if required in (90, 95, 99) else 50,
    )


PICTURE = Picture("tradeoff", "Score against latency", draw, wide=WIDE, where="answer")
