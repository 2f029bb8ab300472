"""report.md, its pictures and the terminal: whatever a model is called."""

import dataclasses
import io
import re
import xml.etree.ElementTree as ET

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from kdexport import figures
from kdexport.recipe import Require
from kdexport.report.html import html
from kdexport.report.markdown import markdown, pictures_of
from kdexport.report.publish import github, junit
from kdexport.report.scores import split_table
from kdexport.report.stage import report
from kdexport.report.terminal import bar, terminal

HOSTILE = (
    "<script>alert(1)</script>",
    "a|b|c `code` *bold* [link](http://x.invalid) ![image](http://x.invalid)",
    "two\nlines\r\n# not a heading",
    "\x1b[31mred\x1b[0m\x00\x07",
    "\u202eright to left\u202c",
    "m" * 500,
)


@pytest.fixture
def hostile(build):
    models = {"teacher": build.DIGITS["teacher"]}
    models |= {name: (0.97, 50.0, 0.05 + index / 100, 10) for index, name in enumerate(HOSTILE)}
    made = report([build.bench(build.machine(HOSTILE[0]), models=models)], Require(min_speedup=2.0, min_score=0.99))
    return dataclasses.replace(made, name=HOSTILE[2])


def printed(made, **options) -> str:
    stream = io.StringIO()
    Console(file=stream, highlight=False, **options).print(terminal(made))
    return stream.getvalue()


def test_markdown_shows_names_as_text(hostile) -> None:
    parser = MarkdownIt("commonmark").enable("table")
    for text in (markdown(hostile, pictures_of(hostile)), github(hostile)):
        tokens = parser.parse(text)
        inline = [child for token in tokens for child in token.children or ()]
        kinds = {token.type for token in [*tokens, *inline]}
        assert not {"html_block", "html_inline", "code_inline", "link_open"} & kinds
        shown = {child.attrs["src"] for child in inline if child.type == "image"}
        assert shown <= set(pictures_of(hostile))
        widths, width = set(), 0
        for token in tokens:
            width = 0 if token.type == "tr_open" else width + (token.type in ("td_open", "th_open"))
            if token.type == "tr_close":
                widths.add(width)
        assert widths <= {9, 8, 6}  # no name has broken out of its cell


def test_pictures_are_well_formed_and_hold_no_script(hostile) -> None:
    pictures = pictures_of(hostile)
    assert {"report-tradeoff-1.svg", "report-latency-1.svg", "report-training.svg"} <= set(pictures)
    for text in pictures.values():
        root = ET.fromstring(text)
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert tags <= {"svg", "style", "rect", "line", "text", "g", "circle", "path"}
        assert root.get("aria-label")


def test_junit_is_well_formed(hostile) -> None:
    ET.fromstring(junit(hostile))


def test_the_terminal_gets_no_control_characters(hostile) -> None:
    text = printed(hostile, width=80)
    assert "\x1b" not in text
    assert "\x00" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_page_holds_no_control_characters(hostile) -> None:
    text = html(hostile)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)


def test_color_on_a_terminal_only(build) -> None:
    made = report([build.bench()], Require(min_speedup=3.0))
    assert "\x1b[" not in printed(made, width=80)
    assert "\x1b[" in printed(made, width=80, force_terminal=True, color_system="standard")


def test_bars() -> None:
    assert bar(1.0, 4) == "████"
    assert bar(0.5, 4) == "██  "
    assert bar(0.53, 4) == "██▏ "
    assert bar(0.0001, 4) == "▏   "  # what is there is seen
    assert bar(0.0, 4) == "    "


@pytest.mark.parametrize("width", [80, 66, 46])
def test_a_narrow_terminal_cuts_nothing_and_drops_the_bars_first(build, width: int) -> None:
    stream = io.StringIO()
    made = report([build.bench(build.machine("laptop"))], Require())
    Console(file=stream, width=width, highlight=False).print(terminal(made, width))
    shown = stream.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    heads = shown.splitlines()[1].split()
    assert heads[:2] == ["model", "accuracy"]
    assert "speed" in heads
    assert ("size" in heads, "█" in shown) == {80: (True, True), 66: (True, False), 46: (False, False)}[width]


def test_many_devices_do_not_flood_the_terminal(build) -> None:
    made = report([build.bench(build.machine(f"m{index}"), with_training=False) for index in range(12)])
    text = printed(made, width=80)
    assert text.count("accuracy  change") == 8
    assert "4 more devices in report.md" in text


def test_the_picture_of_a_single_model(build) -> None:
    """No spread of sizes, latencies or accuracies to scale by."""
    made = report([build.bench(models={"only": (1.0, 10.0, 0.1, 10)}, recipe=None, with_training=False)])
    assert made.pick.model == "only"
    assert made.tradeoffs == ()
    assert set(pictures_of(made)) == {"report-tradeoff-1.svg", "report-latency-1.svg"}
    markdown(made)


def test_models_of_any_name_are_looked_at_class_by_class(build) -> None:
    models = {"big": (0.99, 1000.0, 1.0, 10), "small": (0.97, 10.0, 0.1, 1)}
    made = report([build.bench(models=models, recipe=None, with_training=False)])
    drawn = pictures_of(made)["report-classes.svg"]
    assert 'data-model="small"' in drawn
    assert 'data-model="big"' in drawn


def test_a_percentile_is_named(build) -> None:
    made = report([build.bench()], Require(max_latency_ms=1.0, latency_percentile=99))
    assert "| latency (cpu of laptop, 99th percentile) |" in markdown(made)


def test_each_split_has_its_figures(build) -> None:
    made = report([build.bench()])
    table = split_table(made)
    assert table is not None
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    student = [row for row in rows if row["network"] == "student"]
    assert [row["split"] for row in student] == ["train", "val", "test"]
    assert all((row["soft targets"], row["teacher"], row["KL"]) == ("0.340", "99.1 %", "0.062") for row in student)
    assert {row["teacher"] for row in rows if row["network"] == "student-plain"} == {figures.DASH}
    assert "| student | test | 0.210 | 0.340 |" in markdown(made)
    assert (
        split_table(dataclasses.replace(made, training=({"phase": "student", "kept": True, "terms": 3},))) is not None
    )
    assert split_table(dataclasses.replace(made, training=())) is None


def test_no_speed_up_is_written_of_a_busy_machine(build) -> None:
    bench = build.bench()
    busy = [dataclasses.replace(one, disturbed="other work kept 2.0 of 2 cores busy") for one in bench.measurements]
    made, disturbed = (report([one]) for one in (bench, dataclasses.replace(bench, measurements=tuple(busy))))
    ratio = re.search(r"[\d.]+×", printed(made, width=120)).group()
    for write in (lambda it: printed(it, width=120), markdown):
        assert ratio in write(made)
        assert "undecided" not in write(made)
        assert "undecided" in write(disturbed)
    assert ratio not in printed(disturbed, width=120)
