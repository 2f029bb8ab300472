"""A page for other devices: what is taken from them, what comes of it, and who is turned away. Without a browser."""

import contextlib
import http.client
import json
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kdexport import statistics
from kdexport.bench.stage import BenchRequest
from kdexport.bench.web import (
    address,
    certificate,
    connections,
    page_machine,
    page_pack,
    recording,
    runtime,
    serve,
    site,
)
from kdexport.bench.web.server import MOST_BODY, PageServer
from kdexport.cli import bench_serve
from kdexport.errors import KDExportError
from kdexport.onnx.describe import describe_file
from kdexport.progress import Silent
from kdexport.report.reading import read_benches
from kdexport.results import dumps

PAGE = Path(site.__file__).with_name("page")
PHONE = (
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Mobile Safari/537.36"
)
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 "
    "Mobile/15E148 Safari/604.1"
)


@pytest.fixture(scope="module")
def runtime_folder(tmp_path_factory) -> Path:
    """What stands in for onnxruntime-web where nothing runs it."""
    folder = tmp_path_factory.mktemp("runtime")
    for name in runtime.FILES:
        (folder / name).write_bytes(name.encode())
    (folder / "package.json").write_text('{"name": "onnxruntime-web", "version": "1.2.3"}')
    return folder


@pytest.fixture(scope="module")
def request_(models, quick, runtime_folder) -> BenchRequest:
    files = [describe_file(models / "a.onnx"), describe_file(models / "b.onnx")]
    settings = quick.model_copy(update={"web_runtime": str(runtime_folder), "batch_sizes": (1, 3)})
    return BenchRequest(files, settings, "two", recipe={"name": "two"})


@pytest.fixture(scope="module")
def built(request_) -> site.Site:
    return site.build(request_, "s1", sends=True)


def result(model: str = "a", batch: int = 1, rounds: int = 3, **changes) -> dict:
    rng = np.random.default_rng(batch)
    log = ["All nodes placed on [CPUExecutionProvider]. Number of nodes: 1"]
    parts = [
        {
            "load_ms": 3.0, "first_run_ms": 1.5, "stable": True, "nan": [], "calls_per_sample": 4, "clock_ms": 0.1,
            "turns": [[int(x) for x in rng.integers(1_000_000, 1_100_000, 5)] for _ in range(2)],
        }
        for _ in range(rounds)
    ]  # fmt: skip
    return {
        "model": model, "device": "web:wasm", "batch_size": batch, "threads": 1, "failure": None,
        "memory": {"wasm_heap": 16.0, "page": None}, "placement_log": log, "rounds": parts, **changes,
    }  # fmt: skip


def recorded(*results: dict, complete: bool = True, **device) -> dict:
    told = {
        "id": "0123456789abcdef01234567", "name": "My phone", "agent": PHONE, "platform": "Android",
        "platform_version": "14.0.0", "model": "Pixel 7", "cores": 8, "secure": False, "isolated": False, "simd": True,
        "adapter": None, **device,
    }  # fmt: skip
    return {
        "format": "kdexport recording", "version": 1, "session": "s1", "started": "2026-11-26T04:00:00.000Z",
        "complete": complete, "device": told, "results": list(results),
    }  # fmt: skip


WHOLE = tuple(result(model, batch) for batch in (1, 3) for model in ("a", "b"))


def test_a_recording_becomes_a_bench_result_by_the_same_statistics(built) -> None:
    document = recorded(*WHOLE)
    made = recording.bench_of(recording.read(json.dumps(document), built.document), built.document)
    assert made.machine.name == "My phone"
    assert (made.machine.system, made.machine.cpu, made.machine.cores) == ("Android 14.0.0", "Pixel 7", 8)
    assert made.machine.python is made.machine.memory_mib is None
    assert made.machine.versions["onnxruntime-web"] == "1.2.3"
    assert made.machine.versions["Chrome"] == "141.0.0.0"
    assert [model.name for model in made.models] == ["a", "b"]
    assert not made.failures
    assert len(made.measurements) == 4
    one = made.measurements[0]
    samples = [np.concatenate(part["turns"]) for part in WHOLE[0]["rounds"]]
    assert one.latency_ms.p50 == pytest.approx(float(np.median(np.concatenate(samples))) / 1e6)
    assert one.latency_ms.p50_ci95 == statistics.median_interval([part / 1e6 for part in samples])
    assert len(one.latency_ms.turns_p50[0]) == 2
    assert one.latency_ms.p99 is one.memory_mib.peak_rss is one.energy_mj is None
    assert one.memory_mib.wasm_heap == 16.0
    assert one.placement == {"wasm": 1.0}
    assert one.throughput_per_s == pytest.approx(1e9 / np.concatenate(samples).mean())
    assert one.browser is not None
    assert (one.browser.name, one.browser.calls_per_sample, one.browser.clock_ms) == ("Chrome", 4, 0.1)
    assert any("mean of 4 calls" in text for text in one.warnings)
    assert not any("governor" in text or "cores" in text for text in one.warnings)  # of this machine, not of that


def first_time(value: str):
    """Put a value before the first time that a recording holds."""
    return lambda document: json.dumps(document).replace('"turns": [[', f'"turns": [[{value}, ', 1)


def with_results(*results):
    return lambda document: json.dumps({**document, "results": list(results)})


BAD = {
    "no JSON": lambda document: "{" + json.dumps(document),
    "empty": lambda _: "",
    "a list": lambda _: "[]",
    "deep": lambda _: "[" * 100_000,
    "another session": lambda document: json.dumps({**document, "session": "s2"}),
    "a later version": lambda document: json.dumps({**document, "version": 2}),
    "a further key": lambda document: json.dumps({**document, "evil": 1}),
    "a further key within": with_results(result(evil=1)),
    "NaN": with_results(result(memory={"wasm_heap": float("nan"), "page": 1})),
    "a time below zero": first_time('-5'),
    "a time of zero": first_time('0'),
    "a time of a year": first_time('31536000000000000'),
    "half a nanosecond": first_time('0.5'),
    "a time as text": first_time('"5"'),
    "no turns": with_results(result(rounds=1) | {"rounds": [{}]}),
    "another model": with_results(result("c")),
    "another device": with_results(result(device="cpu")),
    "another batch": with_results(result(batch=2)),
    "threads without them": with_results(result(threads=4)),
    "the same twice": with_results(result(), result()),
    "complete without figures": with_results(result(rounds=0)),
    "a path for an id": lambda document: json.dumps(document).replace("0123456789abcdef01234567", "../../etc/x"),
    "a long name": lambda document: json.dumps(document).replace("My phone", "x" * 61),
    "no text": lambda _: b"\xff\xfe\x00",
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_recording_of_this_plan_is_refused_and_loses_nothing(built, kind: str) -> None:
    devices = serve.Devices(built.document, Silent())
    text = BAD[kind](recorded(*WHOLE))
    status, answer = devices.receive(text if isinstance(text, bytes) else text.encode())
    assert status == (409 if kind == "another session" else 400)
    assert len(answer["error"]) < 1000
    assert not devices._heard
    assert devices.receive(json.dumps(recorded(*WHOLE)).encode())[0] == 200


def test_a_name_that_would_steer_a_terminal_is_one_plain_line(built) -> None:
    found = recording.read(json.dumps(recorded(*WHOLE, name="a\x1b[2J\nb\u202e")), built.document)
    assert found.device.name == "a [2J b"


@pytest.mark.parametrize(
    ("agent", "browser", "system"),
    [
        (PHONE, ("Chrome", "141.0.0.0"), "Android"),
        (IPHONE, ("Safari", "17.5"), "iOS 17.5 (iPhone)"),
        (IPHONE.replace("Version/17.5", "CriOS/141.0.1"), ("Chrome", "141.0.1"), "iOS 17.5 (iPhone)"),
        ("Mozilla/5.0 (Android 13; Mobile; rv:1) Gecko/1 Firefox/131.0", ("Firefox", "131.0"), "Android 13 (Mobile)"),
        ("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/60.5 Safari/605.1.15",
         ("WebKit", "60.5"), "X11; Linux x86_64"),
        ("curl", (None, None), "not told"),
    ],
)  # fmt: skip
def test_a_user_agent_says_browser_and_system(built, agent, browser, system) -> None:
    told = recording.read(
        json.dumps(
            recorded(agent=agent, platform=None),
        ),
        built.document,
    ).device
    assert page_machine.browser_of(told.agent) == browser
    assert page_machine.system_of(told) == system
    # WebKit, which all browsers of iOS have, says 4 or 8 cores of whatever machine.
    assert page_machine.machine_of(told, "m", "1").cores == (
        8 if browser[0] in ("Firefox", None) or "Linux; A" in agent else None
    )


def test_what_a_device_could_not_do_is_a_failure_in_words(built) -> None:
    log = [
        "Node(s) placed on [CPUExecutionProvider]. Number of nodes: 1", "  NonZero (",
        "Node(s) placed on [WebGpuExecutionProvider]. Number of nodes: 2", "  MatMul (", "  Relu (",
    ]  # fmt: skip
    lacks = "Error: Can't create a session. ERROR_CODE: 9, ERROR_MESSAGE: Could not find an implementation for Det(11)"
    results = [
        result(failure=lacks),
        result("b", failure="RangeError: Array buffer allocation failed"),
        result(device="web:webgpu", placement_log=log),
        result("b", device="web:wasm-threads", threads=4, failure="it needs https", rounds=0),
    ]  # fmt: skip
    made = recording.bench_of(recording.read(json.dumps(recorded(*results)), built.document), built.document)
    assert not made.measurements
    reasons = [one.reason for one in made.failures]
    assert "onnxruntime-web 1.2.3 has no operator Det of opset 11" in reasons[0]
    assert "does not fit in memory" in reasons[1]
    assert "1 of 3 nodes fell back to wasm (NonZero)" in reasons[2]
    assert reasons[3] == "it needs https"


def finished(devices: serve.Devices, timeout_s: float = 60, expect: int = 1) -> list:
    results: dict[int, object] = {}
    devices.wait(timeout_s, expect, lambda one, number: results.__setitem__(number, one), lambda: 0.0)
    return [results[number] for number in sorted(results)]


def test_a_device_that_falls_silent_is_told_with_what_it_had(built, monkeypatch) -> None:
    monkeypatch.setattr(serve, "LOOK_SECONDS", 0.001)
    now = [100.0]
    devices = serve.Devices(built.document, Silent(), lambda: now.__setitem__(0, now[0] + 1) or now[0])
    half = recorded(WHOLE[0], result("a", 3, rounds=1), result("b", rounds=0), complete=False)
    assert devices.receive(json.dumps(half).encode())[0] == 200
    (made,) = finished(devices, timeout_s=10)
    assert [(one.model, one.batch_size) for one in made.measurements] == [("a", 1), ("a", 3)]
    assert made.measurements[0].warnings[0].startswith("nothing was heard from it for 10 s: this holds what was")
    assert [(one.model, one.reason) for one in made.failures] == [
        ("a", "nothing was heard from it for 10 s, after 1 of at least 3 rounds"),
        ("b", "nothing was heard from it for 10 s"),
    ]
    assert devices.receive(json.dumps(recorded(*WHOLE)).encode())[0] == 404  # too late, and said


def test_several_devices_have_names_of_their_own_and_the_same_twice_is_one(built, monkeypatch) -> None:
    monkeypatch.setattr(serve, "LOOK_SECONDS", 0.001)
    devices = serve.Devices(built.document, Silent())
    for identity in ("a" * 24, "b" * 24, "b" * 24):
        assert devices.receive(json.dumps(recorded(*WHOLE, id=identity)).encode())[0] == 200
    less = recorded(WHOLE[0], complete=False, id="c" * 24)
    assert devices.receive(json.dumps(less).encode())[0] == 200
    assert devices.receive(json.dumps({**less, "results": []}).encode())[0] == 409  # an older one that came late
    assert devices.receive(json.dumps(recorded(*WHOLE, id="c" * 24)).encode())[0] == 200
    assert [one.machine.name for one in finished(devices, expect=3)] == ["My phone", "My phone-2", "My phone-3"]


def test_nobody_comes(built, monkeypatch) -> None:
    monkeypatch.setattr(serve, "LOOK_SECONDS", 0.001)
    with pytest.raises(KDExportError, match="no device has measured within 0") as fault:
        finished(serve.Devices(built.document, Silent()), timeout_s=0.01)
    assert "--host" in fault.value.hint


@pytest.fixture(scope="module")
def served(built):
    devices = serve.Devices(built.document, Silent())
    server = PageServer(built.files, isolated=True, receivers={"recording": devices.receive})
    yield server, devices
    server.close()


def posted(server: PageServer, body: bytes, name: str = "recording", token: str | None = None, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        path = f"/{token or server.url.split('/')[3]}/{name}"
        given = {"Content-Type": "application/json", **{key.replace("_", "-"): value for key, value in headers.items()}}
        connection.request("POST", path, body, given)
        return connection.getresponse().status
    finally:
        connection.close()


def test_uploads_are_limited_and_a_thousand_bad_ones_keep_nothing_out(served) -> None:
    server, devices = served
    good = json.dumps(recorded(*WHOLE)).encode()
    assert posted(server, good, token="x" * 32) == 404
    assert posted(server, good, name="other") == posted(server, good, name="plan.json") == 404
    assert posted(server, good, Content_Type="text/plain") == 415  # what a form elsewhere can send unasked
    assert posted(server, good, Origin="http://evil.example") == 403
    assert posted(server, good, Host="evil.example") == 404
    assert posted(server, b"", Content_Length=str(MOST_BODY + 1)) == 413
    assert posted(server, b"", Transfer_Encoding="chunked") == 411
    assert posted(server, b"", Content_Length="-1") == posted(server, b"", Content_Length="x") == 411
    rng = random.Random(1)
    for _ in range(40):
        bad = bytearray(good)
        for _ in range(30):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        assert posted(server, bytes(bad)) in (400, 409)
    assert not devices._heard
    assert posted(server, good, Origin=f"http://localhost:{server.port}") == 200
    assert [one.name for one in devices._heard.values()] == ["My phone"]


def test_a_client_that_trickles_is_cut_off_and_one_that_floods_turned_away(served, monkeypatch) -> None:
    server, _ = served
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(connections, "MOST_OF_ONE", 3)
    slow = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    end = time.monotonic() + 5
    with contextlib.suppress(OSError):
        while time.monotonic() < end:
            slow.sendall(b"G")
            time.sleep(0.05)
    assert time.monotonic() < end - 2
    slow.close()
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(8)]
    turned_away = 0
    for one in held[3:]:
        one.settimeout(2)
        try:
            turned_away += one.recv(1) == b""
        except ConnectionError:
            turned_away += 1
    assert turned_away >= 5
    for one in held:
        one.close()
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            if posted(server, b"{}") == 400:
                break
        except OSError:  # those that hang up are not yet counted out
            time.sleep(0.05)
    else:
        pytest.fail("the server does not come back")


def test_the_token_without_its_slash_leads_to_the_page_and_hosts_are_this_machines(served) -> None:
    server, _ = served
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", f"/{server.url.split('/')[3]}")
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Location")) == (308, f"/{server.url.split('/')[3]}/")
    connection.close()
    port = server.port
    for host in (f"localhost:{port}", f"192.168.7.9:{port}", f"[fe80::1]:{port}", f"LOCALHOST:{port}"):
        assert server.is_own(host)
    others = (f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", f"x.localhost:{port}", "127.0.0.1:1", "[::1")
    for host in (None, "", "localhost", "127.0.0.1:x", *others):
        assert not server.is_own(host)
    assert server.url_at("2001:db8::5").startswith(f"http://[2001:db8::5]:{port}/")


@pytest.mark.parametrize("with_openssl", [False, True])
def test_https_is_for_its_names_tells_plain_http_and_waits_for_nobody(built, monkeypatch, with_openssl) -> None:
    if with_openssl:
        if shutil.which("openssl") is None:
            pytest.skip("no openssl on PATH")
        monkeypatch.setattr(certificate.importlib.util, "find_spec", lambda _: None)
    elif certificate.importlib.util.find_spec("cryptography") is None:
        pytest.skip("cryptography is not installed")
    context, fingerprint = certificate.context_for(["127.0.0.1", "localhost", "fd00::1"])
    assert len(fingerprint) == 95
    server = PageServer({"index.html": b"page"}, isolated=True, tls=context)
    silent = socket.create_connection(("127.0.0.1", server.port), timeout=5)  # one that begins no TLS holds up nobody
    try:
        raw = ssl.get_server_certificate(("127.0.0.1", server.port), timeout=10)
        trusting = ssl.create_default_context(cadata=raw)
        for name in ("127.0.0.1", "localhost"):
            connection = http.client.HTTPSConnection(name, server.port, timeout=10, context=trusting)
            connection.request("GET", f"/{server.url.split('/')[3]}/")
            assert connection.getresponse().read() == b"page"
            connection.close()
        assert server.url.startswith("https://")
        plain = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        plain.request("GET", "/")
        assert b"put https:// before" in plain.getresponse().read()
        plain.close()
    finally:
        silent.close()
        server.close()


def test_a_host_that_is_none_of_this_machines_and_a_port_in_use_are_said(served) -> None:
    server, _ = served
    with pytest.raises(KDExportError, match="cannot be had") as fault:
        PageServer({}, isolated=False, host="192.0.2.77")
    assert "address of this machine" in fault.value.hint
    with pytest.raises(KDExportError, match="is no address"):
        PageServer({}, isolated=False, host="no such host.")
    with pytest.raises(KDExportError, match="Address already in use"):
        PageServer({}, isolated=False, port=server.port)


def test_addresses_are_those_that_others_can_open_and_the_code_is_that_address(monkeypatch) -> None:
    assert address.addresses("127.0.0.1") == ["127.0.0.1"]
    found = address.addresses("0.0.0.0")
    assert found
    assert not any("%" in one or one.startswith(("127.0.0.2", "169.254.", "fe80")) for one in found)
    assert address.half_blocks([[1, 0], [1, 1], [0, 0]], color=False) == " ▀\n██"
    assert address.half_blocks([[1, 0], [1, 1], [0, 0]], color=True).count("█") == 1
    two = serve.Address(("http://10.0.0.2:80/x/", "http://172.17.0.1:80/x/"), 80, False, None)
    shown = bench_serve.announcement(two, color=False, encoding="ascii")
    assert "http://172.17.0.1:80/x/" in shown
    assert shown.isascii()  # a terminal that has no blocks gets no code
    here = serve.Address(("http://127.0.0.1:80/x/",), 80, True, None)
    for there in (None, "/usr/bin/adb"):
        monkeypatch.setattr(shutil, "which", lambda _, there=there: there)
        shown = bench_serve.announcement(here, color=True, encoding="utf-8")
        assert "adb reverse tcp:80 tcp:80" in shown
        assert "USB debugging" in shown
        assert ("apt install adb" in shown) == (there is None)


def test_a_packed_page_names_only_what_it_holds_and_its_result_is_reported_on(request_, tmp_path) -> None:
    packed = page_pack.pack(request_, tmp_path / "p.zip")
    with zipfile.ZipFile(tmp_path / "p.zip") as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        names = set(sizes)
        plan = json.loads(archive.read("plan.json"))
        page = archive.read("index.html").decode()
    assert packed.devices == ("web:wasm", "web:wasm-threads", "web:webgpu")
    assert {name: file["bytes"] for name, file in plan["files"].items()} == {
        name: sizes[name] for name in plan["files"]
    }
    assert f"const PLAN_VERSION = {plan['version']};" in (PAGE / "device.js").read_text()
    assert set(plan["files"]) | {"index.html", "device.js", "device.css", "plan.js", "measure.js", "worker.js"} <= names
    assert plan["sends"] is False
    assert "http:" not in page
    assert "https:" not in page
    assert not any("recipe" in key or str(tmp_path) in json.dumps(plan) for key in plan)
    assert page_pack.pack(request_, tmp_path / "q.zip").size_bytes == packed.size_bytes
    saved = {**recorded(*WHOLE), "session": plan["session"], "plan": plan}
    (tmp_path / "phone.json").write_text(json.dumps(saved))
    from kdexport.cli.report import _of_page

    (bench,) = read_benches(f"mine={tmp_path / 'phone.json'}", _of_page)
    assert bench.machine.name == "mine"
    assert bench.created == "2026-11-26T04:00:00.000Z"
    assert len(bench.measurements) == 4
    (tmp_path / "bench.json").write_text(dumps(bench))
    assert read_benches(str(tmp_path / "bench.json"), _of_page) == (bench,)
    for bad in ({**saved, "plan": 1}, {**saved, "plan": {**plan, "settings": {"x": 1}}}, {**saved, "session": "x"}):
        (tmp_path / "phone.json").write_text(json.dumps(bad))
        with pytest.raises(KDExportError):
            read_benches(str(tmp_path / "phone.json"), _of_page)


def test_other_devices_and_flags_of_serve_alone_are_refused(request_, tmp_path) -> None:
    assert site.devices_of(("cpu",)) == (("web:wasm", "web:wasm-threads", "web:webgpu"), False)
    assert site.devices_of(("web", "web:wasm", "web:webgpu")) == (("web:wasm", "web:webgpu"), True)
    with pytest.raises(KDExportError, match="not on 'cuda'"):
        site.devices_of(("web", "cuda"))
    with pytest.raises(KDExportError, match="--https is of --serve"):
        bench_serve.check_flags({"--host": None, "--https": True}, serve=False, pack=None, remote=None)
    with pytest.raises(KDExportError, match="--serve and --pack"):
        bench_serve.check_flags({}, serve=True, pack=Path("x"), remote=None)


SCRIPT = """
const { enough, halfWidth, ratios, conditions, unsteadiness } = await import(process.argv[1]);
const given = JSON.parse(process.argv[2]);
console.log(JSON.stringify({
  width: halfWidth(given.values), ratio: halfWidth(ratios(given.a, given.b)),
  enough: given.settings.map((one) => enough([given.a, given.b], one, false)),
  unsteady: [unsteadiness(given.a), unsteadiness(given.c)],
  late: enough([given.a, given.b], given.settings[0], true),
  threads: conditions({ devices: ["web:wasm", "web:wasm-threads"], threads: [1] }, {}, 8).map((one) => one.threads),
}));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on PATH, which runs the page's own plan here")
def test_the_pages_own_stopping_rule_is_the_runners() -> None:
    rng = np.random.default_rng(3)
    a, b = result("a", 1, 5), result("b", 3, 5)
    c = busy(rng)
    values = [float(x) for x in rng.uniform(1, 2, 7)]
    base = {"rounds": 5, "min_runs": 10, "min_seconds": 0.0, "precision": 0.2}
    changes = ({"precision": 1e-9}, {}, {"rounds": 6}, {"min_runs": 51}, {"min_seconds": 9})
    settings = [{**base, **change} for change in changes]
    given = json.dumps({"values": values, "a": a, "b": b, "c": c, "settings": settings})
    done = subprocess.run(
        ["node", "--input-type=module", "-e", SCRIPT, (PAGE / "plan.js").as_uri(), given],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found = json.loads(done.stdout)
    _, (low, high) = statistics.ratio_interval(values, [1.0] * 7, looks=True)
    assert found["width"] == pytest.approx((high - low) / (high + low), rel=1e-3)
    turns = [[[float(np.median(turn)) for turn in part["turns"]] for part in one["rounds"]] for one in (a, b)]
    assert found["ratio"] == pytest.approx(statistics.speedup_precision(*turns), rel=1e-3)
    assert found["enough"] == [False, True, False, False, False]
    assert found["late"] is True
    assert found["threads"] == [1, 4]
    for one, there in zip((a, c), found["unsteady"], strict=True):
        quartiles = [np.quantile(np.concatenate(part["turns"]), (0.75, 0.25)) for part in one["rounds"]]
        assert there == pytest.approx(np.median([high / low for high, low in quartiles]))
    assert found["unsteady"][0] < recording.UNSTEADY < found["unsteady"][1]
    assert f"const UNSTEADY = {recording.UNSTEADY};" in (PAGE / "device.js").read_text()


def busy(rng: np.random.Generator) -> dict:
    """What a device records that does other work beside: calls of 1 ms and of 2."""
    one = result("b", 1, 5)
    for part in one["rounds"]:
        part["turns"] = [[int(x) for x in rng.choice([1_000_000, 2_000_000], 5)] for _ in range(4)]
    return one


def test_no_speed_up_is_decided_by_a_device_that_does_not_keep_its_speed(built) -> None:
    document = recorded(result("a", 1, 5), busy(np.random.default_rng(0)), complete=False)
    made = recording.bench_of(recording.read(json.dumps(document), built.document), built.document)
    steady, unsteady = made.measurements
    assert steady.disturbed is None
    assert made.machine.cores == 8
    for part in document["results"][0]["rounds"]:
        part["clock_ms"] = 16.667  # Firefox's privacy.resistFingerprinting, whose number of cores is made up too
    made = recording.bench_of(recording.read(json.dumps(document), built.document), built.document)
    assert made.machine.cores is None
    assert unsteady.disturbed.startswith("within a round the upper quartile of its calls is 2 times the lower one")
    assert unsteady.warnings[0] == f"{unsteady.disturbed}: no speed-up is decided by this, measure on a quiet machine"
    assert statistics.disturbed(steady, unsteady) == unsteady.disturbed


def test_the_command_writes_shows_and_says_what_failed(request_, tmp_path, monkeypatch, capsys) -> None:
    from kdexport.cli.console import Console

    monkeypatch.setattr(serve, "ANSWER_SECONDS", 0.0)
    monkeypatch.setattr(bench_serve, "announcement", lambda address, **_: phone(address) or "opened\n")

    def phone(where) -> None:
        """Do what a phone does, from a thread of its own."""

        def act() -> None:
            host = where.urls[0].split("/")
            connection = http.client.HTTPConnection(host[2], timeout=10)
            connection.request("GET", f"/{host[3]}/plan.json")
            plan = json.loads(connection.getresponse().read())
            results = [*WHOLE[:3], result("b", 3, failure="out of memory")]
            body = json.dumps({**recorded(*results), "session": plan["session"]})
            connection.request("POST", f"/{host[3]}/recording", body, {"Content-Type": "application/json"})
            connection.getresponse().read()
            connection.close()

        threading.Thread(target=act).start()

    import sys

    console = Console(json=True, quiet=True, verbose=False, stdout=sys.stdout)
    given = bench_serve.serve(
        request_, tmp_path / "phone.json", console, host="127.0.0.1", port=0, https=False, expect=1
    )
    assert given.files == (str(tmp_path / "phone.json"),)
    assert json.loads(capsys.readouterr().out)["results"][0]["machine"]["name"] == "My phone"
    (bench,) = read_benches(str(tmp_path / "phone.json"))
    assert bench.recipe == {"name": "two"}
    assert len(bench.measurements) == 3
    fault = bench_serve.failures(given)
    assert fault is not None
    assert "My phone: b on web:wasm, batch 3: " in fault.message


DEVICE = """
const { measure } = await import(process.argv[1]);
const plan = {
  models: ["a", "b", "bad"].map((name) => ({
    name, url: name, external: [], inputs: { 1: [], 2: [] }, compared: name === "b" ? [] : [["first"], ["second"]],
  })),
  devices: ["web:wasm"], batch_sizes: [1, 2], threads: [1], runtime: { wasm: {} }, empty: "e",
  settings: { rounds: 3, min_seconds: 0.03, max_seconds: 1e-9, min_runs: 1, precision: 1, timeout_s: 1 },
};
let hidden = 0, turns = 0, workers = 0, alive = 0, started = [], order = [];
const notes = [], saved = [];
const host = {
  worker: async () => {
    workers += 1; alive += 1;
    let own;
    return {
      end: () => { alive -= 1; },
      ask: async (task) => {
        if (task.do === "load") started.push(own = task.model);
        else if (task.do === "run") {
          if (own === "bad") throw new Error("too much");
          return { outputs: [{ name: "y", data: task.inputs[0] }] };
        } else if (task.do !== "memory") order.push(`${task.do} ${own}`);
        if (task.model === "bad" && task.do === "prepare") throw new Error("it breaks");
        if (task.do === "memory") return { wasm_heap: 16, page: null, log: ["x  Conv (", "secret"] };
        if (task.do === "prepare") {
          return { first_run_ms: 1, stable: true, nan: [], calls_per_sample: 1, step_ms: 0.1 };
        }
        if (task.do === "turn") {
          turns += 1;
          if (turns === 5) hidden += 1;
          return { samples: [6e6], calls_per_sample: 1 };
        }
        return { load_ms: 2 };
      },
    };
  },
  quiet: async () => {}, disturbed: () => hidden, note: (text) => notes.push(text), at: () => {},
  save: async () => saved.push(JSON.stringify(record)), seconds: () => 0,
};
const chosen = [{ device: "web:wasm", threads: 1, lacks: null }];
let record = { results: [], spent_s: {} };
await measure(plan, chosen, record, host);
const whole = record;
// What a page that was reloaded after the first round finds, and goes on with.
record = JSON.parse(saved.find((text) => JSON.parse(text).results[0].rounds.length === 1));
const before = turns;
await measure(plan, chosen, record, host);
console.log(JSON.stringify({ whole, resumed: record, more: turns - before, alive, notes, started, order }));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on PATH, which runs the page's own plan here")
def test_a_page_goes_on_after_it_was_hidden_failed_once_or_was_loaded_anew() -> None:
    done = subprocess.run(
        ["node", "--input-type=module", "-e", DEVICE, (PAGE / "plan.js").as_uri()],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["alive"] == 0  # each worker is ended
    assert [note for note in found["notes"] if "hidden" in note] == [
        "this page was hidden: that round is measured again"
    ]
    for record in (found["whole"], found["resumed"]):
        rounds = {(one["model"], one["batch_size"]): len(one["rounds"]) for one in record["results"]}
        assert rounds == {("a", 1): 3, ("b", 1): 3, ("bad", 1): 0, ("a", 2): 3, ("b", 2): 3, ("bad", 2): 0}
        assert [one["failure"] for one in record["results"]] == [None, None, "it breaks"] * 2
        assert all(len(part["turns"]) == 2 for one in record["results"] for part in one["rounds"])
    assert found["more"] == 16  # two rounds of two models at two batch sizes, two turns each
    assert found["whole"]["results"][0]["placement_log"] == ["  Conv ("]
    # After six that only told their memory, two whose outputs are compared, at the first batch size.
    assert found["started"][6:11] == ["a", "bad", "a", "b", "bad"]
    calls = [[{"name": "y", "data": data}] for data in ("first", "second")]
    compared = [{"failure": None, "calls": calls}, None, {"failure": "too much", "calls": []}, None, None, None]
    assert [one["compared"] for one in found["resumed"]["results"]] == compared
    # Who goes first changes from round to round and from turn to turn; all are warmed again before the first.
    forth, back = (
        [f"{do} {one}" for do, both in zip(("prepare", "again", "turn", "turn"), orders, strict=True) for one in both]
        for orders in (("ab", "ab", "ab", "ba"), ("ba", "ba", "ba", "ab"))
    )
    assert found["order"][-32:] == [*back, *back, *forth, *forth]


def test_a_device_that_was_given_up_and_comes_back_is_waited_for(built, monkeypatch) -> None:
    monkeypatch.setattr(serve, "LOOK_SECONDS", 0.001)
    now = [100.0]
    devices = serve.Devices(built.document, Silent(), lambda: now[0])
    half = json.dumps(recorded(WHOLE[0], complete=False)).encode()
    assert devices.receive(half)[0] == 200
    assert devices.receive(json.dumps(recorded(complete=False, id="d" * 24)).encode())[0] == 200
    told = []

    def finished_(result, number: int) -> None:
        told.append((number, len(result.measurements)))
        if len(told) == 1:  # it wakes up while another is at work
            devices.receive(json.dumps(recorded(*WHOLE)).encode())

    now[0] += 11
    devices.receive(json.dumps(recorded(complete=False, id="d" * 24)).encode())
    threading.Timer(0.1, lambda: now.__setitem__(0, now[0] + 11)).start()
    devices.wait(10, 1, finished_, lambda: 0.0)
    assert told == [(1, 1), (1, 4), (2, 0)]
