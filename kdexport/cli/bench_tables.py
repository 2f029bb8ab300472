"""What was measured, as the terminal shows it: each measurement, the costliest operators, what holds for all rows."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from kdexport import figures, terminal
from kdexport.report.findings import noise_lines
from kdexport.report.operators import told, what_changed, worst
from kdexport.report.scores import Metric, metric_of
from kdexport.results import BenchResult, Measurement, ModelFile
from kdexport.terminal import Column, heading, note, table, warning

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

NONE = figures.DASH
PROFILES_SHOWN = 4
WARNINGS_SHOWN = 6  # one by one; of more, a line for each kind


def measured(result: BenchResult, width: int) -> "Group":
    """Return what was measured, at most ``width`` characters wide; under it what holds for all rows, and warnings."""
    from rich.console import Group

    return Group(table(bench_columns(result), width=width), "", *_costliest(result, width), *bench_lines(result))


def _costliest(result: BenchResult, width: int) -> Iterator[Any]:
    """Yield the operators that take the most time in each model, where they were profiled, and what changed."""
    rows = [one for one in result.measurements if one.profile is not None]
    if not rows:
        return
    kept = rows[:PROFILES_SHOWN]
    found = list(worst(kept))
    unit = figures.Unit.of(operator.ms for _, operator in found)
    values = _values(kept)
    named = [
        ", ".join(
            [
                one.model,
                *(
                    f"{name} {value}"
                    for name, value in zip(values, _condition(one), strict=True)
                    if len(values[name]) > 1
                ),
            ]
        )
        for one, _ in found
    ]
    heads = ["" if at and named[at - 1] == name else name for at, name in enumerate(named)]
    columns = [
        Column("model", heads, left=True, folds=True),
        Column("operator", [operator.operator for _, operator in found], left=True),
        Column("layer", [terminal.line(operator.layer) for _, operator in found], left=True, folds=True),
        Column(unit.name, [unit.write(operator.ms) for _, operator in found]),
        Column("of p50", [figures.percent(operator.ms / one.latency_ms.p50) for one, operator in found]),
    ]
    yield table(columns, title="the costliest operators", width=width)
    yield ""
    yield from (note(told(one)) for one in kept)
    if len(rows) > len(kept):
        yield note(f"{len(rows) - len(kept)} more profiles are in bench.json and in the report")
    by_condition: dict[Any, dict[str, Measurement]] = {}
    for one in rows:
        by_condition.setdefault(_condition(one), {})[one.model] = one
    for measured in by_condition.values():
        for name, one in measured.items():
            base = name.rpartition(".")[0]
            changed = what_changed(measured[base], one) if base in measured else ""
            if changed:
                yield note(f"{name} against {base}: {changed}")


CONDITION_COLUMNS = ("device", "batch", "threads")  # as `_condition` returns them


def bench_columns(result: BenchResult) -> list[Column]:
    """Return the columns that say something.

    One that says the same in every row, or nothing, is left out (see ``bench_lines``). bench.json holds everything.
    """
    rows = result.measurements
    models = {model.name: model for model in result.models}
    metric = metric_of(result.models, result.models[0].name)
    unit = figures.Unit.of(one.latency_ms.p50 for one in rows)

    def column(
        name: str, cell: Callable[[Measurement, ModelFile], str], *, left: bool = False, spare: int = 0
    ) -> Column:
        return Column(name, [cell(one, models[one.model]) for one in rows], left=left, spare=spare)

    conditions = [
        column("device", lambda one, _: one.device, left=True),
        column("batch", lambda one, _: str(one.batch_size)),
        column("threads", lambda one, _: str(one.threads)),
    ]
    counts = sorted({key for one in rows for key in one.throughput_by_streams or {}}, key=int)
    several_batches = len({one.batch_size for one in rows}) > 1  # else samples per second say only what p50 says
    others = [
        column(heading(metric.label), lambda _, model: _score(metric, model)),
        column("speed", _speed(result)),
        *(
            [column("per s", lambda one, _: figures.thousands(one.throughput_per_s), spare=1)]
            if several_batches
            else []
        ),
        *(column(f"per s ×{count}", _throughput(count), spare=1) for count in counts),
        column("p99", lambda one, _: NONE if one.latency_ms.p99 is None else unit.write(one.latency_ms.p99), spare=4),
        column("energy", lambda one, _: NONE if one.energy_mj is None else figures.energy(one.energy_mj), spare=2),
        column(
            "memory",
            lambda one, _: NONE if one.memory_mib.peak_rss is None else figures.mib(one.memory_mib.peak_rss),
            spare=5,
        ),
    ]
    return [
        column("model", lambda one, _: one.model, left=True),
        *(one for one in conditions if len(set(one.cells)) > 1),
        column(f"p50, {unit.name}", lambda one, _: unit.write(one.latency_ms.p50)),
        column("±", _half_width),
        *(one for one in others if set(one.cells) - {NONE, figures.times(1.0)}),
        column("size", lambda _, model: figures.size(model.size_bytes), spare=3),
    ]


def bench_lines(result: BenchResult) -> "Iterator[Text]":
    """Yield what holds for all rows, then each warning once with the measurements that it is about."""
    rows = result.measurements
    values = _values(rows)
    same = [f"{name} {there[0]}" for name, there in values.items() if len(there) == 1]
    machine = result.machine
    cores = "" if machine.cores is None else f", {machine.cores} cores"
    yield note(f"{machine.cpu}{cores}; {', '.join(same)}".rstrip("; "))
    if sum(len(set(one.warnings)) for one in rows) > WARNINGS_SHOWN:
        yield from map(warning, noise_lines(rows))
        return
    about: dict[str, list[Measurement]] = {}
    for one in rows:
        for text in one.warnings:
            about.setdefault(text, []).append(one)
    for text, warned in about.items():
        who = "all" if len(warned) == len(rows) > 1 else ", ".join(dict.fromkeys(one.model for one in warned))
        for name, here in _values(warned).items():
            if len(here) < len(values[name]):
                who += f", {name} {' and '.join(here)}"
        yield warning(f"{who}: {text}")


def _values(rows: Iterable[Measurement]) -> dict[str, list[str]]:
    """Return which devices, batch sizes and thread counts some measurements were made at, in their order."""
    columns = zip(*map(_condition, rows), strict=True)
    return {
        name: list(dict.fromkeys(map(str, column))) for name, column in zip(CONDITION_COLUMNS, columns, strict=False)
    }


def _condition(one: Measurement) -> tuple[str, int, int]:
    return one.device, one.batch_size, one.threads


def _speed(result: BenchResult) -> Callable[[Measurement, ModelFile], str]:
    """Return how to write a speed-up against the first model under the same condition."""
    from kdexport.statistics import disturbed, speedup

    first = result.models[0].name
    baselines = {_condition(one): one for one in result.measurements if one.model == first}

    def cell(one: Measurement, _: ModelFile) -> str:
        baseline = baselines.get(_condition(one))
        if baseline is None or one.model == first:
            return NONE if baseline is None else figures.times(1.0)
        if disturbed(baseline, one):
            return "undecided"
        ratio, interval = speedup(baseline.latency_ms, one.latency_ms)
        half = "" if interval is None else f" ±{(interval[1] - interval[0]) / 2:.2f}"
        return figures.times(ratio) + half

    return cell


def _throughput(count: str) -> Callable[[Measurement, ModelFile], str]:
    def cell(one: Measurement, _: ModelFile) -> str:
        rate = (one.throughput_by_streams or {}).get(count)
        return NONE if rate is None else figures.thousands(rate)

    return cell


def _score(metric: Metric, model: ModelFile) -> str:
    return NONE if model.score is None else metric.write(model.score.value)


def _half_width(one: Measurement, _: ModelFile) -> str:
    interval = one.latency_ms.p50_ci95
    if interval is None:
        return NONE
    return figures.percent((interval[1] - interval[0]) / (interval[1] + interval[0]))
