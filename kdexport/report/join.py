"""Many bench results as one: each model once, each machine once, each measurement once.

What cannot be one is refused: a name that two different files or two different machines carry, a figure that is
no number. Nothing here judges; see ``tradeoffs`` and ``selection``.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from kdexport.errors import KDExportError
from kdexport.report.scores import Metric, metric_of
from kdexport.results import (
    Agreement,
    BenchResult,
    Evaluation,
    Failure,
    Interval,
    Latency,
    Machine,
    Measurement,
    Memory,
    ModelFile,
    Parity,
    Score,
)
from kdexport.statistics import score_delta

TEACHER, STUDENT, PLAIN_STUDENT = "teacher", "student", "student-plain"


class Condition(NamedTuple):
    """Under what a model was measured; models are compared within one condition only."""

    machine: str
    device: str
    batch_size: int
    threads: int


@dataclass(frozen=True)
class Joined:
    """All that was measured, without repetition."""

    name: str
    created: str
    recipe: dict[str, Any] | None
    machines: tuple[Machine, ...]
    models: tuple[ModelFile, ...]
    measurements: tuple[Measurement, ...]
    failures: tuple[Failure, ...]
    training: tuple[dict[str, Any], ...]
    baseline: str  # the model that the others are held against
    notes: tuple[str, ...]  # what joining has left out, in words
    tested_on: str = ""
    data_warnings: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)

    @cached_property
    def by_condition(self) -> dict[Condition, dict[str, Measurement]]:
        """Measurements by condition, then by model, in the order of appearance."""
        table: dict[Condition, dict[str, Measurement]] = {}
        for measurement in self.measurements:
            table.setdefault(condition_of(measurement), {})[measurement.model] = measurement
        return table

    @cached_property
    def model_by_name(self) -> dict[str, ModelFile]:
        """Models by name."""
        return {model.name: model for model in self.models}

    @cached_property
    def _deltas(self) -> dict[tuple[str, str], tuple[float | None, Interval | None]]:
        return {}

    def score_delta(self, model: str, against: str) -> tuple[float | None, Interval | None]:
        """Return one model's score minus another's with its 95 % interval, worked out once."""
        if (model, against) not in self._deltas:
            pair = self.model_by_name[model], self.model_by_name[against]
            self._deltas[model, against] = score_delta(*pair)
        return self._deltas[model, against]

    @cached_property
    def metric(self) -> Metric:
        """What the scores measure."""
        return metric_of(self.models, self.baseline)

    @property
    def plain_student(self) -> str | None:
        """The student that was trained without a teacher, where there is one."""
        return PLAIN_STUDENT if PLAIN_STUDENT in self.model_by_name else None


def condition_of(measurement: Measurement) -> Condition:
    """Return the condition that a measurement was made under."""
    return Condition(measurement.machine, measurement.device, measurement.batch_size, measurement.threads)


def join(benches: Sequence[BenchResult], name: str | None = None) -> Joined:
    """Join bench results, also from several machines.

    Args:
        benches: At least one. Of a measurement that two of them hold, the later one counts.
        name: What the whole is called; else the name of the first.

    Raises:
        KDExportError: None given, no model in any, two machines or two files under one name, a figure that is no
            number.
    """
    if not benches:
        raise KDExportError(
            "there are no bench results to report on",
            hint="measure first: kdexport bench MODEL.onnx --out bench.json, then kdexport report bench.json",
        )
    in_time = sorted(benches, key=lambda bench: bench.created)
    models = _models(benches)
    machines = _machines(benches)
    if not models:
        raise KDExportError(
            f"the bench result '{benches[0].name}' holds no models", hint="measure at least one with kdexport bench"
        )
    kept: dict[tuple[Condition, str], Measurement] = {}
    replaced = 0
    for bench in in_time:
        _check_finite(bench)
        for measurement in bench.measurements:
            key = (condition_of(measurement), measurement.model)
            replaced += key in kept and kept[key] != measurement
            kept[key] = measurement
    order = {model: position for position, model in enumerate(models)}
    measurements = sorted(kept.items(), key=lambda item: order.get(item[0][1], len(order)))
    recipes = [bench.recipe for bench in benches if bench.recipe is not None]
    notes = []
    if replaced:
        notes.append(f"{replaced} measurements were made more than once; the latest of each counts.")
    if any(recipe != recipes[0] for recipe in recipes):
        notes.append("The bench results come from different recipes; the first one's requirements count.")
    return Joined(
        name=name or benches[0].name,
        created=in_time[-1].created,
        recipe=recipes[0] if recipes else None,
        machines=tuple(machines.values()),
        models=tuple(models.values()),
        measurements=tuple(measurement for _, measurement in measurements),
        failures=tuple(dict.fromkeys(failure for bench in benches for failure in bench.failures)),
        training=next((bench.training for bench in benches if bench.training), ()),
        baseline=TEACHER if TEACHER in models else next(iter(models)),
        notes=tuple(notes),
        tested_on=next((bench.tested_on for bench in benches if bench.tested_on), ""),
        data_warnings=tuple(dict.fromkeys(warning for bench in benches for warning in bench.data_warnings)),
        left_out={name: why for bench in benches for name, why in bench.left_out.items()},
    )


def _models(benches: Sequence[BenchResult]) -> dict[str, ModelFile]:
    models: dict[str, ModelFile] = {}
    for bench in benches:
        for model in bench.models:
            known = models.setdefault(model.name, model)
            if known.sha256 != model.sha256:
                raise KDExportError(
                    f"two different files are called '{_short(model.name)}': sha256 {known.sha256[:12]}... and "
                    f"{model.sha256[:12]}... in the bench result '{_short(bench.name)}'",
                    hint="measure the same files on every machine, or rename one of the files and measure it again",
                )
            if known is not model:
                models[model.name] = _fuller(known, model)
    return models


def _fuller(known: ModelFile, other: ModelFile) -> ModelFile:
    """Fill what one machine did not find out (the score, say) with what another did."""
    if known == other:
        return known
    missing = {
        field.name: getattr(other, field.name)
        for field in dataclasses.fields(ModelFile)
        if getattr(known, field.name) is None and getattr(other, field.name) is not None
    }
    return dataclasses.replace(known, **missing) if missing else known


def _machines(benches: Sequence[BenchResult]) -> dict[str, Machine]:
    machines: dict[str, Machine] = {}
    for bench in benches:
        known = machines.setdefault(bench.machine.name, bench.machine)
        if known != bench.machine:
            differing = [
                field.name
                for field in dataclasses.fields(Machine)
                if getattr(known, field.name) != getattr(bench.machine, field.name)
            ]
            raise KDExportError(
                f"two machines are called '{_short(known.name)}' but differ in {', '.join(differing)}",
                hint="name one of them as you give it: kdexport report first.json other-name=second.json",
            )
    return machines


def _check_finite(bench: BenchResult) -> None:
    for model in bench.models:
        where = _not_finite(vars(model))
        if where:
            raise KDExportError(
                f"{where} of '{_short(model.name)}' is not a finite number",
                hint="evaluate that model again; a figure that was not measured is null",
            )
    for measurement in bench.measurements:
        named = f"'{_short(measurement.model)}' on '{_short(measurement.machine)}'"
        where = _not_finite(vars(measurement))
        if where:
            raise KDExportError(
                f"{where} of {named} is not a finite number",
                hint="measure that model again with kdexport bench; a figure that was not measured is null",
            )
        if measurement.latency_ms.p50 <= 0:
            raise KDExportError(
                f"latency_ms.p50 of {named} is {measurement.latency_ms.p50:g}: no run takes that long",
                hint="measure that model again with kdexport bench",
            )


def _not_finite(values: Mapping[str, Any]) -> str:
    """Return the dotted name of the first figure that is not finite, or nothing."""
    for key, value in values.items():
        if isinstance(value, float):
            if not math.isfinite(value):
                return key
        elif isinstance(value, tuple) and value and isinstance(value[0], float):
            if not all(map(math.isfinite, value)):
                return key
        elif isinstance(value, dict | Latency | Memory | Agreement | Parity | Evaluation | Score):
            inner = _not_finite(value if isinstance(value, dict) else vars(value))
            if inner:
                return f"{key}.{inner}"
    return ""


def _short(text: str) -> str:
    """Return a name fit for one line of a message."""
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
