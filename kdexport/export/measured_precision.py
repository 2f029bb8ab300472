"""auto: each operator in int8, fp16 or fp32, whichever made the file fast where it was measured.

    fp32, int8 and fp16 whole, timed -> their profiles -> minimum cuts -> timed -> regions turned round -> timed
    -> the limit on the score -> all that is left timed anew, in more rounds -> the file

Few, short measurements screen; the last one decides, for the fastest of several noisy figures looks faster than it is.
A mixed file is taken only where it is faster than fp32, int8 and fp16 beyond the interval of that last measurement, so
that what is written is never slower than the better of them beyond it. Where the device tells no time of operators,
whole files alone are compared. What was tried stands in the result.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx

from kdexport import statistics
from kdexport.errors import KDExportError, StorageError
from kdexport.export import quantize, variants
from kdexport.export.accuracy_guard import Limits, Score, VariantBuilder
from kdexport.export.precision_cut import LEADERS, Costs, cheapest, element_ms, elements_of, regions, spent, units_of
from kdexport.export.restored_operators import restore
from kdexport.export.variant_inputs import Timer, Turns, VariantInputs
from kdexport.onnx.layers import graph_nodes
from kdexport.onnx.sessions import Arrays, OnnxSession
from kdexport.precisions import PRECISIONS
from kdexport.results import Interval, MeasuredPrecision, Profile, TriedPrecision

FP32, INT8, FP16, NARROW = "fp32", "int8", "fp16", "int8 of weights"
SCREENING, DECIDING = (3, 0.3), (5, 1.0)  # rounds of fresh processes, and seconds in all that each file is measured
WEIGHTS = (0.5, 2.0, 8.0)  # times what a change of precision costs by the profile, which leaves much out
MOST_CUTS, MOST_TURNED = 4, 3  # candidates that are timed together
NEAR = 0.97  # of the better whole file's speed: a mixed one that is slower is not worth turning regions of
FINALISTS = 2  # mixed files that are timed anew


@dataclass
class _Candidate:
    """A graph that is tried."""

    name: str
    made: str
    path: Path  # read when it is needed: a dozen graphs in memory are too many
    quantized: tuple[int, int]  # operators with weights in fewer bits, of how many
    builder: VariantBuilder | None = None  # None for fp32
    kept: tuple[str, ...] = ()  # of int8's operators, those that stay in fp32
    units_in_fp32: frozenset[int] = frozenset()
    turns: Turns = ()
    speedup: float | None = None
    middle: float = (
        0.0  # of the rounds' speed-ups: what graphs are ranked by, for one disturbed round may be tenfold off
    )
    interval: Interval | None = None
    holds: bool | None = None
    told: list[str] = field(default_factory=list)

    @property
    def model(self) -> onnx.ModelProto:
        """The graph."""
        return onnx.load(self.path)

    @property
    def speed(self) -> float:
        """Over fp32; 0 where it could not be measured or loses too much."""
        return self.middle if self.speedup is not None and self.holds is not False else 0.0


def builder(given: VariantInputs) -> VariantBuilder:
    """Try, time and choose; return how the chosen graph is made.

    Raises:
        KDExportError: Nothing times files here, or the device is not there.
    """
    if given.timer is None:
        raise KDExportError(
            "auto chooses by measured time, and nothing measures here",
            hint="take it out of export.quantize, or export with `kdexport export` or `kdexport run`",
        )
    few = given.data.feed(tuple(array[: given.guard.fixed_batch or 2] for array in given.data.samples()))
    with tempfile.TemporaryDirectory(prefix="kdexport.", ignore_cleanup_errors=True) as folder:
        timer = given.timer(_sizes(given.source, few), given.guard.fixed_batch)
        return _Search(given, timer, Path(folder), few).result()


def _sizes(source: Path, fed: Arrays) -> dict[str, int]:
    """Return the sizes of dynamic axes beside the batch, as the samples have them."""
    inputs = OnnxSession(source).session.get_inputs()
    pairs = [
        pair for item, array in zip(inputs, fed, strict=True) for pair in zip(item.shape, array.shape, strict=True)
    ]
    batches = {item.shape[0] for item in inputs if item.shape}
    return {name: int(size) for name, size in pairs if isinstance(name, str) and name not in batches}


class _Search:
    """What was tried so far."""

    def __init__(self, given: VariantInputs, timer: Timer, folder: Path, few: Arrays) -> None:
        self.given, self.timer, self.folder, self.few = given, timer, folder, few
        self.limits: Limits = variants.limits_of(given.spec, given.guard)
        self.tried: dict[str, _Candidate] = {}
        self.refused: list[TriedPrecision] = []
        fp32 = _Candidate(FP32, "as it is", given.source, _counted(onnx.load(given.source)), holds=True)
        self.fp32 = self.tried[FP32] = fp32
        self.sizes = {**_sizes(given.source, few), **dict.fromkeys(_batch_names(fp32.model), timer.on.batch_size)}

    def result(self) -> VariantBuilder:
        """Run the whole search."""
        whole = self._whole(INT8, "every operator that has int8 kernels")
        narrow = self._narrow(whole) if whole is not None else None
        self._half()
        self._time(list(self.tried.values()), SCREENING)
        bases = [one for one in (whole, narrow) if one is not None and one.turns]
        if bases and self.timer.profiles:
            self._mix(bases)
        return self._chosen(self._decide(whole))

    def _whole(self, precision: str, made: str) -> _Candidate | None:
        """Make a precision's own variant, as the limits let it be."""
        spec = replace(self.given.spec, precision=precision)
        try:
            maker = PRECISIONS[precision].load()(replace(self.given, spec=spec))
            found = variants.guarded_graph(maker, self.given.guard, self.limits, self.few, self.given.progress)
        except StorageError:
            raise
        except KDExportError as error:
            self.refused.append(TriedPrecision(precision, made, None, None, None, None, error.message))
            return None
        one = self._add(precision, made, found.model, maker, found.kept)
        one.holds = True
        one.told.append(self.given.guard.sentence(found.score))
        return one

    def _narrow(self, whole: _Candidate) -> _Candidate | None:
        """Make int8 of the operators with weights alone: none between them is quantized for its own sake."""
        assert whole.builder is not None
        kinds = {node.name: node.op_type for node in self.fp32.model.graph.node}
        kinds |= {node.name: node.op_type for node in whole.model.graph.node}
        others = [name for name in whole.builder.layers if kinds.get(name) not in LEADERS]
        kept = tuple(dict.fromkeys([*whole.kept, *others]))
        made = "convolutions and matrix products alone"
        return None if set(kept) == set(whole.kept) else self._try(NARROW, made, whole.builder, kept)

    def _half(self) -> None:
        """Make fp16 as a whole, to see whether this device gains by it; what it cannot hold is found only then."""
        from kdexport.export.fp16 import fp16

        try:
            model = fp16(quantize.load(self.given.source), ())
        except StorageError:
            raise
        except KDExportError as error:
            self.refused.append(TriedPrecision(FP16, "as a whole", None, None, None, None, error.message))
            return
        self._add(FP16, "as a whole", model, None, ())

    def _mix(self, bases: list[_Candidate]) -> None:
        """Work mixed graphs out from the profiles, time them, and turn regions of the best one round."""
        profiles = {one.name: self._profile(one) for one in (self.fp32, *bases)}
        fp32 = profiles[FP32]
        graph = quantize.prepared(self.given.source)
        self.units = units = units_of(graph, self.sizes)
        elements = elements_of(graph, self.sizes)
        cuts: dict[tuple[str, frozenset[int]], float] = {}
        costs: dict[str, Costs] = {}
        for base in bases:
            profile = profiles[base.name]
            if fp32 is None or profile is None or base.builder is None:
                continue
            nodes = graph_nodes(base.path)
            found = Costs(
                spent(fp32, graph_nodes(self.given.source), units),
                spent(profile, nodes, units),
                element_ms(profile, nodes, elements),
            )
            changed = (base.builder.changed or (lambda _: set()))(base.model)
            found.fixed = {at for at, unit in enumerate(units.units) if not changed & set(unit.nodes)}
            costs[base.name] = found
            for weight in WEIGHTS:
                cut = cheapest(units, found, weight)
                if found.fixed < cut and len(cut) < len(units.units):
                    cuts.setdefault((base.name, cut), weight)
        made = [
            self._mixed(self.tried[name], cut, f"{name} and fp32 by their profiles, a change weighed {weight:g} times")
            for (name, cut), weight in list(cuts.items())[:MOST_CUTS]
        ]
        mixed = [one for one in made if one is not None]
        self._time([self.fp32, *mixed], SCREENING)
        best = max(mixed, key=lambda one: one.speed, default=None)
        wholes = max(self.tried[name].speed for name in (FP32, INT8, NARROW) if name in self.tried)
        if best is not None and best.speed > NEAR * wholes:
            self._turn_regions(best, costs)

    def _turn_regions(self, best: _Candidate, costs: Mapping[str, Costs]) -> None:
        """Give the regions of a mixed graph whose time is not what it should be the other precision, one at a time."""
        profile = self._profile(best)
        base = self.tried[next(name for name in costs if self.tried[name].builder is best.builder)]
        if profile is None:
            return
        takes = spent(profile, graph_nodes(best.path), self.units)
        of = costs[base.name]
        gains: dict[tuple[int, ...], float] = {}
        for region in regions(self.units, best.units_in_fp32):
            in_fp32 = region[0] in best.units_in_fp32
            if not set(region) <= of.fixed:
                gains[region] = sum(takes[unit] - (of.int8 if in_fp32 else of.fp32)[unit] for unit in region)
        turned = []
        for region in sorted(gains, key=lambda one: gains[one], reverse=True)[:MOST_TURNED]:
            if gains[region] > 0:
                cut = (best.units_in_fp32 ^ set(region)) | of.fixed
                names = ", ".join(self.units.units[unit].leader for unit in region[:2])
                more = f" and {len(region) - 2} more" if len(region) > 2 else ""
                to = INT8 if region[0] in best.units_in_fp32 else FP32
                turned.append(self._mixed(base, frozenset(cut), f"{best.name} with {names}{more} in {to}"))
        self._time([self.fp32, best, *(one for one in turned if one is not None)], SCREENING)

    def _mixed(self, base: _Candidate, cut: frozenset[int], made: str) -> _Candidate | None:
        assert base.builder is not None
        back = {name for unit in cut for name in self.units.units[unit].nodes}
        layers = base.builder.layers
        kept = tuple(name for name in layers if name in back or name in base.kept)
        if len(kept) == len(layers) or any(set(kept) == set(one.kept) and one.builder for one in self.tried.values()):
            return None
        number = 1 + sum(name.startswith("mixed") for name in self.tried)
        found = self._try(f"mixed {number}", made, base.builder, kept)
        if found is not None:
            found.units_in_fp32 = cut
        return found

    def _try(self, name: str, made: str, maker: VariantBuilder, kept: tuple[str, ...]) -> _Candidate | None:
        try:
            return self._add(name, made, maker.without(kept), maker, kept)
        except StorageError:
            raise
        except KDExportError as error:
            self.refused.append(TriedPrecision(name, made, None, None, None, None, error.message))
            return None

    def _add(
        self, name: str, made: str, model: onnx.ModelProto, maker: VariantBuilder | None, kept: tuple[str, ...]
    ) -> _Candidate:
        path = self.folder / f"{name.replace(' ', '-')}.onnx"
        model = quantize.in_order(model)
        onnx.save(model, path)
        self.tried[name] = _Candidate(name, made, path, _counted(model), maker, kept)
        return self.tried[name]

    def _time(self, candidates: list[_Candidate], how: tuple[int, float]) -> None:
        """Time graphs in turns; fp32 comes first."""
        if len(candidates) < 2:
            return
        rounds, seconds = how
        self.given.progress.message(f"auto: timing {', '.join(one.name for one in candidates)}")
        turns, failures = self.timer.turns({one.name: one.path for one in candidates}, rounds=rounds, seconds=seconds)
        for one in candidates:
            if one.name in failures:
                one.speedup, one.turns = None, ()
                one.told.append(failures[one.name])
            elif FP32 in turns:
                one.turns = turns[one.name]
                ratios = statistics.ratios_of_rounds(turns[FP32], one.turns)
                one.middle = float(np.median(ratios))
                one.speedup, one.interval = (1.0, None) if one is self.fp32 else statistics.speedup_of_rounds(ratios)

    def _profile(self, one: _Candidate) -> Profile | None:
        middle = float(np.median(np.concatenate([np.asarray(turns) for turns in one.turns]))) / 1e6
        return self.timer.profile(one.path, middle)

    def _decide(self, int8: _Candidate | None) -> _Candidate:
        """Time what is left anew, and return what becomes the file."""
        wholes = [self.fp32, *([int8] if int8 is not None and int8.turns else [])]
        half = self.tried.get(FP16)
        if half is not None and half.speed <= max(one.speed for one in wholes):
            half.told.append("not faster when it was screened")
        elif half is not None:
            self.tried.pop(FP16)
            real = self._whole(FP16, "as a whole, but for what it cannot hold")
            wholes += [real] if real is not None else []
        mixed = [one for one in self.tried.values() if one not in wholes and one.name != FP16 and one.turns]
        mixed.sort(key=lambda one: -one.speed)
        finalists = self._within_limit(mixed)
        for one in mixed[FINALISTS:]:
            one.told.append("others were faster when it was screened")
        self._time([*wholes, *finalists], DECIDING)
        best = max(wholes[:2], key=lambda one: one.speed)
        for one in sorted([*wholes[2:], *finalists], key=lambda one: -one.speed):
            if one.turns and best.turns:
                ratio, interval = _speedup(best.turns, one.turns)
                if interval is not None and interval[0] > 1:
                    return one
                one.told.append(f"not shown to be faster than {best.name}: {ratio:.2f} times its speed")
        return best

    def _within_limit(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """Return the fastest that hold the limit; where none of them does, the fastest with operators returned."""
        found: list[_Candidate] = []
        guard = self.given.guard
        for one in candidates[:FINALISTS]:
            score = self._score(one)
            one.holds = guard.holds(score, self.limits)
            one.told.append(guard.sentence(score))
            found += [one] if one.holds else []
        if found or not candidates or candidates[0].builder is None:
            return found
        first = candidates[0]
        assert first.builder is not None
        try:
            model, score, kept, _ = restore(first.builder, guard, self.limits, first.kept)
        except StorageError:
            raise
        except KDExportError as error:
            first.told.append(error.message)
            return []
        name = f"{first.name}, restored"
        made = self._add(name, f"{first.name} with the most sensitive in fp32", model, first.builder, kept)
        made.holds = True
        made.told.append(guard.sentence(score))
        return [made]

    def _score(self, one: _Candidate) -> Score:
        return self.given.guard.score_or_worst(lambda: one.model)

    def _chosen(self, best: _Candidate) -> VariantBuilder:
        """Return how the chosen graph is made, with all that was tried."""
        self.given.progress.message(f"auto: {best.name} ({best.made}), {best.speedup or 1:.2f} times fp32's speed")
        measured = MeasuredPrecision(
            best.name,
            self.timer.on,
            (*map(self._row, self.tried.values()), *self.refused),
            quantize.precisions(best.model),
        )
        quicker = (
            f"{best.name}, {best.speedup:.2f} times fp32's speed" if best is not self.fp32 and best.speedup else ""
        )
        on = self.timer.on
        where = f"{on.device}, {on.threads} thread{'s' if on.threads > 1 else ''}, batch {on.batch_size}"
        notes = [f"chosen by time on {where} ({on.cpu}): {quicker or 'fp32 itself, nothing else was faster'}"]
        if not self.timer.profiles:
            notes.append(f"{on.device} tells no time of operators: whole files alone were compared")
        maker = best.builder
        if maker is None:
            return VariantBuilder(
                self.given.spec.precision,
                (),
                lambda _: best.model,
                lambda _: best.model,
                tuple(notes),
                measured=measured,
            )
        own = tuple(name for name in maker.layers if name not in best.kept)
        return replace(
            maker,
            precision=self.given.spec.precision,
            layers=own,
            without=lambda more: maker.without((*best.kept, *more)),
            notes=(*notes, *maker.notes),
            measured=measured,
        )

    def _row(self, one: _Candidate) -> TriedPrecision:
        told = "; ".join(one.told)
        return TriedPrecision(one.name, one.made, one.quantized, one.speedup, one.interval, one.holds, told)


def _counted(model: onnx.ModelProto) -> tuple[int, int]:
    census = quantize.census(model)
    return census.quantized, census.operators


def _speedup(baseline: Turns, model: Turns) -> tuple[float, Interval | None]:
    return statistics.speedup_of_rounds(statistics.ratios_of_rounds(baseline, model))


def _batch_names(model: onnx.ModelProto) -> list[str]:
    dims = [item.type.tensor_type.shape.dim for item in model.graph.input]
    return [of[0].dim_param for of in dims if len(of) and of[0].dim_param]
