"""What distillation changed, mistake by mistake: the difference of two confusion matrices."""

from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from kdexport.report.charts.classes import evaluation_of
from kdexport.report.charts.marks import Drawing, Mark, Picture
from kdexport.report.charts.svg import picture, short, tag, text
from kdexport.report.join import PLAIN_STUDENT, STUDENT
from kdexport.results import Report

CAPTION = (
    "Distilled student minus the student without distillation. Blue: fewer mistakes, more hits; orange: the opposite."
)
MOST_CELLS = 20  # classes a side
MOST_PAIRS = 6  # told in words


def confusion_change(names: Sequence[str], change: Sequence[Sequence[int]], *, label: str, width: int = 520) -> Markup:
    """Draw the difference of two confusion matrices: fewer mistakes one color, more the other.

    Args:
        names: The classes, at most ``MOST_CELLS``.
        change: [true][predicted], how many samples more than before.
        label: The picture in a sentence.
        width: In pixels.
    """
    longest = max(len(short(name, 12)) for name in names)
    left, top = 34.0 + 7 * longest, 30.0 + (6.5 * longest if longest > 2 else 12)
    slant = 28.0 if longest > 2 else 4.0  # what the last slanted name reaches beyond the cells
    cell = min((width - left - slant) / len(names), 40.0)
    side = cell * len(names)
    largest = max((abs(value) for row in change for value in row), default=1) or 1
    drawn = [
        text(left + side / 2, 12, "predicted", "middle", class_="title"),
        tag(
            "g",
            text(0.0, 0.0, "true", "middle", class_="title"),
            transform=f"translate(12 {top + side / 2:.0f}) rotate(-90)",
        ),
    ]
    for index, name in enumerate(names):
        middle = cell * (index + 0.5)
        drawn.append(text(left - 6, top + middle + 4, short(name, 12), "end", class_="tick"))
        turn = f"translate({left + middle + 4:.1f} {top - 6:.1f}) rotate(-60)" if longest > 2 else None
        if turn:
            drawn.append(tag("g", text(0.0, 0.0, short(name, 12), class_="tick"), transform=turn))
        else:
            drawn.append(text(left + middle, top - 6, short(name, 12), "middle", class_="tick"))
    for true, row in enumerate(change):
        for predicted, value in enumerate(row):
            x, y = left + cell * predicted, top + cell * true
            good = value > 0 if true == predicted else value < 0
            style = "cell none" if value == 0 else "cell better" if good else "cell worse"
            strength = f"--w:{0.25 + 0.75 * abs(value) / largest:.2f}" if value else None
            tip = f"true {names[true]} -> predicted {names[predicted]}\n{_more(value)}"
            drawn.append(
                tag(
                    "rect",
                    x=x + 1,
                    y=y + 1,
                    width=cell - 2,
                    height=cell - 2,
                    rx=2,
                    class_=style,
                    style=strength,
                    data_tip=tip if value else None,
                )
            )
            if value and cell >= 20:
                sign = "+" if value > 0 else "−"
                drawn.append(text(x + cell / 2, y + cell / 2 + 4, f"{sign}{abs(value)}", "middle", class_="count"))
    return picture(max(left + side + slant, width), top + side + 6, label, *drawn)


def _more(value: int) -> str:
    noun = "sample" if abs(value) == 1 else "samples"
    return f"{abs(value)} {noun} {'more' if value > 0 else 'fewer'}"


def draw(report: Report, look: Mapping[str, Mark], width: int) -> Iterator[Drawing]:  # noqa: ARG001
    """Draw which mistakes distillation took away and which it added."""
    student, plain = evaluation_of(report, STUDENT), evaluation_of(report, PLAIN_STUDENT)
    if student is None or plain is None or len(student.confusion) != len(plain.confusion) or not student.confusion:
        return
    change = [
        [new - old for new, old in zip(new_row, old_row, strict=True)]
        for new_row, old_row in zip(student.confusion, plain.confusion, strict=True)
    ]
    if any(score.iou is not None for score in student.per_class):
        return  # pixels: hundreds of thousands in every cell
    names = [score.name for score in student.per_class]
    pairs = [(value, i, j) for i, row in enumerate(change) for j, value in enumerate(row) if value and i != j]
    if not pairs:
        return
    pairs.sort(key=lambda pair: -abs(pair[0]))
    told = "; ".join(f"true {names[i]} -> predicted {names[j]}: {_more(value)}" for value, i, j in pairs[:MOST_PAIRS])
    # The classes of the changed pairs alone: a matrix that is empty but for them hides them.
    moved = list(dict.fromkeys(index for _, i, j in pairs for index in (i, j)))[:MOST_CELLS]
    kept = sorted(moved)
    change, names = [[change[row][column] for column in kept] for row in kept], [names[index] for index in kept]
    fewer = -sum(min(value, 0) for i, row in enumerate(change) for j, value in enumerate(row) if i != j)
    more = sum(max(value, 0) for i, row in enumerate(change) for j, value in enumerate(row) if i != j)
    label = f"Change of the confusion by distillation: {fewer} mistakes taken away, {more} added."
    yield Drawing(confusion_change(names, change, label=label, width=width), f"{CAPTION} Changed most: {told}.")


PICTURE = Picture("confusion", "Class by class", draw, wide=460, narrow=460, in_markdown=False)
