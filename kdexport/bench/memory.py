"""What the kernel says a process holds. Nothing is imported that a bare script would not import.

``ru_maxrss`` is not used: a child's starts at its parent's peak. ``VmHWM`` belongs to the process alone.
"""

import os

KIB_PER_MIB = 1024.0


def resident_mib() -> float | None:
    """Return this process's resident memory now, MiB, or None where the system has no /proc."""
    return _read("/proc/self/status", "VmRSS:")


def peak_mib() -> float | None:
    """Return this process's largest resident memory so far, MiB, or None where the system has no /proc."""
    return _read("/proc/self/status", "VmHWM:")


def available_mib() -> float | None:
    """Return what the machine can still give, MiB, or None where the system has no /proc."""
    return _read("/proc/meminfo", "MemAvailable:")


def device_mib(cuda_index: int) -> float | None:
    """Return this process's memory on an NVIDIA GPU now, MiB; None without NVML.

    ONNX Runtime's arena does not shrink, so after a run this is the peak.
    """
    try:
        from kdexport.bench.nvidia import nvml_handle

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
