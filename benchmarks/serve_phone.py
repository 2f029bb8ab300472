"""Does `kdexport bench --serve` hold with a real browser in a phone's shape? The whole way, from address to report.

    python benchmarks/serve_phone.py [--uploads 1000] [--shots DIR]
    python benchmarks/serve_phone.py --beside      # the same model by --serve and by --device web, one after the other

Chromium with 390 pixels, touch and a phone's user agent opens what the command prints, taps Start and waits. Must hold:

- over plain http from the network's address: no secure context, one thread, and the page says why the rest is not
  there; it is reloaded and cut off from the network in the middle and goes on; a second device closes its page half way
  and is told as failed, with what it had measured; meanwhile 1,000 malformed uploads (mutated bytes, other sessions,
  wrong tokens, sizes and headers, bare noise) are refused and lose nothing: the result arrives whole;
- over https with a certificate made on the spot: threads, and WebGPU on the software adapter, which the figures say;
- a packed page on Python's own static web server offers the same as a file;
- `kdexport report` joins all three with the CPU's figures; a model against itself holds 1.00, or is told as undecided;
- axe finds nothing, light and dark, before, while and after measuring.

Needs Chromium, playwright, axe-playwright-python, segno, and onnxruntime-web in the cache or npm.
"""

import argparse
import contextlib
import functools
import http.client
import http.server
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from axe_playwright_python.sync_playwright import Axe
from bench_common import OtherLoad, keep, make_model
from playwright.sync_api import Page, sync_playwright

from kdexport.bench.web import browser, processes, runtime
from kdexport.results import BenchResult, from_json
from kdexport.statistics import speedup

AGENT = (
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Mobile Safari/537.36"
)
SHAPE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
RULE = ["--rounds", "5", "--min-seconds", "0.5", "--max-seconds", "6", "--precision", "0.1"]
DONE_MS = 400_000


class Served:
    """A `kdexport bench --serve` that runs."""

    def __init__(self, folder: Path, out: str, *flags: str, rule: Sequence[str] = RULE, model: str = "tiny") -> None:
        command = [sys.executable, "-m", "kdexport", "bench", f"{model}.onnx", "same.onnx", "--serve", *rule]
        self.process = subprocess.Popen(
            [*command, "--out", out, *flags], cwd=folder, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.fullmatch(r"  (https?://\S+/)\n", line):
                self.url = found[1]
                break
        else:
            raise RuntimeError("".join(self.lines))
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True).start()

    def ended(self) -> int:
        return self.process.wait(300)


def opened(chromium: Any, url: str, **options: Any) -> Page:
    page = chromium.new_context(**SHAPE, user_agent=AGENT, ignore_https_errors=True, **options).new_page()
    page.goto(url)
    page.locator("#start").wait_for()
    return page


def looked_at(page: Page, name: str, shots: Path | None, found: list[str]) -> None:
    """Let axe look in light and dark, and keep a picture of each."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        if shots is not None:
            page.screenshot(path=shots / f"{name}-{scheme}.png", full_page=True)
        violations = Axe().run(page).response["violations"]
        found += [f"{name} {scheme}: {one['id']} {one['nodes'][0]['html'][:100]}" for one in violations]


def whole(page: Page, name: str, shots: Path | None, found: list[str]) -> None:
    page.locator("#start").tap()
    page.locator("#sent").get_by_text(re.compile("arrived|Save it")).wait_for(timeout=DONE_MS)
    looked_at(page, name, shots, found)


def noise(url: str, count: int, refused: dict[str, int]) -> None:
    """Send uploads that are none, one after the other, and count the answers."""
    rng = random.Random(7)
    host, token = url.split("/")[2:4]
    address, port = host.rsplit(":", 1)
    plan = json.loads(asked(host, "GET", f"/{token}/plan.json")[1])
    good = {
        "format": "kdexport recording", "version": 1, "session": plan["session"], "started": "2026-11-26T00:00:00Z",
        "complete": False, "results": [],
        "device": {
            "id": "0" * 24, "name": "nobody", "agent": "x", "platform": None, "platform_version": None, "model": None,
            "cores": 1, "secure": False, "isolated": False, "simd": True, "adapter": None,
        },
    }  # fmt: skip
    for number in range(count):
        body, path, headers = (
            bytearray(json.dumps(good).encode()),
            f"/{token}/recording",
            {"Content-Type": "application/json"},
        )
        kind = number % 8
        if kind == 0:
            body = body[: rng.randrange(len(body))]
        elif kind == 1:
            for _ in range(20):
                body[rng.randrange(len(body))] = rng.randrange(256)
        elif kind == 2:
            body = bytearray(json.dumps({**good, "session": f"{number}"}).encode())
        elif kind == 3:
            path = f"/{'x' * 32}/recording"
        elif kind == 4:
            headers["Content-Length"] = str(rng.choice([2**26, 2**40, -1]))
        elif kind == 5:
            headers["Content-Type"] = rng.choice(["text/plain", "multipart/form-data", ""])
        elif kind == 6:
            body = bytearray(
                json.dumps({**good, "results": [{"model": "../../etc/passwd"}] * rng.randrange(1, 50)}).encode()
            )
        else:
            with contextlib.suppress(OSError), socket.create_connection((address, int(port)), timeout=5) as raw:
                raw.sendall(rng.randbytes(rng.randrange(1, 2000)) + b"\r\n\r\n")
                raw.recv(10)
            refused["noise"] = refused.get("noise", 0) + 1
            continue
        try:
            status = str(asked(host, "POST", path, bytes(body), headers)[0])
        except OSError as error:
            status = type(error).__name__
        refused[status] = refused.get(status, 0) + 1


def asked(host: str, method: str, path: str, body: bytes | None = None, headers: Any = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def by_http(chromium: Any, folder: Path, uploads: int, shots: Path | None, found: list[str]) -> dict[str, Any]:
    served = Served(folder, "phone.json", "--host", "0.0.0.0", "--expect", "2", "--timeout", "60")
    page, other = opened(chromium, served.url), opened(chromium, served.url)
    looked_at(page, "before", shots, found)
    context = page.locator("#context").inner_text()
    lacks = page.locator("#devices small").all_inner_texts()
    page.locator("#name").fill("My phone")
    page.locator("#start").tap()
    refused: dict[str, int] = {}
    attack = threading.Thread(target=noise, args=(served.url, uploads, refused))
    attack.start()
    page.locator("#note").get_by_text("round 1").wait_for(timeout=DONE_MS)
    looked_at(page, "measuring", shots, found)
    page.reload()
    page.locator("#note").get_by_text("round 2").wait_for(timeout=DONE_MS)
    page.context.set_offline(True)
    other.locator("#name").fill("Another phone")
    other.locator("#start").tap()
    other.locator("#note").get_by_text("round 2").wait_for(timeout=DONE_MS)
    other.context.close()
    page.context.set_offline(False)
    page.locator("#sent").get_by_text("arrived").wait_for(timeout=DONE_MS)
    looked_at(page, "after", shots, found)
    attack.join()
    code = served.ended()
    half = json.loads((folder / "phone-2.json").read_text()) if (folder / "phone-2.json").is_file() else None
    return {
        "context": context,
        "lacks": lacks,
        "uploads_refused": refused,
        "uploads": sum(refused.values()),
        "taken": refused.get("200", 0),
        "exit_code": code,
        "closed_half_way": None
        if half is None
        else {
            "measured": len(half["measurements"]),
            "failures": [one["reason"] for one in half["failures"]],
            "warning": half["measurements"][0]["warnings"][0] if half["measurements"] else None,
        },
        "said": [re.sub(r"^\[[^]]*\] ", "", line.strip()) for line in served.lines if "phone" in line],
    }


def by_https(chromium: Any, folder: Path, shots: Path | None, found: list[str]) -> dict[str, Any]:
    flags = ["--https", "--host", "0.0.0.0", "--device", "web:wasm-threads", "--device", "web:webgpu"]
    served = Served(folder, "secure.json", *flags)
    page = opened(chromium, served.url)
    context = page.locator("#context").inner_text()
    page.locator("#name").fill("Secure phone")
    whole(page, "https", shots, found)
    code = served.ended()
    document = json.loads((folder / "secure.json").read_text())
    gpu = [one for one in document["measurements"] if one["device"] == "web:webgpu"]
    return {
        "context": context,
        "exit_code": code,
        "failures": [one["reason"] for one in document["failures"]],
        "threads": sorted({one["threads"] for one in document["measurements"]}),
        "software_adapter_told": all(any("no GPU was behind" in text for text in one["warnings"]) for one in gpu),
        "webgpu_measured": len(gpu),
    }


def by_pack(chromium: Any, folder: Path, shots: Path | None, found: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "kdexport", "bench", "tiny.onnx", "same.onnx", *RULE]
    subprocess.run([*command, "--device", "web", "--pack", "page.zip"], cwd=folder, check=True, capture_output=True)
    with zipfile.ZipFile(folder / "page.zip") as archive:
        archive.extractall(folder / "site")
    handler = functools.partial(Quiet, directory=str(folder / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as static:
        threading.Thread(target=static.serve_forever, daemon=True).start()
        page = opened(chromium, f"http://127.0.0.1:{static.server_port}/")
        page.locator("#name").fill("Packed phone")
        whole(page, "pack", shots, found)
        with page.expect_download() as download:
            page.locator("#download").tap()
        download.value.save_as(folder / "packed.json")
        static.shutdown()
    return {"file": download.value.suggested_filename, "bytes": (folder / "packed.json").stat().st_size}


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A web server that knows few types, as many do."""

    extensions_map: ClassVar[dict[str, str]] = {
        ".html": "text/html", ".js": "text/javascript", ".css": "text/css", "": "application/octet-stream",
    }  # fmt: skip

    def log_message(self, *_: Any) -> None:
        pass


def joined(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "kdexport"]
    rule = [*RULE, "--out", "cpu.json", "--quiet"]
    subprocess.run([*command, "bench", "tiny.onnx", "same.onnx", *rule], cwd=folder, check=True, capture_output=True)
    files = ["desk=cpu.json", "phone.json", "secure.json", "packed.json"]
    done = subprocess.run(
        [*command, "report", *files, "--out", "report", "--json"],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    report = json.loads(done.stdout)
    itself, undecided = {}, []
    for one in report["tradeoffs"]:
        for speed in one["speedup"]:
            itself[f"{speed['machine']} {speed['device']}"] = [speed["ratio"], speed["ci95"]]
            if speed["disturbed"]:
                undecided.append(f"{speed['machine']} {speed['device']}: {speed['disturbed']}")
    return {
        "machines": [one["name"] for one in report["machines"]][1:],
        "itself": itself,
        "holds_1.00": {name: not ci or ci[0] <= 1 <= ci[1] for name, (_, ci) in itself.items()},
        "undecided": undecided,
        "outputs": {
            f"{one['machine']} {one['device']} {one['model']}": [
                one["parity"]["max_rel"],
                one["parity"]["argmax_agreement"],
            ]
            for one in report["measurements"]
            if one["parity"]
        },
        "p50_ms": {
            f"{one['machine']} {one['device']} {one['model']}": round(one["latency_ms"]["p50"], 4)
            for one in report["measurements"]
            if "phone" in one["machine"]
        },
    }


def beside(playwright: Any, path: str) -> dict[str, Any]:
    """Measure one model and a copy of it by a page that measures by itself, then by one that is driven."""
    rule = ("--max-seconds", "15")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(make_model(folder, "small"), folder / "same.onnx")
        chromium = browser.launch(playwright, path, webgpu=False)
        served = Served(folder, "serve.json", "--device", "web:wasm", rule=rule, model="small")
        page = opened(chromium, served.url)
        page.locator("#start").tap()
        page.locator("#sent").get_by_text("arrived").wait_for(timeout=DONE_MS)
        chromium.close()
        served.ended()
        driven = [sys.executable, "-m", "kdexport", "bench", "small.onnx", "same.onnx", "--device", "web", *rule]
        subprocess.run([*driven, "--out", "web.json", "--quiet"], cwd=folder, check=True, capture_output=True)
        found = {}
        for way in ("serve", "web"):
            first, second = from_json(BenchResult, json.loads((folder / f"{way}.json").read_text())).measurements
            ratio, interval = speedup(first.latency_ms, second.latency_ms)
            found[way] = {
                "p50_ms": first.latency_ms.p50,
                "p50_ci95": first.latency_ms.p50_ci95,
                "against_itself": [ratio, interval],
                "rounds": len(first.latency_ms.rounds_p50),
            }
        return found


def prefer_pages() -> None:
    """Let all that this process starts go before other work, again and again; nothing unless root.

    Linux shares a busy machine out among sessions, and a browser makes one of its own.
    """
    while True:
        for pid in [os.getpid(), *processes.descendants(os.getpid())]:
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/autogroup").write_text("-14")
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uploads", type=int, default=1000)
    parser.add_argument("--shots", type=Path, help="where pictures of the page go")
    parser.add_argument("--beside", action="store_true", help="compare with --device web alone")
    flags = parser.parse_args()
    if flags.shots:
        flags.shots.mkdir(parents=True, exist_ok=True)
    found: list[str] = []
    threading.Thread(target=prefer_pages, daemon=True).start()
    chosen = browser.find()
    if flags.beside:
        with sync_playwright() as playwright, OtherLoad() as load:
            compared = [beside(playwright, str(chosen.path)) for _ in range(2)]
        keep("serve_phone_beside", {"browser": f"{chosen.name} {chosen.version}", "runs": compared}, load)
        return
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright, OtherLoad() as load:
        folder = Path(name)
        shutil.copy(make_model(folder, "tiny"), folder / "same.onnx")
        chromium = browser.launch(playwright, str(chosen.path), webgpu=True, software=True)
        over_http = by_http(chromium, folder, flags.uploads, flags.shots, found)
        over_https = by_https(chromium, folder, flags.shots, found)
        packed = by_pack(chromium, folder, flags.shots, found)
        chromium.close()
        together = joined(folder)
    document = {
        "browser": f"{chosen.name} {chosen.version}",
        "onnxruntime_web": runtime.VERSION,
        "http": over_http,
        "https": over_https,
        "pack": packed,
        "report": together,
        "axe": found,
    }
    keep("serve_phone", document, load)
    assert not found, found
    assert over_http["taken"] == 0, "a malformed upload was taken"
    decided = {name for name in together["itself"] if not any(one.startswith(name) for one in together["undecided"])}
    assert all(together["holds_1.00"][name] for name in decided), "a model is faster than its copy"


if __name__ == "__main__":
    main()
