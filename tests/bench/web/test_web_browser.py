"""Measured in a real browser, where Chromium and onnxruntime-web are there."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kdexport.bench import stage
from kdexport.bench.plan import Settings, WebSettings
from kdexport.bench.process import ChildError
from kdexport.bench.warnings import in_words
from kdexport.bench.web import browser, processes, runtime
from kdexport.bench.web.devices import web_device
from kdexport.bench.worker_group import child_for
from kdexport.errors import KDExportError
from kdexport.onnx.describe import describe_file


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


def test_outputs_equal_onnx_runtimes_an_operator_that_lacks_is_named_and_no_browser_is_left(web, models, odd) -> None:
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
