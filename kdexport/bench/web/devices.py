"""The devices that a browser offers, and what they need to be there: playwright, a browser, onnxruntime-web."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdexport.bench.plan import Device, Plan, WebSettings
from kdexport.errors import DeviceError, did_you_mean

if TYPE_CHECKING:
    from kdexport.recipe import Bench

# Device -> what onnxruntime-web calls the provider, and whether the page is cross-origin isolated (threads need it).
BACKENDS = {"web:wasm": ("wasm", False), "web:wasm-threads": ("wasm", True), "web:webgpu": ("webgpu", False)}
PROVIDERS = ("wasm", "webgpu")
MOST_THREADS = 4  # of WASM unless others are asked for: as many as onnxruntime-web itself takes at most


def is_web(device: Device) -> bool:
    """Return whether a device is measured in a browser."""
    return device.provider in PROVIDERS


def web_device(name: str) -> Device:
    """Return the device behind ``web``, ``web:wasm``, ``web:wasm-threads`` or ``web:webgpu``.

    Raises:
        DeviceError: There is no such device.
    """
    full = "web:wasm" if name == "web" else name
    if full not in BACKENDS:
        near = did_you_mean(full, BACKENDS)
        raise DeviceError(f"'{name}' is not the name of a device", hint=f"{near}there are: web, {', '.join(BACKENDS)}")
    provider, isolated = BACKENDS[full]
    return Device(full, provider, {"isolated": "true" if isolated else "false"})


def threads_on(device: Device, threads: Sequence[int]) -> tuple[int, ...]:
    """Return the thread counts to measure on a device: WASM has one thread unless it is ``web:wasm-threads``.

    That one takes those that were asked for beyond one, else as many as there are cores, four at most.
    """
    if not is_web(device):
        return tuple(threads)
    if device.name != "web:wasm-threads":
        return (1,)
    several = tuple(count for count in threads if count > 1)
    return several or (max(2, min(os.cpu_count() or 1, MOST_THREADS)),)


def resolve(plan: Plan, found: Sequence[Device]) -> Plan:
    """Return the plan with the browser and the runtime that its web devices need; as it is where it has none.

    Raises:
        KDExportError: Playwright, a browser or onnxruntime-web is missing, or a model is larger than WASM can hold.
    """
    web = plan.settings.web
    if not any(map(is_web, found)) or web.runtime_version is not None:
        return plan
    from kdexport.bench.web import runtime

    resolved = look_up(web)
    for target in plan.targets:
        runtime.check_size(target.name, Path(target.path))
    return dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, web=resolved))


def look_up(web: WebSettings) -> WebSettings:
    """Find playwright, the browser and the runtime, which npm may bring; raises as ``resolve``."""
    from kdexport.bench.web import browser, runtime

    browser.check_playwright()
    chosen = browser.find(web.browser)
    held = runtime.find(None if web.runtime is None else Path(web.runtime))
    return WebSettings(str(chosen.path), str(held.folder), chosen.name, chosen.version, held.version)


def check_there(found: Sequence[Device], settings: "Bench") -> None:
    """Refuse web devices that could not be measured, before hours of work end at them; raises as ``resolve``."""
    if any(map(is_web, found)):
        look_up(WebSettings(settings.browser, settings.web_runtime))


def cache_entry(names: Sequence[str]) -> Mapping[str, str]:
    """Return what a stage's key holds beyond the machine where web devices are measured: the runtime's version."""
    if not any(name.partition(":")[0] == "web" for name in names):
        return {}
    from kdexport.bench.web.runtime import VERSION

    return {"web": VERSION}


def versions(web: WebSettings) -> Mapping[str, str]:
    """Return what a fingerprint says of the browser and the runtime; nothing where no page was measured."""
    if web.runtime_version is None:
        return {}
    return {web.browser_name or "browser": web.browser_version or "unknown", "onnxruntime-web": web.runtime_version}
