"""Measured in a real browser, where Chromium and onnxruntime-web are there."""

import os
import queue
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdexport.bench import stage
from kdexport.bench.plan import Settings, WebSettings
from kdexport.bench.process import ChildError
from kdexport.bench.warnings import in_words
from kdexport.bench.web import browser, processes, runtime
from kdexport.bench.web.devices import web_device
from kdexport.bench.worker_group import child_for
from kdexport.errors import KDExportError
from kdexport.onnx.describe import describe_file
from kdexport.onnx.sessions import OnnxSession
from kdexport.results import BenchResult


@pytest.fixture(scope="module")
def web() -> WebSettings:
    """The browser and the runtime of this machine; tests fetch nothing."""
    folder = os.environ.get("KDEXPORT_WEB_RUNTIME")
    held = runtime.find(Path(folder)) if folder else runtime.cached()
    if held is None:
        pytest.skip("onnxruntime-web is not in the cache: `kdexport bench --device web` fetches it")
    try:
        browser.check_playwright()
        found = browser.find()
    except KDExportError as error:
        pytest.skip(f"no browser to measure in: {error.message}")
    return WebSettings(str(found.path), str(held.folder), found.name, found.version, held.version)


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """A model that onnxruntime-web cannot run: an operator of somebody's own."""
    path = tmp_path_factory.mktemp("odd") / "odd.onnx"
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Whirl", ["x"], ["y"], domain="com.example")], "g", value[:1], value[1:]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def test_a_model_is_measured_in_a_browser(web, models, once, tmp_path) -> None:
    settings = once.model_copy(update={"devices": ("web",), "browser": web.browser, "web_runtime": web.runtime})
    result = stage.bench([describe_file(models / "a.onnx")], settings, name="w", samples_file=tmp_path / "s.npz")
    (one,) = result.measurements
    assert (one.model, one.device, one.provider, one.placement) == ("a", "web:wasm", "wasm", {"wasm": 1.0})
    assert one.browser is not None
    assert (one.browser.name, one.browser.version, one.browser.isolated) == (
        web.browser_name,
        web.browser_version,
        False,
    )
    assert 0 < one.browser.clock_ms <= 1
    assert one.browser.calls_per_sample * one.latency_ms.mean >= 40 * one.browser.clock_ms
    assert one.latency_ms.p99 is one.latency_ms.p90 is one.memory_mib.peak_rss is one.energy_mj is None
    assert one.memory_mib.wasm_heap is not None
    assert one.memory_mib.wasm_heap >= 16
    assert min(one.load_ms, one.first_run_ms) > 0
    assert any("mean of" in text and "the browser's clock steps by" in text for text in one.warnings)
    assert one.throughput_per_s == pytest.approx(1000 / one.latency_ms.mean, rel=0.01)
    assert result.machine.versions["onnxruntime-web"] == web.runtime_version
    assert not result.failures
    with np.load(tmp_path / "s.npz") as raw:
        assert raw["a|web:wasm|1|1"].size == one.latency_ms.samples


def files_of_other_kinds(folder: Path) -> dict[Path, dict[str, np.ndarray]]:
    """Weights in a file of their own, other precisions, ids and a mask, pixels, an output of the data's size."""
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((8, 8)).astype(np.float32)
    value, made = helper.make_tensor_value_info, {}

    def save(name: str, nodes, inputs, outputs, feed, held=None, **kwargs) -> None:
        held = [numpy_helper.from_array(array, key) for key, array in (held or {}).items()]
        graph = helper.make_graph(nodes, "g", inputs, outputs, held)
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / name, **kwargs
        )
        made[folder / name] = feed

    node = helper.make_node
    (folder / "weights").mkdir()
    for name, kind, dtype, kwargs in (
        ("external", TensorProto.FLOAT, np.float32, {"save_as_external_data": True, "location": "weights/w.bin"}),
        ("half", TensorProto.FLOAT16, np.float16, {}),
        ("double", TensorProto.DOUBLE, np.float64, {}),
    ):
        x = rng.standard_normal((5, 8)).astype(dtype)
        ends = [value("x", kind, ["n", 8])], [value("y", kind, ["n", 8])]
        more = {"size_threshold": 0, **kwargs} if kwargs else {}
        save(f"{name}.onnx", [node("MatMul", ["x", "w"], ["y"])], *ends, {"x": x}, {"w": weights.astype(dtype)}, **more)
    save(
        "ids.onnx",
        [node("Gather", ["w", "ids"], ["e"]), node("Where", ["m", "e", "zero"], ["y"]), node("Not", ["m"], ["other"])],
        [value("ids", TensorProto.INT64, ["n"]), value("m", TensorProto.BOOL, ["n", 8])],
        [value("y", TensorProto.FLOAT, ["n", 8]), value("other", TensorProto.BOOL, ["n", 8])],
        {"ids": np.array([7, 0, 3]), "m": rng.random((3, 8)) > 0.5},
        {"w": weights, "zero": np.zeros((), np.float32)},
    )
    ends = [value("x", TensorProto.UINT8, ["n", 4])], [value("y", TensorProto.INT64, [2, "k"])]
    save(
        "pixels.onnx",
        [node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), node("NonZero", ["f"], ["y"])],
        *ends,
        {"x": np.array([[0, 255, 0, 3]], np.uint8)},
    )
    return made


def test_outputs_equal_onnx_runtimes_an_operator_that_lacks_is_named_and_no_browser_is_left(
    web, models, odd, tmp_path
) -> None:
    import onnxruntime

    from kdexport.bench.web.session import WebSession

    x = np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(models / "a.onnx")).run(None, {"x": x})[0]
    with WebSession(models / "a.onnx", web_device("web"), Settings(web=web)) as session:
        (found,) = session.run(None, {"x": x})
        started = processes.descendants(session._child.pid)
        assert len(started) > 2
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert (found.argmax(1) == expected.argmax(1)).all()
        assert (OnnxSession(models / "a.onnx", session=session)([x])[0] == found).all()  # what scores by it
        for path, feed in files_of_other_kinds(tmp_path).items():
            session._child.ask(do="load", path=str(path), provider="wasm", threads=1)
            native = onnxruntime.InferenceSession(str(path))
            names = [item.name for item in native.get_outputs()]
            for one, other in zip(session.run(names, feed), native.run(None, feed), strict=True):
                assert one.dtype == other.dtype, path
                np.testing.assert_allclose(one, other, atol=1e-4, err_msg=str(path))
        with pytest.raises(ChildError) as fault:
            session._child.ask(do="load", path=str(odd), provider="wasm", threads=1)
        assert "needs the operator com.example:Whirl" in in_words(str(fault.value), None)
        os.kill(session._child.pid, signal.SIGKILL)
        with pytest.raises(ChildError, match="killed by SIGKILL"):
            session.run(None, {"x": x})
    end = time.monotonic() + 15
    while time.monotonic() < end and any(running(pid) for pid in started):
        time.sleep(0.05)
    assert not [pid for pid in started if running(pid)]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_browser_that_does_not_start_is_one_models_failure_in_words(web, models, tmp_path) -> None:
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho no display >&2\nexit 1\n")
    broken.chmod(0o755)
    settings = Settings(web=WebSettings(str(broken), web.runtime, "Chromium", "1", web.runtime_version))
    with (
        child_for("a", web_device("web"), settings) as child,
        pytest.raises(KDExportError, match="does not start") as fault,
    ):
        child.ask(do="ready")
    assert "--browser PATH" in fault.value.hint


def test_a_phones_page_measures_and_its_result_arrives(web, models, once, monkeypatch) -> None:
    """From the address to the bench result: 390 pixels, touch, over http."""
    from playwright.sync_api import sync_playwright

    from kdexport.bench.web import serve
    from kdexport.progress import Silent

    monkeypatch.setattr(serve, "ANSWER_SECONDS", 0.2)
    settings = once.model_copy(update={"devices": ("web:wasm",), "web_runtime": web.runtime, "timeout_s": 60.0})
    request = stage.BenchRequest([describe_file(models / "a.onnx")], settings, "phones")
    opened: queue.Queue[str] = queue.Queue()
    faults: list[str] = []

    def answer() -> tuple[BenchResult, ...]:
        return serve.serve(
            request, host="127.0.0.1", port=0, https=False, expect=1, finished=lambda *_: None, progress=Silent(),
            announce=lambda address: opened.put(address.urls[0]),
        )  # fmt: skip

    def visit() -> None:  # in a thread of its own: playwright takes a loop for each, and other tests keep theirs open
        with sync_playwright() as playwright:
            chromium = browser.launch(playwright, web.browser, webgpu=False)
            shape = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
            page = chromium.new_context(**shape).new_page()
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.goto(opened.get(timeout=60))
            page.locator("#name").fill("Mine")
            assert page.evaluate("document.documentElement.scrollWidth") == 390
            page.locator("#start").tap()
            page.locator("#sent").get_by_text("arrived").wait_for(timeout=120_000)
            assert page.locator("#table tbody tr").count() == 1
            chromium.close()

    with ThreadPoolExecutor(2) as pool:
        served = pool.submit(answer)
        pool.submit(visit).result()
        (result,) = served.result(60)
    (one,) = result.measurements
    assert (one.model, one.machine, one.device, one.placement) == ("a", "Mine", "web:wasm", {"wasm": 1.0})
    assert result.machine.versions["onnxruntime-web"] == web.runtime_version
    assert one.memory_mib.wasm_heap is not None
    assert one.parity is not None
    assert (one.parity.passed, one.parity.samples, one.parity.argmax_agreement) == (True, 1, 1.0)
    assert not faults
    assert not result.failures
