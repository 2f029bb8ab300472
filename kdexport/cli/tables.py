"""What commands print of their results: the same words and units from each, in tables that fit into the terminal.

Each function takes a result and gives something that Rich prints. Figures are written by ``figures``, scores by their
task; a report's own page on the terminal is ``report.terminal``.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdexport import figures, terminal
from kdexport.report.scores import of
from kdexport.results import (
    DistillResult,
    Evaluation,
    ExportResult,
    ModelFile,
    Pruned,
    TargetScore,
)
from kdexport.terminal import WIDTH, Column, heading, note, table, warning

if TYPE_CHECKING:
    from rich.console import Group

    from kdexport.distill.layers import ShownLayers
    from kdexport.onnx.describe import Description

NONE = figures.DASH
CLASSES_SHOWN = 30
CUTS_SHOWN = 40
LONGEST_NAME, LONGEST_FACT = 30, 20_000  # characters; a longer name hides the facts, longer facts take minutes
CONFUSIONS_SHOWN = 5


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
