import ctypes
import itertools
import stat
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from kdexport.bench import host
from kdexport.bench.energy import Counter, PowerCommand, find_meter, per_run_mj, power_command
from kdexport.errors import KDExportError


def rapl(folder, number, name, microjoules, wraps_at=1_000_000):
    zone = folder / f"intel-rapl:{number}"
    zone.mkdir()
    (zone / "name").write_text(f"{name}\n")
    (zone / "energy_uj").write_text(str(microjoules))
    (zone / "max_energy_range_uj").write_text(str(wraps_at))
    return zone / "energy_uj"


def test_rapl_is_read_and_each_wrap_undone(tmp_path):
    first, second = rapl(tmp_path, 0, "package-0", 900_000), rapl(tmp_path, 1, "package-1", 100_000, 5_000_000)
    rapl(tmp_path, "0:0", "core", 800_000)  # a part of package 0: not counted twice
    meter = find_meter("CPUExecutionProvider", 0, None, powercap=tmp_path)
    # One wraps, the other does not, and the sum grows: only each by itself tells.
    joules, _ = meter.joules(lambda: (first.write_text("150000"), second.write_text("1100000")))
    assert joules == pytest.approx(0.25 + 1.0)


def test_rapl_leaves_out_the_platform_that_holds_the_packages(tmp_path):
    package, platform = rapl(tmp_path, 0, "package-0", 0), rapl(tmp_path, 1, "psys", 0)
    meter = find_meter("CPUExecutionProvider", 0, None, powercap=tmp_path)
    joules, _ = meter.joules(lambda: (package.write_text("300000"), platform.write_text("500000")))
    assert joules == pytest.approx(0.3)


def test_idle_is_subtracted():
    readings = iter([(10 * 0.5, 0.5), (30 * 0.1, 0.1)])  # 10 W at rest, 30 W at work

    class Meter:
        name = "test"

        def joules(self, work):
            work()
            return next(readings)

    assert per_run_mj(Meter(), lambda: 100, lambda: None) == pytest.approx(20 * 0.1 / 100 * 1e3)


def test_no_more_than_at_rest_is_not_a_figure():
    assert per_run_mj(Counter("test", lambda: (0.0,)), lambda: 5, lambda: time.sleep(0.01)) is None


def test_without_a_meter_there_is_none(tmp_path):
    assert find_meter("CPUExecutionProvider", 0, None, powercap=tmp_path) is None
    assert find_meter("QNNExecutionProvider", 0, None, powercap=tmp_path) is None


def test_a_command_that_prints_watts(tmp_path):
    script = tmp_path / "watts"
    script.write_text("#!/bin/sh\necho 7.5\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    meter = find_meter("CPUExecutionProvider", 0, str(script))
    joules, seconds = meter.joules(lambda: time.sleep(0.3))
    assert joules / seconds == pytest.approx(7.5)


@pytest.mark.parametrize("command", [("echo", "watt"), ("true",), ("/no/such/command",)])
def test_a_command_without_a_number_is_told(command):
    with pytest.raises(KDExportError, match="--power-command"):
        PowerCommand("command", command).watts()


def test_what_was_drawn_before_the_work_is_not_averaged_in():
    answered = threading.Semaphore(0)

    class Watts(PowerCommand):
        readings = itertools.chain([100.0], itertools.repeat(5.0))

        def watts(self):
            answered.release()
            return next(self.readings)

    joules, seconds = Watts("command", ("x",)).joules(lambda: [answered.acquire() for _ in range(3)])
    assert joules / seconds == pytest.approx(5.0)


@pytest.mark.parametrize(("text", "message"), [("x 'y", "No closing quotation"), ("", "is empty"), ("  ", "is empty")])
def test_a_command_that_cannot_be_read_is_told(text, message):
    with pytest.raises(KDExportError, match=f"--power-command.*{message}"):
        power_command(text)


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs that CUDA numbers the other way round than NVML; the driver's and NVML's calls that are used."""
    buses = {0: b"0000:3B:00.0", 1: b"0000:1A:00.0"}

    def device_get(device, index):
        device._obj.value = index
        return 0 if index in buses else 101

    def bus_id(text, size, device):
        text.value = buses.get(device.value, b"")
        return 0

    class NVMLError(Exception):
        pass

    def split(handle):
        if handle == b"0000:1A:00.0":
            return [1, 1]
        raise NVMLError

    driver = SimpleNamespace(cuInit=lambda _: 0, cuDeviceGet=device_get, cuDeviceGetPCIBusId=bus_id)
    processes = {b"0000:3B:00.0": [SimpleNamespace(pid=host.os.getpid(), usedGpuMemory=3 << 20)]}
    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByPciBusId=lambda bus: bus,
        nvmlDeviceGetMigMode=split,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 7000 if handle == b"0000:3B:00.0" else 1,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: processes.get(handle, []),
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


def test_a_gpu_is_found_by_its_place_on_the_bus_not_by_its_number(gpus):
    assert find_meter("CUDAExecutionProvider", 0, None).read() == (7.0,)
    assert find_meter("CUDAExecutionProvider", 2, None) is None
    assert host.device_mib(0) == 3.0
    assert host.device_mib(1) is None


def test_a_slice_of_a_gpu_has_no_meter_of_its_own(gpus):
    assert find_meter("CUDAExecutionProvider", 1, None) is None
