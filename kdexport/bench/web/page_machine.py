"""The machine behind a page, as far as its browser tells: system, browser, graphics adapter."""

import re

from kdexport import __version__, terminal
from kdexport.bench.web.recording_form import Device
from kdexport.bench.web.worker import adapter_name, is_software
from kdexport.results import Machine

BROWSERS = (  # mark in the user agent -> name; the first that is there, for most pretend to be others too
    ("SamsungBrowser", "Samsung Internet"), ("EdgA", "Edge"), ("EdgiOS", "Edge"), ("Edg", "Edge"), ("OPR", "Opera"),
    ("FxiOS", "Firefox"), ("Firefox", "Firefox"), ("CriOS", "Chrome"), ("HeadlessChrome", "Chromium"),
    ("Chrome", "Chrome"), ("Version", "Safari"),
)  # fmt: skip


def machine_of(device: Device, name: str, runtime_version: str) -> Machine:
    """Return the fingerprint: what a page is told, which is little."""
    agent, version = browser_of(device.agent)
    software = is_software(device.adapter)
    told = adapter_name(device.adapter)
    versions = {"onnxruntime-web": runtime_version, "kdexport": __version__}
    if agent is not None:
        versions[agent] = version or "unknown"
    return Machine(
        name=terminal.printable(name),
        system=system_of(device),
        cpu=device.model or "not told by its browser",
        cpu_features=(),
        cores=None if is_webkit(device.agent) else device.cores,
        memory_mib=None,
        container=None,
        governor=None,
        gpus=(told,) if told not in (None, "not told") and not software else (),
        driver=None,
        python=None,
        versions=versions,
        providers=("wasm", "webgpu") if device.adapter else ("wasm",),
    )


def is_webkit(agent: str) -> bool:
    """Return whether a page runs in WebKit: Safari's engine, and that of all browsers on iOS.

    It says 4 or 8 cores whatever the machine has, against fingerprinting (NavigatorBase::hardwareConcurrency).
    """
    return "AppleWebKit/" in agent and "Chrome/" not in agent


def browser_of(agent: str) -> tuple[str | None, str | None]:
    """Return name and version of the browser behind a user agent; None where none is known."""
    for mark, name in BROWSERS:
        if found := re.search(rf"\b{mark}/(\d[\d.]*)", agent):
            return "WebKit" if name == "Safari" and "Linux" in agent else name, found[1]
    return None, None


def system_of(device: Device) -> str:
    """Return the system as the browser tells it: by name and version where it does, else from the user agent."""
    agent = device.agent
    if found := re.search(r"(iPhone|iPad).*? OS (\d+(?:_\d+)*)", agent):
        return f"iOS {found[2].replace('_', '.')} ({found[1]})"
    if device.platform:
        return f"{device.platform} {device.platform_version or ''}".strip()
    if found := re.search(r"Android (\d[\d.]*)(?:; ([^;)]+))?", agent):
        # Chrome says "Android 10; K" of every device: that is no version.
        return "Android" if found[2] == "K" else f"Android {found[1]}" + (f" ({found[2]})" if found[2] else "")
    found = re.search(r"\(([^)]*)\)", agent)
    return found[1] if found else "not told"
