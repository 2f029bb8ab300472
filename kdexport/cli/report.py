"""`kdexport report`: from bench results to a decision."""

from pathlib import Path
from typing import Annotated

import typer

from kdexport.cli.console import Json, Quiet, Verbose, command


def report(
    benches: Annotated[
        list[str],
        typer.Argument(
            metavar="BENCH_JSON...",
            help="bench.json files or run directories, also from several machines; NAME=FILE renames its machine.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report.json, .md and .html; that of a single input, else ./report.", metavar="DIR"
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Join measurements into one report: trade-offs, the model to ship, and whether the requirements hold."""
    with command(json=json, quiet=quiet, verbose=verbose) as console:
        from kdexport.report.reading import folder_of, read_benches, requirements_of
        from kdexport.report.stage import enforce, write_report
        from kdexport.report.stage import report as make
        from kdexport.report.tables import terminal

        joined = [bench for given in benches for bench in read_benches(given)]
        made = make(joined, requirements_of(joined))
        written = write_report(made, out or folder_of(benches))
        console.result(made, terminal(made))
        console.progress.say("written: " + ", ".join(str(path) for path in written))
        enforce(made)
