"""The command line: one module per command, each `parse -> call one stage -> print`.

Nothing heavy is imported until a command's work begins: `kdexport --help` loads neither torch nor onnx nor onnxruntime.
"""

import getpass
import os
from collections.abc import Callable
from typing import Annotated

import typer

from kdexport import __version__
from kdexport.cli.bench import bench
from kdexport.cli.console import prepare_streams
from kdexport.cli.distill import distill
from kdexport.cli.doctor import doctor
from kdexport.cli.evaluate import evaluate
from kdexport.cli.export import export
from kdexport.cli.help import Command, Group
from kdexport.cli.init import init
from kdexport.cli.report import report
from kdexport.cli.run import run
from kdexport.cli.search import search
from kdexport.machine import parallel, usable_cores

app = typer.Typer(
    name="kdexport",
    cls=Group,
    help="Distill a student from your teacher, export it to ONNX with proof, and measure what it costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kdexport {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Start here": (init, run, export, bench, search),
    "One step alone": (distill, evaluate, report, doctor),
}
for panel, commands in PANELS.items():
    for function in commands:
        app.command(cls=Command, rich_help_panel=panel)(function)


def main() -> None:
    """Run the command line."""
    # Read when torch is first imported. libgomp's threads spin for milliseconds while they wait: training becomes ten
    # times slower as soon as anything else wants their core. Sleeping at once makes small networks 1.6 times slower.
    # Some ten microseconds of spinning cost neither.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # trainings on a GPU that can be repeated
    if (cores := parallel()) < usable_cores():  # libraries count cores, and not what a container may use of them
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name: torch below 2.13 asks for it as it is imported
        os.environ["USER"] = f"uid{os.getuid()}"
    prepare_streams()
    app()
