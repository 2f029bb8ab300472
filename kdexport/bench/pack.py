"""`kdexport bench --pack`: one file that measures elsewhere, with nothing but Python, numpy and onnxruntime.

A .pyz (PEP 441) with the bench code, the models with their external data, and a sample of the data, already in the form
that each model takes: the device needs no preprocessing library. ``packed`` is the side that runs there.

`kdexport bench --remote USER@HOST` does all of it: pack, copy, run there, fetch, by the machine's own ssh and scp.
"""

import dataclasses
import hashlib
import io
import json
import math
import secrets
import shlex
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from kdexport.artifacts import write_atomically, zip_entry
from kdexport.bench.plan import Plan
from kdexport.bench.stage import BenchRequest, plan_for
from kdexport.errors import KDExportError
from kdexport.onnx.describe import external_files, load_graph
from kdexport.progress import Progress
from kdexport.results import BenchResult, ModelFile, from_json, to_json

PACKAGE = Path(__file__).resolve().parents[1]
# All that runs on the device. A test runs a pack where nothing else can be imported.
MODULES = (
    "__init__", "api", "cgroup", "errors", "figures", "machine", "memory", "progress", "results", "scoring",
    "statistics", "terminal", "onnx/__init__", "onnx/activation", "onnx/layers", "onnx/orphans", "onnx/sessions",
    "bench/web/__init__", "bench/web/devices", "data/__init__", "data/npz_files",
)  # fmt: skip
NOT_THERE = ("comparison", "doctor", "pack", "stage")
MAX_SAMPLES = 1000  # an accuracy is then known to ±3 % at worst; a pack stays small
MAX_BYTES = 2**28  # of samples as the data give them, unpacked
# Read by whatever Python the device has, also one that could not even parse the rest.
MAIN = """import sys

if sys.version_info < (3, 9):
    sys.exit("error: Python 3.9 or newer is needed to run this, and this is Python %s" % sys.version.split()[0])

from kdexport.bench.packed import main

main()
"""


@dataclass(frozen=True)
class Pack:
    """What was packed."""

    file: str
    size_bytes: int
    models: tuple[str, ...]
    samples: int  # of labelled data, for accuracy; 0 where there are none


def pack(request: BenchRequest, out: Path, *, progress: Progress) -> Pack:
    """Write a file that measures the models where it is run.

    Args:
        request: What to measure. The packed file's own flags can change devices, batch sizes and threads; a sample of
            the data set's test split goes along, for accuracy, and so do real inputs.
        out: The file to write.
        progress: Where to say how it goes.

    Raises:
        KDExportError: A model is not what it should be, or ``out`` cannot be written.
    """
    if any(name.partition(":")[0] == "web" for name in request.settings.devices):
        raise KDExportError(
            "a packed benchmark drives no browser", hint="measure it where kdexport is: kdexport bench --device web"
        )
    models, folder, dataset, inputs_file = request.models, request.folder, request.dataset, request.inputs_file
    plan = plan_for(models, request.settings, folder=folder, dims=request.dims, inputs_file=inputs_file)
    samples, feeds = _samples(models, folder, dataset, progress)
    manifest = {
        "name": request.name,
        "recipe": request.recipe,
        "training": list(request.training),
        "models": [to_json(dataclasses.replace(model, file=Path(model.file).name)) for model in models],
        "class_names": list(dataset.class_names) if dataset is not None else [],
        "task": dataset.task.name if dataset is not None else None,
        "feeds": {model: digest for model, (digest, _) in feeds.items()},
        "plan": _packed_plan(plan),
    }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:
            handle.write(b"#!/usr/bin/env python3\n")
            # A file can be dated before 1980 (an archive's or a package's), which a zip cannot say.
            with zipfile.ZipFile(handle, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
                archive.writestr(zip_entry("__main__.py"), MAIN)
                for file in code_files():
                    archive.write(file, f"kdexport/{file.relative_to(PACKAGE).as_posix()}")
                for position, target in enumerate(plan.targets):
                    _add_model(archive, Path(target.path), f"models/{position}")
                if inputs_file is not None:
                    archive.write(inputs_file, "inputs.npz")
                for digest, content in dict(feeds.values()).items():
                    archive.writestr(zip_entry(f"data/{digest}.npz"), content)
                archive.writestr(zip_entry("manifest.json"), json.dumps(manifest))

    write_atomically(out, write)
    mode = out.stat().st_mode
    out.chmod(mode | (mode & 0o444) >> 2)  # whoever may read it may run it
    return Pack(str(out), out.stat().st_size, tuple(model.name for model in models), samples)


def code_files() -> list[Path]:
    """Return the modules that run on the device."""
    files = [PACKAGE / f"{name}.py" for name in MODULES]
    stages = [PACKAGE / stage / "__init__.py" for stage in ("distill", "export", "report", "search")]
    bench = [file for file in sorted((PACKAGE / "bench").glob("*.py")) if file.stem not in NOT_THERE]
    return [*files, *stages, *bench, *sorted((PACKAGE / "tasks").glob("*.py"))]


def _packed_plan(plan: Plan) -> dict[str, Any]:
    document = dataclasses.asdict(plan)
    for position, target in enumerate(document["targets"]):
        target["path"] = f"models/{position}/{Path(target['path']).name}"
        target["file"] = "inputs.npz" if target["file"] else None
    return document


def _add_model(archive: zipfile.ZipFile, path: Path, folder: str) -> None:
    archive.write(path, f"{folder}/{path.name}")
    for file in external_files(load_graph(path), path):
        archive.write(file, f"{folder}/{file.relative_to(path.absolute().parent).as_posix()}")


def _most(split: Any) -> int:
    """Return how many samples go along: of large images fewer."""
    arrays = [*split.inputs, split.labels]
    sample = sum(math.prod(array.shape[1:]) * array.dtype.itemsize for array in arrays)
    return int(max(1, min(MAX_SAMPLES, MAX_BYTES // max(sample, 1))))


def _samples(
    models: Sequence[ModelFile], folder: Path, dataset: Any | None, progress: Progress
) -> tuple[int, dict[str, tuple[str, bytes]]]:
    """Return how many samples go along, and for each model its inputs as they are fed, with the labels."""
    if dataset is None or dataset.test.labels is None:
        return 0, {}
    from kdexport.onnx.sessions import OnnxSession

    # Spread over the split: a split in the order of its classes would give a sample of the first few.
    most = _most(dataset.test)
    split = dataset.test.spread(most)
    calibration = None if split.calibration is None else split.calibration.spread(most)
    count = len(split)
    feeds = {}
    for model in models:
        try:
            session = OnnxSession(folder / model.file, dataset.preprocessing)
            fed: dict[str, Any] = {f"input:{name}": array for name, array in session.feeds(split.inputs).items()}
            if calibration is not None:
                more = session.feeds(calibration.inputs)
                fed |= {f"calibration:{name}": array for name, array in more.items()}
                fed["calibration_labels"] = np.asarray(calibration.labels)
        except KDExportError as error:
            progress.warn(f"{model.name} will not be scored: {error.message}")
            continue
        buffer = io.BytesIO()
        np.savez(buffer, labels=split.labels, **fed)
        feeds[model.name] = (hashlib.sha256(buffer.getvalue()).hexdigest()[:16], buffer.getvalue())
    return (count if feeds else 0), feeds


SSH = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=20")  # a password would be asked for where nobody sees it


def measure_on(host: str, request: BenchRequest, *, python: str, progress: Progress) -> BenchResult:
    """Measure on another machine.

    Args:
        host: As ssh takes it: ``user@host`` or an alias of ``~/.ssh/config``.
        request: What to measure.
        python: The command that starts Python there, as sh takes it (a path with spaces is quoted in it); numpy and
            onnxruntime must be importable.
        progress: Where to say how it goes; the other machine's own lines come through on stderr.

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
        written = pack(request, packed, progress=progress)
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
        encoding="utf-8",
        errors="replace",
    )
    return result_of(done.stdout, host, done.returncode)


def result_of(text: str, host: str, code: int) -> BenchResult:
    """Return the result that another machine has sent.

    Raises:
        KDExportError: It is none: not JSON, not this version's, or it holds what no measuring gives.
    """
    try:
        return from_json(BenchResult, json.loads(text, parse_constant=_no_figure))
    except (ValueError, RecursionError):
        raise KDExportError(
            f"the benchmark on {host} ended with code {code} and no result (its own output is above)",
            hint=f"on {host}: pip install numpy onnxruntime; another interpreter: --remote-python PATH",
        ) from None


def _no_figure(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no figure")


def _call(*command: str, host: str) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode:
        output = " ".join(done.stderr.split()) or f"{command[0]} ended with code {done.returncode}"
        raise KDExportError(
            f"{host} could not be reached: {output}", hint=f"try `ssh {host} true`: it must work without a password"
        )
