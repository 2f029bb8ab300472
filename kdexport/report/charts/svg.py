"""A small SVG writer: escaped elements, scales with round ticks, labels that keep clear of each other."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files

from markupsafe import Markup, escape

from kdexport.figures import xml_text

CHARACTER = 6.5  # mean width of a 12 px character
# Widths at 12 px in DejaVu Sans, the widest of the fonts that a browser falls back to: a label is never wider.
NARROW, WIDE = "iljtfrI.,:;'|!()[]-/ ", "mwMW@%—…"
MAX_LABEL = 26  # characters
CELL = 32.0  # pixels

Box = tuple[float, float, float, float]  # left, top, right, bottom


def tag(name: str, *children: str | Markup, **attributes: object) -> Markup:
    """Return one element; ``class_`` gives ``class``, ``data_model`` gives ``data-model``, None leaves one out."""
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is not None:
            text = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
            parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    if not children:
        return Markup("".join([*parts, "/>"]))
    return Markup("".join([*parts, ">", *map(escape, children), f"</{name}>"]))  # markup stays, text is escaped


def picture(width: float, height: float, label: str, *children: Markup, interactive: bool = False) -> Markup:
    """Return a whole picture with its text equivalent; an interactive one holds elements that take the focus."""
    return tag(
        "svg",
        *children,
        xmlns="http://www.w3.org/2000/svg",
        class_="picture",
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        role="group" if interactive else "img",
        aria_label=label,
    )


def standalone(drawn: Markup) -> str:
    """Return a picture as a file of its own, with its colors inside."""
    style = files("kdexport.report.charts").joinpath("style.css").read_text(encoding="utf-8")
    head, bracket, rest = xml_text(str(drawn)).partition(">")
    return f"{head}{bracket}<style>{style}</style><rect width='100%' height='100%' class='paper'/>{rest}\n"


def text(x: float, y: float, words: str, anchor: str | None = None, **attributes: object) -> Markup:
    """Return a line of text; ``anchor`` is ``start``, ``middle`` or ``end``."""
    return tag("text", escape(words), x=x, y=y, text_anchor=anchor, **attributes)


def short(name: str, longest: int = MAX_LABEL) -> str:
    """Return a name short enough for a picture; the whole of it stands in the tables."""
    line = " ".join(name.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def text_width(words: str, size: float = 12, *, bold: bool = False) -> float:
    """Return how wide a line of text is at most, in pixels."""
    at_12 = sum(
        4.9 if character in NARROW else 11.6 if character in WIDE else 8.8 if character.isupper() else 7.7
        for character in words
    )
    return at_12 * size / 12 * (1.13 if bold else 1.0)


@dataclass(frozen=True)
class Scale:
    """From values to pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return where a value lies, in pixels; what is out of range lies on the edge."""
        low, span = self._ends
        share = ((math.log(max(value, 1e-12)) if self.log else value) - low) / span
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    @cached_property
    def _ends(self) -> tuple[float, float]:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        return low, (high - low) or 1.0

    def ticks(self, wanted: int = 5) -> list[float]:
        """Return round values inside the scale, about as many as wanted."""
        return _log_ticks(self.low, self.high, wanted) if self.log else _linear_ticks(self.low, self.high, wanted)


def _linear_ticks(low: float, high: float, wanted: int) -> list[float]:
    raw = (high - low) / max(wanted, 1)
    if raw <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * power for factor in (1, 2, 2.5, 5) if factor * power >= raw), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= wanted - 1:
            return inside
    linear = [tick for tick in _linear_ticks(low, high, wanted) if tick > 0]
    return linear if len(linear) > len(inside) else inside


@dataclass
class Labels:
    """Places labels beside points so that none covers another, a point, or the edge."""

    width: float
    height: float
    left: float = 0.0  # where the room for labels begins
    taken: list[Box] = field(default_factory=list, init=False)
    _in_cells: dict[tuple[int, int], list[Box]] = field(default_factory=dict, init=False)  # the same, by where they lie

    def occupy(self, x: float, y: float, radius: float) -> None:
        """Keep labels off a point."""
        self._take((x - radius, y - radius, x + radius, y + radius))

    def place(
        self, x: float, y: float, words: str, gap: float, size: float = 12, *, bold: bool = False
    ) -> tuple[float, float, str] | None:
        """Return x, y and anchor of a label beside a point, farther away where it is crowded; None without room."""
        length = text_width(words, size, bold=bold)
        for dx, dy, anchor in _around(gap):
            left = x + dx - {"start": 0.0, "middle": length / 2, "end": length}[anchor]
            box = (left, y + dy - size * 0.8, left + length, y + dy + size * 0.3)
            inside = box[0] >= self.left and box[1] >= 0 and box[2] <= self.width and box[3] <= self.height
            if inside and not any(
                _overlap(box, other) for cell in _cells(box) for other in self._in_cells.get(cell, ())
            ):
                self._take(box)
                return x + dx, y + dy, anchor
        return None

    def _take(self, box: Box) -> None:
        self.taken.append(box)
        for cell in _cells(box):
            self._in_cells.setdefault(cell, []).append(box)


def _cells(box: Box) -> Iterator[tuple[int, int]]:
    """Yield the cells of a grid that a box lies in: of thousands of boxes only those in the same ones can overlap."""
    for column in range(int(box[0] // CELL), int(box[2] // CELL) + 1):
        for row in range(int(box[1] // CELL), int(box[3] // CELL) + 1):
            yield column, row


def _around(gap: float) -> Sequence[tuple[float, float, str]]:
    beside = [(gap, 4.0, "start"), (-gap, 4.0, "end"), (0.0, -gap - 2, "middle"), (0.0, gap + 10, "middle")]
    diagonal = [
        (dx * gap * away, dy, anchor)
        for away in (1.0, 2.2, 4.0)
        for dy in (-12.0, 20.0, -26.0, 34.0, -42.0, 50.0, -58.0, 66.0)
        for dx, anchor in ((1, "start"), (-1, "end"))
    ]
    return [*beside, *diagonal]


def _overlap(first: Box, second: Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
