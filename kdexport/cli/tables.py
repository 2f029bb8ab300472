"""What commands print of their results: the same words and units from each, in tables that fit into the terminal.

Each function takes a result and gives something that Rich prints. Figures are written by ``figures``, scores by their
task; a report's own page on the terminal is ``report.terminal``.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdexport import figures, terminal
from kdexport.report.findings import noise_lines
from kdexport.report.operators import told, what_changed, worst
from kdexport.report.scores import Metric, metric_of, of
from kdexport.results import (
    BenchResult,
    DistillResult,
    Evaluation,
    ExportResult,
    Measurement,
    ModelFile,
    Pruned,
    TargetScore,
)
from kdexport.terminal import WIDTH, Column, heading, note, table, warning

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

    from kdexport.distill.layers import ShownLayers
    from kdexport.onnx.describe import Description

NONE = figures.DASH
CLASSES_SHOWN = 30
CUTS_SHOWN = 40
LONGEST_NAME, LONGEST_FACT = 30, 20_000  # characters; a longer name hides the facts, longer facts take minutes
CONFUSIONS_SHOWN = 5
PROFILES_SHOWN = 4
WARNINGS_SHOWN = 6  # one by one; of more, a line for each kind


def trained(result: DistillResult, root: Path) -> "Group":
    """Return the networks of a distillation, where their weights are, and what to do next."""
    from rich.console import Group
    from rich.text import Text

    from kdexport.tasks import task_of_metric

    networks, task = result.networks, task_of_metric(result.metric or "")
    score = f"val {task.label}" if task else "val score"
    write = task.write if task else figures.plain
    columns = [
        Column("network", [network.name for network in networks], left=True),
        # An ONNX file's parameters are not counted.
        Column("parameters", [figures.count(network.parameters) if network.parameters else "" for network in networks]),
        Column("epochs", [str(network.epochs) if network.epochs else "given" for network in networks]),
        Column("best", ["" if one.best_epoch is None else str(one.best_epoch + 1) for one in networks]),
        Column(heading(score), ["" if one.val_score is None else write(one.val_score) for one in networks]),
        Column("time", ["" if one.seconds is None else figures.duration(one.seconds) for one in networks]),
    ]
    program = ["student.pt2"] if (root / "student.pt2").is_file() else []  # of a pruned student
    weights = ", ".join([*(network.weights for network in networks), *program])  # as a column they'd wrap at 80 columns
    title = f"{result.name}: trained"
    pruned = next((network.pruned for network in networks if network.pruned is not None), None)
    return Group(
        table(columns, title=title),
        "",
        *(() if pruned is None else (cut_out(pruned), "")),
        *(warning(f"{failure.model} is left out: {failure.reason}") for failure in result.failures),
        Text(f"weights in {root}/: {weights}"),
        Text(f"next: kdexport export {root} --onnx"),
    )


def cut_out(pruned: Pruned) -> "Group":
    """Return what was taken out of which layer; the normalizations behind a layer have its channels."""
    rows = [*figures.cuts(pruned, CUTS_SHOWN), *figures.cut_totals(pruned)]
    columns = [
        Column("taken out", [name for name, _, _ in rows], left=True),
        Column("before", [before for _, before, _ in rows]),
        Column("after", [after for _, _, after in rows]),
    ]
    return table(columns)


def layers(shown: "ShownLayers") -> "Group":
    """Return both networks' layers and the suggested pairs."""
    from rich.console import Group

    parts: list[Any] = []
    for title, rows in (("student", shown.student), ("teacher", shown.teacher)):
        gives = [" x ".join(map(str, row.shape)) if row.usable else "runs several times: no name" for row in rows]
        columns = [
            Column("stage", ["" if row.stage is None else str(row.stage) for row in rows]),
            Column("layer", [row.path for row in rows], left=True, folds=True),
            Column("kind", [row.kind for row in rows], left=True, folds=True),
            Column("gives", gives, left=True, folds=True),
        ]
        parts += [table(columns, title=title), ""]
    pairs = [
        Column("student", [student for student, _ in shown.suggested], left=True, folds=True),
        Column("teacher", [teacher for _, teacher in shown.suggested], left=True, folds=True),
    ]
    return Group(*parts, table(pairs, title="pairs to begin with (student_layer, teacher_layer)"))


def exported(result: ExportResult, again: str, width: int = WIDTH) -> "Group":
    """Return files with their proofs, the notes on each, and what to do next."""
    from rich.console import Group
    from rich.text import Text

    models = result.models
    proofs = [model.parity for model in models]
    agrees = ["" if one is None or one.argmax_agreement is None else _agrees(one.argmax_agreement) for one in proofs]
    runtimes = ["" if model.oldest_runtime is None else f">= {model.oldest_runtime}" for model in models]
    columns = [
        Column("file", [model.file for model in models], left=True, folds=True),
        Column("precision", [model.precision for model in models], left=True, spare=1),
        Column("size", [figures.size(model.size_bytes) for model in models]),
        Column("nodes", [str(sum(model.operators.values())) for model in models], spare=3),
        Column("difference", ["" if proof is None else f"{proof.max_rel:.1e}" for proof in proofs]),
        Column("agrees", agrees),
        Column("samples", ["" if proof is None else str(proof.samples) for proof in proofs], spare=2),
        Column("runtime", runtimes, spare=4),
    ]
    notes = []
    for model in models:
        if model.operators_before:
            notes.append(f"{model.file}: {sum(model.operators_before.values())} nodes before optimization")
        if model.quantized is not None and model.quantized[0] == model.quantized[1]:  # else a note says which are not
            notes.append(f"{model.file}: {model.quantized[0]} of {model.quantized[1]} operators quantized")
        notes += [f"{model.file}: {text}" for text in model.notes]
    left_out = [warning(f"{failure.model} is left out: {failure.reason}") for failure in result.failures]
    shown = table([one for one in columns if any(one.cells)], title=f"{result.name}: exported", width=width)
    tried = [part for model in models if model.measured_precision for part in ("", _tried(model, width))]
    return Group(shown, *tried, "", *map(Text, notes), *left_out, Text(f"next: {again}"))


def _tried(model: ModelFile, width: int) -> "Group":
    """Return what was tried for a file whose precision measured time has chosen."""
    assert model.measured_precision is not None
    names, _, fewer, speeds, intervals, outcomes = zip(*figures.tried_rows(model.measured_precision), strict=True)
    columns = [
        Column("tried", names, left=True),
        Column("in fewer bits", fewer, spare=1),
        Column("speed", speeds),
        Column("95 %", intervals, spare=2),
        Column("outcome", outcomes, left=True, folds=True),
    ]
    return table(columns, title=f"{model.file}: {figures.timed_on(model.measured_precision.on)}", width=width)


def _agrees(share: float) -> str:
    """Return in how many samples the decision is the same: all of them only where it is."""
    return figures.percent(share, 1 if share == 1 or share < 0.9995 else 3)


def described(found: "Description") -> Any:
    """Return what a file holds, a line a fact."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")

    def fact(name: str, value: str) -> None:  # a stranger's words: no markup, no control characters
        if len(value) > LONGEST_FACT:
            value = f"{value[:LONGEST_FACT]}... ({len(value):,} characters, all of them in --json)"
        shown.add_row(Text(terminal.line(name[:LONGEST_NAME])), Text(terminal.line(value)))

    fact("file", found.file)
    fact("size", f"{found.size_bytes:,} bytes, {found.weights:,} weights")
    fact("sha256", found.sha256)
    fact("written by", found.producer or "(not told)")
    runtime = f", loads in onnxruntime >= {found.oldest_runtime}" if found.oldest_runtime else ""
    fact("opset", f"{found.opset}, IR {found.ir_version}{runtime}")
    for kind, values in (("input", found.inputs), ("output", found.outputs)):
        for name, value in values.items():
            fact(kind, f"{name}: {value['type']} {value['shape']}")
    fact("operators", ", ".join(f"{name} {count}" for name, count in found.operators.items()))
    for name, value in found.metadata.items():
        fact(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return shown


def evaluated(result: Evaluation, made_by: str) -> "Group":
    """Return a score: the whole, every class, the commonest mistakes.

    Args:
        result: What was scored.
        made_by: Who made the split: "source", or how it was drawn.
    """
    from rich.console import Group
    from rich.text import Text

    from kdexport.tasks import TASKS, task_of_metric
    from kdexport.tasks.classification import worst_confusions

    task, metric = task_of_metric(result.score.metric) or TASKS[result.task], of(result.score)
    interval = metric.write_interval(result.score.ci95)
    told = [
        f"{task.other_metrics[name]} {task.write(value, name)}"
        if name in task.other_metrics
        else f"{name} {figures.plain(value)}"
        for name, value in result.metrics.items()
        if value is not None
    ]
    origin = "" if made_by == "source" else f" ({made_by})"
    head = Text.assemble(
        (f"{metric.label} {metric.write(result.score.value)}", "bold"),
        f" (95 % interval {interval})" if interval else "",
        f" on {figures.thousands(result.samples)} samples of {result.split}{origin}",
    )
    parts: list[Any] = [head, *([Text(", ".join(told))] if told else []), *_classes(result)]
    if len(result.per_target) > 1:
        parts += ["", _targets(result.per_target)]
    confusions = worst_confusions(result, CONFUSIONS_SHOWN)
    if confusions:
        parts.append(Text("\nmost often confused", style="bold"))
        parts += [Text(f"  {count:4d}  true {true} -> predicted {predicted}") for true, predicted, count in confusions]
    return Group(*parts)


def _classes(result: Evaluation) -> Iterator[Any]:
    pixels = any(one.iou is not None for one in result.per_class)
    ranked = sorted(result.per_class, key=lambda one: one.accuracy if one.iou is None else one.iou)
    shown = ranked[:CLASSES_SHOWN] if len(ranked) > CLASSES_SHOWN else list(result.per_class)
    if not shown:
        return
    columns = [
        Column("class", [one.name for one in shown], left=True, folds=True),
        Column("pixels" if pixels else "samples", [figures.thousands(one.samples) for one in shown]),
        Column("recall", [figures.percent(one.accuracy) for one in shown]),
        Column("precision", [NONE if one.precision is None else figures.percent(one.precision) for one in shown]),
        Column("F1", [figures.percent(one.f1) for one in shown]),
    ]
    if pixels:
        columns.append(Column("IoU", [NONE if one.iou is None else figures.percent(one.iou) for one in shown]))
    yield ""
    yield table(columns)
    if len(ranked) > len(shown):
        yield note(f"the {len(shown)} worst of {len(ranked)} classes")


def _targets(rows: Sequence[TargetScore]) -> "Group":
    """Return a line for each target, in its own unit."""
    return table(
        [
            Column("target", [row.name for row in rows], left=True, folds=True),
            Column("MAE", [figures.plain(row.mae) for row in rows]),
            Column("RMSE", [figures.plain(row.rmse) for row in rows]),
            Column("R²", [NONE if row.r2 is None else figures.plain(row.r2) for row in rows]),
            Column("off by", [figures.signed_plain(row.bias) for row in rows]),
        ]
    )


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
