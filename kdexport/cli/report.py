"""`kdexport report`: from bench results to a decision."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kdexport.cli.console import Json, Quiet, Verbose, command

if TYPE_CHECKING:
    from kdexport.results import BenchResult, Report

Benches = Annotated[
    list[str],
    typer.Argument(
        metavar="BENCH_JSON...",
        help="bench.json files, run directories, or what a page has saved, also from several machines; NAME=FILE "
        "renames its machine.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder to write to. By default beside a single input, else ./report."),
]
Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline",
        metavar="FILE",
        help="An earlier report.json or bench.json: a regression against it exits with 3. By default there is none.",
    ),
]
Tolerance = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        min=0,
        help="With --baseline, the share by which latency, size and memory may grow. By default 0.05.",
    ),
]
AccuracyTolerance = Annotated[
    float,
    typer.Option(
        metavar="X",
        min=0,
        help="With --baseline, how much the score may fall, or an error rise. By default 0.005, half a point.",
    ),
]
PushToHub = Annotated[
    str | None,
    typer.Option(
        "--push-to-hub",
        metavar="OWNER/NAME",
        help="Upload the files to ship and their card to this Hugging Face repository, if every requirement "
        "passes. By default nothing is uploaded.",
        show_default=False,
    ),
]
Format = Annotated[
    Literal["table", "junit", "github", "markdown"],
    typer.Option(
        "--format",
        metavar="NAME",
        help="What stdout gets: table, markdown, junit (XML for CI) or github (a job summary). By default table.",
    ),
]


def report(
    benches: Benches,
    out: Out = None,
    baseline: Baseline = None,
    tolerance: Tolerance = 0.05,
    accuracy_tolerance: AccuracyTolerance = 0.005,
    format_: Format = "table",
    push_to_hub: PushToHub = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Join measurements into one report: trade-offs, the model to ship, and whether the requirements hold.

    Exits with 3 where a requirement of the recipe, or one that --baseline
    sets, does not hold.

    Examples:
      kdexport report runs/digits
      kdexport report laptop=laptop.json phone=phone.json --out both
      kdexport report runs/new --baseline runs/old/report.json
      kdexport report bench.json --format github >> "$GITHUB_STEP_SUMMARY"
    """
    if json and format_ != "table":
        raise typer.BadParameter(f"--json and --format {format_} both want stdout; give one of them")
    with command(json=json, quiet=quiet, verbose=verbose) as console:
        from kdexport.report.reading import folder_of, read_benches, read_report, requirements_of
        from kdexport.report.regression import against_earlier
        from kdexport.report.stage import enforce, write_report
        from kdexport.report.stage import report as make

        earlier = read_report(baseline) if baseline is not None else None  # before a new report can replace it
        joined = [bench for given in benches for bench in read_benches(given, _of_page)]
        require = requirements_of(joined)
        made = make(joined, require)
        if earlier is not None:
            made = against_earlier(
                made,
                earlier,
                tolerance=tolerance,
                accuracy_tolerance=accuracy_tolerance,
                undecided=require.undecided,
            )
        written = write_report(made, out or folder_of(benches))
        console.result(made, _shown(made, format_, console.width))
        console.progress.message(f"written: {written[-1].parent}/{{report.html, report.md, report.json}}")
        enforce(made)
        if push_to_hub is not None:
            from kdexport.report.publish import push

            console.progress.message(f"pushed to {push(made, folder_of(benches), push_to_hub)}")


def _of_page(document: dict[str, Any]) -> "BenchResult | None":
    """Return the bench result of what a page has saved; None where a document is no such file."""
    if document.get("format") is None:
        return None
    from kdexport.bench.web import recording

    return recording.from_file(document) if recording.is_recording(document) else None


def _shown(made: "Report", format_: str, width: int) -> object:
    from kdexport.report.markdown import markdown
    from kdexport.report.publish import github, junit
    from kdexport.report.terminal import terminal

    if format_ == "table":
        return terminal(made, width)
    return {"junit": junit, "github": github}.get(format_, markdown)(made)
