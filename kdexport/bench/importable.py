"""Whether numpy and onnxruntime can be imported here, and if not, why and what helps.

Tried in a process of its own: on boards the import itself can end Python (an instruction that the processor lacks).
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from importlib import metadata

from kdexport.errors import KDExportError

OLDEST = (1, 17)  # ONNX Runtime that packs are tried with (benchmarks/bench_boards.py)
TRIED = "import numpy; print('numpy', flush=True); import onnxruntime; print(onnxruntime.__version__)"
# What stands in the messages of an import that failed -> what helps. The first that fits.
FAULTS = (
    (r"_ARRAY_API|compiled using NumPy 1", "it was built for numpy 1: pip install 'numpy<2' (or onnxruntime 1.19 on)"),
    (r"compiled against (?:ABI|API) version", "it was built for a newer numpy: pip install -U numpy"),
    (
        r"version [`'](?:GLIBC|GLIBCXX|CXXABI)_",
        "it was built for a newer system than this: install an older onnxruntime, or a newer system",
    ),
    (r"cpuinfo|cpuid_info", "it looks for the processor in /sys/devices/system/cpu: mount /sys, which a sandbox hides"),
    (r"No module named '(?:numpy|onnxruntime)'", "pip install numpy onnxruntime"),
)
ERROR = re.compile(r"\w*(Error|Exception): .|\s*what\(\)|Error in ")
OTHER_BUILD = "it is built for instructions that this processor lacks: try pip install onnxruntime==1.20.1"
REINSTALL = "it is of another Python or processor: pip uninstall -y numpy onnxruntime; pip install numpy onnxruntime"


def check_importable() -> None:
    """Refuse what a benchmark cannot run with.

    Raises:
        KDExportError: numpy or onnxruntime is missing, older than 1.17, or ends in an error or a crash when imported.
    """
    done = subprocess.run([sys.executable, "-c", TRIED], capture_output=True, text=True, errors="replace", check=False)
    told = done.stdout.split()
    if done.returncode == 0 and told:
        _check_version(told[-1])
        return
    module = "onnxruntime" if told else "numpy"
    why, hint = reason(done.stderr, done.returncode)
    raise KDExportError(f"{module}{_version_of(module)} cannot be imported: {why}", hint=hint)


def reason(stderr: str, code: int) -> tuple[str, str]:
    """Return why an import failed, and what helps.

    Args:
        stderr: What Python and the libraries printed.
        code: The process's exit code, negative for a signal.
    """
    ended = signal.Signals(-code).name if code < 0 else ""
    pattern, hint = next(((pattern, hint) for pattern, hint in FAULTS if re.search(pattern, stderr)), ("", ""))
    lines = [line.strip() for line in stderr.splitlines() if ERROR.match(line)]
    told = next((line for line in lines if pattern and re.search(pattern, line)), lines[-1] if lines else "")
    why = "; ".join(filter(None, (ended, told))) or f"it ended with code {code}"
    return why, hint or (OTHER_BUILD if ended == "SIGILL" else REINSTALL)


def _check_version(version: str) -> None:
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        raise KDExportError(
            f"onnxruntime {version} is too old: 1.17 or newer is needed", hint="pip install -U onnxruntime"
        )


def _version_of(module: str) -> str:
    try:
        return f" {metadata.version(module)}"
    except metadata.PackageNotFoundError:
        return ""
