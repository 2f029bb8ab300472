"""The pictures of search.html: score against latency of what was trained, and the latency of every candidate."""

from dataclasses import dataclass

from markupsafe import Markup

from kdexport import figures
from kdexport.report.charts.marks import FULL, NARROW, SHAPES, WIDE, Mark, glyph
from kdexport.report.charts.scatter import Point, scatter
from kdexport.report.charts.svg import Scale, picture, tag, text
from kdexport.report.scores import Metric
from kdexport.report.tradeoffs import front as front_of
from kdexport.search.results import SearchResult, Trial, TrialFile

COLORS = 8


@dataclass(frozen=True)
class Chart:
    """A picture, wide and narrow."""

    wide: Markup
    narrow: Markup
    caption: str


def front(result: SearchResult, metric: Metric) -> Chart | None:
    """Draw score against latency of every trained candidate; None where there is none."""
    points = [point for trial in result.trials if (point := _point(result, trial, metric)) is not None]
    if not points:
        return None
    if result.teacher_latency_ms is not None and result.teacher_val_score is not None:
        score = result.teacher_val_score
        tip = f"teacher\n{metric.write(score.value)} on validation\nmedian {figures.ms(result.teacher_latency_ms)}"
        size = result.final["models"][0]["size_bytes"] if result.final else max(point.size_bytes for point in points)
        mark = Mark("teacher", 0, "circle")
        points.append(Point(mark, result.teacher_latency_ms, score.value, score.ci95, size, False, False, tip))
    order = front_of((one.mark.name, one.latency_ms, _goodness(one.score, metric)) for one in points)
    label = f"{metric.title} on validation against median latency of {len(points)} networks; front: {', '.join(order)}"

    def draw(width: int) -> Markup:
        return scatter(
            points,
            order,
            label=label,
            width=width,
            height=450 if width >= WIDE else 380,
            max_latency_ms=latency_limit(result),
            min_score=_least_score(result, metric),
            metric=metric,
            split="validation split",
        )

    caption = (
        "Every candidate that was trained, at the furthest point that it came to. Hollow: dropped before its full "
        "training, with the score that it had then. Area is file size, color the space, shape the precision; whiskers "
        "are 95 % intervals; the ring is the pick."
    )
    return Chart(draw(WIDE), draw(NARROW), caption)


def strip(result: SearchResult) -> Chart | None:
    """Draw the latency of every candidate as measured before training, with the budget; None where there is none."""
    rows = [(trial, file) for trial in result.trials for file in trial.files]
    if not rows:
        return None
    caption = "Each candidate's median latency. Hollow: over the budget, by whichever of its limits."
    return Chart(_strip(result, rows, FULL), _strip(result, rows, NARROW), caption)


def latency_limit(result: SearchResult) -> float | None:
    """Return the largest latency that the budget allows, in milliseconds."""
    limits = [result.budget["latency_ms"]] if "latency_ms" in result.budget else []
    if "speedup" in result.budget and result.teacher_latency_ms is not None:
        limits.append(result.teacher_latency_ms / result.budget["speedup"])
    return min(limits, default=None)


def _least_score(result: SearchResult, metric: Metric) -> float | None:
    sign = 1 if metric.higher_is_better else -1
    limits = [sign * result.budget["min_score"]] if "min_score" in result.budget else []
    if "drop" in result.budget and result.teacher_val_score is not None:
        limits.append(sign * result.teacher_val_score.value - result.budget["drop"])
    return sign * max(limits) if limits else None


def _goodness(score: float, metric: Metric) -> float:
    return score if metric.higher_is_better else -score


def _point(result: SearchResult, trial: Trial, metric: Metric) -> Point | None:
    if not trial.rungs or not trial.files:
        return None
    picked = result.pick is not None and result.pick.trial == trial.number
    chosen = [one for one in trial.files if result.pick and picked and one.precision == result.pick.precision]
    file = chosen[0] if chosen else min(trial.files, key=lambda one: one.latency_ms)
    rung = trial.rungs[-1]
    score = file.val_score.value if file.val_score else rung.val_score
    lines = [
        trial.name,
        f"{metric.label} {metric.write(score)} on validation after epoch {rung.epochs}",
        f"median {figures.ms(file.latency_ms)} ({figures.ms_interval(file.latency_ms_ci95)})".replace(" ()", ""),
        f"file {figures.size(file.size_bytes)}",
        trial.outcome + (f": {trial.why}" if trial.why else ""),
    ]
    return Point(
        _mark(result, trial, file),
        file.latency_ms,
        score,
        file.val_score.ci95 if file.val_score else None,
        file.size_bytes,
        dominated=trial.outcome not in ("picked", "finalist"),
        picked=picked,
        tip="\n".join(lines),
    )


def _mark(result: SearchResult, trial: Trial, file: TrialFile) -> Mark:
    models = list(dict.fromkeys(one.model for one in result.trials))
    return Mark(trial.name, models.index(trial.model) % COLORS + 1, SHAPES.get(file.precision, "circle"))


def _strip(result: SearchResult, rows: list[tuple[Trial, TrialFile]], width: int) -> Markup:
    left, right, bottom = 14.0, width - 14.0, 84.0
    values, limit = [file.latency_ms for _, file in rows], latency_limit(result)
    low, high = min([*values, limit or values[0]]) / 1.15, max([*values, limit or values[0]]) * 1.15
    across = Scale(low, high, left, right, log=True)
    unit = figures.Unit.of([low, high])
    drawn = [tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis")]
    for tick in across.ticks(6 if width > 500 else 3):
        drawn.append(tag("line", x1=across(tick), x2=across(tick), y1=bottom, y2=bottom + 5, class_="axis"))
        drawn.append(text(across(tick), bottom + 19, f"{tick * unit.scale:g}", "middle", class_="tick"))
    drawn.append(text(right, bottom + 38, f"median latency, {unit.name} (log scale)", "end", class_="title"))
    if limit is not None:
        x = across(limit)
        drawn.append(tag("line", x1=x, x2=x, y1=18.0, y2=bottom, class_="limit"))
        anchor = "end" if x - left > 140 else None
        drawn.append(text(x + (-6 if anchor else 6), 14, "budget: left of this line", anchor, class_="required"))
    ends: list[float] = []  # where the last mark of each row lies: marks that would cover each other stand in rows
    for number, (trial, file) in enumerate(sorted(rows, key=lambda row: row[1].latency_ms)):
        x = across(file.latency_ms)
        row = next((row for row, end in enumerate(ends) if x - end > 12), None)
        if row is None and len(ends) < 4:
            ends.append(x)
            row = len(ends) - 1
        row = row if row is not None else 3
        ends[row] = x
        tip = f"{trial.name}\n{file.precision}, median {figures.ms(file.latency_ms)}\n{trial.outcome}"
        drawn.append(
            tag(
                "g",
                glyph(_mark(result, trial, file), x, bottom - 12 - 13 * row, 5.0, hollow=not file.within_budget),
                tag("circle", cx=x, cy=bottom - 12 - 13 * row, r=8.0, class_="target"),
                class_="point",
                data_model=trial.name,
                data_tip=tip + (f": {trial.why}" if trial.why else ""),
                role="button",
                aria_pressed="false",
                aria_label=tip.replace("\n", ", "),
                tabindex="0" if number == 0 else "-1",
            )
        )
    inside = sum(file.within_budget for _, file in rows)
    label = f"Median latency of {len(rows)} files before training; {inside} are not shown to be over the budget"
    return picture(width, bottom + 44, label, *drawn, interactive=True)
