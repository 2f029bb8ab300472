"""A second real provider: OpenVINO, where its wheel is installed (an environment of its own; see bench_openvino.py)."""

import numpy as np
import onnxruntime
import pytest

from kdexport.bench import devices, doctor
from kdexport.bench.session import _providers, check_placement, open_session, options_for, placement
from kdexport.bench.stage import bench
from kdexport.errors import DeviceError
from kdexport.onnx.describe import describe_file
from kdexport.recipe import Bench

NAME = "OpenVINOExecutionProvider"
here = pytest.mark.skipif(
    NAME not in onnxruntime.get_available_providers(),
    reason="this ONNX Runtime has no OpenVINO in it: pip install onnxruntime-openvino, in an environment of its own",
)


@here
def test_the_whole_model_lies_on_openvino_and_gives_the_cpus_outputs(models):
    path = str(models / "a.onnx")
    session, _ = open_session(path, NAME, {}, 1)
    check_placement("linear", devices.Device("openvino", NAME), {
        "providers": session.get_providers(), "placement": placement(session),
    }, allow_fallback=False)  # fmt: skip
    assert list(placement(session)) == [NAME]
    sample = {session.get_inputs()[0].name: np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)}
    cpu, _ = open_session(path, "CPUExecutionProvider", {}, 1)
    assert session.run(None, sample)[0] == pytest.approx(cpu.run(None, sample)[0], rel=1e-4, abs=1e-5)


@here
def test_bench_measures_both_devices_and_the_profile_says_that_it_is_one_operator(models):
    settings = Bench(devices=("cpu", "openvino"), profile=True, rounds=1, min_seconds=0.02, max_seconds=1.0)
    result = bench([describe_file(models / "a.onnx")], settings, name="linear")
    assert not result.failures
    rows = {one.device: one for one in result.measurements}
    assert rows["openvino"].placement == {NAME: 1.0}
    assert [one.provider for one in rows["openvino"].profile.operators] == [NAME]


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({}, {"num_of_threads": "3"}),
        ({"num_of_threads": "1"}, {"num_of_threads": "1"}),
        ({"device_type": "GPU"}, {"device_type": "GPU"}),
        ({"load_config": "ov.json"}, {"load_config": "ov.json"}),
    ],
)
def test_openvino_takes_as_many_threads_as_are_measured(given, chosen, monkeypatch):
    """Left alone it took both of two cores where one thread was measured: 20.8 ms of 41.9 ms of CPU time a call."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [NAME])
    assert _providers(NAME, given, options_for(3))[0] == (NAME, chosen)


@here
def test_doctor_runs_a_model_on_it():
    check = doctor._provider(NAME)
    assert (check.name, check.status) == ("device openvino", "ok")


def test_a_plugin_that_offers_no_device_is_told_as_such(monkeypatch):
    plugin = devices.Plugin("onnxruntime-ep-openvino", "1.8.1", "/lib/openvino.so", None, (NAME,))
    monkeypatch.setattr(devices, "installed", lambda: [plugin])
    monkeypatch.setattr(devices, "register", lambda _: {})
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)
    with pytest.raises(DeviceError) as caught:
        devices.find(["openvino"], ["CPUExecutionProvider"], {})
    assert caught.value.message == (
        "device 'openvino' is not there: onnxruntime-ep-openvino 1.8.1 is installed, and offers no "
        "device on this machine"
    )
    assert "pip install onnxruntime-openvino" in caught.value.hint
    (check,) = doctor._plugins()
    assert (check.status, "offers no device here" in check.message, NAME in check.message) == ("note", True, True)


def test_a_plugin_with_a_device_is_ok(monkeypatch):
    plugin = devices.Plugin("onnxruntime-ep-openvino", "1.8.1", "/lib/openvino.so", None, (NAME,))
    monkeypatch.setattr(devices, "installed", lambda: [plugin])
    monkeypatch.setattr(devices, "register", lambda _: {})
    found = type("Found", (), {"ep_name": NAME})()
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [found])
    assert [check.status for check in doctor._plugins()] == ["ok"]
