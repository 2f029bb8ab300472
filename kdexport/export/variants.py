"""A variant of an fp32 file in fewer bits: made, held against the file that it comes from, and guarded.

No variant loses accuracy unseen: what it scores on the validation split stands in its notes, and with a limit on the
loss, layers go back to fp32 until it holds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from kdexport import artifacts
from kdexport.export import accuracy_guard, parity, quantize
from kdexport.export.quantize import Ranges, with_learnt
from kdexport.onnx import metadata
from kdexport.onnx.sessions import Arrays, OnnxSession
from kdexport.progress import Progress
from kdexport.results import ModelFile

# How far a variant may be from fp32 before the user is warned; it ships all the same: its accuracy decides.
TOLERANCE = {"fp16": 0.02, "int8": 0.2, "int8-dynamic": 0.2, "int4": 0.3}

FP16_NODES = 200  # of a graph beyond which only those with weights are ranked: each costs a graph and a session

VALIDATION_SAMPLES = 2000  # of the validation split: enough to tell calibrations apart, in a few seconds


@dataclass(frozen=True)
class CalibrationData:
    """What variants are made from and judged by; arrays as the fp32 file takes them."""

    samples: Callable[[], Arrays]  # for the comparison with fp32
    calibration: Callable[[], Arrays]  # training samples
    validation: Callable[[], tuple[Arrays, NDArray[np.int64]] | None]  # inputs and labels; None without labels


@dataclass(frozen=True)
class VariantSpec:
    """One variant."""

    precision: str  # fp16, int8, int8-dynamic, int4
    calibration: str = "auto"  # int8: minmax, entropy, percentile, or the best of them on the validation split
    weight_bits: int = 7  # int8
    max_accuracy_drop: float | None = None  # on the validation split, against fp32
    learnt: Ranges = field(default_factory=dict)  # int8: ranges that the student was trained with


def write(
    source: Path,
    fp32: ModelFile,
    wanted: VariantSpec,
    path: Path,
    material: CalibrationData,
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
            OnnxSession(source),
            OnnxSession(temporary),
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
    source: Path, wanted: VariantSpec, material: CalibrationData, progress: Progress
) -> tuple[onnx.ModelProto, tuple[str, ...], float | None]:
    """Return the graph, what to say of it, and its accuracy on the validation split."""
    if wanted.precision == "int8":
        return _int8(source, wanted, material, progress)
    maker, notes = _maker(source, wanted.precision, material)
    model = maker.without(())
    validation = material.validation()
    accuracy: float | None = None
    if validation is not None:
        judge = accuracy_guard.AccuracyGuard(source, *validation)
        model, more, accuracy = _guarded(model, maker, judge, wanted, progress)
        notes += more
    if wanted.precision == "int4":
        count = sum(node.op_type == "MatMulNBits" for node in model.graph.node)
        notes = (f"4-bit weights in {count} matrix products, all else in fp32", *notes)
    return model, notes, accuracy


def _maker(
    source: Path, precision: str, material: CalibrationData
) -> tuple[accuracy_guard.VariantBuilder, tuple[str, ...]]:
    """Return how a graph that needs no calibration is made, and what to say of it."""
    graph = onnx.load(source)
    notes: tuple[str, ...] = ()
    make: Callable[[tuple[str, ...]], onnx.ModelProto]
    if precision == "int8-dynamic":
        make, layers = partial(quantize.dynamic_int8, source), quantize.layers(graph, quantize.DYNAMIC_OPERATORS)
    elif precision == "int4":
        make, layers = partial(quantize.int4, source), quantize.large_products(graph)
    else:
        overflowing = quantize.overflowing(source, material.samples())
        if overflowing:
            notes = (f"kept in fp32, near the largest fp16 value: {', '.join(overflowing)}",)
        # Any node can lose what fp16 does not hold, not only one with weights.
        layers = quantize.layers(graph, tuple({node.op_type for node in graph.graph.node}))
        if len(layers) > FP16_NODES:
            layers = quantize.layers(graph)
        layers = [name for name in layers if name not in overflowing]

        def halved(kept: tuple[str, ...]) -> onnx.ModelProto:
            return quantize.fp16(source, (*overflowing, *kept))

        make = halved

    def only(name: str) -> onnx.ModelProto:
        return make(tuple(other for other in layers if other != name))

    return accuracy_guard.VariantBuilder(precision, tuple(layers), make, only), notes


def _guarded(
    model: onnx.ModelProto,
    maker: accuracy_guard.VariantBuilder,
    judge: accuracy_guard.AccuracyGuard,
    wanted: VariantSpec,
    progress: Progress,
) -> tuple[onnx.ModelProto, tuple[str, ...], float]:
    """Return a graph with layers in fp32 where too much is lost, what to say of it, and its accuracy."""
    accuracy = judge.accuracy(model)
    if wanted.max_accuracy_drop is None or accuracy >= judge.fp32 - wanted.max_accuracy_drop:
        return model, (judge.said(accuracy),), accuracy
    progress.say(f"{wanted.precision} {judge.said(accuracy)}: returning layers to fp32")
    model, notes = accuracy_guard.restore(maker, judge, wanted.max_accuracy_drop)
    return model, notes, judge.accuracy(model)


def _int8(
    source: Path, wanted: VariantSpec, material: CalibrationData, progress: Progress
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
    judge = accuracy_guard.AccuracyGuard(source, *validation)
    models = {
        method: quantize.static_int8(prepared, data, weight_bits=wanted.weight_bits) for method, data in found.items()
    }
    scores = {method: judge.score(model) for method, model in models.items()}
    best = max(methods, key=lambda method: scores[method])  # the first of equals: minmax is the plainest
    chosen = ", the best on validation of " + ", ".join(methods) if len(methods) > 1 else ", as asked"
    if wanted.learnt:
        chosen = ""
    make = partial(quantize.static_int8, prepared, found[best], weight_bits=wanted.weight_bits)
    maker = accuracy_guard.VariantBuilder(
        "int8",
        tuple(quantize.layers(prepared)),
        lambda kept: make(exclude=kept),
        lambda name: make(only=(name,)),
    )
    model, notes, accuracy = _guarded(models[best], maker, judge, wanted, progress)
    return model, (f"{said}calibrated by {best}{chosen}", *notes), accuracy


def _layers(ranges: Ranges, missing: tuple[str, ...]) -> str:
    """Say beside how many layers the ranges were learnt."""
    found = {name.partition(":")[0] for name in ranges if name not in missing}
    return f"{len(found)} layer{'s' if len(found) != 1 else ''}"
