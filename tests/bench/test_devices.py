from types import SimpleNamespace

import pytest

from kdexport.bench.devices import find, installed_libraries, register
from kdexport.bench.plan import Device
from kdexport.bench.session import check_placement, placement, shares
from kdexport.errors import DeviceError

CPU_ONLY = ["CPUExecutionProvider"]
WITH_CUDA = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
CUDA = Device("cuda", "CUDAExecutionProvider")


def test_a_number_is_the_device_id_and_options_do_not_reach_the_cpu():
    cpu, cuda = find(["cpu", "cuda:1"], WITH_CUDA, {"enable_cuda_graph": "1"})
    assert cpu.options == {}
    assert cuda.options == {"enable_cuda_graph": "1", "device_id": "1"}


def test_a_plugin_provider_goes_by_its_own_name():
    assert find(["MyNpuExecutionProvider"], [*CPU_ONLY, "MyNpuExecutionProvider"], {})[0].provider == (
        "MyNpuExecutionProvider"
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cpuu", "did you mean 'cpu'?"),
        ("gpu", "did you mean 'cuda'?"),
        ("OpenVINOExecutionProvider", "did you mean 'openvino'?"),
        ("abacus", "there are: cpu, cuda"),
        ("cpu:1", "write it as cpu"),
        ("cuda:x", "write it as cuda:0"),
    ],
)
def test_an_unknown_device_is_told_with_the_near_one(name, hint):
    with pytest.raises(DeviceError) as caught:
        find([name], WITH_CUDA, {})
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "openvino", "coreml", "qnn", "webgpu"])
def test_a_device_that_is_not_there_is_an_error_with_the_command(name):
    with pytest.raises(DeviceError, match=f"device '{name}' is not there: this ONNX Runtime has no") as caught:
        find([name], CPU_ONLY, {})
    assert "pip install" in caught.value.hint


def test_a_provider_that_was_dropped_is_an_error_even_with_fallback():
    dropped = {"providers": ["CPUExecutionProvider"], "placement": {"CPUExecutionProvider": {"Gemm": 1}}}
    with pytest.raises(DeviceError, match="dropped CUDAExecutionProvider"):
        check_placement("m", CUDA, dropped, allow_fallback=True)


def test_nodes_elsewhere_are_an_error_that_names_them():
    split = {
        "providers": WITH_CUDA,
        "placement": {"CUDAExecutionProvider": {"Conv": 3}, "CPUExecutionProvider": {"NonZero": 1}},
    }
    with pytest.raises(DeviceError, match=r"1 of 4 nodes fell back to CPUExecutionProvider \(NonZero\)") as caught:
        check_placement("m", CUDA, split, allow_fallback=False)
    assert "--allow-fallback" in caught.value.hint
    check_placement("m", CUDA, split, allow_fallback=True)
    assert shares(split["placement"]) == {"CUDAExecutionProvider": 0.75, "CPUExecutionProvider": 0.25}


@pytest.mark.parametrize(
    ("providers", "placed"),
    [
        (["CPUExecutionProvider"], {"CPUExecutionProvider": 1.0}),  # nowhere else to be
        (["CUDAExecutionProvider", "CPUExecutionProvider"], None),
    ],
)
def test_where_nodes_ran_is_null_before_1_24_unless_there_is_one_provider(providers, placed):
    assert shares(placement(SimpleNamespace(get_providers=lambda: providers))) == placed


def test_a_plugin_that_is_installed_is_found_by_its_package(tmp_path, monkeypatch):
    (tmp_path / "onnxruntime_ep_abacus.py").write_text("def get_library_path():\n    return '/lib/abacus.so'\n")
    info = tmp_path / "onnxruntime_ep_abacus-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-ep-abacus\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed_libraries()["onnxruntime-ep-abacus"] == "/lib/abacus.so"
    (device,) = find(["AbacusExecutionProvider"], [*CPU_ONLY, "AbacusExecutionProvider"], {})
    assert device.libraries == {"onnxruntime-ep-abacus": "/lib/abacus.so"}
    register(device.libraries)  # it cannot be loaded: no device, and no crash
