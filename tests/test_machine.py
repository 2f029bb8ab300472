import getpass
import os
import platform
import pwd
from types import SimpleNamespace

import pytest

from kdexport import cgroup, cli, machine


def test_fingerprint_names_cpu_versions_and_providers():
    found = machine.fingerprint()
    assert found.cpu
    assert found.cores >= 1
    assert found.python == platform.python_version()
    assert "CPUExecutionProvider" in found.providers
    assert found.versions["numpy"]
    assert found.memory_mib is None or found.memory_mib > 100


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_the_containers_quota_is_read_in_both_generations_of_cgroups(monkeypatch, tmp_path, files, quota):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    assert machine.cpu_quota() == quota


@pytest.mark.parametrize(
    ("text", "cores", "parallel"),
    [("50000 100000", 8, 1), ("250000 100000", 8, 2), ("900000 100000", 8, 8), ("max 1", 3, 3)],
)
def test_threads_follow_the_containers_quota(monkeypatch, tmp_path, text, cores, parallel):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    assert machine.parallel() == parallel


@pytest.mark.parametrize(("given", "threads"), [(None, "1"), ("3", "3")])
def test_a_command_takes_no_more_threads_than_the_quota(monkeypatch, given, threads):
    monkeypatch.setattr(cli, "parallel", lambda: 1)
    monkeypatch.setattr(cli, "usable_cores", lambda: 8)
    monkeypatch.setattr(cli, "app", lambda: None)
    monkeypatch.setattr(cli, "prepare_streams", lambda: None)
    for name in ("GOMP_SPINCOUNT", "CUBLAS_WORKSPACE_CONFIG"):  # what main sets goes again after the test
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")  # it is put back after the test in either case
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    cli.main()
    assert os.environ["OMP_NUM_THREADS"] == threads


def test_a_user_without_a_name_has_one_for_torch(monkeypatch):
    """Containers run with a user id that no /etc/passwd knows (--user 1042, OpenShift)."""

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(cli, "app", lambda: None)
    monkeypatch.setattr(cli, "prepare_streams", lambda: None)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "CUBLAS_WORKSPACE_CONFIG", "USER"):
        monkeypatch.setenv(name, "1")  # what main sets goes again after the test
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    cli.main()
    assert getpass.getuser() == f"uid{os.getuid()}"


def test_gpus_and_the_drivers_cuda_are_read_from_nvidia_smi(monkeypatch):
    answers = {
        True: "NVIDIA A10, 23028 MiB, 550.54\nNVIDIA A10, 23028 MiB, 550.54",
        False: "| NVIDIA-SMI 550.54   Driver Version: 550.54   CUDA Version: 12.4 |",
    }
    monkeypatch.setattr(machine, "_output", lambda *command: answers[len(command) > 1])
    assert machine.nvidia_gpus() == (("NVIDIA A10, 23028 MiB",) * 2, "550.54")
    assert machine.driver_cuda() == "12.4"


@pytest.mark.parametrize(
    ("installed", "found"),
    [
        ({"onnxruntime": "0.9", "torch": "2"}, {"onnxruntime": "1.5"}),  # what is imported, not what is installed
        ({"onnxruntime_openvino": "1.24.1"}, {"onnxruntime-openvino": "1.24.1"}),
        ({"ort-nightly": "1.6.dev1"}, {"ort-nightly": "1.6.dev1"}),
        ({"onnxruntime-ep-qnn": "2.0"}, {"onnxruntime-ep-qnn": "2.0", "onnxruntime": "1.5"}),
        ({"onnxruntime-extensions": "0.14"}, {"onnxruntime": "1.5"}),  # operators, not kernels
    ],
)
def test_the_runtimes_distribution_and_build_are_told(monkeypatch, installed, found):
    import onnxruntime

    message = "ORT Build Info: git-commit-id=6af1a93, build type=Release, cmake cxx flags: -march=native -I/home/me"
    monkeypatch.setattr(onnxruntime, "__version__", "1.5")
    monkeypatch.setattr(onnxruntime, "get_build_info", lambda: message)
    distributions = [SimpleNamespace(metadata={"Name": name}, version=version) for name, version in installed.items()]
    assert machine._runtime_versions(distributions) == {
        **found,
        "onnxruntime build": "git-commit-id=6af1a93, build type=Release, cmake cxx flags: -march=native",
    }


def test_without_nvidia_smi_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    assert machine.nvidia_gpus() == ((), None)
    assert machine.driver_cuda() is None
