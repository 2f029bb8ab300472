"""How each model's latency spreads: one ridge a model, from the quantiles of the raw samples."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from kdexport import figures
from kdexport.report.charts.marks import Drawing, Mark, Picture, glyph
from kdexport.report.charts.svg import Scale, picture, short, tag, text
from kdexport.report.view import ConditionView, condition_views
from kdexport.results import Latency, Report

CAPTION = "Thick line: median. Thin lines: 90th, 95th and 99th percentile, where there are enough calls to tell."
ROW = 44.0
CELLS = 64  # of the drawn curve
SHARPEST = 0.012  # least bandwidth, on the log scale: about one percent


@dataclass(frozen=True)
class Spread:
    """One model's latency under one condition."""

    mark: Mark
    latency: Latency
    picked: bool


def distributions(spreads: Sequence[Spread], *, label: str, width: int = 700) -> Markup:
    """Draw a density per model over a common logarithmic axis, with the median and the percentiles that are known.

    Args:
        spreads: In the order of the rows, at least one.
        label: The picture in a sentence.
        width: In pixels.
    """
    narrow = width < 500
    left, right, top = (10.0 if narrow else 172.0), width - 14.0, 22.0
    row = ROW + 16 if narrow else ROW
    height = top + row * len(spreads) + 38
    known = [spread.latency.quantiles for spread in spreads if len(spread.latency.quantiles) == 101]
    low = min([values[0] for values in known] + [spread.latency.p50 for spread in spreads])
    high = max([values[99] for values in known] + [spread.latency.p50 for spread in spreads])
    pad = max((high / low) ** 0.05, 1.05)
    across = Scale(low / pad, high * pad, left, right, log=True)
    unit = figures.Unit.of([low, high])
    drawn: list[Markup] = []
    base = top + row * len(spreads)
    for tick in across.ticks(4 if narrow else 7):
        drawn.append(tag("line", x1=across(tick), x2=across(tick), y1=top, y2=base, class_="grid"))
        drawn.append(text(across(tick), base + 18, f"{tick * unit.scale:g}", "middle", class_="tick"))
    drawn.append(text(right, base + 34, f"latency of one call, {unit.name} (log scale)", "end", class_="title"))
    for index, spread in enumerate(spreads):
        floor = top + row * (index + 1)
        parts = [tag("line", x1=left, x2=right, y1=floor, y2=floor, class_="grid")]
        parts += _ridge(spread, across, floor, ROW - 8)
        name = short(spread.mark.name, 40 if narrow else 21)
        parts.append(glyph(spread.mark, 16.0 if narrow else 10.0, floor - row + 11 if narrow else floor - 12, 4))
        style = "name picked" if spread.picked else "name"
        parts.append(text(*((26.0, floor - row + 15) if narrow else (20.0, floor - 8)), name, class_=style))
        drawn.append(
            tag("g", *parts, class_="row", data_model=spread.mark.name, data_tip=tip(spread), aria_hidden="true")
        )
    return picture(width, height, label, *drawn)


def tip(spread: Spread) -> str:
    """Return a model's percentiles in lines."""
    latency = spread.latency
    lines = [spread.mark.name, f"median {figures.ms(latency.p50)}"]
    lines += [
        f"p{percent} {figures.ms(value)}"
        for percent, value in ((90, latency.p90), (95, latency.p95), (99, latency.p99))
        if value is not None
    ]
    return "\n".join([*lines, f"{latency.samples:,} calls"])


def _ridge(spread: Spread, across: Scale, floor: float, height: float) -> list[Markup]:
    latency = spread.latency
    drawn = []
    if len(latency.quantiles) == 101:
        curve = _density(latency.quantiles)
        peak = max(share for _, share in curve)
        path = f"M{across(curve[0][0]):.1f} {floor:.1f}"
        path += "".join(f"L{across(at):.1f} {floor - height * share / peak:.1f}" for at, share in curve)
        path += f"L{across(curve[-1][0]):.1f} {floor:.1f}Z"
        drawn.append(tag("path", d=path, class_=f"ridge c{spread.mark.color}"))
    drawn.append(
        tag(
            "line",
            x1=across(latency.p50),
            x2=across(latency.p50),
            y1=floor,
            y2=floor - height,
            class_=f"median c{spread.mark.color}",
        )
    )
    for value in (latency.p90, latency.p95, latency.p99):
        if value is not None:
            x = across(value)
            drawn.append(tag("line", x1=x, x2=x, y1=floor, y2=floor - 9, class_=f"percentile c{spread.mark.color}"))
    return drawn


@functools.lru_cache(maxsize=4096)  # each ridge is drawn for a wide and a narrow screen
def _density(quantiles: tuple[float, ...]) -> list[tuple[float, float]]:
    """Return points of a Gaussian kernel density on the log scale.

    The 101 quantiles stand for the samples with equal weight; the bandwidth is Silverman's rule (1986, eq. 3.31) with
    the interquartile range, so that a few slow calls don't flatten the rest.
    """
    logs = np.log(np.maximum(quantiles[:100], 1e-9))  # the slowest call alone would double the axis
    width = max(0.9 * (logs[75] - logs[25]) / 1.34 * len(logs) ** -0.2, SHARPEST)
    at = np.linspace(logs[0] - 3 * width, logs[-1] + 3 * width, CELLS + 1)
    share = np.exp(-0.5 * ((at[:, None] - logs[None, :]) / width) ** 2).sum(axis=1)
    return list(zip(np.exp(at).tolist(), share.tolist(), strict=True))


def draw(report: Report, look: Mapping[str, Mark], width: int) -> Iterator[Drawing]:
    """Draw every condition."""
    for view in condition_views(report):
        counts = sorted(row.measurement.latency_ms.samples for row in view.rows)
        calls = f"{counts[0]:,}" if counts[0] == counts[-1] else f"{counts[0]:,} to {counts[-1]:,}"
        caption = f"From {calls} raw calls a model. {CAPTION} {view.title}."
        yield Drawing(_drawn(view, look, width), caption, (view.condition,))


def _drawn(view: ConditionView, look: Mapping[str, Mark], width: int) -> Markup:
    spreads = [Spread(look[row.name], row.measurement.latency_ms, row.picked) for row in view.rows]
    parts = []
    for row in view.rows:
        latency = row.measurement.latency_ms
        slowest = next((value for value in (latency.p99, latency.p95, latency.p90) if value is not None), None)
        tail = "" if slowest is None else f", slowest calls {figures.ms(slowest)}"
        parts.append(f"{row.name} median {figures.ms(latency.p50)}{tail}")
    return distributions(spreads, label=f"Latency on {view.title}: {'; '.join(parts)}.", width=width)


PICTURE = Picture("latency", "How latency spreads", draw)
