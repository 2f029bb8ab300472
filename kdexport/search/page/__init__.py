"""search.html, in the form of the report: one file, no network."""

import base64
import hashlib
from importlib.resources import files
from typing import Any

from kdexport import __version__, figures
from kdexport.report.html import template_of
from kdexport.report.scores import Metric
from kdexport.search.page.charts import front, strip
from kdexport.search.results import PredictedLatency, SearchResult, Trial, TrialFile
from kdexport.tasks import task_of_metric

LIMITS = {
    "latency_ms": "latency at most",
    "speedup": "speed-up at least",
    "size_mib": "size at most",
    "memory_mib": "memory at most",
    "drop": "drop at most",
    "min_score": "score at least",
}
ORDER = ("picked", "finalist", "dropped", "not trained", "over budget", "failed", "open")


def page(result: SearchResult) -> str:
    """Return the page."""
    from markupsafe import Markup

    report = files("kdexport.report")
    script = report.joinpath("page", "page.js").read_text(encoding="utf-8")
    style = "".join(
        report.joinpath(folder, name).read_text(encoding="utf-8")
        for folder, name in (("charts", "style.css"), ("page", "page.css"))
    )
    text = template_of("kdexport.search", "search.html.j2").render(
        **_values(result),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
    )
    return figures.xml_text(text)


def metric_of(result: SearchResult) -> Metric:
    """Return how the search's score is called and written."""
    task = task_of_metric(result.metric)
    label, share = (task.label, task.unit == "share") if task else (result.metric, False)
    return Metric(result.metric, label, share, result.higher_is_better)


def _values(result: SearchResult) -> dict[str, Any]:
    metric, pick = metric_of(result), result.pick
    trial = next((one for one in result.trials if pick and one.number == pick.trial), None)
    file = next((one for one in trial.files if pick and one.precision == pick.precision), None) if trial else None
    if pick is not None:
        headline, why = f"{pick.name} is within the budget", f"It is {pick.why}."
    elif result.nearest is not None:
        beyond = figures.percent(result.nearest.by, 0)
        headline = f"nothing is within the budget; nearest is {result.nearest.name}"
        why = f"{beyond} beyond: {result.nearest.misses}."
    else:
        headline, why = "nothing could be measured", ""
    model = result.latency_model
    return {
        "result": result,
        "headline": headline,
        "why": why,
        "budget": [(LIMITS[name], _limit(name, value, metric)) for name, value in result.budget.items()],
        "costs": _costs(result, file, metric) if file else [],
        "front": front(result, metric),
        "strip": strip(result),
        "model": "" if model is None else _predicted(model, result),
        "counts": _counts(result),
        "headings": [
            *("Candidate", f"{metric.title} on validation{metric.unit}", "Epochs", "Median latency", "Size"),
            *("Peak memory", "Parameters", "MACs"),
        ],
        "rows": [_row(one, metric) for one in sorted(result.trials, key=_place)],
        "seconds": _seconds(result),
    }


def _limit(name: str, value: float, metric: Metric) -> str:
    if name == "latency_ms":
        return figures.ms(value)
    if name == "speedup":
        return figures.times(value)
    if name in ("size_mib", "memory_mib"):
        return figures.mib(value)
    if name == "drop":
        return f"{100 * value:g} points" if metric.share else f"{value:g}"
    return metric.write(value)


def _predicted(model: PredictedLatency, result: SearchResult) -> str:
    several = "endless" if result.candidates is None else figures.count(result.candidates)
    return (
        f"Of {several} candidates, {model.kind} fitted to {model.samples} of them chose which to measure: it errs by "
        f"{figures.percent(model.error, 0)} (median, cross-validated)."
    )


def _costs(result: SearchResult, file: TrialFile, metric: Metric) -> list[dict[str, str]]:
    found = []
    score, teacher = file.test_score, result.teacher_test_score
    if score is not None:
        against = "" if teacher is None else f"teacher {metric.write(teacher.value)}"
        if file.drop is not None:
            against += f", drop {metric.write_change(file.drop)}{' points' if metric.share else ''}"
        title = f"{metric.title} on the test split"
        interval = metric.write_interval(score.ci95)
        found.append({"title": title, "value": metric.write(score.value), "interval": interval, "against": against})
    interval = figures.ms_interval(file.latency_ms_ci95)
    faster = f"{figures.times(file.speedup)} as fast as the teacher"
    latency = figures.ms(file.latency_ms)
    found.append({"title": "Median latency", "value": latency, "interval": interval, "against": faster})
    found.append({"title": "File", "value": figures.size(file.size_bytes), "interval": "", "against": file.precision})
    memory = figures.mib(file.memory_mib)
    found.append({"title": "Peak memory of the process", "value": memory, "interval": "", "against": ""})
    return found


def _place(trial: Trial) -> tuple[int, int, float]:
    epochs = trial.rungs[-1].epochs if trial.rungs else 0
    return ORDER.index(trial.outcome), -epochs, min((file.latency_ms for file in trial.files), default=float("inf"))


def _row(trial: Trial, metric: Metric) -> dict[str, Any]:
    status = trial.outcome + (f": {trial.why.removeprefix(f'{trial.outcome}: ')}" if trial.why else "")
    kind = "pick" if trial.outcome == "picked" else "" if trial.outcome == "finalist" else "dominated"
    cells = [*_scored(trial, metric), *_measured(trial), _number(trial.parameters), _number(trial.macs)]
    return {"name": trial.name, "kind": kind, "status": status, "cells": cells}


def _scored(trial: Trial, metric: Metric) -> list[dict[str, Any]]:
    if not trial.rungs:
        return [_cell(None, "")] * 2
    rung = trial.rungs[-1]
    return [_cell(rung.val_score, metric.write(rung.val_score).removesuffix(" %")), _number(rung.epochs)]


def _measured(trial: Trial) -> list[dict[str, Any]]:
    if not trial.files:
        return [_cell(None, "")] * 3
    file = min(trial.files, key=lambda one: one.latency_ms)
    return [
        _cell(file.latency_ms, figures.ms(file.latency_ms), figures.ms_interval(file.latency_ms_ci95)),
        _cell(file.size_bytes, figures.size(file.size_bytes)),
        _cell(file.memory_mib, figures.mib(file.memory_mib)),
    ]


def _number(value: int | None) -> dict[str, Any]:
    return _cell(value, "" if value is None else figures.count(value))


def _cell(value: float | None, text: str, small: str = "") -> dict[str, Any]:
    return {"value": value, "text": text or "n/a", "small": small}


def _counts(result: SearchResult) -> str:
    counted = {name: sum(trial.outcome == name for trial in result.trials) for name in ORDER}
    told = ", ".join(f"{count} {name}" for name, count in counted.items() if count)
    return f"{len(result.trials)} candidates: {told}. Of several precisions the fastest file is shown."


def _seconds(result: SearchResult) -> list[tuple[str, str]]:
    seconds = result.seconds
    rows = [
        ("Teacher", seconds.teacher),
        ("Measuring candidates", seconds.measuring),
        ("Training", seconds.training),
        ("Measuring finalists", seconds.final),
    ]
    share = seconds.measuring_share
    told = [(name, figures.duration(value)) for name, value in rows]
    return told + ([] if share is None else [("Share of measuring", figures.percent(share, 0))])
