"""Recall by class: what distillation changed, class by class."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdexport import figures
from kdexport.report.charts.marks import WIDE, Drawing, Mark, Picture, glyph
from kdexport.report.charts.svg import Scale, picture, short, tag, text, text_width
from kdexport.report.join import PLAIN_STUDENT, STUDENT
from kdexport.results import Evaluation, Interval, Report
from kdexport.statistics import wilson

CAPTION = "Recall, the share of each class's samples that was recognized, on the test split, with 95 % intervals"
IOU_CAPTION = "Intersection over union of each class's pixels, on the test split"

ROW = 28.0
APART = 7.0  # pixels between the marks of one class: equal shares must not cover each other
MOST_ROWS = 20


@dataclass(frozen=True)
class ClassRow:
    """One class and each model's recall."""

    name: str
    samples: int
    shares: tuple[tuple[Mark, float], ...]
    iou: bool = False  # whether the shares are these, and not recall

    def interval(self, share: float) -> Interval:
        """Return a recall's 95 % interval; pixels are not independent, and an IoU gets none."""
        return (share, share) if self.iou else wilson(round(share * self.samples), self.samples)


def per_class(rows: Sequence[ClassRow], *, label: str, width: int = 700) -> Markup:
    """Draw one line per class with a mark per model.

    Args:
        rows: At most ``MOST_ROWS``; the caller chooses which.
        label: The picture in a sentence.
        width: In pixels.
    """
    narrow = width < 500
    longest = max(text_width(short(row.name, 11 if narrow else 18)) for row in rows)
    left, right, top = 22.0 + longest, width - 18.0, 30.0
    bottom = top + ROW * len(rows)
    lowest = min(row.interval(share)[0] for row in rows for _, share in row.shares)
    across = Scale(max(0.0, lowest - 0.03), 1.0, left, right)
    drawn: list[Markup] = []
    at = left
    for mark, _ in rows[0].shares:
        drawn.append(glyph(mark, at + 4, 10.0, 4))
        drawn.append(text(at + 13, 14.0, short(mark.name, 16), class_="name"))
        at += 32 + text_width(short(mark.name, 16))
    for tick in across.ticks(4 if narrow else 6):
        drawn.append(tag("line", x1=across(tick), x2=across(tick), y1=top, y2=bottom, class_="grid"))
        drawn.append(text(across(tick), bottom + 18, f"{100 * tick:g} %", "middle", class_="tick"))
    drawn.append(text(right, bottom + 34, f"{_measure(rows)} on the test split", "end", class_="title"))
    for index, row in enumerate(rows):
        y = top + ROW * (index + 0.5)
        drawn.append(text(left - 10, y + 4, short(row.name, 11 if narrow else 18), "end", class_="name"))
        places = [across(share) for _, share in row.shares]
        drawn.append(tag("line", x1=min(places), x2=max(places), y1=y, y2=y, class_="span"))
        for place, (mark, share) in enumerate(row.shares):
            low, high = row.interval(share)
            spread = figures.percent_interval((low, high))
            tip = f"{row.name}: {mark.name}\n{100 * share:.1f} % ({spread}) of {row.samples} samples"
            if row.iou:
                tip = f"{row.name}: {mark.name}\nIoU {100 * share:.1f} %, {row.samples:,} pixels"
            at_y = y + APART * (place - (len(row.shares) - 1) / 2)
            whisker = tag("line", x1=across(low), x2=across(high), y1=at_y, y2=at_y, class_=f"interval c{mark.color}")
            part = glyph(mark, across(share), at_y, 4)
            drawn.append(tag("g", whisker, part, data_model=mark.name, data_tip=tip, aria_hidden="true"))
    return picture(width, bottom + 40, label, *drawn)


def draw(report: Report, look: Mapping[str, Mark], width: int) -> Iterator[Drawing]:
    """Draw recall by class of student, student without distillation and baseline."""
    names = [name for name in dict.fromkeys((shown_model(report), PLAIN_STUDENT, report.baseline)) if name in look]
    scored = [(look[name], evaluation) for name in names if (evaluation := evaluation_of(report, name))]
    if len(scored) < 2:
        return
    classes = {score.name for _, evaluation in scored for score in evaluation.per_class}
    rows = [
        ClassRow(
            name,
            max(score.samples for _, evaluation in scored for score in evaluation.per_class if score.name == name),
            tuple(
                (mark, score.accuracy if score.iou is None else score.iou)
                for mark, evaluation in scored
                for score in evaluation.per_class
                if score.name == name
            ),
            any(score.iou is not None for score in scored[0][1].per_class),
        )
        for name in dict.fromkeys(score.name for score in scored[0][1].per_class)
    ]
    rows = [row for row in rows if row.samples]
    if not rows:
        return
    left_out = len(rows) - MOST_ROWS
    rows = rows if left_out <= 0 else _most_changed(rows)
    worst = min(rows, key=lambda row: row.shares[0][1])
    measure = "IoU" if rows[0].iou else "Recall"
    label = (
        f"{measure} of {', '.join(names)} by class, {len(rows)} of {len(classes)} classes. "
        f"{names[0]} is weakest on {worst.name}: {figures.percent(worst.shares[0][1])}."
    )
    more = "; of more than 20 classes, those that changed most" if left_out > 0 else ""
    yield Drawing(per_class(rows, label=label, width=width), f"{IOU_CAPTION if rows[0].iou else CAPTION}{more}.")


def _measure(rows: Sequence[ClassRow]) -> str:
    return "IoU" if rows[0].iou else "recall"


def evaluation_of(report: Report, name: str) -> Evaluation | None:
    """Return what a model scores; None where that isn't known."""
    return next((model.evaluation for model in report.models if model.name == name), None)


def shown_model(report: Report) -> str:
    """Return the model whose classes are looked at: the student, else the pick, else the last."""
    names = [model.name for model in report.models]
    if STUDENT in names:
        return STUDENT
    return report.pick.model if report.pick and report.pick.model != report.baseline else names[-1]


def _most_changed(rows: Sequence[ClassRow]) -> list[ClassRow]:
    ranked = sorted(rows, key=lambda row: -abs(row.shares[0][1] - row.shares[1][1]))
    return ranked[:MOST_ROWS]


PICTURE = Picture("classes", "Class by class", draw, wide=WIDE)
