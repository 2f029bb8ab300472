"""The browser of this machine: found, named, started without a window. Chromium, Chrome or Edge, by playwright."""

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdexport.errors import DeviceError

NAMES = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge",
    "microsoft-edge-stable", "msedge",
)  # fmt: skip
APPLICATIONS = (  # where macOS and Windows keep them, which put none on PATH
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)
VERSION_SECONDS = 20
START_MS = 60_000.0
VERSION = re.compile(r"(Chromium|Google Chrome|Chrome|Microsoft Edge|HeadlessChrome)\D*(\d+(?:\.\d+)+)")
FLAGS = (
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
    "--disable-features=SpareRendererForSitePerProcess",
    "--enable-blink-features=ForceEagerMeasureMemory",  # else the page's memory is told after 20 s
)
WEBGPU = ("--enable-unsafe-webgpu", "--enable-features=Vulkan")
SOFTWARE = "--use-webgpu-adapter=swiftshader"


@dataclass(frozen=True)
class Browser:
    """A browser that is there."""

    path: Path
    name: str  # "Chromium"
    version: str | None


def check_playwright() -> None:
    """Refuse to go on without playwright.

    Raises:
        DeviceError: It is not installed.
    """
    if importlib.util.find_spec("playwright") is None:
        raise DeviceError(
            "a browser is driven by playwright, which is not installed",
            hint="pip install 'kdexport[web]' (it uses the browser that is there: `playwright install` is not needed)",
        )


def find(asked: str | None = None) -> Browser:
    """Return the browser to measure in.

    Args:
        asked: Path or name of one (``--browser``); None takes the first on PATH.

    Raises:
        DeviceError: There is none, or what was asked for cannot be run or is not one that can be driven.
    """
    if asked is not None:
        path = shutil.which(asked)
        if path is None:
            raise DeviceError(
                f"--browser {asked}: there is no such program",
                hint="give the path of Chromium, Chrome or Edge, e.g. --browser /usr/bin/chromium",
            )
        browser = _named(Path(path))
        if browser is None:
            raise DeviceError(
                f"--browser {asked} does not say that it is Chromium, Chrome or Edge",
                hint="give the path of one of them: others cannot be driven here",
            )
        return browser
    for name in (*NAMES, *APPLICATIONS):
        path = shutil.which(name)
        browser = None if path is None else _named(Path(path))
        if browser is not None:
            return browser
    raise DeviceError(
        "no browser was found: neither Chromium nor Chrome nor Edge is on PATH",
        hint="install one (apt install chromium), or say where it is with --browser PATH",
    )


def _named(path: Path) -> Browser | None:
    """Return what a program says of itself; None where it is no browser that can be driven."""
    if path.suffix.lower() == ".exe":  # on Windows it opens a window instead of telling its version
        return Browser(path, "Microsoft Edge" if "edge" in path.stem.lower() else "Google Chrome", None)
    try:
        done = subprocess.run(
            [str(path), "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    match = VERSION.search(done.stdout)
    return Browser(path, match[1], match[2]) if match else None


def launch(playwright: Any, path: str, *, webgpu: bool, software: bool = False) -> Any:
    """Start a browser without a window; returns playwright's ``Browser``.

    Args:
        playwright: A started ``sync_playwright()``.
        path: The browser's program.
        webgpu: Whether WebGPU is wanted, which browsers hide from some machines.
        software: Whether it may have an adapter that is not a GPU.

    Raises:
        DeviceError: It does not start.
    """
    flags = [*FLAGS, *(WEBGPU if webgpu else ("--disable-gpu",)), *([SOFTWARE] if software else [])]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium does not start as root with one
    try:
        return playwright.chromium.launch(executable_path=path, args=flags, timeout=START_MS)
    except Exception as error:  # noqa: BLE001 - playwright tells the browser's whole log; the first line says it
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise DeviceError(
            f"the browser {path} does not start: {lines[0] if lines else type(error).__name__}",
            hint="start it by hand to see why, or give another with --browser PATH",
        ) from None
