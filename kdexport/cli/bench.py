"""`kdexport bench`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdexport.cli.console import Console, Json, Quiet, Verbose, command

if TYPE_CHECKING:
    from kdexport.recipe import Recipe
    from kdexport.results import BenchResult


def bench(
    models: Annotated[
        list[str],
        typer.Argument(metavar="RUN_OR_ONNX...", help="Run directories or ONNX files; the first is the baseline."),
    ],
    device: Annotated[list[str] | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, tensorrt, ...")] = None,
    batch_size: Annotated[list[int] | None, typer.Option(metavar="N", help="Samples per call.")] = None,
    threads: Annotated[list[int] | None, typer.Option(metavar="N", help="Threads within one operator.")] = None,
    data: Annotated[str | None, typer.Option(metavar="REF", help="Data to score the models on.")] = None,
    precision: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Half-width of the median's interval that ends the measuring.")
    ] = None,
    min_seconds: Annotated[float | None, typer.Option(metavar="S", help="Least time measured per model.")] = None,
    max_seconds: Annotated[float | None, typer.Option(metavar="S", help="Longest time measured per model.")] = None,
    dim: Annotated[
        list[str] | None, typer.Option(metavar="NAME=N", help="Size of a dynamic axis; the batch needs none.")
    ] = None,
    allow_fallback: Annotated[
        bool, typer.Option("--allow-fallback", help="Measure even where operators fall back to the CPU.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the result goes; bench.json in a run directory.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure latency, memory and accuracy of ONNX models on devices.

    Each model runs in a process of its own, in turns with the others. A repeated option measures every value.
    """
    with command(json=json, quiet=quiet, verbose=verbose) as console:
        _bench(
            console,
            models,
            {
                "devices": device,
                "batch_sizes": batch_size,
                "threads": threads,
                "precision": precision,
                "min_seconds": min_seconds,
                "max_seconds": max_seconds,
                "allow_fallback": allow_fallback or None,
            },
            data,
            dim or [],
            out,
        )


def _bench(
    console: Console, names: list[str], flags: dict[str, Any], data: str | None, dims: list[str], out: Path | None
) -> None:
    from kdexport import results
    from kdexport.artifacts import RunDirectory, write_text
    from kdexport.bench.stage import bench as run_bench
    from kdexport.bench.stage import training_lines

    paths = [Path(name) for name in names]
    folders = [path for path in paths if path.is_dir()]
    found = [model for path in paths for model in _models(path)]
    recipe = _recipe(folders[0]) if len(paths) == len(folders) == 1 else None
    directory = RunDirectory(folders[0]) if recipe else None
    target = out or (directory.stage("bench") if directory else None)
    result = run_bench(
        found,
        _settings(recipe, flags),
        name=recipe.name if recipe else found[0].name,
        dataset=_dataset(recipe, data, console),
        recipe=recipe.to_dict(relative_to=folders[0]) if recipe else None,
        training=training_lines(directory.metrics) if directory else (),
        samples_file=target.with_suffix(".samples.npz") if target else None,
        dims=_dims(dims),
        progress=console.progress,
    )
    if target is not None:
        write_text(target, results.dumps(result))
    console.result(result, table(result))
    if result.failures:
        raise _failed(result)


def _models(path: Path) -> list[Any]:
    """Return the models of a run directory, or the one that an ONNX file is."""
    import dataclasses

    from pydantic import ValidationError

    from kdexport.artifacts import RunDirectory, read_json
    from kdexport.bench.describe import describe_file
    from kdexport.errors import KDExportError
    from kdexport.results import ExportResult, from_json

    if not path.is_dir():
        return [describe_file(path)]
    document = read_json(RunDirectory(path).stage("export"))
    if document is not None:
        document.pop("key", None)
        try:
            exported = from_json(ExportResult, document)
        except ValidationError:
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
        flag = "--" + str(fault["loc"][0]).replace("_", "-").replace("devices", "device").replace("sizes", "size")
        said = fault["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        raise KDExportError(f"{flag} {fault['input']}: {said}", hint="see `kdexport bench --help`") from None


def _dims(texts: list[str]) -> dict[str, int]:
    from kdexport.errors import KDExportError

    dims = {}
    for text in texts:
        name, equals, size = text.partition("=")
        if not (name and equals and size.isdigit() and int(size) > 0):
            raise KDExportError(f"--dim {text!r} is not of the form NAME=SIZE", hint="e.g. --dim sequence=64")
        dims[name] = int(size)
    return dims


def _dataset(recipe: "Recipe | None", data: str | None, console: Console) -> Any:
    import tempfile

    from kdexport import references
    from kdexport.recipe import Data

    if data is None and recipe is None:
        return None
    with console.progress.task("data"):
        from kdexport.sources.datasets import load_data

    if data is not None:
        chosen = Data(source=references.absolute(data, Path.cwd()))
    else:
        chosen = recipe.data if recipe else Data(source="")
    return load_data(chosen, recipe.seed if recipe else 0, Path(tempfile.gettempdir()) / "kdexport-cache")


def _failed(result: "BenchResult") -> Exception:
    from kdexport.errors import KDExportError

    lines = [f"  {failure.model} on {failure.device}: {failure.reason}" for failure in result.failures]
    count = "one measurement" if len(lines) == 1 else f"{len(lines)} measurements"
    return KDExportError(
        "\n".join([f"{count} could not be made:", *lines]), hint="the others are complete; mend these and measure again"
    )


def table(result: "BenchResult") -> Any:
    """Return the measurements as a Rich table, the baseline first."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    shown = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in (
        "model",
        "device",
        "batch",
        "threads",
        "p50 ms",
        "±",
        "p99 ms",
        "per s",
        "peak MiB",
        "MiB",
        "accuracy",
    ):
        shown.add_column(column, justify="left" if column in ("model", "device") else "right")
    models = {model.name: model for model in result.models}
    for one in result.measurements:
        latency, model = one.latency_ms, models[one.model]
        interval = latency.p50_ci95
        half = None if interval is None else (interval[1] - interval[0]) / 2 / latency.p50
        shown.add_row(
            one.model,
            one.device,
            str(one.batch_size),
            str(one.threads),
            f"{latency.p50:.3f}",
            "-" if half is None else f"{half:.1%}",
            "-" if latency.p99 is None else f"{latency.p99:.3f}",
            f"{one.throughput_per_s:,.0f}",
            "-" if one.memory_mib.peak_rss is None else f"{one.memory_mib.peak_rss:.0f}",
            f"{model.size_bytes / 2**20:.2f}",
            "-" if model.accuracy is None else f"{model.accuracy:.4f}",
        )
    return shown
