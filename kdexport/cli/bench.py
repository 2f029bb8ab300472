"""`kdexport bench`."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from kdexport.bench.devices import ALL
from kdexport.cli.console import Console, Json, Quiet, Verbose, command
from kdexport.results import BenchResult, Measurement, ModelFile

if TYPE_CHECKING:
    from kdexport.recipe import Recipe
    from kdexport.results import BenchResult

SWEEP = "What to measure on (each may be repeated)"
RULE = "When it is enough"
INPUTS = "What is fed"
ELSEWHERE = "Other machines"


def bench(
    models: Annotated[
        list[str],
        typer.Argument(metavar="RUN_OR_ONNX...", help="Run directories or ONNX files; the first is the baseline."),
    ],
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"{', '.join(provider.device for provider in ALL)}, or a plugin's name; cuda:1 is the second GPU. "
            "By default cpu.",
            rich_help_panel=SWEEP,
        ),
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(metavar="N", help="Samples per call. By default 1.", rich_help_panel=SWEEP)
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Threads within one operator. By default 1.", rich_help_panel=SWEEP),
    ] = None,
    streams: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Concurrent callers of one session, for its throughput. By default 1.",
            rich_help_panel=SWEEP,
        ),
    ] = None,
    provider_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="An option of the execution provider, for every device but the CPU. By default none.",
            rich_help_panel=SWEEP,
        ),
    ] = None,
    allow_fallback: Annotated[
        bool,
        typer.Option(
            "--allow-fallback",
            help="Measure a model even where some of its operators fall back to the CPU.",
            rich_help_panel=SWEEP,
        ),
    ] = False,
    precision: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Measure until the median's 95 % interval is this narrow: half-width as a share. By default 0.02.",
            rich_help_panel=RULE,
        ),
    ] = None,
    min_seconds: Annotated[
        float | None,
        typer.Option(metavar="S", help="Measured time per model, at least. By default 1.", rich_help_panel=RULE),
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(metavar="S", help="Time on the clock per model, at most. By default 20.", rich_help_panel=RULE),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(metavar="N", help="Fresh processes per model, at least. By default 5.", rich_help_panel=RULE),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="S", help="End a process that is silent for longer. By default 300.", rich_help_panel=RULE
        ),
    ] = None,
    power_command: Annotated[
        str | None,
        typer.Option(
            metavar="CMD",
            help="A command that prints watts, for energy per call. By default RAPL or NVML is asked.",
            rich_help_panel=RULE,
        ),
    ] = None,
    dim: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=N",
            help="Size of a dynamic axis, by its name or as INPUT:POSITION; may be repeated. By default the "
            "data's or the recipe's; the batch needs none.",
            rich_help_panel=INPUTS,
        ),
    ] = None,
    batch_axis: Annotated[
        str | None,
        typer.Option(
            metavar="AXIS",
            help="Axis of the samples: its name, its position, or INPUT:POSITION. By default the dynamic one "
            "that is called batch, batch_size, N, ..., else the first.",
            rich_help_panel=INPUTS,
        ),
    ] = None,
    input: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Real inputs, one array per input of the model. By default they are made to fit it.",
            rich_help_panel=INPUTS,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="Data to score the models on. By default the run's own; ONNX files alone are not scored.",
            rich_help_panel=INPUTS,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the result goes. By default a run's bench.json; of ONNX files nothing is written.",
        ),
    ] = None,
    pack: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.pyz",
            help="Measure nothing, and write one file that measures elsewhere. By default this machine measures.",
            rich_help_panel=ELSEWHERE,
        ),
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option(
            metavar="USER@HOST",
            help="Pack, copy, measure and fetch by ssh. By default this machine measures.",
            rich_help_panel=ELSEWHERE,
        ),
    ] = None,
    remote_python: Annotated[
        str,
        typer.Option(
            metavar="CMD",
            help="The Python to run there, as sh takes it. By default python3.",
            rich_help_panel=ELSEWHERE,
        ),
    ] = "python3",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure latency, memory, throughput and accuracy of ONNX models on devices.

    Each model runs in fresh processes of its own, in turns with the others.

    Examples:
      kdexport bench runs/digits
      kdexport bench teacher.onnx student.onnx --threads 1 --threads 2
      kdexport bench student.onnx --device cuda --batch-size 8
      kdexport bench runs/digits --pack bench.pyz
      kdexport bench runs/digits --remote pi@raspberrypi.local
    """
    flags = {
        "devices": device,
        "batch_sizes": batch_size,
        "threads": threads,
        "streams": streams,
        "precision": precision,
        "min_seconds": min_seconds,
        "max_seconds": max_seconds,
        "rounds": rounds,
        "timeout_s": timeout,
        "batch_axis": batch_axis,
        "power_command": power_command,
        "allow_fallback": allow_fallback or None,
    }
    with command(json=json, quiet=quiet, verbose=verbose) as console:
        _check_place(out, "--out", "bench.json")
        _check_place(pack, "--pack", "bench.pyz")
        job = _job(console, models, flags, data, provider_option or [], dim or [], input, out)
        if pack is not None:
            _pack(job, pack, console)
            return
        result = _remote(job, remote, remote_python, console) if remote is not None else _here(job, console)
        _show(result, job["target"], console)


def _check_place(file: Path | None, flag: str, example: str) -> None:
    """Refuse what cannot become a file before minutes are spent on what goes into it.

    Raises:
        KDExportError: It is a folder or a device, or no file can be made there.
    """
    import os

    from kdexport.errors import KDExportError

    if file is None:
        return
    try:
        folder = file.is_dir()
        above = next((place for place in file.absolute().parents if place.exists()), file)
        possible = above.is_dir() and os.access(above, os.W_OK) and (file.is_file() or not file.exists())
    except OSError:  # a folder that cannot be looked into, a name that is too long
        folder = possible = False
    if folder:
        raise KDExportError(f"{flag} {file} is a folder", hint=f"name a file in it, e.g. {flag} {file / example}")
    if not possible:
        raise KDExportError(
            f"{flag} {file}: no file can be written there", hint=f"choose another place, e.g. {flag} {example}"
        )


def _job(
    console: Console,
    names: list[str],
    flags: dict[str, Any],
    data: str | None,
    options: list[str],
    dims: list[str],
    inputs_file: Path | None,
    out: Path | None,
) -> dict[str, Any]:
    """Gather what is to be measured, from a run or from bare files."""
    from kdexport.artifacts import RunDirectory
    from kdexport.bench.stage import training_lines

    paths = [Path(name) for name in names]
    found = _distinct_names([(path, model) for path in paths for model in _models(path)])
    alone = len(paths) == 1 and paths[0].is_dir()
    recipe = _recipe(paths[0]) if alone else None
    directory = RunDirectory(paths[0]) if alone else None
    pairs = _pairs(options, "--provider-option", "e.g. --provider-option enable_cuda_graph=1")
    return {
        "models": found,
        "settings": _settings(recipe, {**flags, "provider_options": pairs or None}),
        "name": recipe.name if recipe else found[0].name,
        "dataset": _dataset(recipe, data, [paths[0] / model.file for model in found] if alone else paths, console),
        "recipe": recipe.to_dict(relative_to=paths[0]) if recipe else None,
        "training": training_lines(directory.metrics) if directory else (),
        "dims": _sizes(_pairs(dims, "--dim", "e.g. --dim sequence=64")),
        "inputs_file": inputs_file,
        "target": out or (directory.stage("bench") if directory else None),
    }


def _here(job: dict[str, Any], console: Console) -> "BenchResult":
    from kdexport.bench.stage import bench as measure

    target = job["target"]
    samples = target.with_suffix(".samples.npz") if target else None
    result: BenchResult = measure(
        job["models"], job["settings"], **_asked(job), samples_file=samples, progress=console.progress
    )
    return result


def _pack(job: dict[str, Any], out: Path, console: Console) -> None:
    from kdexport.bench.pack import pack

    written = pack(job["models"], job["settings"], out, **_asked(job), progress=console.progress)
    size = out.stat().st_size / 2**20
    shown = (
        f"{out}  {size:.1f} MiB, {len(job['models'])} models\nRun it where Python >= 3.11, numpy and onnxruntime are: "
    )
    console.result(written, shown + f"python {out.name} --out bench.json")


def _remote(job: dict[str, Any], host: str, python: str, console: Console) -> "BenchResult":
    from kdexport.bench.pack import measure_on

    return measure_on(host, job["models"], job["settings"], python=python, progress=console.progress, **_asked(job))


def _asked(job: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in job.items() if key not in ("models", "settings", "target")}


def _show(result: "BenchResult", target: Path | None, console: Console) -> None:
    from rich.console import Console as RichConsole
    from rich.console import Group

    from kdexport import results
    from kdexport.artifacts import write_text

    pass

    if target is not None:
        write_text(target, results.dumps(result))
    if result.measurements or console.json:
        console.result(result, Group(table(result, RichConsole().width), *lines(result)))
    if result.failures:
        raise _failed(result)


def _distinct_names(pairs: list[tuple[Path, Any]]) -> list[Any]:
    """Put the folder's name before the name of models that several folders have."""
    import dataclasses

    names = [model.name for _, model in pairs]
    if len(set(names)) == len(names):
        return [model for _, model in pairs]
    folders = [(path if path.is_dir() else path.parent).resolve().name for path, _ in pairs]
    return [
        dataclasses.replace(model, name=f"{folder}/{model.name}")
        for folder, (_, model) in zip(folders, pairs, strict=True)
    ]


def _models(path: Path) -> list[Any]:
    """Return the models of a run directory, or the one that an ONNX file is."""
    import dataclasses

    from pydantic import ValidationError

    from kdexport.artifacts import RunDirectory, read_json
    from kdexport.errors import KDExportError
    from kdexport.onnx.describe import describe_file
    from kdexport.results import ExportResult, from_json

    if not path.is_dir():
        return [describe_file(path)]
    document = read_json(RunDirectory(path).stage("export"))
    if document is not None:
        document.pop("key", None)
        try:
            exported = from_json(ExportResult, document)
        except ValidationError:  # written by another version
            document = None
        else:
            return [dataclasses.replace(model, file=str(path / model.file)) for model in exported.models]
    raise KDExportError(
        f"{path} is not a run directory with exported models: it holds no readable export.json",
        hint=f"write it with `kdexport run RECIPE --out {path}`, or give the ONNX files themselves",
    )


def _recipe(folder: Path) -> "Recipe | None":
    from kdexport.artifacts import RunDirectory
    from kdexport.recipe import Recipe

    path = RunDirectory(folder).recipe
    return Recipe.load(path) if path.is_file() else None


def _settings(recipe: "Recipe | None", flags: dict[str, Any]) -> Any:
    """Return the recipe's [bench] with the flags over it."""
    from pydantic import ValidationError

    from kdexport.errors import KDExportError
    from kdexport.recipe import Bench

    base = recipe.bench.model_dump() if recipe else {}
    given = {
        key: tuple(value) if isinstance(value, list) else value for key, value in flags.items() if value is not None
    }
    try:
        return Bench.model_validate({**base, **given})
    except ValidationError as error:
        fault = error.errors()[0]
        flag = {"devices": "device", "batch_sizes": "batch-size", "timeout_s": "timeout"}.get(str(fault["loc"][0]))
        flag = flag or str(fault["loc"][0]).replace("_", "-")
        said = fault["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        raise KDExportError(f"--{flag} {fault['input']}: {said}", hint="see `kdexport bench --help`") from None


def _pairs(texts: list[str], flag: str, example: str) -> dict[str, str]:
    from kdexport.errors import KDExportError

    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise KDExportError(f"{flag} {text!r} is not of the form NAME=VALUE", hint=example)
        pairs[name] = value
    return pairs


def _sizes(pairs: dict[str, str]) -> dict[str, int]:
    from kdexport.errors import KDExportError

    for name, value in pairs.items():
        if not value.isdigit() or int(value) < 1:
            raise KDExportError(
                f"--dim {name}={value}: a size is a whole number from 1 on", hint=f"e.g. --dim {name}=64"
            )
    return {name: int(value) for name, value in pairs.items()}


def _dataset(recipe: "Recipe | None", data: str | None, files: list[Path], console: Console) -> Any:
    """Load what the models are scored on: --data, else what the run's recipe says, else nothing."""
    from kdexport import references
    from kdexport.recipe import Data

    if data is not None:
        chosen = Data(source=references.absolute(data, Path.cwd()))
    elif recipe is not None:
        chosen = recipe.data
    else:
        return None
    progress = console.progress  # one for both: a second would want a display of its own
    with progress.task("data"):
        from kdexport.data.datasets import cache_folder, load_data
        from kdexport.models.fitted_data import as_files_say
        from kdexport.models.own_vocabulary import data_for, with_own_vocabulary

        seed, task = (0, None) if recipe is None else (recipe.seed, recipe.task)
        chosen, task = as_files_say(data_for(chosen, files), task, files)
        dataset = load_data(chosen, seed, cache_folder(chosen), progress, task=task)
        return with_own_vocabulary(dataset, chosen, (), files)


def _failed(result: "BenchResult") -> Exception:
    from kdexport.errors import KDExportError

    lines = []
    for failure in result.failures:
        batch = f" at batch {failure.batch_size}" if failure.batch_size is not None else ""
        lines.append(f"  {failure.model}{batch} on {failure.device}: {failure.reason}")
    count = "one measurement" if len(lines) == 1 else f"{len(lines)} measurements"
    others = "the others are complete; fix this and measure again" if result.measurements else "fix this, then again"
    return KDExportError("\n".join([f"{count} could not be made:", *lines]), hint=others)


NONE = "–"
Cell = Callable[[Measurement, ModelFile], str]


def table(result: BenchResult, width: int) -> Table:
    """Return the table, at most ``width`` characters wide.

    Columns that say the same in every row, or nothing, are left out (see ``lines``); where it is still too wide, the
    columns that one can best do without. bench.json holds everything.
    """
    models = {model.name: model for model in result.models}
    columns: list[tuple[str, list[str]]] = []
    for name, cell in _columns(result):
        cells = [cell(one, models[one.model]) for one in result.measurements]
        if name in ALWAYS or (len(set(cells)) > 1 if name in CONDITION_COLUMNS else set(cells) - {NONE, "1"}):
            columns.append((name, cells))
    for spare in SPARE:
        if sum(max(map(len, [name, *cells])) + BETWEEN for name, cells in columns) + BETWEEN > width:
            columns = [column for column in columns if not column[0].startswith(spare)]
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, _ in columns:
        shown.add_column(
            name, justify="left" if name in ("model", "device") else "right", no_wrap=True, overflow="fold"
        )
    for row in zip(*(cells for _, cells in columns), strict=True):
        shown.add_row(*row)
    return shown


def lines(result: BenchResult) -> Iterator[Text]:
    """Yield what holds for all rows, then each warning once with the measurements that it is about."""
    rows = result.measurements
    values = _values(rows)
    same = [f"{name} {found[0]}" for name, found in values.items() if len(found) == 1]
    machine = result.machine
    yield Text(f"{machine.cpu}, {machine.cores} cores; {', '.join(same)}".rstrip("; "), style="dim")
    about: dict[str, list[Measurement]] = {}
    for one in rows:
        for warning in one.warnings:
            about.setdefault(warning, []).append(one)
    for warning, warned in about.items():
        who = "all" if len(warned) == len(rows) > 1 else ", ".join(dict.fromkeys(one.model for one in warned))
        for name, here in _values(warned).items():
            if len(here) < len(values[name]):
                who += f", {name} {' and '.join(here)}"
        yield Text.assemble(("! ", "yellow"), f"{who}: {warning}")


def _values(rows: Iterable[Measurement]) -> dict[str, list[str]]:
    """Return which devices, batch sizes and thread counts some measurements were made at, in their order."""
    columns = zip(*map(_condition, rows), strict=True)
    return {
        name: list(dict.fromkeys(map(str, column))) for name, column in zip(CONDITION_COLUMNS, columns, strict=False)
    }


BETWEEN = 2  # characters that the table puts between columns, and at its edges
CONDITION_COLUMNS = ("device", "batch", "threads")  # as `_condition` returns them
ALWAYS = ("model", "p50 ms", "±", "MiB")
SPARE = ("peak MiB", "p99 ms", "MiB", "mJ", "per s")  # first to go first


def _columns(result: BenchResult) -> list[tuple[str, Cell]]:
    from kdexport.statistics import disturbed, speedup

    first = result.models[0].name
    baselines = {_condition(one): one for one in result.measurements if one.model == first}

    def faster(one: Measurement, _: ModelFile) -> str:
        baseline = baselines.get(_condition(one))
        if baseline is None or one.model == first:
            return NONE if baseline is None else "1"
        if disturbed(baseline, one):
            return "undecided"
        ratio, interval = speedup(baseline.latency_ms, one.latency_ms)
        return f"{ratio:.2f}" if interval is None else f"{ratio:.2f} ±{(interval[1] - interval[0]) / 2:.2f}"

    fixed: list[tuple[str, Cell]] = [
        ("model", lambda one, _: one.model),
        ("device", lambda one, _: one.device),
        ("batch", lambda one, _: str(one.batch_size)),
        ("threads", lambda one, _: str(one.threads)),
        ("p50 ms", lambda one, _: _figure(one.latency_ms.p50)),
        ("±", lambda one, _: _half_width(one)),
        ("p99 ms", lambda one, _: NONE if one.latency_ms.p99 is None else _figure(one.latency_ms.p99)),
        ("faster", faster),
    ]
    if len({one.batch_size for one in result.measurements}) > 1:  # else it is only what p50 says already
        fixed.append(("per s", lambda one, _: f"{one.throughput_per_s:,.0f}"))
    counts = sorted({key for one in result.measurements for key in one.throughput_by_streams or {}}, key=int)
    streams: list[tuple[str, Cell]] = [(f"per s ×{count}", _stream(count)) for count in counts]
    return [
        *fixed,
        *streams,
        ("peak MiB", lambda one, _: NONE if one.memory_mib.peak_rss is None else f"{one.memory_mib.peak_rss:.0f}"),
        ("mJ", lambda one, _: NONE if one.energy_mj is None else _figure(one.energy_mj)),
        ("MiB", lambda _, model: _figure(model.size_bytes / 2**20)),
        ("accuracy", lambda _, model: NONE if model.accuracy is None else f"{model.accuracy:.4f}"),
    ]


def _stream(count: str) -> Cell:
    def cell(one: Measurement, _: ModelFile) -> str:
        rate = (one.throughput_by_streams or {}).get(count)
        return NONE if rate is None else f"{rate:,.0f}"

    return cell


def _condition(one: Measurement) -> tuple[Any, ...]:
    return one.device, one.batch_size, one.threads


def _half_width(one: Measurement) -> str:
    interval = one.latency_ms.p50_ci95
    if interval is None:
        return NONE
    return f"{(interval[1] - interval[0]) / (interval[1] + interval[0]):.1%}"


def _figure(value: float) -> str:
    """Return three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 10 else f"{value:.3f}" if value >= 0.1 else f"{value:.4f}"
