"""A variant of an fp32 file in fewer bits: made, held against the file that it comes from, and guarded.

No variant loses accuracy unseen: what it scores on the validation split stands in its notes, and with a limit on the
loss, layers go back to fp32 until it holds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from kdexport import artifacts
from kdexport.errors import KDExportError
from kdexport.export import guard, metadata, parity, quantize
from kdexport.export.learnt_ranges import Ranges, with_learnt
from kdexport.export.runner import Arrays, Runner
from kdexport.progress import Progress
from kdexport.results import ModelFile

# How far a variant may be from fp32 before the user is warned; it ships all the same: its accuracy decides.
TOLERANCE = {"fp16": 0.02, "int8": 0.2, "int8-dynamic": 0.2, "int4": 0.3}

VALIDATION_SAMPLES = 2000  # of the validation split: enough to tell calibrations apart, in a few seconds


@dataclass(frozen=True)
class Material:
    """What variants are made from and judged by; arrays as the fp32 file takes them."""

    samples: Callable[[], Arrays]  # for the comparison with fp32
    calibration: Callable[[], Arrays]  # training samples
    validation: Callable[[], tuple[Arrays, NDArray[np.int64]] | None]  # inputs and labels; None without labels


@dataclass(frozen=True)
class Wanted:
    """One variant."""

    precision: str  # fp16, int8, int8-dynamic, int4
    calibration: str = "auto"  # int8: minmax, entropy, percentile, or the best of them on the validation split
    weight_bits: int = 7  # int8
    max_accuracy_drop: float | None = None  # on the validation split, against fp32
    learnt: Ranges = field(default_factory=dict)  # int8: ranges that the student was trained with


def write(
    source: Path,
    fp32: ModelFile,
    wanted: Wanted,
    path: Path,
    material: Material,
    progress: Progress,
    *,
    key: str | None,
) -> ModelFile:
    """Make a variant of an fp32 file.

    Args:
        source: The fp32 file.
        fp32: Its entry.
        wanted: Which variant.
        path: The variant's final name.
        material: Samples.
        progress: Where a variant that is far from fp32 is warned of.
        key: Stands for all that it is made from.

    Raises:
        ParityError: Its outputs are not finite, or of another shape.
        KDExportError: It cannot be made.
    """
    model, notes, accuracy = _make(source, wanted, material, progress)
    model = quantize.in_order(model)
    made: list[ModelFile] = []

    def fill(temporary: Path) -> None:
        onnx.save(model, temporary)
        stamped = {**metadata.read(source), "kdexport.precision": wanted.precision}
        stamped.pop("kdexport.val_accuracy", None)  # that is the fp32 network's
        if accuracy is not None:
            stamped["kdexport.val_accuracy"] = str(accuracy)
        if key is not None:
            stamped["kdexport.key"] = key
        metadata.stamp(temporary, stamped)
        proof = parity.compare(
            Runner(source),
            Runner(temporary),
            material.samples(),
            tolerance=TOLERANCE[wanted.precision],
            batch_sizes=parity.batch_sizes_for(source),
            against="fp32-onnx",
            subject=path.name,
        )
        said = list(notes)
        if not proof.passed:
            said.append(f"differs from fp32 by {proof.max_rel:.2g} relative, where up to {proof.tolerance:g} is usual")
            progress.warn(f"{path.name} {said[-1]}")
        made.append(
            metadata.model_file(
                f"{fp32.name}.{wanted.precision}",
                temporary,
                shown_as=path.name,
                precision=wanted.precision,
                parameters=fp32.parameters,
                macs=fp32.macs,
                parity=proof,
                notes=tuple(said),
            )
        )

    artifacts.write_atomically(path, fill)
    return made[0]


def _make(
    source: Path, wanted: Wanted, material: Material, progress: Progress
) -> tuple[onnx.ModelProto, tuple[str, ...], float | None]:
    """Return the graph, what to say of it, and its accuracy on the validation split."""
    if wanted.precision == "int8":
        return _int8(source, wanted, material, progress)
    notes: tuple[str, ...] = ()
    if wanted.precision == "int8-dynamic":
        model = quantize.dynamic_int8(source)
    elif wanted.precision == "int4":
        model, count = quantize.int4(source)
        notes = (f"4-bit weights in {count} matrix products, all else in fp32",)
    else:
        model, kept = quantize.fp16(source, material.samples())
        if kept:
            notes = (f"kept in fp32, near the largest fp16 value: {', '.join(kept)}",)
    validation = material.validation()
    accuracy: float | None = None
    if validation is not None:
        judge = guard.Judge(source, *validation)
        accuracy = judge.accuracy(model)
        notes += (judge.said(accuracy),)
        if wanted.max_accuracy_drop is not None and accuracy < judge.fp32 - wanted.max_accuracy_drop:
            raise KDExportError(
                f"{wanted.precision} {judge.said(accuracy)}: more is lost than max_accuracy_drop = "
                f"{wanted.max_accuracy_drop:g} allows",
                hint=f"take {wanted.precision} out of export.quantize, or use int8, whose layers can return to fp32",
            )
    return model, notes, accuracy


def _int8(
    source: Path, wanted: Wanted, material: Material, progress: Progress
) -> tuple[onnx.ModelProto, tuple[str, ...], float | None]:
    """Calibrate by each method, keep the best, and return layers to fp32 where too much is lost."""
    prepared = quantize.prepared(source)
    validation = material.validation()
    methods = quantize.CALIBRATION_METHODS if wanted.calibration == "auto" else (wanted.calibration,)
    if validation is None or wanted.learnt:
        methods = methods[:1]  # nothing to choose by, or little to choose
    calibration = material.calibration()
    found = {method: quantize.ranges(prepared, calibration, method) for method in methods}
    said = ""
    if wanted.learnt:
        found[methods[0]], missing = with_learnt(prepared, found[methods[0]], wanted.learnt)
        said = f"activation ranges learnt by quantization-aware distillation, beside {_layers(wanted.learnt, missing)}"
        if missing:
            progress.warn(f"int8: no place in the graph for the learnt {', '.join(missing)}")
        said += "; others "
    if validation is None:
        return (
            quantize.static_int8(prepared, found[methods[0]], weight_bits=wanted.weight_bits),
            (f"{said}calibrated by {methods[0]}",),
            None,
        )
    judge = guard.Judge(source, *validation)
    models = {
        method: quantize.static_int8(prepared, data, weight_bits=wanted.weight_bits) for method, data in found.items()
    }
    scores = {method: judge.score(model) for method, model in models.items()}
    best = max(methods, key=lambda method: scores[method])  # the first of equals: minmax is the plainest
    accuracy = scores[best].accuracy
    chosen = ", the best on validation of " + ", ".join(methods) if len(methods) > 1 else ", as asked"
    if wanted.learnt:
        chosen = ""
    notes = (f"{said}calibrated by {best}{chosen}", judge.said(accuracy))
    if wanted.max_accuracy_drop is None or accuracy >= judge.fp32 - wanted.max_accuracy_drop:
        return models[best], notes, accuracy
    progress.say(f"int8 {judge.said(accuracy)}: returning layers to fp32")
    model, more = guard.restore(prepared, found[best], judge, wanted.max_accuracy_drop, weight_bits=wanted.weight_bits)
    return model, (notes[0], *more), judge.accuracy(model)


def _layers(ranges: Ranges, missing: tuple[str, ...]) -> str:
    """Say beside how many layers the ranges were learnt."""
    found = {name.partition(":")[0] for name in ranges if name not in missing}
    return f"{len(found)} layer{'s' if len(found) != 1 else ''}"
