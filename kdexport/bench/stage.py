"""`kdexport bench`: measure ONNX files on devices. The file to read first.

    check every file, device and shape (plan_for) -> measure in children (runner) -> score -> BenchResult

Nothing is measured before all that can be refused has been refused.
"""

import contextlib
import dataclasses
import datetime
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdexport.artifacts import RunDirectory, read_epochs, read_json, write_atomically
from kdexport.bench import devices
from kdexport.bench.inputs import batch_axes, check_batch, check_dims, resolve_shapes
from kdexport.bench.plan import Device, Plan, Settings, Target, WebSettings
from kdexport.bench.runner import Outcome, run_plan
from kdexport.bench.scoring import Measured, score_models, session_for
from kdexport.bench.web import devices as web
from kdexport.errors import KDExportError
from kdexport.machine import fingerprint
from kdexport.onnx.describe import describe_file, integer_limits
from kdexport.onnx.layers import graph_nodes
from kdexport.progress import Progress, Silent
from kdexport.results import BenchResult, ExportResult, Machine, ModelFile

if TYPE_CHECKING:
    from kdexport.data.samples import Dataset
    from kdexport.recipe import Bench, Recipe

SILENT = Silent()


@dataclasses.dataclass(frozen=True)
class BenchRequest:
    """What is to be measured, wherever that is: here, by a packed file, or on another machine. See ``bench``."""

    models: Sequence[ModelFile]
    settings: "Bench"
    name: str
    folder: Path = Path()
    dataset: "Dataset | None" = None
    recipe: dict[str, Any] | None = None
    training: Sequence[dict[str, Any]] = ()
    dims: Mapping[str, int] | None = None
    inputs_file: Path | None = None


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
    from kdexport.models.fitted_data import load_run_data
    from kdexport.stage_cache import as_written, cache_key, data_fingerprint, done, mark_done
    from kdexport.stage_cache import fingerprint as reference_fingerprint

    machine = fingerprint()
    key = cache_key(
        "bench",
        settings=as_written(recipe.bench.model_dump()),
        models=[[model.name, model.sha256] for model in exported.models],
        data=[data_fingerprint(recipe.data), recipe.seed],
        scores=[reference_fingerprint(reference) for reference in recipe.scores],
        machine=[machine.name, machine.cpu, machine.cores, machine.container, machine.gpus, machine.versions],
        **web.cache_entry(recipe.bench.devices),
    )
    document = recipe.to_dict(relative_to=directory.root)
    training = tuple(read_epochs(directory.metrics))
    earlier = done(directory.stage("bench"), key, BenchResult)
    if earlier is not None:
        progress.message("bench: measured before, nothing has changed")
        result = dataclasses.replace(earlier, name=recipe.name, recipe=document, training=training)
    else:
        settled = (read_json(directory.stage("distill")) or {}).get("class_names")  # their order, of the trained
        dataset = load_run_data(recipe, directory.cache, class_names=settled)
        result = bench(
            exported.models,
            recipe.bench,
            name=recipe.name,
            folder=directory.root,
            dataset=dataset,
            scores=recipe.scores,
            dims=dims_of(dataset, recipe.bench),
            recipe=document,
            training=training,
            samples_file=directory.samples,
            machine=machine,
            progress=progress,
        )
    # What export left out is told here: the report reads no other stage's result.
    left_out = {failure.model: failure.reason for failure in exported.failures}
    result = dataclasses.replace(result, left_out=left_out)
    if result != earlier:
        # What failed is tried again next time.
        mark_done(directory.stage("bench"), "" if result.failures else key, result, [directory.samples])
    return result


def dims_of(dataset: Any | None, settings: "Bench") -> dict[str, int]:
    """Return the sizes of dynamic axes that the data and the recipe give: text is measured at its full length."""
    text = dataset is not None and dataset.preprocessing.kind == "tokens"
    return {**({"length": dataset.test.inputs[0].shape[1]} if dataset is not None and text else {}), **settings.dims}


def bench(
    models: Sequence[ModelFile],
    settings: "Bench",
    *,
    name: str,
    folder: Path = Path(),
    dataset: Any | None = None,
    scores: Sequence[str] = (),
    recipe: dict[str, Any] | None = None,
    training: Sequence[dict[str, Any]] = (),
    samples_file: Path | None = None,
    dims: Mapping[str, int] | None = None,
    inputs_file: Path | None = None,
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
        scores: Of the user's own, told beside the task's: ``file.py:name``.
        recipe: The resolved recipe, kept in the result.
        training: metrics.jsonl, kept in the result.
        samples_file: Where the raw samples go (.npz, int64 nanoseconds); None keeps none.
        dims: Sizes of dynamic axes by name; the batch needs none.
        inputs_file: Real inputs (.npz, one array per input); else they are made up to fit the graph.
        machine: This machine's fingerprint, where it has been taken.
        progress: Where to say how it goes.

    Returns:
        Everything measured. What failed stands in ``failures`` with its reason; the rest is complete.

    Raises:
        KDExportError: A file, device, shape or setting is not what it should be.
        DeviceError: A device isn't there or did not take the whole model.
    """
    plan = plan_for(models, settings, folder=folder, dims=dims, inputs_file=inputs_file)
    found = devices.find(plan.devices, devices.available(), plan.provider_options)
    plan = web.resolve(plan, found)
    machine = machine or fingerprint()
    machine = dataclasses.replace(machine, versions={**machine.versions, **web.versions(plan.settings.web)})
    outcome = run_plan(plan, machine.name, progress)
    if samples_file is not None:
        write_samples(samples_file, outcome)
    scored = (
        tuple(models)
        if dataset is None
        else score(models, folder, dataset, outcome, found, progress, scores, plan.settings)
    )
    made_by = {} if dataset is None else dataset.splits_made_by
    return BenchResult(
        name=name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=machine,
        models=scored,
        measurements=outcome.measurements,
        failures=outcome.failures,
        recipe=recipe,
        training=tuple(training),
        tested_on=made_by.get("test", ""),
        data_warnings=() if dataset is None else dataset.warnings,
    )


def plan_for(
    models: Sequence[ModelFile],
    settings: "Bench",
    *,
    folder: Path = Path(),
    dims: Mapping[str, int] | None = None,
    inputs_file: Path | None = None,
) -> Plan:
    """Check all that can be checked without running anything, and say what will be measured; arguments as ``bench``."""
    names = [model.name for model in models]
    if not names:
        raise KDExportError("there is nothing to measure", hint="give ONNX files or a run directory")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise KDExportError(
            f"two models are called {twice[0]!r}", hint="give one of the files another name, or measure them one by one"
        )
    if inputs_file is not None and not inputs_file.is_file():
        raise KDExportError(f"there is no file {inputs_file}", hint="--input takes an .npz with one array per input")
    if inputs_file is not None and not zipfile.is_zipfile(inputs_file):
        raise KDExportError(
            f"{inputs_file} is not an .npz file",
            hint="write it with numpy.savez(FILE, NAME=ARRAY, ...), an array per input",
        )
    dims = dict(dims or {})
    axis = settings.batch_axis
    for model in models:
        batch_axes(model.inputs, axis, model=model.name)
    check_dims([model.inputs for model in models], dims, axis)
    source = None if inputs_file is None else str(inputs_file.absolute())
    targets = []
    for model in models:
        file = folder / model.file
        describe_file(file)  # it is there, whole, and its weights with it
        for batch in settings.batch_sizes:
            if source is None:
                resolve_shapes(model.inputs, batch, dims, model=model.name, batch_axis=axis)
            else:
                check_batch(model.inputs, batch, model=model.name, batch_axis=axis)
        limits = integer_limits(file)
        targets.append(
            Target(
                model.name,
                str(file.absolute()),
                model.inputs,
                {name: limit for name, limit in limits.items() if limit is not None},
                source,
                () if source else assumed_values(limits),
                graph_nodes(file) if settings.profile else (),
            )
        )
    return Plan(
        targets=tuple(targets),
        settings=Settings(
            precision=settings.precision,
            min_seconds=settings.min_seconds,
            max_seconds=settings.max_seconds,
            rounds=settings.rounds,
            timeout_s=settings.timeout_s,
            allow_fallback=settings.allow_fallback,
            streams=settings.streams,
            power_command=settings.power_command,
            profile=settings.profile,
            dims=dims,
            batch_axis=axis,
            web=WebSettings(settings.browser, settings.web_runtime),
        ),
        devices=settings.devices,
        batch_sizes=settings.batch_sizes,
        threads=settings.threads,
        provider_options=settings.provider_options,
    )


def assumed_values(limits: Mapping[str, int | None]) -> tuple[str, ...]:
    """Return a warning on the integer inputs of which the graph does not tell what they may hold, if there are any."""
    unknown = [name for name, limit in limits.items() if limit is None]
    if not unknown:
        return ()
    names = ", ".join(f"'{name}'" for name in unknown)
    who = f"integer inputs {names} hold" if len(unknown) > 1 else f"integer input {names} holds"
    return (
        f"{who} 1 everywhere: nothing in the graph bounds the values, and they may decide how long a loop runs; "
        "give real ones with --input FILE.npz",
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


def score(
    models: Sequence[ModelFile],
    folder: Path,
    dataset: Any,
    outcome: Measured,
    found: Sequence[Device],
    progress: Progress,
    scores: Sequence[str] = (),
    settings: Settings | None = None,
) -> tuple[ModelFile, ...]:
    """Fill in accuracy, its interval and the agreement with the first model, on the test split.

    Args:
        models: The first is the baseline.
        folder: What the models' paths are relative to.
        dataset: A ``kdexport.data.samples.Dataset``.
        outcome: What was measured: a model is scored on a device that it ran on.
        found: The devices in the order asked for.
        progress: Where to say how it goes. A model that cannot be scored is reported there and stays unscored.
        scores: Of the user's own, beside the task's.
        settings: Of the plan, for the browser of a web device.
    """
    from kdexport.models.class_names import by_name
    from kdexport.scoring import evaluate, own_scores

    further = own_scores(scores)

    def evaluated(model: ModelFile, device: Device) -> tuple[Any, Any]:
        file = folder / model.file
        with contextlib.ExitStack() as stack:
            page = None
            if settings is not None and web.is_web(device):
                from kdexport.bench.web.session import WebSession

                page = stack.enter_context(WebSession(file, device, settings))
            session = session_for(file, device, dataset.task, dataset.preprocessing, session=page)
            predict = by_name(session.predict, session.class_names, dataset.class_names, model.name)
            return evaluate(predict, dataset.test, dataset.class_names, further=further)

    return tuple(score_models(models, evaluated, outcome, found, progress))
