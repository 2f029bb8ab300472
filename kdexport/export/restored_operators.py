"""Which operators go back to fp32 so that a variant can be made and run, and loses no more than its limits allow.

Operators are ranked by what each does alone: the change of the outputs when it is the only one in fewer bits
(layer-wise sensitivity). What those that return cost in time and size is told.
"""

import re
import statistics
import time
from collections.abc import Callable, Sequence

import onnx

from kdexport.errors import KDExportError, StorageError
from kdexport.export.accuracy_guard import AccuracyGuard, Limits, Score, VariantBuilder
from kdexport.onnx.sessions import OnnxSession

RANKED = 200  # operators that are ranked one by one; beyond it those without weights are ranked by their kind
TIMED_RUNS = 60
MOST_FAULTS = 12  # kinds of nodes that are kept in fp32 because the variant cannot be made or run with them
MORE = {"int8": ", give more calibration_samples or set distill.quantize_aware"}  # that may help


def runnable(
    builder: VariantBuilder, run: Callable[[onnx.ModelProto], object]
) -> tuple[onnx.ModelProto, tuple[str, ...], str]:
    """Return the graph with as few nodes in fp32 as it takes for it to be made and run.

    Where it cannot be, the first node that stands in the way is found by bisection, with those of the same name but for
    their numbers (``blocks.0.attn/MatMul``, ``blocks.1.attn/MatMul``).

    Args:
        builder: Makes the graphs.
        run: Raises KDExportError for a graph that cannot be run.

    Returns:
        The graph, the nodes that stay in fp32, and why.

    Raises:
        KDExportError: It cannot be run even with every node in fp32, or there are too many such nodes.
    """
    kept: tuple[str, ...] = ()
    reasons: list[str] = []
    while True:
        model, fault = _attempt(builder, run, kept)
        if model is not None:
            return model, kept, "; ".join(dict.fromkeys(reasons))
        assert fault is not None
        others = [name for name in builder.layers if name not in kept]
        if len(reasons) == MOST_FAULTS or not others or _attempt(builder, run, (*kept, *others))[0] is None:
            raise fault
        reasons.append(fault.message)
        low, high = 0, len(others)  # with the first ``low`` of them in fp32 it fails, with the first ``high`` it works
        while high - low > 1:
            middle = (low + high) // 2
            if _attempt(builder, run, (*kept, *others[:middle]))[0] is None:
                low = middle
            else:
                high = middle
        alike = re.sub(r"\d+", "#", others[high - 1])
        kept += tuple(name for name in others if re.sub(r"\d+", "#", name) == alike)


def _attempt(
    builder: VariantBuilder, run: Callable[[onnx.ModelProto], object], kept: tuple[str, ...]
) -> tuple[onnx.ModelProto | None, KDExportError | None]:
    try:
        model = builder.without(kept)
        run(model)
    except StorageError:
        raise
    except KDExportError as error:
        return None, error
    return model, None


def restore(
    builder: VariantBuilder, guard: AccuracyGuard, limits: Limits, kept: tuple[str, ...] = ()
) -> tuple[onnx.ModelProto, Score, tuple[str, ...], tuple[str, ...]]:
    """Return operators to fp32, the most sensitive first, until the limits hold.

    Args:
        builder: Makes the graphs.
        guard: Judges them.
        limits: What may be lost.
        kept: Nodes that are in fp32 already.

    Returns:
        The graph, its score, what is in fp32, and in words which operators, and what it cost in size and speed.

    Raises:
        KDExportError: Not even the last operator in fewer bits holds.
    """
    whole = builder.without(kept)
    ranking = sensitivity(builder, guard, whole, kept)
    failing, count = 0, 1
    found: tuple[onnx.ModelProto, Score, int] | None = None
    while found is None and count < len(ranking):
        found = _with_returned(builder, guard, limits, ranking[:count], kept)
        if found is None:
            failing, count = count, min(max(count + 1, count * 3 // 2), max(len(ranking) - 1, count + 1))
    while found is not None and found[2] - failing > 1:  # the fewest that hold
        middle = (failing + found[2]) // 2
        fewer = _with_returned(builder, guard, limits, ranking[:middle], kept)
        if fewer is None:
            failing = middle
        else:
            found = fewer
    if found is None:
        raise KDExportError(
            f"{builder.precision} loses more than {_limit(guard, limits)} with any operator in fewer bits",
            hint=f"allow more{MORE.get(builder.precision, '')}, or take {builder.precision} out of export.quantize",
        )
    model, score, count = found
    names = [name for unit in ranking[:count] for name in unit]
    return (
        model,
        score,
        (*kept, *names),
        (
            guard.sentence(score),
            f"returned to fp32, {len(names)} of {sum(map(len, ranking))} layers: {', '.join(names)}",
            _cost(whole, model, guard),
        ),
    )


def _with_returned(
    builder: VariantBuilder,
    guard: AccuracyGuard,
    limits: Limits,
    units: Sequence[tuple[str, ...]],
    kept: tuple[str, ...],
) -> tuple[onnx.ModelProto, Score, int] | None:
    """Return the graph with some operators back in fp32, its score and their number, if it holds."""
    try:
        model = builder.without((*kept, *(name for unit in units for name in unit)))
        score = guard.score(model, builder)
    except StorageError:
        raise
    except KDExportError:
        return None
    return (model, score, len(units)) if guard.holds(score, limits) else None


def _limit(guard: AccuracyGuard, limits: Limits) -> str:
    if guard.fp32 is not None and limits.max_drop is not None:
        return f"max_drop = {limits.max_drop:g} (fp32 is {guard.write(guard.fp32)} on {guard.samples_are})"
    return f"max_output_error = {limits.max_output_error:g}"


def sensitivity(
    builder: VariantBuilder, guard: AccuracyGuard, whole: onnx.ModelProto, kept: tuple[str, ...] = ()
) -> list[tuple[str, ...]]:
    """Return every quantized operator, that first which changes the outputs most when it alone is in fewer bits."""
    changed = set(builder.layers) if builder.changed is None else builder.changed(whole)
    names = [name for name in builder.layers if name in changed and name not in kept]
    units = _units(whole, names)
    measured = {unit: guard.sensitivity(builder.only(unit), builder) for unit in units}
    return sorted(units, key=lambda unit: measured[unit], reverse=True)


def _units(model: onnx.ModelProto, names: list[str]) -> list[tuple[str, ...]]:
    """Return what is ranked: each operator, or of a large graph those without weights by their kind."""
    if len(names) <= RANKED:
        return [(name,) for name in names]
    from kdexport.export.quantize import LAYERS

    kinds = {node.name: node.op_type for node in model.graph.node}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name if kinds.get(name, "") in LAYERS else kinds.get(name, ""), []).append(name)
    return [tuple(group) for group in groups.values()]


def _cost(before: onnx.ModelProto, after: onnx.ModelProto, guard: AccuracyGuard) -> str:
    """Say what the guard cost; both graphs are timed in turn, so that the machine is the same for both."""
    sizes = [len(model.SerializeToString()) / 1024 for model in (before, after)]
    sessions = [
        OnnxSession(model.SerializeToString()) for model in (before, after)
    ]  # the child process has run them before
    one = guard.feed(tuple(array[: guard.fixed_batch or 1] for array in guard.inputs))
    spent: list[list[float]] = [[], []]
    for _ in range(TIMED_RUNS):
        for session, times in zip(sessions, spent, strict=True):
            start = time.perf_counter_ns()
            session(one)
            times.append((time.perf_counter_ns() - start) / 1e6)
    medians = [statistics.median(times) for times in spent]
    return (
        f"the guard cost {sizes[1] - sizes[0]:+.1f} KiB ({sizes[0]:.1f} to {sizes[1]:.1f}) and "
        f"{medians[1] - medians[0]:+.3f} ms a sample ({medians[0]:.3f} to {medians[1]:.3f}, median, in this process)"
    )
