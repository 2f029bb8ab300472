"""`kdexport bench --remote USER@HOST`: pack, copy, run there, fetch, by the machine's own ssh and scp."""

import json
import secrets
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from kdexport.bench.pack import pack
from kdexport.errors import KDExportError
from kdexport.progress import Progress
from kdexport.results import BenchResult, from_json

SSH = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=20")  # a password would be asked for where nobody sees it


def measure_on(host: str, models: Any, settings: Any, *, python: str, progress: Progress, **asked: Any) -> BenchResult:
    """Measure on another machine.

    Args:
        host: As ssh takes it: ``user@host`` or an alias of ``~/.ssh/config``.
        models: As ``pack``.
        settings: As ``pack``.
        python: The command that starts Python there, as sh takes it (a path with spaces is quoted in it); numpy and
            onnxruntime must be importable.
        progress: Where to say how it goes; the other machine's own lines come through on stderr.
        **asked: As ``pack``.

    Raises:
        KDExportError: No ssh here, the host cannot be reached, or the run there ended without a result.
    """
    if not host or host.startswith("-") or any(character.isspace() for character in host):
        raise KDExportError(f"--remote {host!r} is not a host", hint="give it as ssh takes it, e.g. pi@raspberrypi")
    for tool in ("ssh", "scp"):
        if shutil.which(tool) is None:
            raise KDExportError(f"{tool} is not installed here", hint="install OpenSSH, or copy a --pack file yourself")
    with tempfile.TemporaryDirectory(prefix="kdexport-") as folder:
        packed = Path(folder) / "bench.pyz"
        written = pack(models, settings, packed, progress=progress, **asked)
        there = f"/tmp/kdexport-{secrets.token_hex(8)}.pyz"
        progress.message(f"copying {written.size_bytes / 2**20:.1f} MiB to {host}")
        _call("scp", "-q", *SSH, "--", str(packed), f"{host}:{there}", host=host)
    progress.message(f"measuring on {host}")
    script = f"{python} {shlex.quote(there)} --out -; code=$?; rm -f {shlex.quote(there)}; exit $code"
    command = f"sh -c {shlex.quote(script)}"  # the login shell may be zsh, fish or csh
    done = subprocess.run(
        ["ssh", *SSH, "--", host, command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=False,
        text=True,
    )
    try:
        return from_json(BenchResult, json.loads(done.stdout))
    except ValueError:  # not JSON, or not this version's
        raise KDExportError(
            f"the benchmark on {host} ended with code {done.returncode} and no result (its own words are above)",
            hint=f"on {host}: pip install numpy onnxruntime; another interpreter: --remote-python PATH",
        ) from None


def _call(*command: str, host: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"{command[0]} ended with code {done.returncode}"
        raise KDExportError(
            f"{host} could not be reached: {said}", hint=f"try `ssh {host} true`: it must work without a password"
        )
