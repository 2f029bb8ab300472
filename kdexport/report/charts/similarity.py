"""Cosines of pairs: how far apart those of one identity and of two lie, or how they follow the pairs' scores."""

from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from kdexport import figures
from kdexport.report.charts.classes import evaluation_of, shown_model
from kdexport.report.charts.marks import WIDE, Drawing, Mark, Picture, glyph
from kdexport.report.charts.predictions import Panel, draw_panels
from kdexport.report.charts.svg import Scale, picture, short, tag, text
from kdexport.results import Evaluation, Report, TargetScore

CAPTION = "Strong: pairs of the same identity; pale: pairs of two. The line is the threshold of validation."
PAIRS = "Each mark is a pair of the test split."
ROW = 64.0
Scored = Sequence[tuple[Mark, Evaluation]]


def similarity(rows: Scored, *, label: str, width: int) -> Markup:
    """Draw for each model the shares of cosines of both kinds of pairs, and its threshold.

    Args:
        rows: Each with ``curves`` "same" and "different", shares over even bins from -1 to 1; at least one.
        label: The picture in a sentence.
        width: In pixels.
    """
    narrow = width < 500
    left, right, top = (10.0 if narrow else 172.0), width - 14.0, 14.0
    base = top + ROW * len(rows)
    across = Scale(-1.0, 1.0, left, right)
    drawn: list[Markup] = []
    for tick in across.ticks(5):
        drawn.append(tag("line", x1=across(tick), x2=across(tick), y1=top, y2=base, class_="grid"))
        drawn.append(text(across(tick), base + 18, f"{tick:g}", "middle", class_="tick"))
    drawn.append(text(right, base + 34, "cosine of a pair", "end", class_="title"))
    for index, (mark, evaluation) in enumerate(rows):
        floor, height = top + ROW * (index + 1), ROW - (26 if narrow else 12)
        parts = [tag("line", x1=left, x2=right, y1=floor, y2=floor, class_="grid")]
        for name, opacity in (("different", 0.35), ("same", 0.9)):
            shares = evaluation.curves[name]
            peak, step = max(shares) or 1.0, 2 / len(shares)
            path = f"M{left:.1f} {floor:.1f}"
            for place, share in enumerate(shares):
                at = floor - height * share / peak
                path += f"L{across(-1 + place * step):.1f} {at:.1f}L{across(-1 + (place + 1) * step):.1f} {at:.1f}"
            path += f"L{right:.1f} {floor:.1f}Z"
            parts.append(tag("path", d=path, class_=f"ridge c{mark.color}", opacity=opacity))
        threshold = evaluation.metrics.get("threshold")
        if threshold is not None:
            at = across(min(max(threshold, -1.0), 1.0))
            parts.append(tag("line", x1=at, x2=at, y1=floor, y2=floor - height, class_="limit"))
        parts.append(glyph(mark, 16.0 if narrow else 10.0, floor - ROW + 14 if narrow else floor - 12, 4))
        place_x, place_y = (26.0, floor - ROW + 18) if narrow else (20.0, floor - 8)
        parts.append(text(place_x, place_y, short(mark.name, 40 if narrow else 21), class_="name"))
        drawn.append(
            tag("g", *parts, class_="row", data_model=mark.name, data_tip=tip(mark, evaluation), aria_hidden="true")
        )
    return picture(width, base + 38, label, *drawn)


def tip(mark: Mark, evaluation: Evaluation) -> str:
    """Return what a model scores, in lines."""
    known = evaluation.metrics
    told = (("AUC", "auc"), ("TAR at FAR 1 %", "tar_at_far_1"), ("threshold", "threshold"))
    lines = [f"{name} {value:.3f}" for name, key in told if (value := known.get(key)) is not None]
    return "\n".join([mark.name, *lines])


def draw(report: Report, look: Mapping[str, Mark], width: int) -> Iterator[Drawing]:
    """Draw identities for every model, pairs for the baseline and the student."""
    every = [(look[model.name], model.evaluation) for model in report.models if model.evaluation and model.name in look]
    identities = [(mark, found) for mark, found in every if found.curves.get("same") and found.curves.get("different")]
    if identities:
        told = "; ".join(f"{mark.name} AUC {found.metrics.get('auc') or 0:.3f}" for mark, found in identities)
        label = f"Cosines of pairs of the same identity and of two, by model. {told}."
        yield Drawing(similarity(identities, label=label, width=width), f"{CAPTION} {told}.")
    names = dict.fromkeys((report.baseline, shown_model(report)))
    pairs = [
        (look[name], found)
        for name in names
        if name in look and (found := evaluation_of(report, name)) and found.curves.get("cosine")
    ]
    if pairs:
        told = "; ".join(f"{mark.name} {figures.plain(found.score.value)}" for mark, found in pairs)
        drawn = draw_panels(
            [Panel("pairs", tuple((mark, _as_target(found)) for mark, found in pairs))],
            lambda score: list(zip(score.true, score.predicted, strict=True)),
            label=f"Cosine against score of pairs. Spearman correlation: {told}.",
            width=width,
            across_title="score of the pair",
            up_title="cosine",
            reference=lambda across, up: tag(
                "line", x1=across(across.low), x2=across(across.high), y1=up(up.low), y2=up(up.low), class_="axis"
            ),
            square=False,
        )
        yield Drawing(drawn, f"{PAIRS} Spearman correlation: {told}.")


def _as_target(evaluation: Evaluation) -> TargetScore:
    """Return pairs in the form that panels of marks take: score across, cosine up."""
    curves = evaluation.curves
    return TargetScore("pairs", 0.0, 0.0, None, 0.0, true=curves["score"], predicted=curves["cosine"])


PICTURE = Picture("similarity", "Cosines of pairs", draw, wide=WIDE)
