"""Residuals, predicted minus true: whether a model is off to one side, or more where values are large."""

from collections.abc import Iterator, Mapping

from markupsafe import Markup

from kdexport import figures
from kdexport.report.charts.marks import WIDE, Drawing, Mark, Picture
from kdexport.report.charts.predictions import draw_panels, panels_of, thinned
from kdexport.report.charts.svg import Scale, tag
from kdexport.results import Report, TargetScore

CAPTION = "Predicted minus true value of samples of the test split; above the line a model gives too much."


def residuals(score: TargetScore) -> list[tuple[float, float]]:
    """Return true value and residual of the samples that are shown."""
    pairs = zip(thinned(score.true), thinned(score.predicted), strict=True)
    return [(true, predicted - true) for true, predicted in pairs]


def zero(across: Scale, up: Scale) -> Markup:
    """Draw the line of no error."""
    return tag("line", x1=across(across.low), x2=across(across.high), y1=up(0.0), y2=up(0.0), class_="limit")


def draw(report: Report, look: Mapping[str, Mark], width: int) -> Iterator[Drawing]:
    """Draw the residuals of the baseline and the student against the true values."""
    panels = panels_of(report, look)
    if not panels:
        return
    biases = "; ".join(
        f"{panel.name}: {mark.name} is off by {figures.signed_plain(score.bias)} on average"
        for panel in panels
        for mark, score in panel.models
    )
    drawn = draw_panels(
        panels,
        residuals,
        label=f"Residuals against true values. {biases}.",
        width=width,
        across_title="true value",
        up_title="predicted minus true",
        reference=zero,
        square=False,
    )
    yield Drawing(drawn, f"{CAPTION} {biases}.")


PICTURE = Picture("residuals", "Residuals", draw, wide=WIDE)
