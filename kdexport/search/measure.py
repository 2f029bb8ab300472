"""What candidates cost, before a step of training: each is exported with untrained weights and measured beside the
teacher in fresh processes. Latency, size and memory do not depend on what the weights are.

What was measured before, of the same network in the same setting on the same machine, is taken as it is.
"""

import dataclasses
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from kdexport import artifacts, figures, statistics
from kdexport.artifacts import RunDirectory
from kdexport.bench.pack import measure_on
from kdexport.bench.stage import BenchRequest, bench
from kdexport.bench.web import devices as web
from kdexport.data.samples import Dataset
from kdexport.distill.context import DistillContext, network_key
from kdexport.distill.logging import Trackers
from kdexport.errors import KDExportError, StorageError
from kdexport.export.stage import export
from kdexport.machine import fingerprint
from kdexport.models.fitted_data import load_run_data
from kdexport.models.loading import count_macs
from kdexport.models.weights import save_weights
from kdexport.progress import SILENT, Progress
from kdexport.recipe import Bench, Budget, Recipe, Search
from kdexport.report.tradeoffs import memory
from kdexport.results import BenchResult, DistillResult, Interval, Machine, ModelFile, TrainedNetwork
from kdexport.stage_cache import as_written, cache_key, data_fingerprint, is_done, mark_done

# Of each file: enough for an interval of some percent, little enough for a search of minutes. Finalists are measured
# again, for longer.
FIRST_LOOK = {"rounds": 3, "min_seconds": 0.15, "max_seconds": 1.0, "precision": 0.05}
SECOND_LOOK = {"rounds": 5, "min_seconds": 0.5, "max_seconds": 4.0, "precision": 0.02}
PYTHON = "python3"  # on a remote machine
TEACHER = "teacher"


@dataclass(frozen=True)
class Figures:
    """What one file costs."""

    size_bytes: int
    latency_ms: float
    latency_ms_ci95: Interval | None
    speedup: float  # against the teacher, measured in the same rounds
    speedup_ci95: Interval | None
    memory_mib: float | None
    disturbed: str | None = None  # why its speed-up decides nothing: what other work did meanwhile


@dataclass(frozen=True)
class Measured:
    """What a candidate costs: one file for each precision."""

    parameters: int
    macs: int | None
    seconds: float  # that building, exporting and measuring it took
    files: dict[str, Figures]  # precision -> figures; one that could not be made is absent
    failures: dict[str, str] = dataclasses.field(default_factory=dict)  # precision -> why


@dataclass(frozen=True)
class Candidates:
    """What building and measuring candidates share.

    Attributes:
        directory: Of the search.
        search: The recipe's table.
        teacher: The teacher's file, what all are measured beside.
        teacher_run: Where its weights lie, which a pruned student starts from.
    """

    directory: Path
    search: Search
    teacher: ModelFile
    teacher_run: RunDirectory
    progress: Progress

    def built(self, name: str, recipe: Recipe) -> tuple[dict[str, ModelFile], dict[str, str], TrainedNetwork, Dataset]:
        """Export a candidate with untrained weights.

        Args:
            name: Of its folder.
            recipe: Of the candidate alone.

        Returns:
            Its files by precision, why others could not be made, the network, and the data.

        Raises:
            KDExportError: It cannot be built or exported.
        """
        folder = RunDirectory(self.directory / "untrained" / name, self.teacher_run.cache)
        folder.prepare()
        dataset = load_run_data(recipe, folder.cache, class_names=None)
        context = DistillContext(recipe, self.teacher_run, dataset, SILENT, Trackers((), folder.root, name))
        model = context.load("student", recipe.student, context.student_starts_from)
        save_weights(model.network, folder.weights("student"))
        network = TrainedNetwork(
            name="student",
            reference="",
            weights="student.safetensors",
            weights_sha256=artifacts.sha256(folder.weights("student")),
            parameters=sum(parameter.numel() for parameter in model.network.parameters()),
            macs=count_macs(model, dataset),
            epochs=0,
            seconds=None,
            best_epoch=None,
            val_score=None,
        )
        distilled = DistillResult(name, dataset.class_names, {}, {}, (network,))
        exported = export(recipe, distilled, folder, SILENT)
        files = {
            model.precision: dataclasses.replace(
                model, name=f"{name}.{model.precision}", file=str((folder.root / model.file).absolute())
            )
            for model in exported.models
        }
        why = {failure.model.rpartition(".")[2]: failure.reason for failure in exported.failures}
        return files, why, network, dataset

    def key(self, recipe: Recipe, precisions: Sequence[str]) -> str:
        """Return what a measurement stands for."""
        machine = self._machine
        return cache_key(
            "measured candidate",
            network=network_key(recipe.student),
            teacher=self.teacher.sha256,
            data=data_fingerprint(recipe.data),
            export=as_written([recipe.export.model_dump(exclude={"quantize", "calibration", "max_drop"}), precisions]),
            where=as_written([self.search.device, self.search.remote, self.search.batch_size, self.search.threads]),
            settings=as_written([FIRST_LOOK, recipe.bench.provider_options, recipe.bench.dims]),
            **web.cache_entry([self.search.device]),
            machine=[machine.name, machine.cpu, machine.cores, machine.gpus, machine.versions],
            torch=torch.__version__,
        )

    @cached_property
    def _machine(self) -> Machine:
        return fingerprint()  # reads what is installed: a tenth of a second

    def known(self, name: str, recipe: Recipe, precisions: Sequence[str]) -> Measured | None:
        """Return what was measured before."""
        from kdexport.results import from_json

        document = is_done(self._record(name), self.key(recipe, precisions))
        return None if document is None else from_json(Measured, document["measured"])

    def keep(self, name: str, recipe: Recipe, precisions: Sequence[str], measured: Measured) -> None:
        """Keep what was measured, and drop the files that it was measured on."""
        document = {"measured": dataclasses.asdict(measured)}
        mark_done(self._record(name), self.key(recipe, precisions), document)
        shutil.rmtree(self.directory / "untrained" / name, ignore_errors=True)

    def _record(self, name: str) -> Path:
        return self.directory / "measured" / f"{name}.json"

    def measure(
        self, files: Sequence[ModelFile], recipe: Recipe, dataset: Dataset, look: dict[str, Any]
    ) -> BenchResult:
        """Measure files beside the teacher, interleaved, each in fresh processes; the teacher comes first."""
        settings = Bench(
            devices=(self.search.device,),
            batch_sizes=(self.search.batch_size,),
            threads=(self.search.threads,),
            allow_fallback=recipe.bench.allow_fallback,
            provider_options=recipe.bench.provider_options,
            timeout_s=recipe.bench.timeout_s,
            batch_axis=recipe.bench.batch_axis,
            browser=recipe.bench.browser,
            web_runtime=recipe.bench.web_runtime,
            **look,
        )
        text = dataset.preprocessing.kind == "tokens"
        dims = {**({"length": dataset.test.inputs[0].shape[1]} if text else {}), **recipe.bench.dims}
        every = [self.teacher, *files]
        if self.search.remote is not None:
            request = BenchRequest(every, settings, recipe.name, dims=dims)
            return measure_on(self.search.remote, request, python=PYTHON, progress=self.progress)
        return bench(every, settings, name=recipe.name, dims=dims, progress=self.progress)


def figures_of(result: BenchResult, file: ModelFile) -> Figures | None:
    """Return what a file costs by a measurement beside the teacher; None where it could not be measured."""
    by_name = {one.model: one for one in result.measurements}
    base, one = by_name.get(TEACHER), by_name.get(file.name)
    if base is None or one is None:
        return None
    ratio, interval = statistics.speedup(base.latency_ms, one.latency_ms)
    return Figures(
        size_bytes=file.size_bytes,
        latency_ms=one.latency_ms.p50,
        latency_ms_ci95=one.latency_ms.p50_ci95,
        speedup=ratio,
        speedup_ci95=interval,
        memory_mib=memory(one),
        disturbed=statistics.disturbed(base, one),
    )


@dataclass(frozen=True)
class Miss:
    """One limit that a file does not meet."""

    words: str  # "latency 2.7 ms (2.6–2.8), budget 2 ms"
    by: float  # by what share: 0.35 is 35 % too much


def misses(found: Figures, budget: Budget, *, sure: bool = False) -> list[Miss]:
    """Return the limits that a file is beyond with its whole 95 % interval; those within it are left for later.

    With ``sure``, the limits that it does not hold with its whole interval.
    """
    missed = []
    least, most = found.latency_ms_ci95 or (found.latency_ms, found.latency_ms)
    if budget.latency_ms is not None and (most if sure else least) > budget.latency_ms:
        shown = _with(figures.ms(found.latency_ms), figures.ms_interval(found.latency_ms_ci95))
        missed.append(
            Miss(f"latency {shown}, budget {figures.ms(budget.latency_ms)}", found.latency_ms / budget.latency_ms - 1)
        )
    least, most = found.speedup_ci95 or (found.speedup, found.speedup)
    if budget.speedup is not None and (least if sure else most) < budget.speedup:
        shown = _with(figures.times(found.speedup), figures.times_interval(found.speedup_ci95))
        missed.append(
            Miss(f"speed-up {shown}, budget {figures.times(budget.speedup)}", budget.speedup / found.speedup - 1)
        )
    size = found.size_bytes / 2**20
    if budget.size_mib is not None and size > budget.size_mib:
        limit = figures.size(int(budget.size_mib * 2**20))
        missed.append(Miss(f"size {figures.size(found.size_bytes)}, budget {limit}", size / budget.size_mib - 1))
    if budget.memory_mib is not None and found.memory_mib is not None and found.memory_mib > budget.memory_mib:
        shown, limit = figures.mib(found.memory_mib), figures.mib(budget.memory_mib)
        missed.append(Miss(f"memory {shown}, budget {limit}", found.memory_mib / budget.memory_mib - 1))
    return missed


def within(measured: Measured, budget: Budget) -> list[str]:
    """Return the precisions in which a candidate is not shown to be over the budget."""
    return [precision for precision, found in measured.files.items() if not misses(found, budget)]


def surely_within(measured: Measured, budget: Budget) -> bool:
    """Whether a candidate holds the budget, in some precision, with its whole interval."""
    return any(not misses(found, budget, sure=True) for found in measured.files.values())


def nearest_miss(measured: Measured, budget: Budget) -> tuple[float, str]:
    """Return by how much a candidate misses at the least, over its files, and that in words."""
    every = [(precision, misses(found, budget)) for precision, found in measured.files.items()]
    precision, missed = min(every, key=lambda item: max((miss.by for miss in item[1]), default=0.0))
    words = "; ".join(miss.words for miss in missed)
    return max((miss.by for miss in missed), default=0.0), words + ("" if precision == "fp32" else f" ({precision})")


def _with(value: str, interval: str) -> str:
    return f"{value} ({interval})" if interval else value


def untrained_recipe(recipe: Recipe, precisions: Sequence[str]) -> Recipe:
    """Return a candidate's recipe as it is exported untrained: in each precision, calibrated in the quickest way."""
    quantize = tuple(precision for precision in precisions if precision != "fp32")
    changed = {"quantize": quantize, "calibration": "minmax", "max_drop": None, "max_output_error": None}
    return recipe.model_copy(update={"export": recipe.export.model_copy(update=changed)})


def measure_batch(
    shared: Candidates, batch: Sequence[tuple[str, Recipe, Sequence[str]]]
) -> dict[str, Measured | KDExportError]:
    """Build and measure some candidates together.

    Args:
        shared: What they have in common.
        batch: Name, recipe and precisions of each.

    Returns:
        By name what each costs, or why it could not be built, exported or measured: the others go on.
    """
    found: dict[str, Measured | KDExportError] = {}
    built: dict[str, tuple[Recipe, dict[str, ModelFile], dict[str, str], TrainedNetwork, float]] = {}
    dataset: Dataset | None = None
    for name, recipe, precisions in batch:
        known = shared.known(name, recipe, precisions)
        if known is not None:
            found[name] = known
            continue
        started = time.monotonic()
        try:
            untrained = untrained_recipe(recipe, precisions)
            files, why, network, dataset = shared.built(name, untrained)
        except StorageError:
            raise
        except KDExportError as error:
            found[name] = error
        else:
            files = {precision: file for precision, file in files.items() if precision in precisions}
            built[name] = (recipe, files, why, network, time.monotonic() - started)
    if not built or dataset is None:
        return found
    started = time.monotonic()
    every = [file for _, files, _, _, _ in built.values() for file in files.values()]
    result = shared.measure(every, batch[0][1], dataset, FIRST_LOOK)
    each = (time.monotonic() - started) / len(built)
    reasons = {failure.model: failure.reason for failure in result.failures}
    for name, recipe, precisions in batch:
        if name not in built:
            continue
        _, files, why, network, seconds = built[name]
        costs = {precision: figures_of(result, file) for precision, file in files.items()}
        failed = why | {
            precision: reasons.get(files[precision].name, "the teacher could not be measured")
            for precision, cost in costs.items()
            if cost is None
        }
        measured = Measured(
            network.parameters,
            network.macs,
            seconds + each,
            {precision: cost for precision, cost in costs.items() if cost is not None},
            failed,
        )
        if measured.files:
            shared.keep(name, recipe, precisions, measured)
            found[name] = measured
        else:
            reason = next(iter(failed.values()), "no file could be made")
            found[name] = KDExportError(reason, hint="see the reason")
    return found
