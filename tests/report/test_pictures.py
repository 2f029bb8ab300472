"""Scales, ticks and labels of the pictures."""

import re
from collections.abc import Iterator
from types import ModuleType
from xml.etree import ElementTree

import pytest

from kdexport.report.charts import batches, catalog
from kdexport.report.charts.confusion import confusion_change
from kdexport.report.charts.curves import Curve, curves
from kdexport.report.charts.marks import FULL, Drawing, Mark, Picture, bullet, marks, marks_of
from kdexport.report.charts.scatter import Point, scatter
from kdexport.report.charts.svg import Labels, Scale, picture, short, tag, text_width
from kdexport.report.html import html
from kdexport.report.join import condition_of
from kdexport.report.markdown import markdown, pictures_of
from kdexport.report.scores import Metric
from kdexport.report.stage import report as make
from kdexport.results import Gate, Report


def test_a_scale_maps_its_ends_and_keeps_within_them() -> None:
    scale = Scale(1, 100, 0, 200, log=True)
    assert (scale(1), scale(10), scale(100)) == (0, pytest.approx(100), 200)
    assert (scale(0.001), scale(1e6)) == (0, 200)
    assert Scale(3, 3, 0, 10)(3) == 0


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0.93, 1.0, 0, 1), [0.94, 0.96, 0.98, 1.0]),
        (Scale(0.5, 2000, 0, 1, log=True), [1, 10, 100, 1000]),
        (Scale(10, 40, 0, 1, log=True), [10, 15, 20, 30]),
    ],
)
def test_ticks_are_round(scale: Scale, ticks: list[float]) -> None:
    assert scale.ticks(4) == pytest.approx(ticks)


@pytest.mark.parametrize(("low", "high"), [(0.0101, 0.0105), (1, 1.2), (3e-5, 2e4), (0.9, 1.1)])
@pytest.mark.parametrize("log", [True, False])
def test_there_are_always_a_few_ticks(low: float, high: float, log: bool) -> None:
    ticks = Scale(low, high, 0, 1, log=log).ticks(5)
    assert 2 <= len(ticks) <= 14
    assert all(low <= tick <= high for tick in ticks)


def test_labels_keep_clear_of_each_other_and_of_the_edge() -> None:
    labels = Labels(300, 200, left=40)
    placed = [labels.place(150, 100 + index, f"label {index}", 12) for index in range(6)]
    boxes = list(labels.taken)
    assert sum(spot is not None for spot in placed) == len(boxes) >= 4
    for index, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 40
        assert right <= 300
        for other in boxes[index + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
    assert labels.place(45, 5, "x" * 60, 12) is None


def test_color_says_which_network_shape_in_which_precision() -> None:
    models = [("teacher", "fp32"), ("student", "fp32"), ("student.int8", "int8"), ("other.fp16", "fp16")]
    look = marks_of(models, "teacher")
    assert look["teacher"].color == 0
    assert look["student"].color == look["student.int8"].color == 1
    assert look["other.fp16"].color == 2
    assert [look[name].shape for name, _ in models] == ["circle", "circle", "diamond", "square"]


def test_area_is_proportional_to_size() -> None:
    points = [
        Point(Mark(name, 1, "circle"), latency, 0.9, None, size, dominated=False, picked=False, tip=name)
        for name, latency, size in (("big", 1.0, 400_000), ("quarter", 2.0, 100_000))
    ]
    drawn = scatter(points, ["big"], label="sizes")
    radii = [float(radius) for radius in re.findall(r'r="([\d.]+)" class="halo', drawn)]
    assert radii == pytest.approx([30.0, 15.0])


def test_everything_is_escaped() -> None:
    assert tag("text", "<b>", data_model='"><script>') == '<text data-model="&#34;&gt;&lt;script&gt;">&lt;b&gt;</text>'
    assert short("two\nlines " + "m" * 50) == "two lines mmmmmmmmmmmmmmm…"


def test_a_curve_that_reaches_one_and_one_that_ends_early() -> None:
    lines = [
        Curve(Mark("a", 1, "circle"), (0, 1, 2), (0.5, 0.9, 1.0)),
        Curve(Mark("b", 2, "circle"), (0, 1), (0.4, 0.8)),
    ]
    drawn = curves(lines, label="x")
    assert "nan" not in drawn
    assert "99.9 %" in drawn


def test_better_and_worse_cells() -> None:
    drawn = confusion_change(["cat", "dog"], [[2, -2], [1, -1]], label="x")
    kinds = re.findall(r'class="cell (\w+)"', drawn)
    assert kinds == ["better", "better", "worse", "worse"]


@pytest.mark.parametrize("value", [None, 0.0, -0.01, 5.0])
def test_a_bullet_of_any_value(value) -> None:
    drawn = bullet(Gate("max_latency_ms", 2.0, value, passed=False, verdict="fail"), label="x")
    assert ("<circle" in drawn) == (value is not None)
    assert "nan" not in drawn


def test_latency_by_batch_is_drawn_for_each_device_that_was_swept(build: ModuleType) -> None:
    swept = (("cpu", 1, 1), ("cpu", 8, 1), ("cpu", 64, 1), ("cpu", 1, 2))  # two threads at one batch size only
    report = make((build.bench(conditions=swept),))
    (drawing,) = batches.draw(report, marks(report), FULL)
    assert drawing.caption.endswith("cpu of laptop, 1 thread.")
    assert [condition.batch_size for condition in drawing.conditions] == [1, 8, 64]
    root = ElementTree.fromstring(str(drawing.svg))
    rows = [element for element in root.iter() if element.get("class") == "row"]
    assert [row.get("data-model") for row in rows] == [model.name for model in report.models]
    for row in rows:
        points = [float(element.get("cy", "0")) for element in row if element.tag.endswith("circle")]
        assert len(points) == 3
        assert points == sorted(points, reverse=True), "a larger batch takes longer, and longer is further up"
        assert "batch 64: " in row.get("data-tip", "")
    assert list(batches.draw(make((build.bench(),)), marks(report), FULL)) == []


def test_a_picture_is_a_module_and_a_line(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page and report.md show whatever the catalog holds."""
    report = make((build.bench(), build.bench(build.machine("pi"))))

    def draw(report: Report, look: dict[str, Mark], width: int) -> Iterator[Drawing]:
        for machine in report.machines:
            conditions = tuple({condition_of(item) for item in report.measurements if item.machine == machine.name})
            yield Drawing(picture(width, 10, f"a toy of {machine.name}"), f"{len(look)} toys", conditions)

    toy = Picture("toy", "Toys", draw)
    monkeypatch.setattr(catalog, "PICTURES", (*catalog.PICTURES, toy))
    page = html(report)
    assert re.findall(r'aria-label="(a toy of \w+)"', page) == ["a toy of laptop"] * 2 + ["a toy of pi"] * 2
    assert '<h2 id="toys">Toys</h2>' in page
    assert page.count("<figcaption>5 toys</figcaption>") == 2
    drawn = pictures_of(report)
    assert "a toy of pi" in drawn["report-toy-2.svg"]
    assert "![Toys, cpu of pi, batch 1, 1 thread](report-toy-2.svg)" in markdown(report, drawn)


@pytest.mark.parametrize("label", ["accuracy", "verification accuracy", "mean average precision"])
def test_a_long_scores_title_stands_beside_the_legend(label):
    lines = [Curve(Mark("teacher", 1, "circle"), (1, 2), (0.5, 0.6))]
    drawn = str(curves(lines, label="x", metric=Metric(label=label)))
    title = text_width(f"{label} on the validation split ↑")
    start = float(re.search(r'<text x="([\d.]+)"[^>]*class="title"[^>]*>' + label, drawn).group(1))
    legend = float(re.search(r'<line x1="([\d.]+)"[^>]*class="curve', drawn).group(1))
    assert start + title < legend
