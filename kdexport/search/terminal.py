"""A search on a terminal: the pick, then every trial in one line."""

from typing import TYPE_CHECKING

from kdexport import figures
from kdexport import terminal as drawn
from kdexport.search.results import SearchResult, Trial
from kdexport.tasks import task_of_metric
from kdexport.terminal import Column

if TYPE_CHECKING:
    from rich.console import Group

    from kdexport.search.dry_run import Planned

ORDER = ("picked", "finalist", "dropped", "not trained", "over budget", "failed", "open")
MOST = 30  # trials shown; search.json and search.html have all


def terminal(result: SearchResult, width: int) -> "Group":
    """Return the pick and the table of trials."""
    from rich.console import Group
    from rich.text import Text

    rows = sorted(result.trials, key=lambda trial: (ORDER.index(trial.outcome), -_furthest(trial)[0], _latency(trial)))
    shown = rows[:MOST]
    unit = figures.Unit.of([_latency(trial) for trial in shown if trial.files] or [1.0])
    columns = [
        Column("candidate", [trial.name for trial in shown], left=True, folds=True),
        Column("outcome", [trial.outcome for trial in shown], left=True),
        Column(f"median, {unit.name}", [unit.write(_latency(trial)) if trial.files else "" for trial in shown]),
        Column(
            "size",
            [figures.size(min(file.size_bytes for file in trial.files)) if trial.files else "" for trial in shown],
            spare=2,
        ),
        Column("epochs", [str(_furthest(trial)[0] or "") for trial in shown], spare=1),
        Column("val", [_score(result, trial) for trial in shown]),
    ]
    found = [drawn.table(columns, title=f"{result.name}: {len(result.trials)} candidates", width=width)]
    if len(rows) > MOST:
        found.append(Group(drawn.note(f"{len(rows) - MOST} more in search.json")))
    share = result.seconds.measuring_share
    told = [] if share is None else [f"measuring took {figures.percent(share, 0)} of the time"]
    if result.latency_model is not None:
        told.append(
            f"latency predicted to ±{figures.percent(result.latency_model.error, 0)} by {result.latency_model.kind}"
        )
    if result.pick is not None:
        lines = [
            Text(f"pick: {result.pick.name} ({result.pick.precision})", style="bold"),
            Text(result.pick.why),
            Text(f"its run directory: {result.pick.directory}/"),
        ]
        found.append(Group(Text(), *lines))
    found.append(Group(drawn.note("; ".join(told))))
    return Group(*found)


def _latency(trial: Trial) -> float:
    return min((file.latency_ms for file in trial.files), default=float("inf"))


def _furthest(trial: Trial) -> tuple[int, float | None]:
    return (trial.rungs[-1].epochs, trial.rungs[-1].val_score) if trial.rungs else (0, None)


def _score(result: SearchResult, trial: Trial) -> str:
    score = _furthest(trial)[1]
    task = task_of_metric(result.metric)
    return "" if score is None else task.write(score) if task else figures.plain(score)


def planned(plan: "Planned", width: int) -> "Group":
    """Return what a search would do, and how long it would take."""
    from rich.console import Group
    from rich.text import Text

    several = "endless" if plan.candidates is None else f"{plan.candidates:,}"
    lines = [
        f"{plan.measured} of {several} candidates are built and measured, e.g. {', '.join(plan.examples[:3])}",
        f"at most {plan.trained} of those within the budget begin to train",
        *(f"after {epochs} epochs at most {places} go on" for epochs, places in plan.rungs),
        f"at most {plan.finalists} train all {plan.epochs} epochs, are measured again and scored on the test split",
    ]
    rows = {
        "teacher": "teacher",
        "measuring": "measuring",
        "training": "training",
        "final": "finalists",
        "total": "all",
    }
    columns = [
        Column("step", list(rows.values()), left=True),
        Column("estimate", [figures.duration(plan.seconds[name]) for name in rows]),
    ]
    tried = [drawn.note(f"{name}: {outcome}") for name, outcome in plan.tried.items()]
    title = Text(f"{plan.name}: what would be tried", style="bold")
    note = drawn.note("estimated from candidates that were built, measured and trained for some steps:")
    return Group(title, *(Text(line) for line in lines), Text(), drawn.table(columns, width=width), note, *tried)
