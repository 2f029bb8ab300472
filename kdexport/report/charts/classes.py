"""What distillation changed, class by class and mistake by mistake."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdexport.report.charts.marks import Mark, glyph
from kdexport.report.charts.svg import CHARACTER, Scale, picture, short, tag, text

ROW = 28.0
APART = 7.0  # pixels between the marks of one class: equal shares must not cover each other
MOST_ROWS = 20
MOST_CELLS = 20  # classes a side


@dataclass(frozen=True)
class ClassRow:
    """One class and the share of its samples that each model found."""

    name: str
    samples: int
    shares: tuple[tuple[Mark, float], ...]


def per_class(rows: Sequence[ClassRow], *, label: str, width: int = 700) -> Markup:
    """Draw one line per class with a mark per model.

    Args:
        rows: At most ``MOST_ROWS``; the caller chooses which.
        label: The picture in a sentence.
        width: In pixels.
    """
    narrow = width < 500
    longest = max(len(short(row.name, 11 if narrow else 18)) for row in rows)
    left, right, top = 22.0 + CHARACTER * longest, width - 18.0, 30.0
    bottom = top + ROW * len(rows)
    lowest = min(share for row in rows for _, share in row.shares)
    across = Scale(max(0.0, lowest - 0.03), 1.0, left, right)
    drawn: list[Markup] = []
    at = left
    for mark, _ in rows[0].shares:
        drawn.append(glyph(mark, at + 4, 10.0, 4))
        drawn.append(text(at + 13, 14.0, short(mark.name, 16), class_="name"))
        at += 32 + CHARACTER * len(short(mark.name, 16))
    for tick in across.ticks(4 if narrow else 6):
        drawn.append(tag("line", x1=across(tick), x2=across(tick), y1=top, y2=bottom, class_="grid"))
        drawn.append(text(across(tick), bottom + 18, f"{100 * tick:g} %", "middle", class_="tick"))
    drawn.append(text(right, bottom + 34, "share of the class that was found", "end", class_="title"))
    for index, row in enumerate(rows):
        y = top + ROW * (index + 0.5)
        drawn.append(text(left - 10, y + 4, short(row.name, 11 if narrow else 18), "end", class_="name"))
        places = [across(share) for _, share in row.shares]
        drawn.append(tag("line", x1=min(places), x2=max(places), y1=y, y2=y, class_="span"))
        for place, (mark, share) in enumerate(row.shares):
            tip = f"{row.name}: {mark.name}\n{100 * share:.1f} % of {row.samples} samples"
            part = glyph(mark, across(share), y + APART * (place - (len(row.shares) - 1) / 2), 4)
            drawn.append(tag("g", part, data_model=mark.name, data_tip=tip, aria_hidden="true"))
    return picture(width, bottom + 40, label, *drawn)


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
            tip = f"true {names[true]}, predicted {names[predicted]}\n{_more(value)}"
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
    return picture(left + side + slant, top + side + 6, label, *drawn)


def _more(value: int) -> str:
    noun = "sample" if abs(value) == 1 else "samples"
    return f"{abs(value)} {noun} {'more' if value > 0 else 'fewer'}"
