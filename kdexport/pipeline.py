"""The whole way: recipe -> distill -> export -> bench -> report. OPEN FIRST.

Each stage hands over a result and paths; none knows another. A stage whose inputs are unchanged returns what it made
before.
"""

from pathlib import Path

from kdexport.artifacts import RunDirectory
from kdexport.progress import SILENT, Progress
from kdexport.recipe import Recipe
from kdexport.results import Report


def run(recipe: Recipe, out: Path | None = None, progress: Progress = SILENT) -> Report:
    """Distill, export, benchmark and report.

    Args:
        recipe: What to do.
        out: The run directory; ``runs/NAME`` where none is given.
        progress: Where to say what happens.

    Returns:
        The report, as report.json holds it. A requirement that is not met shows in its gates; it is no error here.

    Raises:
        KDExportError: A fault that the user can fix.
        KeyboardInterrupt: Ctrl-C; the same call goes on from the last checkpoint.
    """
    directory = RunDirectory(out or default_directory(recipe))
    progress.say(f"{recipe.name} -> {directory.root}/")
    with directory.lock():
        # The stages bring torch and onnx with them: not before the first line is on the screen.
        from kdexport.bench import devices
        from kdexport.bench.stage import bench_run
        from kdexport.distill.stage import distill
        from kdexport.export.stage import export
        from kdexport.report.stage import report_run

        # A device that isn't there is told now, not after hours of training.
        devices.find(recipe.bench.devices, devices.available(), recipe.bench.provider_options)
        recipe.write(directory.recipe)
        distilled = distill(recipe, directory, progress)
        exported = export(recipe, distilled, directory, progress)
        benched = bench_run(recipe, exported, directory, progress)
        return report_run(recipe, benched, directory, progress)


def join_training(recipe: Recipe, out: Path | None = None) -> None:
    """Take part in the distill stage of a run that another process leads: what torchrun's further processes do."""
    from kdexport.distill.stage import distill

    distill(recipe, RunDirectory(out or default_directory(recipe)))


def default_directory(recipe: Recipe) -> Path:
    """Return ``runs/NAME`` in the working directory."""
    return Path("runs") / recipe.name
