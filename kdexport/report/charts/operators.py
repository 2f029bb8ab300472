"""Where the time of a call goes: a bar for each operator type and model, from the profile of ``bench --profile``."""

from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from kdexport import figures
from kdexport.report.charts.marks import Drawing, Mark, Picture, glyph
from kdexport.report.charts.svg import Scale, picture, short, tag, text
from kdexport.report.operators import BETWEEN, Share, by_type, told
from kdexport.report.view import ConditionView, condition_views
from kdexport.results import Report

MOST = 10  # operator types that have a row of their own
MODELS = 4  # bars of one row
BAR, GAP = 12.0, 14.0
OTHERS = "others"


def operators(rows: Sequence[tuple[str, Sequence[tuple[Mark, Share]]]], *, label: str, width: int = 700) -> Markup:
    """Draw horizontal bars, grouped by operator type, the costliest first.

    Args:
        rows: Operator type -> each model's time; at least one.
        label: The picture in a sentence.
        width: In pixels.
    """
    narrow = width < 500
    left, right, top = (10.0 if narrow else 172.0), width - 70.0, 22.0
    across = Scale(0.0, max(share.ms for _, bars in rows for _, share in bars) or 1.0, left, right)
    unit = figures.Unit.of([across.high])
    drawn: list[Markup] = []
    y = top
    for name, bars in rows:
        parts = [text(left if narrow else 10.0, y + 11, short(name, 40 if narrow else 22), class_="name")]
        y += 16 if narrow else 0
        for mark, share in bars:
            end = across(share.ms)
            strength = 0.9 if mark.shape == "circle" else 0.55  # two precisions of one network have one color
            size = {"x": left, "y": y, "width": max(end - left, 1.0), "height": BAR - 2}
            parts.append(tag("rect", **size, class_=f"solid c{mark.color}", opacity=strength))
            parts.append(glyph(mark, end + 9, y + (BAR - 2) / 2, 3.5))
            parts.append(text(end + 17, y + 9, figures.ms(share.ms), class_="tick"))
            y += BAR
        y += GAP
        lines = [name, *(f"{mark.name} {figures.ms(share.ms)}, {share.operators} of them" for mark, share in bars)]
        drawn.append(tag("g", *parts, class_="row", data_tip="\n".join(lines), aria_hidden="true"))
    grid = []
    for tick in across.ticks(3 if narrow else 6):
        grid.append(tag("line", x1=across(tick), x2=across(tick), y1=top - 6, y2=y - GAP, class_="grid"))
        grid.append(text(across(tick), y + 6, f"{tick * unit.scale:g}", "middle", class_="tick"))
    grid.append(text(right, y + 22, f"time of one call, {unit.name}", "end", class_="title"))
    return picture(width, y + 26, label, *grid, *drawn)


def draw(report: Report, look: Mapping[str, Mark], width: int) -> Iterator[Drawing]:
    """Draw every condition that was profiled."""
    for view in condition_views(report):
        rows = _rows(view, look)
        if rows:
            kept = [row.measurement for row in view.rows if row.measurement.profile][:MODELS]
            costly = "; ".join(
                f"{one.model}: {first.name} {figures.ms(first.ms)}"
                for one in kept
                if one.profile and (first := by_type(one.profile)[0])
            )
            label = f"Time by operator type on {view.title}. The costliest: {costly}."
            yield Drawing(
                operators(rows, label=label, width=width),
                f"{'. '.join(map(told, kept))}. {view.title}.",
                (view.condition,),
            )


def _rows(view: ConditionView, look: Mapping[str, Mark]) -> list[tuple[str, list[tuple[Mark, Share]]]]:
    """Return the costliest types with each model's time, the rest and what lies between operators last."""
    found: dict[str, dict[str, Share]] = {}
    profiled = [row.measurement for row in view.rows if row.measurement.profile is not None][:MODELS]
    for one in profiled:
        for share in by_type(one.profile) if one.profile else ():
            found.setdefault(share.name, {})[one.model] = share
    between = found.pop(BETWEEN, {})
    ranked = sorted(found, key=lambda name: -max(share.ms for share in found[name].values()))
    others: dict[str, Share] = {}
    for name in ranked[MOST:]:
        for model, share in found[name].items():
            before = others.get(model, Share(OTHERS, 0.0, 0))
            others[model] = Share(OTHERS, before.ms + share.ms, before.operators + share.operators)
    rows = [*((name, found[name]) for name in ranked[:MOST]), (OTHERS, others), (BETWEEN, between)]
    return [
        (name, [(look[one.model], shares[one.model]) for one in profiled if one.model in shares])
        for name, shares in rows
        if shares
    ]


PICTURE = Picture("operators", "Where the time goes", draw)
