"""What came of a search, put together from the study: every trial, the pick, or what is nearest to the budget."""

import datetime
from collections.abc import Sequence
from typing import Any

from kdexport import results, statistics
from kdexport.recipe import Budget
from kdexport.results import Evaluation, Interval
from kdexport.search.candidates import budget_of, fitted, measured_of
from kdexport.search.context import SearchContext, relative_to
from kdexport.search.measure import misses, nearest_miss
from kdexport.search.pick import Finals, Finished, choose, score_miss
from kdexport.search.results import (
    Nearest,
    Outcome,
    PredictedLatency,
    SearchPick,
    SearchResult,
    Seconds,
    Trial,
    TrialFile,
    TrialRung,
)
from kdexport.search.space import Candidate, as_python
from kdexport.search.study import Entry

PICKED = "picked"  # the run directory, in the search's


def outcome(context: SearchContext, finals: Finals | None) -> SearchResult:
    """Return what is known of a search; ``finals`` is None where nothing is within the budget."""
    recipe, task, entries = context.recipe, context.dataset.task, context.entries()
    budget = context.search.budget
    chosen, why = choose(finals.files, budget, finals.teacher[0]) if finals else (None, "")
    pick = None
    if chosen is not None:
        pick = SearchPick(chosen.number, chosen.file.name, chosen.precision, why, PICKED)
    model = fitted(context, entries) if context.spaces.size > context.search.trials else None
    return SearchResult(
        name=recipe.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        budget=budget_of(budget),
        metric=task.metric,
        higher_is_better=task.higher_is_better,
        candidates=int(context.spaces.size) if context.spaces.size < float("inf") else None,
        trials=tuple(_trial(context, entry, pick, finals) for entry in entries),
        pick=pick,
        nearest=None if pick else _nearest(entries, finals, budget),
        latency_model=None if model is None else PredictedLatency(model.name, model.error, model.samples),
        seconds=_seconds(context, entries, finals),
        teacher_latency_ms=_teacher_latency(entries, finals),
        teacher_val_score=finals.teacher[0].score if finals else None,
        teacher_test_score=finals.teacher[1].score if finals else None,
        final=results.to_json(finals.bench) if finals else None,
        recipe=recipe.to_dict(relative_to=context.root),
    )


def _teacher_latency(entries: Sequence[Entry], finals: Finals | None) -> float | None:
    if finals is not None:
        return next((one.latency_ms.p50 for one in finals.bench.measurements if one.model == "teacher"), None)
    found = [cost for entry in entries for cost in (entry.measured or {}).get("files", {}).values()]
    return found[0]["latency_ms"] * found[0]["speedup"] if found else None


def _nearest(entries: Sequence[Entry], finals: Finals | None, budget: Budget) -> Nearest | None:
    """Return what misses the budget by the least."""
    if finals is not None and finals.files:
        teacher, labels = finals.teacher[0], {entry.number: entry.label for entry in entries}

        def missed(one: Finished) -> tuple[float, str]:
            costs = [(miss.by, miss.words) for miss in misses(one.figures, budget)]
            by, words = score_miss(one.val, teacher, budget)
            scale = max(abs(teacher.score.value), 1e-9)
            return max([*costs, (by / scale, words)], key=lambda item: item[0])

        one = min(finals.files, key=lambda file: missed(file)[0])
        return Nearest(one.number, labels[one.number], *missed(one))
    missing = [(nearest_miss(measured_of(entry), budget), entry) for entry in entries if entry.measured]
    if not missing:
        return None
    (by, words), entry = min(missing, key=lambda item: item[0][0])
    return Nearest(entry.number, entry.label, by, words)


def _trial(context: SearchContext, entry: Entry, pick: SearchPick | None, finals: Finals | None) -> Trial:
    candidate, measured = entry.candidate, measured_of(entry) if entry.measured else None
    spent, rungs = 0.0, []
    for epochs, found in sorted(entry.rungs.items()):
        rungs.append(TrialRung(epochs, float(found["score"]), float(found["seconds"])))
        spent += float(found["seconds"])
    if entry.trained and entry.trained["score"] is not None:
        rungs.append(TrialRung(entry.trained["epochs"], entry.trained["score"], entry.trained["seconds"]))
    return Trial(
        number=entry.number,
        name=entry.label,
        outcome=_outcome(entry, pick),
        why=entry.reason,
        model=str(candidate.values["model"]),
        args=_part(candidate, "args."),
        prune=_part(candidate, "prune."),
        image_size=candidate.values.get("image_size"),
        method=candidate.method,
        parameters=measured.parameters if measured else None,
        macs=measured.macs if measured else None,
        files=tuple(_files(context, entry, finals)),
        rungs=tuple(rungs),
        directory=relative_to(context.trial_run(entry).root, context.root) if entry.rungs or entry.trained else None,
    )


def _part(candidate: Candidate, prefix: str) -> dict[str, Any]:
    return {
        key.removeprefix(prefix): as_python(value) for key, value in candidate.values.items() if key.startswith(prefix)
    }


def _outcome(entry: Entry, pick: SearchPick | None) -> Outcome:
    if pick is not None and entry.number == pick.trial:
        return "picked"
    if entry.state == "failed":
        return "failed"
    if entry.state == "done":
        return "finalist"
    if entry.state == "out":
        over = entry.reason.startswith("over budget")
        return "over budget" if over else "dropped" if entry.rungs else "not trained"
    return "open"


def _files(context: SearchContext, entry: Entry, finals: Finals | None) -> list[TrialFile]:
    budget = context.search.budget
    own = [one for one in finals.files if one.number == entry.number] if finals else []
    trained = {one.precision: one for one in own}
    found = []
    untrained = measured_of(entry).files if entry.measured else {}
    for precision, cost in untrained.items():
        one = trained.get(precision)
        figures_now = one.figures if one else cost
        drop, ci = None, None
        if one is not None and finals is not None:
            drop, ci = _drop(finals.teacher[1], one.test)
        found.append(
            TrialFile(
                precision=precision,
                size_bytes=figures_now.size_bytes,
                latency_ms=figures_now.latency_ms,
                latency_ms_ci95=figures_now.latency_ms_ci95,
                speedup=figures_now.speedup,
                speedup_ci95=figures_now.speedup_ci95,
                memory_mib=figures_now.memory_mib,
                trained=one is not None,
                within_budget=not misses(figures_now, budget),
                untrained_latency_ms=cost.latency_ms,
                val_score=one.val.score if one else None,
                test_score=one.test.score if one else None,
                drop=drop,
                drop_ci95=ci,
            )
        )
    return found


def _drop(teacher: Evaluation, one: Evaluation) -> tuple[float, Interval | None]:
    """Return what a score has lost against the teacher's, in its own unit."""
    better = teacher.score.higher_is_better
    compared = statistics.paired_difference(teacher, one)
    delta = one.score.value - teacher.score.value
    if compared is None:
        return (-delta if better else delta), None
    _, (low, high) = compared
    return (-delta, (-high, -low)) if better else (delta, (low, high))


def _seconds(context: SearchContext, entries: Sequence[Entry], finals: Finals | None) -> Seconds:
    measuring = sum(float((entry.measured or {}).get("seconds", 0.0)) for entry in entries if not entry.begins_late)
    training = sum(float(found["seconds"]) for entry in entries for found in entry.rungs.values())
    training += sum(float((entry.trained or {}).get("seconds", 0.0)) for entry in entries)
    return Seconds(
        teacher=float(context.study.kept("teacher_seconds") or 0.0),
        measuring=measuring,
        training=training,
        final=finals.seconds if finals else 0.0,
    )
