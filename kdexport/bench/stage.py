"""`kdexport bench`: measure ONNX files on devices. The file to read first.

    check every file, device and shape -> measure in children (runner) -> score in ONNX Runtime -> one BenchResult

Nothing is measured before all that can be refused has been refused.
"""

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdexport import __version__
from kdexport.artifacts import RunDirectory, key_of, write_atomically
from kdexport.bench import accuracy, devices
from kdexport.bench.describe import describe_file
from kdexport.bench.inputs import check_dims, resolve_shapes
from kdexport.bench.plan import Case, Settings, Target
from kdexport.bench.runner import Outcome, Runner
from kdexport.errors import KDExportError
from kdexport.machine import fingerprint
from kdexport.progress import Progress, Silent
from kdexport.results import BenchResult, ExportResult, Machine, ModelFile

if TYPE_CHECKING:
    from kdexport.recipe import Bench, Recipe

SILENT = Silent()


def bench_run(recipe: "Recipe", exported: ExportResult, directory: RunDirectory, progress: Progress) -> BenchResult:
    """Measure what a run has exported, and score it on the run's test split; bench.json.

    What was measured before on this machine, with the same files, data and settings, is taken as it is.

    Args:
        recipe: The run's recipe; its [bench] says what to measure.
        exported: The files, relative to ``directory``.
        directory: The run.
        progress: Where to say how it goes.

    Raises:
        KDExportError: As ``bench``.
    """
    from kdexport.sources.datasets import load_data
    from kdexport.sources.fingerprint import fingerprint as content_of

    machine = fingerprint()
    key = key_of(
        recipe.bench.model_dump(),
        [[model.name, model.sha256] for model in exported.models],
        [recipe.data.model_dump(), recipe.seed, content_of(recipe.data.source, recipe.data.args)],
        [machine.name, machine.cpu, machine.cores, machine.container, machine.gpus, machine.versions],
        __version__,
    )
    document = recipe.to_dict(relative_to=directory.root)
    training = training_lines(directory.metrics)
    done = directory.finished("bench", BenchResult, key)
    if done is not None:
        progress.say("bench: measured before, nothing has changed")
        result = dataclasses.replace(done, name=recipe.name, recipe=document, training=training)
    else:
        result = bench(
            exported.models,
            recipe.bench,
            name=recipe.name,
            folder=directory.root,
            dataset=load_data(recipe.data, recipe.seed, directory.cache),
            recipe=document,
            training=training,
            samples_file=directory.samples,
            machine=machine,
            progress=progress,
        )
    if result != done:
        directory.finish("bench", result, key)
    return result


def training_lines(path: Path) -> tuple[dict[str, Any], ...]:
    """Return the epochs of metrics.jsonl; a last line that was cut off is left out."""
    lines = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
    return tuple(lines)


def bench(
    models: Sequence[ModelFile],
    settings: "Bench",
    *,
    name: str,
    folder: Path = Path(),
    dataset: Any | None = None,
    recipe: dict[str, Any] | None = None,
    training: Sequence[dict[str, Any]] = (),
    samples_file: Path | None = None,
    dims: Mapping[str, int] | None = None,
    machine: Machine | None = None,
    progress: Progress = SILENT,
) -> BenchResult:
    """Measure every model on every device, batch size and thread count; the first model is the baseline.

    Args:
        models: What to measure; see ``describe_file`` for a bare path.
        settings: The recipe's [bench].
        name: What the result is called.
        folder: What the models' paths are relative to.
        dataset: Its test split gives accuracy; None leaves it out.
        recipe: The resolved recipe, kept in the result.
        training: metrics.jsonl, kept in the result.
        samples_file: Where the raw samples go (.npz, int64 nanoseconds); None keeps none.
        dims: Sizes of dynamic axes by name; the batch needs none.
        machine: This machine's fingerprint, where it has been taken.
        progress: Where to say how it goes.

    Raises:
        KDExportError: A file, device, shape or setting is not what it should be.
        DeviceError: A device isn't there or did not take the whole model.
    """
    import onnxruntime

    dims = dict(dims or {})
    if not models:
        raise KDExportError("there is nothing to measure", hint="give ONNX files or a run directory")
    files = [folder / model.file for model in models]
    for file in files:
        describe_file(file)
    plan = Settings(
        precision=settings.precision,
        min_seconds=settings.min_seconds,
        max_seconds=settings.max_seconds,
        rounds=settings.rounds,
        allow_fallback=settings.allow_fallback,
        dims=dims,
    )
    chosen = devices.find(settings.devices, onnxruntime.get_available_providers(), {})
    check_dims([model.inputs for model in models], dims)
    targets = [Target(model.name, str(file.resolve()), model.inputs) for model, file in zip(models, files, strict=True)]
    for target in targets:
        for batch in settings.batch_sizes:
            resolve_shapes(target.inputs, batch, dims, model=target.name)
    machine = machine or fingerprint()
    cases = [Case(device, threads, settings.batch_sizes) for device in chosen for threads in settings.threads]
    outcome = Runner(targets, plan, machine.name, progress).run(cases)
    if samples_file is not None:
        write_samples(samples_file, outcome)
    scored = tuple(models) if dataset is None else accuracy.score(models, folder, dataset, progress)
    return BenchResult(
        name=name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=machine,
        models=scored,
        measurements=outcome.measurements,
        failures=outcome.failures,
        recipe=recipe,
        training=tuple(training),
    )


def write_samples(path: Path, outcome: Outcome) -> None:
    """Keep every raw sample: ``model|device|batch|threads`` -> int64 ns, and the rounds' lengths beside it."""
    import numpy as np

    arrays: dict[str, Any] = {}
    for key, rounds in outcome.samples.items():
        arrays[key] = np.concatenate(rounds)
        arrays[f"{key}|rounds"] = np.array([len(samples) for samples in rounds])

    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:
            np.savez_compressed(handle, **arrays)

    write_atomically(path, write)
