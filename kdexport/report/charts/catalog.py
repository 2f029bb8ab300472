"""Which of a report's values go into which picture, and each picture in a sentence."""

from collections.abc import Sequence

from markupsafe import Markup

from kdexport.recipe import Require
from kdexport.report import figures
from kdexport.report.charts.batches import Sweep, batches
from kdexport.report.charts.classes import MOST_CELLS, MOST_ROWS, ClassRow, confusion_change, per_class
from kdexport.report.charts.curves import Curve, curves
from kdexport.report.charts.distributions import Spread, distributions
from kdexport.report.charts.marks import Mark, marks_of
from kdexport.report.charts.scatter import Point, scatter
from kdexport.report.join import PLAIN_STUDENT, STUDENT
from kdexport.report.view import ConditionView, Row
from kdexport.results import Evaluation, Report

FULL, WIDE, NARROW = (
    1180,
    700,
    350,
)  # pixels; the page shows one or the other: text in a picture must not shrink with the screen


def marks(report: Report) -> dict[str, Mark]:
    """Return how each model looks."""
    return marks_of(((model.name, model.precision) for model in report.models), report.baseline)


def tradeoff_picture(
    report: Report, view: ConditionView, look: dict[str, Mark], width: int, height: int
) -> Markup | None:
    """Draw accuracy against latency under one condition; None where no accuracy is known."""
    points = [
        Point(
            look[row.name],
            row.measurement.latency_ms.p50,
            row.model.accuracy,
            row.model.accuracy_ci95,
            row.model.size_bytes,
            row.dominated is not None,
            row.picked,
            point_tip(row),
        )
        for row in view.rows
        if row.model.accuracy is not None
    ]
    if not points:
        return None
    require = requirements(report)
    base = view.base
    floor = require.min_accuracy
    if require.max_accuracy_drop is not None and base is not None and base.model.accuracy is not None:
        floor = max(floor or 0.0, base.model.accuracy - require.max_accuracy_drop)
    label = (
        f"Accuracy against median latency of {len(points)} models on {view.title}. "
        f"Not dominated, fastest first: {', '.join(view.front)}."
    )
    return scatter(
        points,
        view.front,
        label=label,
        width=width,
        height=height,
        max_latency_ms=require.max_latency_ms if require.latency_percentile == 50 else None,
        min_accuracy=floor,
    )


def point_tip(row: Row) -> str:
    """Return what a person reads who points at a model, in lines."""
    latency = row.measurement.latency_ms
    lines = [
        row.name,
        f"accuracy {figures.percent(row.model.accuracy)} ({figures.percent_interval(row.model.accuracy_ci95)})",
        f"median {figures.ms(latency.p50)} ({figures.ms_interval(latency.p50_ci95)})",
        f"{figures.plain(row.measurement.throughput_per_s)} samples a second",
        f"file {figures.size(row.model.size_bytes)}, peak memory {figures.mib(row.memory)}",
    ]
    return "\n".join([*lines, row.status] if row.status else lines).replace(" ()", "")


def spread_picture(view: ConditionView, look: dict[str, Mark], width: int) -> Markup:
    """Draw how latency spreads under one condition."""
    spreads = [Spread(look[row.name], row.measurement.latency_ms, row.picked) for row in view.rows]
    parts = []
    for row in view.rows:
        latency = row.measurement.latency_ms
        slowest = next((value for value in (latency.p99, latency.p95, latency.p90) if value is not None), None)
        tail = "" if slowest is None else f", slowest calls {figures.ms(slowest)}"
        parts.append(f"{row.name} median {figures.ms(latency.p50)}{tail}")
    return distributions(spreads, label=f"Latency on {view.title}: {'; '.join(parts)}.", width=width)


def batch_pictures(report: Report, look: dict[str, Mark], width: int) -> list[tuple[str, Markup]]:
    """Draw latency against batch size for each machine, device and thread count that was measured at several.

    Returns:
        What each picture was measured on, and the picture.
    """
    swept: dict[tuple[str, str, int], dict[str, dict[int, float]]] = {}
    for item in report.measurements:
        view = swept.setdefault((item.machine, item.device, item.threads), {})
        view.setdefault(item.model, {})[item.batch_size] = item.latency_ms.p50
    drawn = []
    for (machine, device, threads), models in swept.items():
        sweeps = [
            Sweep(look[name], tuple(sorted(by_size)), tuple(by_size[size] for size in sorted(by_size)))
            for name, by_size in models.items()
            if len(by_size) > 1
        ]
        if sweeps:
            title = f"{device} of {machine}, {threads} thread{'s' if threads > 1 else ''}"
            parts = [
                f"{sweep.mark.name} from {figures.ms(sweep.latency_ms[0])} at batch {sweep.batch_sizes[0]}"
                f" to {figures.ms(sweep.latency_ms[-1])} at batch {sweep.batch_sizes[-1]}"
                for sweep in sweeps
            ]
            drawn.append(
                (title, batches(sweeps, label=f"Latency by batch on {title}: {'; '.join(parts)}.", width=width))
            )
    return drawn


def training_picture(report: Report, look: dict[str, Mark], width: int) -> Markup | None:
    """Draw validation accuracy by epoch of every network that was trained; None where none was."""
    by_phase: dict[str, dict[int, float]] = {}
    for line in report.training:
        phase, epoch, accuracy = line.get("phase"), line.get("epoch"), line.get("val_accuracy")
        if isinstance(phase, str) and isinstance(epoch, int) and isinstance(accuracy, int | float):
            by_phase.setdefault(phase, {})[epoch] = float(accuracy)
    lines = [
        Curve(look.get(phase, Mark(phase, index, "circle")), tuple(values), tuple(values.values()))
        for index, (phase, values) in enumerate(by_phase.items())
        if len(values) > 1
    ]
    if not lines:
        return None
    parts = [f"{line.mark.name} reaches {figures.percent(max(line.accuracies))}" for line in lines]
    return curves(lines, label=f"Validation accuracy by epoch: {'; '.join(parts)}.", width=width)


def class_picture(report: Report, look: dict[str, Mark], width: int) -> Markup | None:
    """Draw accuracy by class of student, plain student and baseline; None where it isn't known."""
    names = [name for name in dict.fromkeys((shown_model(report), PLAIN_STUDENT, report.baseline)) if name in look]
    scored = [(look[name], evaluation) for name in names if (evaluation := _evaluation(report, name))]
    if len(scored) < 2:
        return None
    classes = {score.name for _, evaluation in scored for score in evaluation.per_class}
    rows = [
        ClassRow(
            name,
            max(score.samples for _, evaluation in scored for score in evaluation.per_class if score.name == name),
            tuple(
                (mark, score.accuracy)
                for mark, evaluation in scored
                for score in evaluation.per_class
                if score.name == name
            ),
        )
        for name in dict.fromkeys(score.name for score in scored[0][1].per_class)
    ]
    rows = [row for row in rows if row.samples]
    if not rows:
        return None
    left_out = len(rows) - MOST_ROWS
    rows = rows if left_out <= 0 else _most_changed(rows)
    worst = min(rows, key=lambda row: row.shares[0][1])
    label = (
        f"Share of each class that was found by {', '.join(names)}, {len(rows)} of {len(classes)} classes. "
        f"{names[0]} is weakest on {worst.name}: {figures.percent(worst.shares[0][1])}."
    )
    return per_class(rows, label=label, width=width)


def confusion_picture(report: Report, width: int) -> Markup | None:
    """Draw which mistakes distillation took away and which it added; None where that isn't known."""
    student, plain = _evaluation(report, STUDENT), _evaluation(report, PLAIN_STUDENT)
    if student is None or plain is None or len(student.confusion) != len(plain.confusion) or not student.confusion:
        return None
    change = [
        [new - old for new, old in zip(new_row, old_row, strict=True)]
        for new_row, old_row in zip(student.confusion, plain.confusion, strict=True)
    ]
    names = [score.name for score in student.per_class]
    if len(names) > MOST_CELLS:
        moved = sorted(range(len(names)), key=lambda index: -sum(abs(value) for value in change[index]))
        kept = sorted(moved[:MOST_CELLS])
        change, names = [[change[row][column] for column in kept] for row in kept], [names[index] for index in kept]
    fewer = -sum(min(value, 0) for i, row in enumerate(change) for j, value in enumerate(row) if i != j)
    more = sum(max(value, 0) for i, row in enumerate(change) for j, value in enumerate(row) if i != j)
    label = f"Change of the confusion by distillation: {fewer} mistakes taken away, {more} added."
    return confusion_change(names, change, label=label, width=width)


def requirements(report: Report) -> Require:
    """Return the limits on accuracy and latency that the report's gates were held against."""
    limits = {gate.requirement: gate.limit for gate in report.gates}
    asked = ((report.recipe or {}).get("require") or {}).get("latency_percentile", 50)
    return Require(
        max_accuracy_drop=limits.get("max_accuracy_drop"),
        min_accuracy=limits.get("min_accuracy"),
        max_latency_ms=limits.get("max_latency_ms"),
        latency_percentile=asked if asked in (90, 95, 99) else 50,
    )


def shown_model(report: Report) -> str:
    """Return the model whose classes are looked at: the student, else the pick, else the last."""
    names = [model.name for model in report.models]
    if STUDENT in names:
        return STUDENT
    return report.pick.model if report.pick and report.pick.model != report.baseline else names[-1]


def _evaluation(report: Report, name: str) -> Evaluation | None:
    return next((model.evaluation for model in report.models if model.name == name), None)


def _most_changed(rows: Sequence[ClassRow]) -> list[ClassRow]:
    ranked = sorted(rows, key=lambda row: -abs(row.shares[0][1] - row.shares[1][1]))
    return ranked[:MOST_ROWS]
