"""report.html, in a real browser with its network off."""

import dataclasses
import itertools
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from kdexport.recipe import Require
from kdexport.report.html import html
from kdexport.report.stage import report, write_report
from kdexport.results import Evaluation
from kdexport.tasks import TASKS

MIB = 2**20
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
HOSTILE = {
    "script": "<script>document.title='run'</script>",
    "attribute": '"><img src=x onerror="document.title=\'run\'">',
    "quotes": 'it\'s "quoted" `too` </style></script>',
    "newlines": "two\nlines\r\nand\ttabs",
    "right-to-left": "\u202eנקודה\u202c النموذج",
    "long": "m" * 500,
    "template": "{{ 7 * 7 }}{% raw %}",
}


@pytest.fixture(scope="module")
def single(build):
    return html(report([build.bench()], Require(max_drop=0.01, min_speedup=3.0, max_latency_ms=2.0)))


@pytest.fixture(scope="module")
def many(build):
    """Ten models on three machines, several conditions each."""
    models = {"teacher": build.DIGITS["teacher"]}
    for index in range(9):
        precision = ("", ".int8", ".fp16")[index % 3]
        models[f"student-w{8 * (index // 3 + 1)}{precision}"] = (
            0.95 + index * 0.004,
            20.0 + 9 * index,
            0.02 + 0.01 * index,
            9000,
        )
    conditions = (("cpu", 1, 1), ("cpu", 8, 1), ("cpu", 1, 2), ("cuda", 1, 1))
    return [
        build.bench(build.machine(name), models=models, slowdown=slowdown, conditions=conditions)
        for name, slowdown in (("laptop", 1.0), ("jetson", 3.0), ("pi", 5.0))
    ]


def test_ten_models_on_three_machines_are_small_and_quick(many, tmp_path: Path) -> None:
    start = time.monotonic()
    write_report(report(many, Require(max_drop=0.03)), tmp_path)
    assert time.monotonic() - start < 5
    assert (tmp_path / "report.html").stat().st_size <= 3 * MIB


@pytest.mark.parametrize(("viewport", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["1280-light", "390-dark"])
def test_no_accessibility_violation(open_page, single, viewport, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    page = open_page(single, viewport, scheme)
    found = axe.run(page).response["violations"]
    assert [(item["id"], item["nodes"][0]["html"][:200]) for item in found] == []


def test_several_machines_are_accessible_too(open_page, build) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    benches = [build.bench(), build.bench(build.machine("pi"), slowdown=4)]
    page = open_page(html(report(benches, Require(min_speedup=5.02))))
    found = axe.run(page).response["violations"]
    assert [(item["id"], item["nodes"][0]["html"][:200]) for item in found] == []


def scored(task: str, quality: float) -> Evaluation:
    """Score made-up outputs of a task, the better the larger ``quality`` is, with what its pictures show."""
    draw = np.random.default_rng(0)
    if task == "segmentation":
        masks = np.repeat(np.repeat(draw.integers(0, 3, (12, 4, 5)), 4, 1), 4, 2).astype(np.uint8)
        masks[:, 0] = 255
        outputs = quality * (masks[:, None] == np.arange(3)[:, None, None]) + draw.normal(size=(12, 3, 16, 20))
        targets, inputs, names = (
            masks,
            (draw.integers(0, 256, (12, 16, 20, 3)).astype(np.uint8),),
            ("road", "sky", "tree"),
        )
    elif task == "regression":
        targets = draw.normal([40.0, 3.0], [9.0, 1.0], (60, 2)).astype(np.float32)
        outputs, inputs = targets + draw.normal(size=(60, 2)) / quality, (targets,)
        names = ("price", "rent")
    else:
        targets = np.repeat(np.arange(6), 5)
        outputs = quality * np.eye(6)[targets] + draw.normal(size=(30, 6))
        inputs, names = (outputs,), tuple("abcdef")
    kind = TASKS[task]
    if kind.calibrated_on_validation:
        kind = kind.calibrated(outputs, targets)
    kept = kind.kept(outputs.astype(np.float32), targets)
    return kind.illustrated(kind.evaluate(kept, targets, names, "test"), kept, targets, inputs)


def page_of(build, task: str) -> str:
    made = build.bench(recipe=None, with_training=False)
    found = [scored(task, quality) for quality in (4.0, 3.0, 2.0, 2.9, 1.9)]
    pairs = zip(made.models, found, strict=True)
    models = tuple(dataclasses.replace(model, evaluation=one, score=one.score) for model, one in pairs)
    return html(report([dataclasses.replace(made, models=models)]))


def test_the_pictures_of_other_tasks_are_accessible(open_page, build) -> None:
    """One page is looked at: that of a segmentation, with the sections of the others put into it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    text, more = page_of(build, "segmentation"), []
    for task, titles in (
        ("regression", ("Residuals", "Predicted and true values")),
        ("embedding", ("Cosines of pairs",)),
    ):
        sections = re.findall(r"<section aria-labelledby.*?</section>", page_of(build, task), re.DOTALL)
        more += [section for section in sections if any(f">{title}</h2>" in section for title in titles)]
    assert len(more) == 3
    assert ">What they see</h2>" in text
    page = open_page(text.replace('<section aria-labelledby="how">', f'{"".join(more)}<section aria-labelledby="how">'))
    assert page.locator("figure.chart svg:visible").count() >= 5
    found = axe.run(page).response["violations"]
    assert [(item["id"], item["nodes"][0]["html"][:200]) for item in found] == []


def test_the_first_screen_answers(open_page, single) -> None:
    page = open_page(single)
    answer = page.locator(".hero h2").first
    assert answer.inner_text() == "student"
    costs = page.locator(".hero .cost")
    assert [text.split("\n")[0] for text in costs.all_inner_texts()] == [
        "Accuracy",
        "Median latency",
        "File size",
        "Peak memory",
    ]
    for element in (answer, costs.last, page.locator(".hero svg.picture:visible")):
        box = element.bounding_box()
        assert box["y"] + box["height"] <= DESKTOP["height"]


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["1280", "390"])
def test_nothing_is_wider_than_the_screen(open_page, many, single, viewport) -> None:
    for text in (single, html(report(many))):
        page = open_page(text, viewport)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_hovering_tells_and_lights_up_every_view(open_page, single) -> None:
    page = open_page(single)
    point = page.locator('.point[data-model="student.int8"]:visible .target')
    point.hover()
    assert page.locator("#tip").inner_text().startswith("student.int8\naccuracy 97.")
    lit = page.locator(".on:visible")
    assert {lit.nth(index).get_attribute("data-model") for index in range(lit.count())} == {"student.int8"}
    assert lit.count() >= 3  # the point, the row of the table, the ridge
    page.mouse.move(5, 5)
    assert not page.locator("#tip").is_visible()
    assert page.locator(".on").count() == 0


def test_the_keyboard_reaches_every_point(open_page, single) -> None:
    page = open_page(single)
    page.locator(".point:visible").first.focus()
    seen = []
    for _ in range(5):
        seen.append(page.evaluate("document.activeElement.dataset.model"))
        page.keyboard.press("ArrowRight")
    assert sorted(seen) == sorted({"teacher", "student", "student-plain", "student.int8", "student-plain.int8"})
    page.keyboard.press("Enter")
    kept = page.evaluate("document.activeElement.dataset.model")
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    page.mouse.move(5, 5)
    assert page.locator("table.sortable tr.on").get_attribute("data-model") == kept
    page.keyboard.press("Escape")
    assert page.locator(".on").count() == 0


def test_the_table_sorts(open_page, build) -> None:
    models = build.DIGITS | {"unscored": (None, 5.0, 0.5, 10)}
    page = open_page(html(report([build.bench(models=models)])))

    def column(index: int) -> list[str]:
        return page.locator(f"table.sortable tbody tr > :nth-child({index})").all_inner_texts()

    def press(name: str) -> None:
        page.get_by_role("columnheader", name=name).get_by_role("button").press("Enter")

    press("Median")
    medians = [float(text.split()[0]) for text in column(3)]
    assert medians == sorted(medians)
    assert page.get_by_role("columnheader", name="Median").get_attribute("aria-sort") == "ascending"
    press("Accuracy")
    press("Accuracy")
    accuracies = [text.split()[0] for text in column(2)]
    assert accuracies[-1] == "n/a"  # what was not measured stays last
    assert [float(text) for text in accuracies[:-1]] == sorted((float(text) for text in accuracies[:-1]), reverse=True)
    press("Model")
    names = [text.split("\n")[0] for text in column(1)]
    assert names == sorted(names)


def test_the_whole_page_follows_the_condition(open_page, many) -> None:
    page = open_page(html(report(many, Require(max_drop=0.03))))
    choice = page.get_by_label("Where it was measured").locator("select")
    before = page.locator(".cost .value:visible").nth(1).inner_text()
    choice.select_option(label="pi: cpu, batch 8, 1 thread")
    assert page.locator(".cost .value:visible").nth(1).inner_text() != before
    shown = page.locator("[data-condition]:visible")
    tied = [set(shown.nth(index).get_attribute("data-condition").split()) for index in range(shown.count())]
    assert set.intersection(*tied) == {choice.input_value()}
    assert "cpu of pi, batch 8" in page.locator("section[aria-labelledby=models] .lead:visible").inner_text()


def test_few_conditions_are_buttons(open_page, build) -> None:
    page = open_page(html(report([build.bench(conditions=(("cpu", 1, 1), ("cpu", 8, 1)))])))
    page.get_by_role("radio").nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert "batch 8" in page.locator("section[aria-labelledby=models] .lead:visible").inner_text()


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["1280", "390"])
def test_hostile_names_are_text(open_page, build, viewport) -> None:
    models = {"teacher": build.DIGITS["teacher"]}
    models |= {name: (0.97, 50.0 + index, 0.05 + index / 100, 10) for index, name in enumerate(HOSTILE.values())}
    made = report([build.bench(build.machine(HOSTILE["script"]), models=models)], Require(min_speedup=2.0))
    hostile = dataclasses.replace(made, name=HOSTILE["script"], findings=(*made.findings, HOSTILE["attribute"]))
    page = open_page(html(hostile), viewport)
    assert page.title() != "run"
    assert page.locator("script").count() == 1
    assert page.locator("img").count() == 0
    shown = page.locator("table.sortable tbody th bdi").all_text_contents()
    assert set(shown) == {"teacher", *(re.sub("\r\n?", "\n", name) for name in HOSTILE.values())}
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    page.locator(".point:visible .target").last.hover()
    assert page.locator("#tip").is_visible()


def test_print_shows_the_page_without_its_controls(open_page, many) -> None:
    page = open_page(html(report(many)))
    page.emulate_media(media="print")
    assert not page.locator(".conditions").is_visible()
    assert page.locator(".hero:visible").count() == 1
    assert len(page.pdf()) > 10_000


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_names_no_other_file(single) -> None:
    """Holds where there is no browser too."""
    parser = _Tags()
    parser.feed(single)
    asked = [
        attributes[key]
        for _, attributes in parser.found
        for key in ("src", "href", "srcset", "action")
        if attributes.get(key) and not attributes[key].startswith(("#", "data:"))
    ]
    assert asked == []
    assert [tag for tag, _ in parser.found].count("script") == 1
    assert "http://www.w3.org/2000/svg" in single
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", single)


def test_hostile_names_without_a_browser(build) -> None:
    models = {
        "teacher": build.DIGITS["teacher"],
        HOSTILE["script"]: (0.9, 1.0, 0.1, 1),
        HOSTILE["attribute"]: (0.9, 1.0, 0.1, 1),
    }
    parser = _Tags()
    parser.feed(html(report([build.bench(models=models)])))
    assert [tag for tag, _ in parser.found].count("script") == 1
    assert "img" not in {tag for tag, _ in parser.found}


def test_no_label_lies_under_another_mark(open_page, many, single) -> None:
    """As the browser measures the text: of every label beside a point, against all marks and all other labels."""
    for text in (single, html(report(many))):
        page = open_page(text)
        covered = page.evaluate(
            """() => {
              const beside = (a, b) => a.left < b.right - 1 && b.left < a.right - 1;
              const overlap = (a, b) => beside(a, b) && a.top < b.bottom - 2 && b.top < a.bottom - 2;
              const points = [...document.querySelectorAll(".hero:not([hidden]) .wide .point")].map((point) => ({
                name: point.dataset.model,
                label: point.querySelector("text")?.getBoundingClientRect(),
                mark: point.querySelector(".solid, .hollow").getBoundingClientRect(),
              }));
              const found = [];
              for (const one of points) for (const other of points) {
                if (one === other) continue;
                const pair = `${one.name}, ${other.name}`;
                if (one.label && overlap(one.label, other.mark)) found.push(`label under mark: ${pair}`);
                if (one.label && other.label && overlap(one.label, other.label)) found.push(`labels: ${pair}`);
                if (overlap(one.mark, other.mark)) found.push(`marks: ${pair}`);
              }
              return found;
            }"""
        )
        assert covered == []


def test_marks_at_one_place_stand_apart(open_page, build) -> None:
    models = {"teacher": build.DIGITS["teacher"]} | {f"same-{index}": (0.97, 50.0, 0.1, 10) for index in range(4)}
    bench = build.bench(models=models)
    alike = tuple(
        dataclasses.replace(item, latency_ms=bench.measurements[1].latency_ms) if "same" in item.model else item
        for item in bench.measurements
    )
    equal = tuple(
        dataclasses.replace(item, evaluation=bench.models[1].evaluation, score=bench.models[1].score)
        if "same" in item.name
        else item
        for item in bench.models
    )
    page = open_page(html(report([dataclasses.replace(bench, models=equal, measurements=alike)])))
    marks = page.locator(".hero .wide .point .solid, .hero .wide .point .hollow")
    boxes = [marks.nth(index).bounding_box() for index in range(marks.count())]
    centers = sorted(round(box["x"] + box["width"] / 2) for box in boxes)[:4]
    assert min(b - a for a, b in itertools.pairwise(centers)) >= 10
    assert page.locator(".hero .wide .lead").count() >= 3
