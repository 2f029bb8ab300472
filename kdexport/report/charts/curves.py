"""Training curves: validation accuracy by epoch, stretched where it matters, near the top."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdexport.report import figures
from kdexport.report.charts.marks import Mark
from kdexport.report.charts.picture import Drawing, Picture
from kdexport.report.charts.svg import CHARACTER, Scale, picture, short, tag, text
from kdexport.results import Report

CAPTION = (
    "Validation accuracy by epoch; the dot is the best. The scale is stretched near the top, by the logarithm of the "
    "error."
)

TICKS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
LEAST_ERROR = 0.0008  # an accuracy of 1 has no place on a log scale; it is drawn here


@dataclass(frozen=True)
class Curve:
    """One network's validation accuracy, epoch by epoch."""

    mark: Mark
    epochs: tuple[int, ...]
    accuracies: tuple[float, ...]


def curves(lines: Sequence[Curve], *, label: str, width: int = 700, height: int = 340) -> Markup:
    """Draw the curves; the vertical axis is the logarithm of the error, labelled with accuracies."""
    narrow = width < 500
    left, right, top, bottom = 52.0, width - 14.0, (44.0 if narrow else 26.0), height - 40.0
    last = max(max(line.epochs) for line in lines)
    first = min(min(line.epochs) for line in lines)
    errors = [max(1 - accuracy, LEAST_ERROR) for line in lines for accuracy in line.accuracies]
    across = Scale(first, max(last, first + 1), left, right)
    up = Scale(max(errors) * 1.05, min(errors) / 1.15, bottom, top, log=True)
    drawn: list[Markup] = []
    for tick in TICKS:
        if min(errors) / 1.15 <= 1 - tick <= max(errors) * 1.05:
            y = up(1 - tick)
            drawn.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
            drawn.append(text(left - 8, y + 4, f"{100 * tick:g} %", "end", class_="tick"))
    for epoch in sorted({round(tick) for tick in across.ticks(5)}):
        drawn.append(text(across(epoch), bottom + 18, str(epoch), "middle", class_="tick"))
    drawn.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    drawn.append(text(right, height - 4, "epoch", "end", class_="title"))
    drawn.append(text(left - 46, 12, "accuracy on the validation split ↑", class_="title"))
    at, row = (left, 30.0) if narrow else (250.0, 12.0)
    for line in lines:
        places = [(across(epoch), up(1 - value)) for epoch, value in zip(line.epochs, line.accuracies, strict=True)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        best = max(range(len(line.accuracies)), key=line.accuracies.__getitem__)
        name = short(line.mark.name, 14 if narrow else 24)
        parts = [
            tag("path", d=path, class_=f"curve c{line.mark.color}"),
            tag("circle", cx=places[best][0], cy=places[best][1], r=3.5, class_=f"solid c{line.mark.color}"),
            tag("line", x1=at, x2=at + 16, y1=row - 4, y2=row - 4, class_=f"curve c{line.mark.color}"),
            text(at + 21, row, name, class_="name"),
        ]
        at += 40 + CHARACTER * len(name)
        drawn.append(tag("g", *parts, class_="row", data_model=line.mark.name, data_tip=tip(line), aria_hidden="true"))
    return picture(width, height, label, *drawn)


def tip(line: Curve) -> str:
    """Return what a curve comes to, in lines."""
    best = max(range(len(line.accuracies)), key=line.accuracies.__getitem__)
    return "\n".join(
        (
            line.mark.name,
            f"best {100 * line.accuracies[best]:.1f} % in epoch {line.epochs[best]}",
            f"last {100 * line.accuracies[-1]:.1f} % in epoch {line.epochs[-1]}",
        )
    )


def draw(report: Report, look: Mapping[str, Mark], width: int) -> Iterator[Drawing]:
    """Draw validation accuracy by epoch of every network that was trained."""
    by_phase: dict[str, dict[int, float]] = {}
    for line in report.training:
        phase, epoch, accuracy = line.get("phase"), line.get("epoch"), line.get("val_accuracy")
        if isinstance(phase, str) and isinstance(epoch, int) and isinstance(accuracy, int | float):
            by_phase.setdefault(phase, {})[epoch] = float(accuracy)
    lines = [
        Curve(look.get(phase, Mark(phase, index, "circle")), tuple(values), tuple(values.values()))
        for index, (phase, values) in enumerate(by_phase.items())
        if len(values) > 1
    ]
    if lines:
        parts = [f"{line.mark.name} reaches {figures.percent(max(line.accuracies))}" for line in lines]
        yield Drawing(curves(lines, label=f"Validation accuracy by epoch: {'; '.join(parts)}.", width=width), CAPTION)


PICTURE = Picture("training", "Training", draw)
