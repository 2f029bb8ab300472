"""A reader who sees the first screen alone decides right: of made reports, what stands there in words.

The five are a pass, a fail, a tie, a noisy measurement and three devices of which one fails; two more are a model that
guesses and files without scores. What each must say was written down before the page was looked at.
"""

import dataclasses

import pytest

from kdexport.recipe import Require
from kdexport.report.html import html
from kdexport.report.stage import report

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 800}
BUSY = "other work kept 1.9 of 2 cores busy"
VISIBLE = """() => {
  const words = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walk.nextNode()); ) {
    const range = document.createRange();
    range.selectNodeContents(node);
    const shown = [...range.getClientRects()].some((box) => box.width > 1 && box.bottom <= innerHeight && box.top >= 0);
    if (shown && node.parentElement.checkVisibility()) words.push(node.textContent);
  }
  return words.join("").replace(/\\s+/g, " ");
}"""


def passing(build):
    return report([build.bench()], Require(max_drop=0.03, min_speedup=3.0))


def failing(build):
    return report([build.bench()], Require(max_drop=0.03, min_speedup=8.0))


def tied(build):
    models = {
        "teacher": (0.975, 1650.0, 0.31, 420_000),
        "student": (0.975, 83.0, 0.062, 19_900),
        "student-plain": (0.978, 83.0, 0.062, 19_900),
    }
    return report([build.bench(models=models)], Require(min_speedup=3.0))


def noisy(build):
    bench = build.bench()
    busy = tuple(dataclasses.replace(item, warnings=(BUSY,), disturbed=BUSY) for item in bench.measurements)
    return report([dataclasses.replace(bench, measurements=busy)], Require(min_speedup=3.0))


def three_devices(build):
    """Ten models on three machines; on the pi alone nothing is quick enough."""
    models = {"teacher": build.DIGITS["teacher"]}
    models |= {f"student-w{index}": (0.985, 20.0 + index, 0.05 + index / 100, 9000) for index in range(9)}
    machines = (("laptop", 1.0), ("jetson", 2.0), ("pi-5", 30.0))
    benches = [build.bench(build.machine(name), models=models, slowdown=slow) for name, slow in machines]
    return report(benches, Require(max_drop=0.03, max_latency_ms=0.5))


def guessing(build):
    models = {"teacher": (0.95, 1650.0, 1.0, 10), "student": (0.11, 10.0, 0.006, 1)}
    return report([build.bench(models=models)], Require(min_speedup=3.0))


def unscored(build):
    return report([build.bench(models={"a": (None, 100.0, 1.0, 1), "b": (None, 50.0, 0.5, 1)})])


READERS = [
    (passing, "pass: ship student", ["pass", "laptop · cpu, ship student:", "5.0× as fast", "19.9× smaller"]),
    (failing, "fail: nothing to ship", ["fail", "nothing to ship: speed-up 5.", "at least 8.0×"]),
    (
        tied,
        "pass: ship student",
        ["ship student: accuracy indistinguishable from teacher's (", "a tie in accuracy with student-plain"],
    ),
    (
        noisy,
        "undecided: ship student",
        ["undecided", "5 of 5 timings noisy: the machine was busy", "measure on a quiet machine"],
    ),
    (
        three_devices,
        "fail on 1 of 3 devices",
        ["fail", "pi-5 · cpu, nothing to ship: latency 1.5", "at most 0.500 ms", "jetson · cpu, ship student-w0"],
    ),
    (
        guessing,
        "fail: nothing to ship",
        ["accuracy above chance", "above 10.0 %, which always answering the largest class"],
    ),
    (unscored, "speed only", ["Accuracy was not measured, so speed alone is compared: b is 2.0"]),
]


@pytest.mark.parametrize(("made", "title", "message"), READERS, ids=[made.__name__ for made, _, _ in READERS])
def test_the_first_screen_states_the_decision_in_words(open_page, build, made, title: str, message: list[str]) -> None:
    page = open_page(html(made(build)), DESKTOP)
    assert page.title() == f"{title} · digits"
    for viewport in (DESKTOP, PHONE):
        page.set_viewport_size(viewport)
        seen = page.evaluate(VISIBLE)
        for words in message:
            assert words in seen, f"{words!r} is not on the first screen of {viewport['width']} pixels: {seen}"


def test_noise_on_any_of_many_devices_is_in_the_first_800_pixels(open_page, build) -> None:
    """Twelve devices, the noise on the last: on a phone too."""
    benches = [build.bench(build.machine(f"device-{index:02}"), with_training=False) for index in range(12)]
    busy = tuple(dataclasses.replace(item, warnings=(BUSY,)) for item in benches[-1].measurements)
    benches[-1] = dataclasses.replace(benches[-1], measurements=busy)
    page = open_page(html(report(benches, Require(min_speedup=8.0))), PHONE)
    seen = page.evaluate(VISIBLE)
    assert "noisy timings on 1 of 12 devices" in seen
    assert page.title().startswith("fail on 12 of 12 devices")
    assert "fail" in seen


def test_the_worst_comes_first_and_is_what_opens(open_page, build) -> None:
    page = open_page(html(three_devices(build)))
    rows = page.locator(".strip li")
    assert [rows.nth(index).get_attribute("class") for index in range(rows.count())] == ["fail", "pass", "pass"]
    assert page.locator(".hero:visible .kicker").inner_text() == "Nothing to ship to cpu of pi-5; nearest is"


def test_a_row_leads_to_its_device_and_the_address_keeps_it(open_page, build) -> None:
    text = html(three_devices(build))
    page = open_page(text)
    page.get_by_role("link", name="jetson · cpu").click()
    assert page.evaluate("location.hash") == "#jetson/cpu/batch-1/threads-1"
    assert page.locator(".hero:visible .kicker").inner_text() == "Ship to cpu of jetson"
    assert page.get_by_role("radio", name="jetson").is_checked()
    page.get_by_role("radio", name="laptop").check(force=True)
    assert page.evaluate("location.hash") == "#laptop/cpu/batch-1/threads-1"
    again = open_page(text, hash_="#jetson/cpu/batch-1/threads-1")
    assert again.locator(".hero:visible .kicker").inner_text() == "Ship to cpu of jetson"


def test_noise_leads_to_what_it_means(open_page, build) -> None:
    page = open_page(html(noisy(build)))
    marks = page.locator("a.noise:visible")
    assert marks.count() == 6  # beside the verdict, and in each row of the table
    marks.first.click()
    assert page.evaluate("location.hash") == "#warnings"
    lines = page.locator(".warnings li")
    assert lines.count() == 1
    assert "Medians may be too high" in lines.first.inner_text()
    assert "undecided" in page.locator(".hero .against").nth(1).inner_text()


def test_a_finger_hits_what_it_aims_at(open_page, build) -> None:
    """WCAG 2.5.8: targets are 24 pixels high, or stand in a line of text."""
    page = open_page(html(noisy(build)), PHONE)
    small = page.evaluate(
        """() => [...document.querySelectorAll("a, button, summary, select, .conditions label")]
          .filter((item) => item.checkVisibility() && !item.classList.contains("skip"))
          .map((item) => [item.textContent.trim(), item.getBoundingClientRect().height])
          .filter(([, height]) => height < 24)"""
    )
    assert small == []


def test_on_a_phone_speed_and_size_come_before_the_change_and_the_table_says_that_it_scrolls(open_page, build) -> None:
    page = open_page(html(passing(build)), PHONE)
    headings = page.locator("table.sortable th[scope=col]").all_inner_texts()
    names = [text.split(",")[0] for text in headings]
    assert names[:6] == ["Model", "Accuracy", "Median", "Speed-up", "Size", "Change"]
    assert page.locator(".scroll.wider:has(table.sortable)").count() == 1


def test_what_next(open_page, build) -> None:
    made = passing(build)
    page = open_page(html(made))
    student = next(model for model in made.models if model.name == "student")
    assert student.sha256 in page.locator(".hero .hash").inner_text()
    page.get_by_text("Run it").click()
    assert 'InferenceSession("student.onnx"' in page.locator(".hero pre").inner_text()
    section = page.locator("section[aria-labelledby=next]").inner_text()
    assert "kdexport run recipe.toml" in section
    assert "require.min_speedup" in section
    assert "seed" not in section.split("What the recipe sets")[1].split("All other keys")[0], "0 is the default"
    assert page.locator("table.parity tbody tr").count() == 5


def test_a_print_keeps_headings_with_what_they_head(open_page, build) -> None:
    page = open_page(html(three_devices(build)))
    page.emulate_media(media="print")
    broken = page.evaluate(
        """() => [...document.querySelectorAll("h2, h3, .lead")].filter((item) => item.checkVisibility())
          .filter((item) => getComputedStyle(item).breakAfter !== "avoid").map((item) => item.textContent)"""
    )
    assert broken == []
    assert page.locator(".strip").is_visible()
