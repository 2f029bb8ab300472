"""The fingerprint of the machine: what decides how fast a network runs on it, and nothing that names its owner.

What cannot be read is None or empty. Needs the standard library, and onnxruntime for its version and providers.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kdexport.cgroup import cpu_quota, memory_limit
from kdexport.results import Machine

if TYPE_CHECKING:
    from importlib.metadata import Distribution

# Features that choose ONNX Runtime's kernels for int8, fp16 and fp32 (MLAS).
FEATURES = (
    "sse4_1", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16",
    "avx512_fp16", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "sve", "bf16",
)  # fmt: skip
PACKAGES = ("numpy", "kdexport")
# What a distribution is called that holds the module onnxruntime, or plugs a provider into it.
RUNTIME = re.compile(r"(onnxruntime|ort-nightly)(-(?!extensions|genai|tools).*)?")
BUILD = "onnxruntime build"
COMMAND_SECONDS = 10


def fingerprint() -> Machine:
    """Read what this machine is, as far as it tells."""
    import onnxruntime

    flags = _cpu_flags()
    gpus, driver = nvidia_gpus()
    return Machine(
        name=platform.node() or "unnamed",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_model(),
        cpu_features=tuple(feature for feature in FEATURES if feature in flags),
        cores=usable_cores(),
        memory_mib=_memory_mib(),
        container=_container(),
        governor=cpu_governor(),
        gpus=gpus,
        driver=driver,
        python=platform.python_version(),
        versions=_versions(),
        providers=tuple(onnxruntime.get_available_providers()),
    )


def cpu_model() -> str:
    """Return the CPU's name as the system gives it."""
    info = _cpuinfo()
    for key in ("model name", "Model", "Hardware", "Processor"):
        if key in info:
            return info[key]
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def cpu_governor() -> str | None:
    """Return what decides the CPU's clock (Linux), or None where the system does not tell."""
    return _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))


def usable_cores() -> int:
    """Return the cores that this process may run on (its affinity, not the container's quota)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parallel() -> int:
    """Return how many threads can be at work at a time: the cores, or the container's quota where that is less.

    More of them than the quota are stopped together in the middle of their work, for the rest of each 0.1 s.
    """
    quota = cpu_quota()
    return usable_cores() if quota is None else max(1, min(usable_cores(), int(quota)))


def nvidia_gpus() -> tuple[tuple[str, ...], str | None]:
    """Return the NVIDIA GPUs by name and memory, and the driver's version; empty and None where there are none."""
    text = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()] if text else []
    rows = [row for row in rows if len(row) == 3]
    return tuple(f"{name}, {memory}" for name, memory, _ in rows), rows[0][2] if rows else None


def driver_cuda() -> str | None:
    """Return the newest CUDA that the NVIDIA driver can run, as nvidia-smi says; None without one."""
    match = re.search(r"CUDA Version:\s*([\d.]+)", _output("nvidia-smi") or "")
    return match[1] if match else None


def _container() -> str | None:
    """Say the container's limits in words, e.g. ``cgroup: 2.0 CPUs, 4096 MiB``; None where it sets none."""
    limits = []
    quota = cpu_quota()
    if quota is not None:
        limits.append(f"{quota:.1f} CPUs")
    memory, total = memory_limit(), _memory_mib()
    if memory is not None and total and memory >> 20 < total:
        limits.append(f"{memory >> 20} MiB")
    return f"cgroup: {', '.join(limits)}" if limits else None


def _memory_mib() -> int | None:
    text = _text(Path("/proc/meminfo"))
    if text and text.startswith("MemTotal:"):
        return int(text.split()[1]) >> 10
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    return None


def _cpuinfo() -> dict[str, str]:
    info: dict[str, str] = {}
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            info.setdefault(key.strip(), value.strip())
    return info


def _cpu_flags() -> set[str]:
    info = _cpuinfo()
    return set((info.get("flags") or info.get("Features") or "").split())


def _versions() -> dict[str, str]:
    """Return the versions of all that decides a latency: each distribution of ONNX Runtime, and how it was built."""
    from importlib import metadata

    found = _runtime_versions(metadata.distributions())
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _runtime_versions(distributions: Iterable[Distribution]) -> dict[str, str]:
    """Return ONNX Runtime's distributions among all, and how the module that is imported was built.

    Distributions own the same module and overwrite each other: under "onnxruntime" stands what the module says of
    itself, where that distribution is installed, or none is but plugins (a build of one's own).
    """
    import onnxruntime

    found = {}
    for one in distributions:
        name = (one.metadata["Name"] or "").lower().replace("_", "-")
        if RUNTIME.fullmatch(name):
            found[name] = one.version
    found = dict(sorted(found.items()))
    if "onnxruntime" in found or all(name.startswith("onnxruntime-ep-") for name in found):
        found = {**found, "onnxruntime": str(onnxruntime.__version__)}
    if hasattr(onnxruntime, "get_build_info"):
        # A compiler flag with a folder in it tells of the machine that compiled, not of what came out.
        info = onnxruntime.get_build_info().removeprefix("ORT Build Info:").split()
        found[BUILD] = " ".join(word for word in info if "/" not in word)
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
