"""Training curves: the validation score by epoch, a share stretched where it matters, near the top."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdexport.report.charts.marks import Drawing, Mark, Picture
from kdexport.report.charts.svg import CHARACTER, Scale, picture, short, tag, text, text_width
from kdexport.report.scores import Metric, metric_of
from kdexport.results import Report

ACCURACY = Metric()
STRETCHED = " The scale is stretched near the top, by the logarithm of the error."

TICKS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
LEAST_ERROR = 0.0008  # an accuracy of 1 has no place on a log scale; it is drawn here


@dataclass(frozen=True)
class Curve:
    """One network's validation score, epoch by epoch."""

    mark: Mark
    epochs: tuple[int, ...]
    scores: tuple[float, ...]


def curves(
    lines: Sequence[Curve], *, label: str, width: int = 700, height: int = 340, metric: Metric = ACCURACY
) -> Markup:
    """Draw the curves, better upwards; of a share the vertical axis is the logarithm of what is missing from 1."""
    narrow = width < 500
    left, right, top, bottom = 52.0, width - 14.0, (44.0 if narrow else 26.0), height - 40.0
    last = max(max(line.epochs) for line in lines)
    first = min(min(line.epochs) for line in lines)
    across = Scale(first, max(last, first + 1), left, right)
    up, ticks = _up([value for line in lines for value in line.scores], metric, bottom, top)
    drawn: list[Markup] = []
    for tick in ticks:
        y = up(tick)
        drawn.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        drawn.append(text(left - 8, y + 4, metric.tick(tick), "end", class_="tick"))
    for epoch in sorted({round(tick) for tick in across.ticks(5)}):
        drawn.append(text(across(epoch), bottom + 18, str(epoch), "middle", class_="tick"))
    drawn.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    drawn.append(text(right, height - 4, "epoch", "end", class_="title"))
    better = "↑" if metric.higher_is_better else "↑ (lower is better)"
    title = f"{metric.label} on the validation split {better}"
    drawn.append(text(left - 46, 12, title, class_="title"))
    at, row = (left, 30.0) if narrow else (max(250.0, left - 30 + text_width(title)), 12.0)
    for line in lines:
        places = [(across(epoch), up(value)) for epoch, value in zip(line.epochs, line.scores, strict=True)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        best = _best(line, metric)
        name = short(line.mark.name, 14 if narrow else 24)
        parts = [
            tag("path", d=path, class_=f"curve c{line.mark.color}"),
            tag("circle", cx=places[best][0], cy=places[best][1], r=3.5, class_=f"solid c{line.mark.color}"),
            tag("line", x1=at, x2=at + 16, y1=row - 4, y2=row - 4, class_=f"curve c{line.mark.color}"),
            text(at + 21, row, name, class_="name"),
        ]
        at += 40 + CHARACTER * len(name)
        told = tip(line, metric)
        drawn.append(tag("g", *parts, class_="row", data_model=line.mark.name, data_tip=told, aria_hidden="true"))
    return picture(width, height, label, *drawn)


def _up(
    values: Sequence[float], metric: Metric, bottom: float, top: float
) -> tuple[Callable[[float], float], list[float]]:
    """Return where a score lies, in pixels, and the scores to label."""
    if metric.share and metric.higher_is_better:
        errors = [max(1 - value, LEAST_ERROR) for value in values]
        scale = Scale(max(errors) * 1.05, min(errors) / 1.15, bottom, top, log=True)
        return lambda value: scale(1 - value), [tick for tick in TICKS if scale.high <= 1 - tick <= scale.low]
    low, high = min(values), max(values)
    pad = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    ends = (bottom, top) if metric.higher_is_better else (top, bottom)
    scale = Scale(low - pad, high + pad, *ends)
    return scale, scale.ticks(5)


def _best(line: Curve, metric: Metric) -> int:
    return max(range(len(line.scores)), key=lambda index: metric.gain(line.scores[index]))


def tip(line: Curve, metric: Metric = ACCURACY) -> str:
    """Return what a curve comes to, in lines."""
    best = _best(line, metric)
    return "\n".join(
        (
            line.mark.name,
            f"best {metric.write(line.scores[best])} in epoch {line.epochs[best]}",
            f"last {metric.write(line.scores[-1])} in epoch {line.epochs[-1]}",
        )
    )


def draw(report: Report, look: Mapping[str, Mark], width: int) -> Iterator[Drawing]:
    """Draw the validation score by epoch of every network that was trained."""
    metric = metric_of(report.models, report.baseline)
    by_phase: dict[str, dict[int, float]] = {}
    for line in report.training:
        phase, epoch, score = line.get("phase"), line.get("epoch"), line.get("val_accuracy", line.get("val_score"))
        if isinstance(phase, str) and isinstance(epoch, int) and isinstance(score, int | float):
            by_phase.setdefault(phase, {})[epoch] = float(score)
    lines = [
        Curve(look.get(phase, Mark(phase, index, "circle")), tuple(values), tuple(values.values()))
        for index, (phase, values) in enumerate(by_phase.items())
        if len(values) > 1
    ]
    if lines:
        parts = [f"{line.mark.name} reaches {metric.write(line.scores[_best(line, metric)])}" for line in lines]
        label = f"Validation {metric.label} by epoch: {'; '.join(parts)}."
        stretched = STRETCHED if metric.share and metric.higher_is_better else ""
        caption = f"{metric.title} on the validation split by epoch; the dot is the best.{stretched}"
        yield Drawing(curves(lines, label=label, width=width, metric=metric), caption)


PICTURE = Picture("training", "Training", draw)
