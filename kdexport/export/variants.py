"""A variant of an fp32 file in fewer bits: made, held against the file that it comes from, and guarded.

No variant loses accuracy unseen: what it scores on the validation split (or, where there is nothing to score by, how
far its outputs are from fp32's) stands in its notes, and with a limit on the loss, operators go back to fp32 until it
holds. What cannot be quantized, or not be run, stays in fp32 and is named. A variant in which no weight changes is
refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from kdexport import artifacts, figures
from kdexport.errors import KDExportError, StorageError
from kdexport.export import batch_effect, parity, quantize
from kdexport.export.accuracy_guard import AccuracyGuard, Limits, Score, VariantBuilder
from kdexport.export.restored_operators import restore, runnable
from kdexport.export.variant_inputs import CalibrationData, TimerMaker, VariantInputs, VariantSpec
from kdexport.onnx import metadata
from kdexport.onnx.isolated import IsolatedRunner
from kdexport.onnx.sessions import Arrays, OnnxSession
from kdexport.precisions import PRECISIONS
from kdexport.progress import Progress
from kdexport.results import ExportFailure, ModelFile

VALIDATION_SAMPLES = 2000  # of the validation split: enough to tell calibrations apart, in a few seconds
# Output error that a variant may have where there is no accuracy and the user says nothing: beyond it the noise is half
# of the signal, and operators return to fp32.
LARGEST_OUTPUT_ERROR = 0.5
NOTEWORTHY = 0.01  # output error that the user is told of
NOTICED = 1e-6  # change of outputs by the rest of the batch: below, it is rounding of fp32
NAMED = 8  # operators that stay in fp32, by name


def write(
    source: Path,
    fp32: ModelFile,
    spec: VariantSpec,
    path: Path,
    data: CalibrationData,
    progress: Progress,
    *,
    key: str | None,
    timer: TimerMaker | None = None,
) -> ModelFile:
    """Make a variant of an fp32 file.

    Args:
        source: The fp32 file.
        fp32: Its entry.
        spec: Which variant.
        path: The variant's final name.
        data: Samples.
        progress: Where a variant that is far from fp32 is warned of.
        key: Stands for all that it is made from.
        timer: What times files, for auto.

    Raises:
        ParityError: Its outputs are not finite, or of another shape.
        KDExportError: It cannot be made, or changes no weight.
    """
    tolerance = PRECISIONS[spec.precision].tolerance
    builder, model, score, notes = _make(source, spec, data, progress, timer)
    model = quantize.in_order(model)
    census = quantize.census(model)
    if not census.changed and builder.measured is None:
        raise KDExportError(
            f"{spec.precision} changes no weight of this network ({census}): its weights are in "
            f"{', '.join(census.kinds) or 'no matrix'}",
            hint=quantize.without(spec.precision, census.kinds),
        )
    if census.in_fp32 and census.changed:
        notes = (f"{census}; in fp32: {_some(census.in_fp32)}", *notes)
    made: list[ModelFile] = []

    def fill(temporary: Path) -> None:
        onnx.save(model, temporary)
        stamped = {
            **metadata.read(source),
            "kdexport.precision": spec.precision,
            "kdexport.quantized": f"{census.quantized} of {census.operators} operators",
        }
        for name in ("kdexport.val_score", "kdexport.threshold"):  # those are the fp32 file's
            stamped.pop(name, None)
        if score.value is not None:
            stamped["kdexport.val_score"] = str(abs(score.value))
        if key is not None:
            stamped["kdexport.key"] = key
        metadata.stamp(temporary, stamped)
        IsolatedRunner(temporary)  # what is shipped loads, whatever has been judged in its place
        fp32_runner, runner = OnnxSession(source), builder.runner(model)
        fixed = fp32_runner.fixed_batch
        proof = parity.compare(
            lambda batch: fp32_runner(data.feed(batch)),
            lambda batch: runner(data.feed(batch)),
            data.samples(),
            tolerance=tolerance,
            batch_sizes=(fixed,) if fixed else parity.BATCH_SIZES,
            against="fp32-onnx",
            label=path.name,
        )
        if data.stamp is not None:
            data.stamp(temporary)
        told = list(notes)
        if not proof.passed:
            told.append(f"differs from fp32 by {proof.max_rel:.2g} relative, where up to {proof.tolerance:g} is usual")
            progress.warn(f"{path.name} {told[-1]}")
        sizes = temporary.stat().st_size, fp32.size_bytes
        if sizes[0] > sizes[1]:  # what is added around the weights outweighs what they save
            told.append(f"its file is larger than fp32's: {figures.size(sizes[0])}, {figures.size(sizes[1])}")
        told += parity.doubts(proof)
        for doubt in parity.doubts(proof):
            progress.warn(f"{path.name}: {doubt}")
        if batch_effect.by_range(model):
            effect = batch_effect.measured(lambda batch: runner(data.feed(batch)), data.samples(), fixed)
            if effect is not None:
                proof = replace(proof, batch_effect=effect.largest)
                told += [effect.sentence] if effect.largest > NOTICED else []
            if effect is not None and effect.decisions:
                progress.warn(f"{path.name}: {effect.sentence}")
        entry = metadata.model_file(
            f"{fp32.name}.{spec.precision}",
            temporary,
            shown_as=path.name,
            precision=spec.precision,
            parameters=fp32.parameters,
            macs=fp32.macs,
            parity=proof,
            notes=tuple(told),
            quantized=(census.quantized, census.operators),
        )
        made.append(replace(entry, measured_precision=builder.measured))

    artifacts.write_atomically(path, fill)
    return made[0]


def write_all(
    source: Path,
    fp32: ModelFile,
    specs: Sequence[VariantSpec],
    paths: Mapping[str, Path],
    data: CalibrationData,
    progress: Progress,
    timer: TimerMaker | None = None,
) -> tuple[tuple[ModelFile, ...], tuple[ExportFailure, ...]]:
    """Make several variants of an fp32 file; one that cannot be made costs no other.

    Args:
        source: The fp32 file.
        fp32: Its entry.
        specs: Which variants.
        paths: The final name of each, by precision.
        data: Samples.
        progress: Where it says what it does.
        timer: What times files, for auto.
    """
    made, failures = [], []
    for spec in specs:
        try:
            made.append(write(source, fp32, spec, paths[spec.precision], data, progress, key=None, timer=timer))
        except StorageError:
            raise
        except KDExportError as error:
            failures.append(ExportFailure(f"{fp32.name}.{spec.precision}", error.message, error.hint))
            progress.warn(f"{paths[spec.precision].name} is left out: {error.message}")
    return tuple(made), tuple(failures)


def _make(
    source: Path, spec: VariantSpec, data: CalibrationData, progress: Progress, timer: TimerMaker | None
) -> tuple[VariantBuilder, onnx.ModelProto, Score, tuple[str, ...]]:
    """Return how the graph is made, the graph, its score, and what to say of it."""
    guard = guard_for(source, data)
    builder = PRECISIONS[spec.precision].load()(VariantInputs(source, spec, data, guard, progress, timer))
    few = data.feed(tuple(array[: guard.fixed_batch or 2] for array in data.samples()))
    found = guarded_graph(builder, guard, limits_of(spec, guard), few, progress)
    notes = [*builder.notes, *found.notes]
    if found.score.lost:
        progress.warn(f"{spec.precision}: {guard.sentence(found.score)}")
    if guard.targets is None and spec.max_drop is not None:
        notes.append(
            "max_drop does not apply, for there is no score to judge by; max_output_error limits the output error"
        )
        progress.warn(f"{spec.precision}: {notes[-1]}")
    described = builder.describe(found.model)
    return builder, found.model, found.score, tuple(([described] if described else []) + notes)


def limits_of(spec: VariantSpec, guard: AccuracyGuard) -> Limits:
    """Return what a variant may lose."""
    largest = spec.max_output_error
    if largest is None and guard.targets is None:
        largest = LARGEST_OUTPUT_ERROR
    return Limits(spec.max_drop, largest)


@dataclass(frozen=True)
class Guarded:
    """A graph within its limits."""

    model: onnx.ModelProto
    score: Score
    kept: tuple[str, ...]  # operators in fp32
    notes: tuple[str, ...]  # what it took, in words


def guarded_graph(
    builder: VariantBuilder, guard: AccuracyGuard, limits: Limits, few: Arrays, progress: Progress
) -> Guarded:
    """Return the graph that a builder makes, with as many operators in fp32 as it takes to be run and to hold.

    Raises:
        KDExportError: It cannot be made, or not even the last operator in fewer bits holds.
    """

    def run(graph: onnx.ModelProto) -> None:
        IsolatedRunner(quantize.in_order(graph).SerializeToString())(few)
        if builder.judged is not None:
            builder.runner(graph)(few)

    notes: list[str] = []
    model, kept, why = runnable(builder, run)
    if kept:
        notes.append(f"kept in fp32, for it cannot be quantized or run otherwise: {_some(kept)} ({why})")
        progress.warn(f"{builder.precision}: {notes[-1]}")
    score = guard.score(model, builder)
    if guard.holds(score, limits):
        if guard.targets is not None or max(-score.nearness, score.middle) > NOTEWORTHY:
            notes.append(guard.sentence(score))
        if guard.targets is None and score.middle > LARGEST_OUTPUT_ERROR:
            progress.warn(
                f"{builder.precision}: {guard.sentence(score)}: samples that are far larger hide what it is worth"
            )
    else:
        progress.message(f"{builder.precision} {guard.sentence(score)}: returning operators to fp32")
        model, score, kept, more = restore(builder, guard, limits, kept)
        notes += more
    return Guarded(model, score, kept, tuple(notes))


def guard_for(source: Path, data: CalibrationData) -> AccuracyGuard:
    """Return what judges variants: the task's score on labelled samples, the output error of anything else."""
    validation = data.validation()
    if validation is not None:
        return AccuracyGuard(source, *validation, data.feed, task=data.task, classes=data.classes)
    return AccuracyGuard(source, data.samples(), None, data.feed, data.samples_are)


def _some(names: tuple[str, ...]) -> str:
    """Return names, many of them cut short."""
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"
