import sys

import pytest

from kdexport.bench import doctor
from kdexport.bench.doctor import diagnose, probe
from kdexport.bench.process import ChildError


def test_this_machine_has_a_cpu_that_takes_the_model():
    checks = {check.name: check for check in diagnose().checks}
    assert checks["device cpu"].status == "ok"
    assert checks["onnxruntime"].status == "ok"
    assert all(check.fix for check in checks.values() if check.status == "fault")


def test_probe_reads_where_the_node_lay():
    assert probe("CPUExecutionProvider") == ["CPUExecutionProvider"]


def test_two_wheels_at_once_are_a_fault_with_the_command():
    (check,) = doctor._wheels({"onnxruntime": "1.30", "onnxruntime-gpu": "1.30"})
    assert check.status == "fault"
    assert check.fix == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"


def test_no_wheel_is_a_fault_with_the_command():
    (check,) = doctor._wheels({})
    assert check.status == "fault"
    assert "kdexport[cpu]" in check.fix


def test_a_provider_that_is_only_listed_is_a_fault(monkeypatch):
    monkeypatch.setattr(doctor, "probe", lambda _: ["CPUExecutionProvider"])
    check = doctor._provider("CUDAExecutionProvider")
    assert (check.name, check.status) == ("device cuda", "fault")
    assert "the model ran on CPUExecutionProvider" in check.message
    assert "kdexport[gpu]" in check.fix


def test_tensorrt_without_its_library_is_no_fault_where_cuda_takes_over(monkeypatch):
    """onnxruntime-gpu lists TensorRT on every machine; seen on an H100 without the library."""
    monkeypatch.setattr(doctor, "probe", lambda _: ["CUDAExecutionProvider"])
    check = doctor._provider("TensorrtExecutionProvider")
    assert (check.name, check.status) == ("device tensorrt", "note")
    assert check.message == "listed, but its own library is not found: the model ran on CUDAExecutionProvider"


def test_a_provider_that_crashes_is_a_fault(monkeypatch):
    def crash(provider):
        raise ChildError("the worker was killed by SIGSEGV")

    monkeypatch.setattr(doctor, "probe", crash)
    assert doctor._provider("OpenVINOExecutionProvider").message == "the worker was killed by SIGSEGV"


@pytest.mark.parametrize(
    ("gpus", "built", "torch", "driver", "status", "message"),
    [
        ((), "", None, None, "note", "no NVIDIA GPU"),
        ((), "12.8", None, None, "fault", "no NVIDIA GPU or driver"),
        (("A10, 24 GiB",), "", "12.8", "12.8", "note", "no CUDA in it"),
        (("A10, 24 GiB",), "13.0", "13.0", "12.4", "fault", "the driver runs up to 12.4"),
        (("A10, 24 GiB",), "12.8", "13.0", "13.0", "note", "two CUDA versions"),
        (("A10, 24 GiB",), "12.8", "12.8", "12.8", "ok", "built for CUDA 12.8"),
    ],
)
def test_cuda_versions_are_held_against_each_other(monkeypatch, gpus, built, torch, driver, status, message):
    import onnxruntime

    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: (gpus, "550" if gpus else None))
    monkeypatch.setattr(doctor, "torch_cuda", lambda: torch)
    monkeypatch.setattr(doctor, "driver_cuda", lambda: driver)
    monkeypatch.setattr(onnxruntime, "cuda_version", built, raising=False)
    last = list(doctor._cuda())[-1]
    assert last.status == status
    assert message in last.message
    assert last.fix or status != "fault"


def test_torchs_cuda_is_read_without_importing_torch():
    import subprocess
    import sys

    code = (
        "import sys\nfrom kdexport.bench.doctor import torch_cuda\n"
        "print(torch_cuda())\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_before_1_24_a_placement_is_not_provable_and_no_fault(monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", object)  # has no get_provider_graph_assignment_info
    monkeypatch.setattr(doctor, "probe", lambda _: [])
    check = doctor._provider("CUDAExecutionProvider")
    assert check.status == "note"
    assert "not provable before ONNX Runtime 1.24" in check.message
    assert check.fix.startswith("pip install -U onnxruntime")


@pytest.mark.parametrize(
    ("module", "message", "fix"),
    [
        ("raise ImportError('libnpu.so.1')", "ImportError: libnpu.so.1", "--force-reinstall onnxruntime-ep-abacus"),
        ("def get_library_path():\n    return '/lib/abacus.so'", "/lib/abacus.so", "-U onnxruntime-ep-abacus onnxr"),
    ],
)
def test_a_broken_plugin_is_a_fault_with_its_reason(tmp_path, monkeypatch, module, message, fix):
    (tmp_path / "onnxruntime_ep_abacus.py").write_text(module)
    info = tmp_path / "onnxruntime_ep_abacus-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-ep-abacus\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "onnxruntime_ep_abacus", raising=False)
    (check,) = doctor._plugins()
    assert (check.name, check.status) == ("onnxruntime-ep-abacus", "fault")
    assert "1.0 is installed" in check.message
    assert message in check.message
    assert fix in check.fix


def test_a_plugin_that_loads_is_listed(monkeypatch):
    plugin = doctor.devices.Plugin("onnxruntime-ep-abacus", "1.0", "/lib/abacus.so", None)
    monkeypatch.setattr(doctor.devices, "installed", lambda: [plugin])
    monkeypatch.setattr(doctor.devices, "register", lambda _: {})
    assert [check.status for check in doctor._plugins()] == ["ok"]


def test_a_library_is_registered_once(monkeypatch):
    import onnxruntime

    calls = []
    monkeypatch.setattr(doctor.devices, "_registered", {})
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda *pair: calls.append(pair))
    for _ in range(2):
        assert doctor.devices.register({"onnxruntime-ep-abacus": "/lib/abacus.so"}) == {}
    assert calls == [("onnxruntime-ep-abacus", "/lib/abacus.so")]
