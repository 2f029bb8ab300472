"""Does the page of `kdexport bench --serve` hold in other engines than Chromium's: Firefox, and WebKit as in Safari?

    python benchmarks/serve_engines.py [--shots DIR] [--only firefox]

Each engine goes the whole way, from the address to the arrived result: over plain http from the network's address, over
https with the certificate's warning accepted, and from a packed page on Python's own web server. Must hold: the result
arrives, and its outputs equal ONNX Runtime's within 1e-4 with every argmax equal. What a model against a copy of itself
comes to is told beside it.

Firefox is driven by its own protocol (Marionette), WebKitGTK's MiniBrowser by WebKitWebDriver under Xvfb: neither needs
a package of Python's. On Debian: apt install firefox-esr webkit2gtk-driver xvfb. An engine that is not here is left
out, and told. Needs onnxruntime-web in the cache or npm.
"""

import argparse
import base64
import contextlib
import functools
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_common import OtherLoad, keep, make_model
from serve_phone import RULE, Quiet, Served

from kdexport.bench.web import runtime
from kdexport.results import BenchResult, from_json
from kdexport.statistics import speedup

MINIBROWSER = sorted(Path("/usr/lib").glob("*/webkit2gtk-4.*/MiniBrowser"))
START_SECONDS = 60
DONE_SECONDS = 400
WIDTH, HEIGHT = 390, 844


class Driver:
    """A browser that is told what to do; ``ask`` takes a command of WebDriver."""

    name = ""
    process: subprocess.Popen[bytes]

    def ask(self, command: str, **values: Any) -> Any:
        raise NotImplementedError

    def script(self, text: str) -> Any:
        return self.ask("ExecuteScript", script=text, args=[])

    def tap(self, selector: str) -> None:
        found = self.ask("FindElement", using="css selector", value=selector)
        self.ask("ElementClick", id=next(iter(found.values())))

    def close(self) -> None:
        """End what was started, with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(30)


class Firefox(Driver):
    """Firefox by Marionette: messages of JSON, each after its length."""

    def __init__(self, profile: Path) -> None:
        port = free_port()
        (profile / "user.js").write_text(f'user_pref("marionette.port", {port});\n')
        self.process = subprocess.Popen(
            ["firefox-esr", "--headless", "--marionette", "--no-remote", "--profile", str(profile)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._socket = until(lambda: socket.create_connection(("127.0.0.1", port)))
        self._file = self._socket.makefile("rb")
        self._number = 0
        self._read()
        told = self.ask("NewSession", acceptInsecureCerts=True)["capabilities"]
        self.name = f"Firefox {told['browserVersion']}"
        self.ask("SetWindowRect", width=WIDTH, height=HEIGHT)

    def _read(self) -> Any:
        digits = b""
        while (character := self._file.read(1)) != b":":
            digits += character
        return json.loads(self._file.read(int(digits)))

    def ask(self, command: str, **values: Any) -> Any:
        self._number += 1
        text = json.dumps([0, self._number, f"WebDriver:{command}", values]).encode()
        self._socket.sendall(b"%d:%b" % (len(text), text))
        _, _, error, answer = self._read()
        if error:
            raise RuntimeError(f"{error['error']}: {error['message']}")
        return answer["value"] if isinstance(answer, dict) and set(answer) == {"value"} else answer


class WebKit(Driver):
    """WebKitGTK's own small browser by WebDriver over http."""

    PATHS = {  # noqa: RUF012
        "Navigate": "/url", "ExecuteScript": "/execute/sync", "FindElement": "/element",
        "ElementClick": "/element/{id}/click", "SetWindowRect": "/window/rect",
    }  # fmt: skip

    def __init__(self, profile: Path) -> None:
        port = free_port()
        self.process = subprocess.Popen(
            ["xvfb-run", "-a", "WebKitWebDriver", f"--port={port}"],
            # Its sandbox needs namespaces, which containers do not give.
            env={**os.environ, "WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS": "1", "HOME": str(profile)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._base = f"http://127.0.0.1:{port}"
        options = {"binary": str(MINIBROWSER[-1]), "args": ["--automation"]}
        wanted = {"alwaysMatch": {"acceptInsecureCerts": True, "webkitgtk:browserOptions": options}}
        told = until(lambda: self._post("/session", {"capabilities": wanted}))
        self._base += f"/session/{told['sessionId']}"
        self.name = f"WebKitGTK {told['capabilities']['browserVersion']}"
        self.ask("SetWindowRect", width=WIDTH, height=HEIGHT)

    def _post(self, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
                return json.loads(answer.read())["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()[:300]) from None

    def ask(self, command: str, **values: Any) -> Any:
        if command == "TakeScreenshot":
            return self._post("/screenshot", None)
        return self._post(self.PATHS[command].format(**values), values)


ENGINES: dict[str, tuple[type[Driver], tuple[str, ...]]] = {
    "firefox": (Firefox, ("firefox-esr",)),
    "webkit": (WebKit, ("WebKitWebDriver", "xvfb-run")),
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(attempt: Callable[[], Any]) -> Any:
    """Try until it works, for as long as a browser may take to start."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            return attempt()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def lacks(engine: str) -> str | None:
    """Return what of an engine is not installed."""
    missing = [program for program in ENGINES[engine][1] if shutil.which(program) is None]
    if engine == "webkit" and not MINIBROWSER:
        missing.append("MiniBrowser")
    return ", ".join(missing) or None


TEXT = "return document.getElementById({0!r}).textContent"
SEEN = """
const one = (id) => document.getElementById(id);
return [one("start").offsetParent !== null, one("fault").textContent, one("sent").textContent];
"""


def opened(driver: Driver, url: str) -> dict[str, Any]:
    """Open the page and wait until it can be started; returns what it says of the browser."""
    driver.ask("Navigate", url=url)
    end = time.monotonic() + START_SECONDS
    while True:
        can_start, fault, _ = driver.script(SEEN)
        if fault:
            raise RuntimeError(fault)
        if can_start:
            break
        if time.monotonic() > end:
            raise RuntimeError("the page does not come up: " + driver.script("return document.body.innerText"))
        time.sleep(0.3)
    return {
        "context": driver.script(TEXT.format("context")),
        "lacks": driver.script("return [...document.querySelectorAll('#devices small')].map((one) => one.textContent)"),
        "wider_than_its_window": driver.script("return document.documentElement.scrollWidth > innerWidth"),
    }


def measured(driver: Driver) -> str:
    """Tap Start and wait for the end; returns what the page then says."""
    driver.tap("#start")
    end = time.monotonic() + DONE_SECONDS
    while time.monotonic() < end:
        _, fault, sent = driver.script(SEEN)
        if fault or "arrived" in sent or "Save it" in sent:
            return str(fault or sent)
        time.sleep(0.5)
    raise RuntimeError("it did not come to an end: " + driver.script("return document.body.innerText"))


def picture(driver: Driver, file: Path | None) -> None:
    if file is not None:
        file.write_bytes(base64.b64decode(driver.ask("TakeScreenshot")))


def figures_of(file: Path) -> dict[str, Any]:
    """Return what an arrived result says."""
    bench = from_json(BenchResult, json.loads(file.read_text()))
    devices = {}
    for device in dict.fromkeys(one.device for one in bench.measurements):
        first, second = (one for one in bench.measurements if one.device == device)
        ratio, interval = speedup(first.latency_ms, second.latency_ms)
        devices[device] = {
            "threads": first.threads,
            "p50_ms": first.latency_ms.p50,
            "against_itself": [ratio, interval],
            "clock_ms": first.browser and first.browser.clock_ms,
            "calls_per_sample": first.browser and first.browser.calls_per_sample,
            "wasm_heap_mib": first.memory_mib.wasm_heap,
            "placement": first.placement,
            "worst_difference": max(one.parity.max_rel for one in (first, second) if one.parity),
            "argmax_equal": min(one.parity.argmax_agreement for one in (first, second) if one.parity),
        }
    return {
        "browser": {name: version for name, version in bench.machine.versions.items() if name != "kdexport"},
        "cores": bench.machine.cores,
        "devices": devices,
        "failures": sorted({f"{one.device}: {one.reason}" for one in bench.failures}),
    }


def served(driver: Driver, folder: Path, way: str, shots: Path | None) -> dict[str, Any]:
    flags = ["--host", "0.0.0.0", *(["--https"] if way == "https" else [])]
    file = f"{way}.json"
    server = Served(folder, file, *flags, rule=RULE)
    try:
        told = opened(driver, server.url)
        picture(driver, shots and shots / f"{driver.name.split()[0].lower()}-{way}-start.png")
        said = measured(driver)
        picture(driver, shots and shots / f"{driver.name.split()[0].lower()}-{way}-done.png")
        code = server.ended()
    finally:
        server.process.kill()
    return {**told, "said": said, "exit_code": code, **figures_of(folder / file)}


def packed(driver: Driver, folder: Path, shots: Path | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "kdexport", "bench", "tiny.onnx", "same.onnx", *RULE, "--device", "web"]
    subprocess.run([*command, "--pack", "page.zip"], cwd=folder, check=True, capture_output=True)
    with zipfile.ZipFile(folder / "page.zip") as archive:
        archive.extractall(folder / "site")
    handler = functools.partial(Quiet, directory=str(folder / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as static:
        threading.Thread(target=static.serve_forever, daemon=True).start()
        told = opened(driver, f"http://127.0.0.1:{static.server_port}/")
        said = measured(driver)
        picture(driver, shots and shots / f"{driver.name.split()[0].lower()}-pack-done.png")
        text = driver.script("return fetch(document.getElementById('download').href).then((file) => file.text())")
        static.shutdown()
    (folder / "saved.json").write_text(text)
    report = [sys.executable, "-m", "kdexport", "report", "saved.json", "--out", "report", "--json"]
    done = subprocess.run(report, cwd=folder, check=True, capture_output=True, text=True)
    made = json.loads(done.stdout)
    (device,) = {one["device"] for one in made["measurements"]}
    return {
        **told, "said": said, "reported": [device, made["machines"][0]["name"]],
        "worst_difference": max(one["parity"]["max_rel"] for one in made["measurements"]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shots", type=Path, help="where pictures of the page go")
    parser.add_argument("--only", choices=ENGINES, help="one engine")
    flags = parser.parse_args()
    if flags.shots:
        flags.shots.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {}
    with OtherLoad() as load:
        for engine in [flags.only] if flags.only else ENGINES:
            if missing := lacks(engine):
                rows[engine] = {"not_here": missing}
                continue
            rows[engine] = {}
            for way in ("http", "https", "pack"):
                with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as profile:
                    folder = Path(name)
                    shutil.copy(make_model(folder, "tiny"), folder / "same.onnx")
                    driver = ENGINES[engine][0](Path(profile))
                    try:
                        row = (
                            packed(driver, folder, flags.shots)
                            if way == "pack"
                            else served(driver, folder, way, flags.shots)
                        )
                    finally:
                        driver.close()
                    rows[engine] = {"engine": driver.name, **rows[engine], way: row}
                print(engine, way, json.dumps(row), file=sys.stderr, flush=True)
    keep("serve_engines", {"onnxruntime_web": runtime.VERSION, "engines": rows}, load)
    for engine, row in rows.items():
        for way in ("http", "https"):
            for device, found in row.get(way, {}).get("devices", {}).items():
                where = f"{engine} {way} {device}"
                assert found["worst_difference"] < 1e-4, where
                assert found["argmax_equal"] == 1, where


if __name__ == "__main__":
    main()
