"""What runs inside a packed benchmark (``pack``): unpack, measure, score, write a bench.json.

Only Python's standard library, numpy and onnxruntime are there.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LONGEST_NAME = 200  # characters, of a device or a file
SCORE_BATCH = 64  # samples per call where the model leaves it open


def main() -> None:
    """Parse the flags, run, and end with 0, or 1 where something could not be measured."""
    from kdexport.bench.importable import check_importable
    from kdexport.errors import KDExportError

    try:
        flags = _parse()
        check_importable()
        sys.exit(_main(flags))
    except KDExportError as error:
        sys.exit(f"error: {error.message}\nhint: {error.hint}")
    except KeyboardInterrupt:
        sys.exit(130)


def _parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name, description="Measure the packed models on this machine; writes a bench.json."
    )
    parser.add_argument("--out", default="bench.json", metavar="FILE", help="where the result goes; - is stdout")
    parser.add_argument("--device", action="append", metavar="NAME", help="cpu, cuda, ...; as packed")
    parser.add_argument("--batch-size", action="append", type=int, metavar="N", help="as packed")
    parser.add_argument("--threads", action="append", type=int, metavar="N", help="as packed")
    parser.add_argument(
        "--max-seconds", type=float, metavar="S", help="time on the clock per model, at most; as packed"
    )
    parser.add_argument("--power-command", metavar="CMD", help="a command that prints watts; as packed")
    parser.add_argument("--allow-fallback", action="store_true", help="measure even where operators fall back")
    parser.add_argument("--quiet", action="store_true", help="say nothing on the way")
    flags = parser.parse_args(arguments)
    if any(number < 1 for number in (flags.batch_size or []) + (flags.threads or [])):
        parser.error("batch sizes and threads are whole numbers from 1 on")
    if flags.max_seconds is not None and not 0 < flags.max_seconds < math.inf:
        parser.error("--max-seconds is a number of seconds above 0")
    out = Path(flags.out)
    if flags.out != "-" and (not out.parent.is_dir() or (out.exists() and not out.is_file())):
        parser.error(f"--out {flags.out} is no file in a folder that is there; e.g. --out bench.json")
    return flags


def _main(flags: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="kdexport-") as folder:
        unpack(Path(sys.argv[0]), Path(folder))
        job = _job(Path(folder), flags)
        result = _measure(job)
        if flags.out != "-":
            _write(Path(flags.out), result)  # scoring runs in this process: what was measured is kept whatever it does
        models = tuple(score(job, result))
        result = dataclasses.replace(result, models=models)
    if flags.out != "-":
        _write(Path(flags.out), result)
    else:
        from kdexport import results

        sys.stdout.write(results.dumps(result))
    for line in summary(result):
        sys.stderr.write(line + "\n")
    return 1 if result.failures else 0


def unpack(pack: Path, folder: Path) -> None:
    """Unpack a pack's files into a folder.

    Raises:
        KDExportError: It is damaged, or the folder cannot hold it.
    """
    from kdexport.errors import KDExportError

    try:
        with zipfile.ZipFile(pack) as archive:
            archive.extractall(folder)
    except Exception as error:  # noqa: BLE001 - zipfile and zlib have a dozen kinds for a damaged file
        raise KDExportError(
            f"{pack.name} cannot be unpacked: {str(error) or type(error).__name__}",
            hint="copy it here again, whole; where the disk of the temporary folder is full, set TMPDIR to another",
        ) from None


def _write(path: Path, result: Any) -> None:
    """Write the result whole or not at all."""
    from kdexport import results
    from kdexport.errors import KDExportError

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(results.dumps(result), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise KDExportError(
            f"{path} could not be written: {error.strerror or error}", hint="choose another place with --out"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Job:
    """What was packed, as it is measured here."""

    folder: Path  # where it was unpacked
    manifest: dict[str, Any]
    plan: Any  # kdexport.bench.plan.Plan
    devices: Any  # those of the plan, in its order
    progress: Any


def _job(folder: Path, flags: argparse.Namespace) -> Job:
    """Return what was packed and is unpacked in a folder.

    Raises:
        KDExportError: Its manifest is not what kdexport writes, or a device is not here.
    """
    from kdexport.bench import devices, process
    from kdexport.errors import KDExportError
    from kdexport.progress import PlainLines, Silent

    process.package_root = folder  # workers import from the unpacked files
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        plan = _plan(manifest["plan"], folder, flags)
        named = (*plan.devices, *(digest for digest in dict(manifest["feeds"]).values() if digest is not None))
        if not all(isinstance(name, str) and len(name) < LONGEST_NAME for name in named):
            raise TypeError("a device or a file of samples has no name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise KDExportError(
            f"the pack's manifest is not what kdexport writes: {error!r}", hint="pack it anew: kdexport bench --pack"
        ) from None
    found = devices.find(plan.devices, devices.available(), plan.provider_options)
    return Job(folder, manifest, plan, found, Silent() if flags.quiet else PlainLines())


def _plan(packed: dict[str, Any], folder: Path, flags: argparse.Namespace) -> Any:
    from kdexport.bench.plan import Plan, Settings, Target
    from kdexport.onnx.layers import GraphNode

    settings = Settings(**packed["settings"])
    targets = []
    for target in packed["targets"]:
        source = str(folder / target["file"]) if target["file"] else None
        nodes = tuple(GraphNode(**node) for node in target["nodes"])
        targets.append(Target(**{**target, "path": str(folder / target["path"]), "file": source, "nodes": nodes}))
    return Plan(
        tuple(targets),
        dataclasses.replace(
            settings,
            allow_fallback=settings.allow_fallback or flags.allow_fallback,
            max_seconds=flags.max_seconds or settings.max_seconds,
            power_command=flags.power_command or settings.power_command,
        ),
        tuple(flags.device or packed["devices"]),
        tuple(flags.batch_size or packed["batch_sizes"]),
        tuple(flags.threads or packed["threads"]),
        packed["provider_options"],
    )


def _measure(job: Job) -> Any:
    from kdexport.bench.runner import run_plan
    from kdexport.machine import fingerprint
    from kdexport.results import BenchResult, ModelFile

    machine = fingerprint()
    outcome = run_plan(job.plan, machine.name, job.progress)
    return BenchResult(
        name=job.manifest["name"],
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        machine=machine,
        models=tuple(
            ModelFile(**{key: value for key, value in model.items() if key not in ModelFile.DERIVED})
            for model in job.manifest["models"]
        ),
        measurements=outcome.measurements,
        failures=outcome.failures,
        recipe=job.manifest["recipe"],
        training=tuple(job.manifest["training"]),
    )


def score(job: Job, result: Any) -> Iterator[Any]:
    """Yield the models with accuracy and agreement from the packed sample, on the device that each was measured on.

    A model that cannot be scored is told on the way and stays as it is.
    """
    from kdexport.bench.scoring import score_models

    if not job.manifest["feeds"]:
        yield from result.models
        return
    paths = {model.name: Path(target.path) for model, target in zip(result.models, job.plan.targets)}

    def evaluated(model: Any, device: Any) -> tuple[Any, Any]:
        return _evaluated(job, paths[model.name], job.manifest["feeds"].get(model.name), device)

    yield from score_models(result.models, evaluated, result, job.devices, job.progress)


def _evaluated(job: Job, path: Path, digest: str | None, device: Any) -> tuple[Any, Any]:
    from kdexport.bench.scoring import session_for
    from kdexport.data.npz_files import read_arrays
    from kdexport.errors import KDExportError
    from kdexport.scoring import evaluate

    if digest is None:
        raise KDExportError("the pack holds no data for it", hint="pack it again with data that it takes")
    split: Any = samples_in(read_arrays(job.folder / "data" / f"{digest}.npz"), job.manifest["task"])
    session = session_for(path, device, split.task, raw=False)
    return evaluate(session.predict, split, job.manifest["class_names"], SCORE_BATCH)


def samples_in(archive: Mapping[str, Any], task: str) -> Sample:
    """Return the samples of a packed npz file, with those that a score's threshold is chosen on where it holds some."""

    def part(inputs: str, labels: str) -> Sample:
        names = [key for key in archive if key.startswith(inputs)]
        return Sample(tuple(archive[name] for name in names), archive[labels], task)

    split = part("input:", "labels")
    if "calibration_labels" in archive:
        split.calibration = part("calibration:", "calibration_labels")
    return split


@dataclasses.dataclass
class Sample:
    """Labelled samples as ``evaluate`` takes them, in the form in which they are fed."""

    inputs: tuple[Any, ...]
    labels: Any
    task_name: str
    calibration: Sample | None = None

    def __len__(self) -> int:
        return len(self.inputs[0])

    @property
    def task(self) -> Any:
        """What the samples are for."""
        from kdexport.tasks import task_named

        return task_named(self.task_name, self.labels)

    def batches(self, size: int) -> Iterator[Sample]:
        """Yield the samples in order, ``size`` at a time."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield Sample(tuple(array[part] for array in self.inputs), self.labels[part], self.task_name)


def summary(result: Any) -> Iterator[str]:
    """Yield a plain line per measurement and per failure."""
    scores = {model.name: _score_in_words(model.evaluation) for model in result.models}
    for one in result.measurements:
        scored = scores[one.model]
        where = f"{one.device} batch {one.batch_size} threads {one.threads}"
        yield f"{one.model:24} {where:28} p50 {one.latency_ms.p50:10.4f} ms{scored}"
    for failure in result.failures:
        yield f"{failure.model:24} {failure.device} failed: {failure.reason}"


def _score_in_words(evaluation: Any) -> str:
    """Return a score, and the threshold that it was reached at; nothing where there is none."""
    from kdexport.tasks import TASKS, task_of_metric

    if evaluation is None:
        return ""
    task = task_of_metric(evaluation.score.metric) or TASKS[evaluation.task]
    threshold = evaluation.metrics.get("threshold")
    at = "" if threshold is None else f" at a cosine of {threshold:.4f}"
    return f"  {task.label} {evaluation.score.value:.4f}{at}"
