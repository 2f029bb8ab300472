"""What the report's tests share: made-up measurements, and Chromium where it is installed."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

DESKTOP = {"width": 1280, "height": 800}
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def build() -> ModuleType:
    """Return builder.py, which makes bench results."""
    spec = importlib.util.spec_from_file_location("report_builder", Path(__file__).with_name("builder.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def chromium():
    """Return a headless Chromium; absent, the test skips."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install 'kdexport[dev]'"
    )
    executable = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if executable is None:
        pytest.skip("no Chromium on this machine: the page is not looked at in a browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, tmp_path: Path):
    """Write a page, open it from disk, offline, and return it; whatever it complains of or asks for fails the test."""
    contexts, faults = [], []

    def open_(text: str, viewport=None, scheme="light", hash_=""):
        path = tmp_path / "report.html"
        path.write_text(text, encoding="utf-8")
        context = chromium.new_context(viewport=viewport or DESKTOP, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on(
            "request",
            lambda request: request.url.partition("#")[0] != path.as_uri() and faults.append(f"request: {request.url}"),
        )
        page.goto(path.as_uri() + hash_)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert faults == []
