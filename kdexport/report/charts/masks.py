"""A few test images with their masks: the truth, what each model sees, and where the models differ."""

import base64
import colorsys
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from kdexport.report.charts.classes import evaluation_of
from kdexport.report.charts.marks import WIDE, Drawing, Mark, Picture
from kdexport.report.charts.svg import picture, short, tag, text, text_width
from kdexport.report.join import STUDENT
from kdexport.results import MaskPicture, ModelFile, Report

CAPTION = (
    "Images of the test split, evenly spread. Where they differ: orange, the student is not of the baseline's class; "
    "blue, its int8 file is not of the student's; light, all are of one class; dark, the pixel has no class."
)
VOID = 255
CELL, GAP = 108.0, 8.0  # pixels: an image's width, and between two
MOST_CLASSES = 40  # named below
ALIKE, STUDENT_DIFFERS, INT8_DIFFERS = 0, 1, 2
DIFFERENCES = {
    ALIKE: (232, 234, 237),
    STUDENT_DIFFERS: (230, 126, 34),
    INT8_DIFFERS: (52, 120, 200),
    VOID: (40, 40, 40),
}
Color = tuple[int, int, int]


def draw(report: Report, look: Mapping[str, Mark], width: int) -> Iterator[Drawing]:  # noqa: ARG001
    """Draw a row of maps for each image that was kept."""
    names = list(dict.fromkeys((report.baseline, STUDENT, f"{STUDENT}.int8")))
    shown = {name: found.pictures for name in names if (found := evaluation_of(report, name)) and found.pictures}
    first = next((model.evaluation for model in report.models if _pictured(model)), None)
    if first is None or not shown:
        return
    classes = [score.name for score in first.per_class]
    palette = {**dict(enumerate(colors(len(classes)))), VOID: (40, 40, 40)}
    rows = []
    for number, scene in enumerate(first.pictures):
        maps = {name: pictures[number] for name, pictures in shown.items() if len(pictures) > number}
        rows.append(_cells(scene, maps, palette))
    drawn: list[Markup] = []
    per_row = max(1, int((width + GAP) // (CELL + GAP)))
    height = CELL * first.pictures[0].height / first.pictures[0].width
    top = 0.0
    for cells in rows:
        for place, (name, source) in enumerate(cells):
            x, y = (CELL + GAP) * (place % per_row), top + (height + 24) * (place // per_row)
            drawn.append(text(x, y + 12, short(name, 15), class_="name"))
            drawn.append(
                tag("image", href=source, x=x, y=y + 18, width=CELL, height=height, style="image-rendering:pixelated")
            )
        top += (height + 24) * -(-len(cells) // per_row) + GAP
    legend, bottom = _legend(classes[:MOST_CLASSES], palette, top + 6, width)
    told = f"{len(rows)} test images with their masks: {', '.join(name for name, _ in rows[0])}."
    yield Drawing(picture(width, bottom, told, *drawn, *legend), CAPTION)


def _pictured(model: ModelFile) -> bool:
    """Whether a model's entry holds the images themselves: that which was scored first does."""
    return model.evaluation is not None and any(one.truth for one in model.evaluation.pictures)


def _cells(scene: MaskPicture, maps: Mapping[str, MaskPicture], palette: Mapping[int, Color]) -> list[tuple[str, str]]:
    """Return what stands in a row, name and picture."""
    size = (scene.width, scene.height)
    found = []
    if scene.image:
        cube = {level: (level // 36 * 51, level // 6 % 6 * 51, level % 6 * 51) for level in range(216)}
        found.append(("image", png(_bytes(scene.image), *size, cube)))
    truth = _bytes(scene.truth)
    found.append(("truth", png(truth, *size, palette)))
    ids = {name: _bytes(one.predicted) for name, one in maps.items()}
    found += [(name, png(values, *size, palette)) for name, values in ids.items()]
    student = ids.get(STUDENT)
    if student is not None and len(ids) > 1:
        baseline = next(iter(ids.values()))
        int8 = ids.get(f"{STUDENT}.int8", student)
        found.append(("differences", png(_differences(truth, baseline, student, int8), *size, DIFFERENCES)))
    return found


def _differences(truth: bytes, baseline: bytes, student: bytes, int8: bytes) -> bytes:
    """Return for each pixel which of the models is the first to differ."""
    return bytes(
        VOID if true == VOID else STUDENT_DIFFERS if a != b else INT8_DIFFERS if b != c else ALIKE
        for true, a, b, c in zip(truth, baseline, student, int8, strict=True)
    )


def _legend(classes: Sequence[str], palette: Mapping[int, Color], top: float, width: int) -> tuple[list[Markup], float]:
    """Return what the classes' colors are, in lines, and where these end."""
    drawn, x, y = [], 0.0, top
    for number, name in enumerate(classes):
        words = short(name, 18)
        needed = 24 + text_width(words)
        if x and x + needed > width:
            x, y = 0.0, y + 20
        red, green, blue = palette[number]
        drawn.append(tag("rect", x=x, y=y, width=12, height=12, rx=2, fill=f"#{red:02x}{green:02x}{blue:02x}"))
        drawn.append(text(x + 17, y + 10, words, class_="tick"))
        x += needed + 8
    return drawn, y + 22


def colors(count: int) -> list[Color]:
    """Return so many colors, neighbors far apart: hues by the golden ratio, in three lightnesses."""
    found = []
    for number in range(count):
        red, green, blue = colorsys.hls_to_rgb(number * 0.618034 % 1, (0.5, 0.68, 0.36)[number % 3], 0.62)
        found.append((round(255 * red), round(255 * green), round(255 * blue)))
    return found


def png(indices: bytes, width: int, height: int, palette: Mapping[int, Color]) -> str:
    """Return a picture of palette indices, a byte a pixel and row by row, as the URI of a PNG file."""
    entries = b"".join(bytes(palette.get(number, (0, 0, 0))) for number in range(max(palette) + 1))
    rows = b"".join(b"\0" + indices[start : start + width] for start in range(0, width * height, width))
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = [
        _chunk(b"IHDR", header),
        _chunk(b"PLTE", entries),
        _chunk(b"IDAT", zlib.compress(rows, 9)),
        _chunk(b"IEND", b""),
    ]
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _bytes(text_: str) -> bytes:
    return zlib.decompress(base64.b64decode(text_))


PICTURE = Picture("masks", "What they see", draw, wide=WIDE, in_markdown=True)
