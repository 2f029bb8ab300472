"""What else the machine is doing while something is measured (Linux), and which measured calls still count.

A worker marks the calls during which it waited for a core (``timing.watched``). They are left out. Where they are many,
those that remain are no fair sample (a long call hardly ever runs through), and a machine that is full slows even calls
that run through (shared caches, memory, clocks): the latencies stand with that said, and decide no speed-up.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdexport import figures
from kdexport.bench import board
from kdexport.bench.plan import Condition
from kdexport.cgroup import memory_left

CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Busy:
    """CPU seconds of the whole machine so far: spent by anyone, and taken by the hypervisor."""

    used: float
    stolen: float


@dataclass(frozen=True)
class Surroundings:
    """What the rest of the machine did during one round."""

    other_cores: float = 0.0  # kept busy by other work, on average
    stolen: float = 0.0  # cores that the hypervisor took
    throttled: bool = False  # the CPU says that it slowed down for heat
    undervoltage: bool = False  # the board says that its supply gave too little, for which it slows down


class Watch:
    """Looks at the machine now and when the round is over; sleeps in between.

    Args:
        own_cpu_s: The CPU seconds that the measuring itself has spent so far.
    """

    def __init__(self, own_cpu_s: Callable[[], float]) -> None:
        self._own_cpu_s = own_cpu_s
        self._throttles = throttle_events()
        self._start = time.perf_counter()
        self._own = own_cpu_s()
        self._busy = busy()

    def result(self) -> Surroundings:
        """Return what happened since the start; zeros where the machine does not tell."""
        seconds, now, own = time.perf_counter() - self._start, busy(), self._own_cpu_s() - self._own
        throttles = throttle_events()
        throttled = self._throttles is not None and throttles is not None and throttles > self._throttles
        slowed = (throttled or board.slowed_for_heat(), board.undervoltage())
        if now is None or self._busy is None or seconds <= 0:
            return Surroundings(0.0, 0.0, *slowed)
        other = max(now.used - self._busy.used - own, 0.0)
        return Surroundings(other / seconds, (now.stolen - self._busy.stolen) / seconds, *slowed)


class RunDelay:
    """How long the threads of this process have been ready to run and had no core, ns (Linux's schedstat).

    Threads that start later are not seen: make it after the session. Calling it costs some 2 µs a thread.
    """

    def __init__(self, tasks: Path = Path("/proc/self/task")) -> None:
        self._files = [os.open(task / "schedstat", os.O_RDONLY) for task in tasks.iterdir()]
        self.threads = len(self._files)
        self()

    def __call__(self) -> int:
        """Return the sum of all threads."""
        return sum(int(os.pread(file, 64, 0).split()[1]) for file in self._files)


SWITCH_NS = 1_000_000  # what one involuntary switch counts where the system tells no times: a usual time slice


def wait_clock() -> tuple[Callable[[], int] | None, int]:
    """Return what tells how long this process has waited for a core (ns), and how many threads it looks at.

    None where the system tells neither times (Linux) nor involuntary switches (other Unix).
    """
    try:
        delay = RunDelay()
    except (OSError, IndexError, ValueError):
        pass
    else:
        return delay, delay.threads
    try:
        import resource
    except ImportError:
        return None, 1
    return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw * SWITCH_NS, 1


def busy(stat: Path = Path("/proc/stat")) -> Busy | None:
    """Read the machine's CPU time, or None where it does not tell."""
    try:
        # user nice system idle iowait irq softirq steal, in ticks; guest time is part of user
        fields = [int(text) for text in stat.read_text().split("\n", 1)[0].split()[1:9]]
        tick = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
    if len(fields) < 8:
        return None
    return Busy((sum(fields[:3]) + fields[5] + fields[6]) / tick, fields[7] / tick)


def throttle_events(cpus: Path = CPUS) -> int | None:
    """Return how often the CPU has slowed down for heat, or None where it does not count (Intel's do).

    A package's count stands under each of its cores: the sum tells whether it grew, not by how much.
    """
    files = list(cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))
    try:
        return sum(int(file.read_text()) for file in files) if files else None
    except (OSError, ValueError):
        return None


SYSFS = Path("/sys/devices/system/cpu")
# The best cores of one kind differ by up to 5 % in what their clock may reach (favoured cores); kinds differ by more.
ALIKE = 0.95


def usable() -> list[int]:
    """Return the CPU numbers that this process may use; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def choose(threads: int, turn: int, cpus: Sequence[int], sysfs: Path = SYSFS) -> list[int] | None:
    """Return the CPU numbers to stay on: as many physical cores of the fastest kind as there are threads.

    Args:
        threads: How many are needed; one CPU at least is left to everything else.
        turn: Whose turn it is: each turn takes the next cores of the kind, round and round.
        cpus: Those that may be used.
        sysfs: Where the system describes them. A machine that does not is taken to have cores that are all alike.

    Returns:
        None where there are fewer such cores than threads, or no CPU would be left.
    """
    if threads >= len(cpus):
        return None
    cores = _fastest(_physical(sorted(cpus), sysfs), sysfs)
    if threads > len(cores):
        return None
    return [cores[(turn * threads + position) % len(cores)] for position in range(threads)]


def _physical(cpus: list[int], sysfs: Path) -> list[int]:
    """Return one CPU number per physical core, those of one package side by side."""
    first: dict[str, int] = {}
    package = {}
    for cpu in cpus:
        topology = sysfs / f"cpu{cpu}" / "topology"
        package[cpu] = _number(topology / "physical_package_id") or 0
        siblings, core = _text(topology / "thread_siblings_list"), _text(topology / "core_id")
        first.setdefault(siblings or f"{package[cpu]}:{core or f'cpu {cpu}'}", cpu)
    return sorted(first.values(), key=lambda cpu: (package[cpu], cpu))


def _fastest(cores: list[int], sysfs: Path) -> list[int]:
    """Return the cores of the highest capacity, or else of the highest clock; all where the system tells neither."""
    for source in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        speeds = {core: _number(sysfs / f"cpu{core}" / source) for core in cores}
        known = [speed for speed in speeds.values() if speed is not None]
        if len(known) == len(cores):
            return [core for core in cores if (speeds[core] or 0) >= ALIKE * max(known)]
    return cores


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None


KIB_PER_MIB = 1024.0


def resident_mib() -> float | None:
    """Return this process's resident memory now, MiB, or None where the system has no /proc."""
    return _read("/proc/self/status", "VmRSS:")


def peak_mib() -> float | None:
    """Return this process's largest resident memory so far, MiB, or None where the system has no /proc."""
    return _read("/proc/self/status", "VmHWM:")


def available_mib() -> float | None:
    """Return what the machine, or the container, can still give, MiB; None where the system has no /proc."""
    machine, container = _read("/proc/meminfo", "MemAvailable:"), memory_left()
    return machine if container is None else min(container / 2**20, machine or math.inf)


def device_mib(cuda_index: int) -> float | None:
    """Return this process's memory on an NVIDIA GPU now, MiB; None without NVML.

    ONNX Runtime's arena does not shrink, so after a run this is the peak.
    """
    try:
        pass

        nvml, handle = nvml_handle(cuda_index)
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid() and process.usedGpuMemory:
                return float(process.usedGpuMemory) / 2**20
    except Exception:  # noqa: BLE001 - no NVML, no driver, no right to ask: not measured
        return None
    return None


def _read(path: str, key: str) -> float | None:
    try:
        with open(path, encoding="ascii", errors="replace") as lines:  # noqa: PTH123 - pathlib is not loaded here
            for line in lines:
                if line.startswith(key):
                    return int(line.split()[1]) / KIB_PER_MIB
    except OSError:
        pass
    return None


def nvml_handle(cuda_index: int) -> tuple[Any, Any]:
    """Return NVML, started, and its handle of a CUDA device; of a MIG slice, the handle of the whole GPU.

    Args:
        cuda_index: As ONNX Runtime's ``device_id``.

    Raises:
        Exception: Whatever is missing: pynvml, the driver, the device. The caller then has no figure.
    """
    import pynvml

    nvml: Any = pynvml
    nvml.nvmlInit()
    return nvml, nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id(cuda_index))


def pci_bus_id(cuda_index: int) -> bytes:
    """Return the PCI address of a CUDA device, e.g. ``b"0000:3B:00.0"``. Makes no CUDA context.

    Raises:
        OSError: There is no CUDA driver, or no such device.
    """
    import ctypes

    driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    device, text = ctypes.c_int(), ctypes.create_string_buffer(64)
    for code in (
        driver.cuInit(0),
        driver.cuDeviceGet(ctypes.byref(device), cuda_index),
        driver.cuDeviceGetPCIBusId(text, len(text), device),
    ):
        if code:
            raise OSError(f"the CUDA driver answered {code} for device {cuda_index}")
    return text.value


MANY_CALLS = 0.25  # ran beside other work: those that remain are no fair sample
MUCH_TIME = 0.5  # of the measuring went by in such calls
STOLEN_CORES = 0.05  # taken by the hypervisor: its waits cannot be told from a call's own time
CROWDED = 0.25  # busy cores beyond those that the machine has, the measured threads included


@dataclass(frozen=True)
class LeftOut:
    """What of one model's measuring does not count."""

    calls: int = 0
    waited_calls: int = 0  # during which other work had the core, whether they count or not
    all_calls: int = 0
    waited_ns: int = 0
    all_ns: int = 0

    @property
    def share(self) -> float:
        """Of the measured time that went by in such calls."""
        return self.waited_ns / self.all_ns if self.all_ns else 0.0

    def more(self, turns: Sequence[np.ndarray], counted: Sequence[np.ndarray]) -> LeftOut:
        """Return this with another round's turns and what of them counts."""
        calls = np.concatenate(turns)
        return LeftOut(
            self.calls + calls.size - sum(kept.size for kept in counted),
            self.waited_calls + int((calls < 0).sum()),
            self.all_calls + calls.size,
            self.waited_ns - int(calls[calls < 0].sum()),
            self.all_ns + int(np.abs(calls).sum()),
        )


def undisturbed(turns: Mapping[str, Sequence[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """Return the calls of one round that count, turn by turn.

    A turn in which some model had no undisturbed call is left out for all: turn *k* of each saw the same machine, and
    is compared. Where fewer than half of the turns remain, every call of the round counts.

    Args:
        turns: Model -> nanoseconds per call of each turn, negative where other work had the core.
    """
    longest = max((len(own) for own in turns.values()), default=0)
    good = [k for k in range(longest) if all((own[k] > 0).any() for own in turns.values() if k < len(own))]
    if 2 * len(good) < longest or any(not any(k < len(own) for k in good) for own in turns.values()):
        return {name: [np.abs(calls) for calls in own] for name, own in turns.items()}
    return {name: [own[k][own[k] > 0] for k in good if k < len(own)] for name, own in turns.items()}


def disturbance(found: LeftOut, surroundings: Sequence[Surroundings], condition: Condition) -> str | None:
    """Return in words why no speed-up is decided by what was measured; None where the machine was quiet enough."""
    count = max(len(surroundings), 1)
    other = sum(around.other_cores for around in surroundings) / count
    stolen = sum(around.stolen for around in surroundings) / count
    cores = os.cpu_count() or 1
    if found.share > MUCH_TIME or found.waited_calls > MANY_CALLS * found.all_calls:
        return f"other work took its core during {figures.percent(found.share, 0)} of the measured time"
    if stolen > STOLEN_CORES:
        return f"the hypervisor took {stolen:.2f} cores away"
    if other + condition.threads > cores + CROWDED:
        return f"other work kept {other:.1f} of {cores} cores busy"
    return None
