"""`kdexport bench`: its flags; what they ask for is gathered in ``bench_request``."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdexport.bench.devices import ALL
from kdexport.cli.console import Console, Json, Quiet, Verbose, command, task_option

if TYPE_CHECKING:
    from kdexport.bench.stage import BenchRequest
    from kdexport.results import BenchResult

SWEEP = "What to measure on (each may be repeated)"
RULE = "When it is enough"
INPUTS = "What is fed"
ELSEWHERE = "Other machines and devices"


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
            "In a browser: web:wasm, web:wasm-threads, web:webgpu. By default cpu.",
            rich_help_panel=SWEEP,
        ),
    ] = None,
    browser: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="The browser of web devices. By default Chromium, Chrome or Edge on PATH.",
            rich_help_panel=SWEEP,
        ),
    ] = None,
    web_runtime: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="An unpacked onnxruntime-web. By default npm brings it once into the user's cache.",
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
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Measure the time of each operator too, by type and by layer, without the profiler's own cost.",
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
            help="A command that prints watts, for energy per call. By default RAPL, NVML or a Jetson is asked.",
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
    label_column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Column of a table (--data table:FILE) that is estimated; may be repeated. By default what the file "
            "itself says.",
            rich_help_panel=INPUTS,
        ),
    ] = None,
    task: Annotated[str | None, task_option(INPUTS)] = None,
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
            help="Measure nothing, and write one file that measures elsewhere; with --device web an OUT.zip for a web "
            "server, whose page measures. By default this machine measures.",
            rich_help_panel=ELSEWHERE,
        ),
    ] = None,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve",
            help="Measure on every device that opens a page: prints its address, waits for the results. --timeout is "
            "the longest silence. By default this machine measures.",
            rich_help_panel=ELSEWHERE,
        ),
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="With --serve, where to listen; 0.0.0.0 lets the network in. By default 127.0.0.1: only this machine.",
            rich_help_panel=ELSEWHERE,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=65535,
            help="With --serve, the port. By default one that is free.",
            rich_help_panel=ELSEWHERE,
        ),
    ] = None,
    https: Annotated[
        bool,
        typer.Option(
            "--https",
            help="With --serve, make a certificate: browsers give threads and WebGPU only over https. By default http.",
            rich_help_panel=ELSEWHERE,
        ),
    ] = False,
    expect: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="With --serve, devices to wait for. By default it ends once each that has started is done.",
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
      kdexport bench student.onnx --device cpu --device web
      kdexport bench runs/digits --serve --host 0.0.0.0
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
        "browser": browser,
        "web_runtime": web_runtime,
        "profile": profile or None,
    }
    with command(json=json, quiet=quiet, verbose=verbose) as console:
        _check_place(out, "--out", "bench.json")
        _check_place(pack, "--pack", "bench.pyz")
        from kdexport.artifacts import RunDirectory, held
        from kdexport.cli import bench_pack, bench_serve
        from kdexport.cli.bench_request import request_for

        of_serve = {"--host": host, "--port": port, "--https": https, "--expect": expect}
        bench_serve.check_flags(of_serve, serve=serve, pack=pack, remote=remote)
        if serve and not device:  # a recipe's devices are this machine's: a page takes what its browser has
            flags["devices"] = ["cpu"]
        paths = [Path(name) for name in models]
        request = request_for(
            paths,
            flags,
            data,
            provider_option or [],
            dim or [],
            label_columns=label_column or [],
            task=task,
            inputs_file=input,
            progress=console.progress,
        )
        if pack is not None:
            bench_pack.pack(request, pack, console)
            return
        run = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
        if serve:
            place = out or (run or Path()) / bench_serve.NAME  # beside the run's own, which it does not replace
            _check_place(place, "--out", bench_serve.NAME)
            served = bench_serve.serve(
                request, place, console, host=host or "127.0.0.1", port=port or 0, https=https, expect=expect or 1
            )
            if fault := bench_serve.failures(served):
                raise fault
            return
        target = out or (RunDirectory(run).stage("bench") if run else None)
        with held(run, ".") if run and out is None else nullcontext():
            if remote is None:
                result = _measured(request, target.with_suffix(".samples.npz") if target else None, console)
            else:
                from kdexport.bench.pack import measure_on

                result = measure_on(remote, request, python=remote_python, progress=console.progress)
            _show(result, target, console)


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
    if file.is_file() and file.stat().st_size and flag == "--out":
        from kdexport.artifacts import read_json

        if not {"schema", "measurements"} <= (read_json(file) or {}).keys():
            raise KDExportError(f"{flag} {file} is a file, and no result of a bench", hint="name another, or move it")
    if not possible:
        raise KDExportError(
            f"{flag} {file}: no file can be written there", hint=f"choose another place, e.g. {flag} {example}"
        )


def _measured(request: "BenchRequest", samples_file: Path | None, console: Console) -> "BenchResult":
    from kdexport.bench.stage import bench as measure

    return measure(
        request.models,
        request.settings,
        name=request.name,
        dataset=request.dataset,
        recipe=request.recipe,
        training=request.training,
        dims=request.dims,
        inputs_file=request.inputs_file,
        samples_file=samples_file,
        progress=console.progress,
    )


def _show(result: "BenchResult", target: Path | None, console: Console) -> None:
    from kdexport import results
    from kdexport.artifacts import write_text
    from kdexport.cli.bench_tables import measured

    if target is not None:
        write_text(target, results.dumps(result))
    if result.measurements or console.json:
        console.result(result, measured(result, console.width) if result.measurements else "")
    if result.failures:
        raise _failed(result)


def _failed(result: "BenchResult") -> Exception:
    from kdexport.errors import KDExportError

    lines = []
    for failure in result.failures:
        batch = f" at batch {failure.batch_size}" if failure.batch_size is not None else ""
        lines.append(f"  {failure.model}{batch} on {failure.device}: {failure.reason}")
    count = "one measurement" if len(lines) == 1 else f"{len(lines)} measurements"
    others = "the others are complete; fix this and measure again" if result.measurements else "fix this, then again"
    return KDExportError("\n".join([f"{count} could not be made:", *lines]), hint=others)
