"""The whole way: recipe -> distill -> export -> bench -> report. OPEN FIRST.

Each stage hands over a result and paths; none knows another. A stage whose inputs are unchanged returns what it made
before.
"""

from functools import partial
from pathlib import Path

from kdexport.artifacts import RunDirectory
from kdexport.progress import SILENT, Progress
from kdexport.recipe import Recipe
from kdexport.results import OnChange, Report


def run(
    recipe: Recipe, out: Path | None = None, progress: Progress = SILENT, *, on_change: OnChange | None = None
) -> Report:
    """Distill, export, benchmark and report.

    Args:
        recipe: What to do.
        out: The run directory; ``runs/NAME`` where none is given.
        progress: Where to say what happens.
        on_change: What becomes of training that a changed recipe would throw away: ``"ask"`` (an error that says so),
            ``"restart"`` or ``"extend"``; None asks where more than ten minutes would be lost.

    Returns:
        The report, as report.json holds it. A requirement that is not met shows in its gates; it is no error here.

    Raises:
        KDExportError: A fault that the user can fix.
        KeyboardInterrupt: Ctrl-C; the same call goes on from the last checkpoint.
    """
    directory = RunDirectory(out or default_directory(recipe))
    progress.message(f"{recipe.name} -> {directory.root}/")
    if code := recipe.code():
        progress.message(code)
    with directory.lock():
        # The stages bring torch and onnx with them: not before the first line is on the screen.
        from kdexport.bench import devices
        from kdexport.bench.comparison import Comparison
        from kdexport.bench.stage import bench_run
        from kdexport.bench.web.devices import check_there
        from kdexport.distill.stage import distill
        from kdexport.export.diagnosis import try_export
        from kdexport.export.stage import export
        from kdexport.report.stage import report_run

        # A device that isn't there is told now, not after hours of training.
        found = devices.find(recipe.bench.devices, devices.available(), recipe.bench.provider_options)
        check_there(found, recipe.bench)
        with directory.holding(recipe.to_toml(relative_to=directory.root)):
            # What cannot be exported is told before it is trained, too.
            trial = partial(try_export, recipe.export)
            distilled = distill(recipe, directory, progress, on_change=on_change, before_training=trial)
        exported = export(recipe, distilled, directory, progress, partial(Comparison, recipe.bench))
        benched = bench_run(recipe, exported, directory, progress)
        return report_run(recipe, benched, directory, progress)


def join_training(recipe: Recipe, out: Path | None = None, *, on_change: OnChange | None = None) -> None:
    """Take part in the distill stage of a run that another process leads: what torchrun's further processes do."""
    from kdexport.distill.stage import distill

    distill(recipe, RunDirectory(out or default_directory(recipe)), on_change=on_change)


def default_directory(recipe: Recipe) -> Path:
    """Return ``runs/NAME`` in the working directory."""
    return Path("runs") / recipe.name
