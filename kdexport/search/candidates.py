"""Candidates are proposed, built and measured, a few at a time; those over the budget are out before any is trained."""

from collections.abc import Sequence

import numpy as np

from kdexport import figures
from kdexport.errors import KDExportError, StorageError
from kdexport.recipe import Budget, Recipe
from kdexport.results import to_json
from kdexport.search.context import SearchContext
from kdexport.search.measure import Measured, measure_batch, nearest_miss, within
from kdexport.search.predict import LatencyModel, choose, fit_latency
from kdexport.search.space import Candidate, one_of_each
from kdexport.search.study import Entry

AT_ONCE = 8  # candidates that are measured in one go, at most: their processes are alive together
POOL = 1000  # candidates that a model of latency chooses from, in spaces too large to list


def measure_candidates(context: SearchContext) -> None:
    """Propose and measure candidates until there are as many as the recipe asks for, or no more; then judge them all.

    Those that a killed search had measured and not judged yet are judged now.
    """
    _measure_all(context)
    for entry in context.entries():
        _judge(context, entry)


def _measure_all(context: SearchContext) -> None:
    known = len([entry for entry in context.entries() if entry.measured or entry.state == "failed"])
    total = int(min(context.search.trials, context.spaces.size))
    if known >= total:
        return
    with context.progress.task("candidates", total=total) as task:
        task.advance(known)
        while True:
            waiting = [entry for entry in context.entries() if entry.state == "open" and entry.measured is None]
            if not waiting:
                proposed = propose(context, min(AT_ONCE, total - len(context.entries())))
                for candidate in proposed:
                    context.study.add(candidate, context.spaces)
                if not proposed:
                    break
                continue
            batch = waiting[:AT_ONCE]
            _measure(context, batch)
            task.advance(len(batch), note=_so_far(context))


def propose(context: SearchContext, count: int) -> list[Candidate]:
    """Return the candidates to measure next; the same where the same has been measured."""
    if count < 1:
        return []
    entries = context.entries()
    search, seen = context.search, {entry.candidate.key for entry in entries}
    rng = np.random.default_rng([search.seed if search.seed is not None else context.recipe.seed, len(entries)])
    listed = context.spaces.listed()
    if listed is not None and len(one_of_each(listed)) <= search.trials:
        return [candidate for candidate in one_of_each(listed) if candidate.key not in seen][:count]
    pool = one_of_each(listed) if listed is not None else context.spaces.drawn(POOL, rng)
    pool = [candidate for candidate in pool if candidate.key not in seen]
    if listed is not None and len(pool) > POOL:
        pool = [pool[place] for place in rng.choice(len(pool), POOL, replace=False)]
    model, limit = fitted(context, entries), latency_limit(context, entries)
    if model is None or limit is None:
        return [pool[place] for place in rng.permutation(len(pool))[:count]]
    predicted = model.predict([context.spaces.features(candidate) for candidate in pool])
    return [pool[place] for place in choose(predicted, limit, count, rng)]


def fitted(context: SearchContext, entries: Sequence[Entry]) -> LatencyModel | None:
    """Return a model of latency, fitted to what was measured in each candidate's first precision."""
    rows, latencies = [], []
    for entry in entries:
        files = (entry.measured or {}).get("files", {})
        if entry.candidate.precisions[0] in files:
            rows.append(context.spaces.features(entry.candidate))
            latencies.append(float(files[entry.candidate.precisions[0]]["latency_ms"]))
    return fit_latency(rows, latencies)


def latency_limit(context: SearchContext, entries: Sequence[Entry]) -> float | None:
    """Return the largest latency that the budget allows, in milliseconds; None where it says nothing of speed."""
    budget = context.search.budget
    limits = [] if budget.latency_ms is None else [budget.latency_ms]
    if budget.speedup is not None:
        teacher = [
            found["latency_ms"] * found["speedup"]
            for entry in entries
            for found in (entry.measured or {}).get("files", {}).values()
        ]
        limits += [float(np.median(teacher)) / budget.speedup] if teacher else []
    return min(limits, default=None)


def _measure(context: SearchContext, batch: Sequence[Entry]) -> None:
    """Build and measure some candidates; those that cannot be are failed with their reason."""
    ready: list[tuple[str, Recipe, Sequence[str]]] = []
    for entry in batch:
        try:
            ready.append((entry.candidate.key, context.recipe_of(entry.candidate), entry.candidate.precisions))
        except StorageError:
            raise
        except KDExportError as error:
            _fail(context, entry, error)
    found = measure_batch(context.candidates, ready) if ready else {}
    for entry in batch:
        outcome = found.get(entry.candidate.key)
        if isinstance(outcome, Measured):
            context.study.note(entry.number, measured=to_json(outcome))
        elif isinstance(outcome, KDExportError):
            _fail(context, entry, outcome)


def _fail(context: SearchContext, entry: Entry, error: KDExportError) -> None:
    context.study.failed(entry.number, error.message)
    context.progress.warn(f"{entry.label} failed: {error.message}")


def _judge(context: SearchContext, entry: Entry) -> None:
    """Put a candidate out of which every file is shown to be over the budget."""
    if entry.state != "open" or entry.measured is None:
        return
    measured, budget = measured_of(entry), context.search.budget
    if not within(measured, budget):
        bent = next((one.disturbed for one in measured.files.values() if one.disturbed), None)
        doubt = f"; {bent}: on a quiet machine it may be another" if bent else ""
        context.study.out(entry.number, f"over budget: {nearest_miss(measured, budget)[1]}{doubt}")


def measured_of(entry: Entry) -> Measured:
    """Return what a candidate costs, from the study's own form."""
    from kdexport.results import from_json

    return from_json(Measured, entry.measured)


def _so_far(context: SearchContext) -> tuple[str, ...]:
    entries = [entry for entry in context.entries() if entry.measured]
    fits = [entry for entry in entries if within(measured_of(entry), context.search.budget)]
    told = [f"{len(fits)} of {len(entries)} within the budget"]
    larger = context.spaces.size > context.search.trials  # else nothing is chosen by a model, and none is fitted
    if larger and (model := fitted(context, entries)) is not None:
        told.append(f"latency is predicted to ±{figures.percent(model.error, 0)}")
    return tuple(told)


def budget_of(budget: Budget) -> dict[str, float]:
    """Return the limits that are set."""
    return {name: float(value) for name, value in budget.model_dump().items() if value is not None}
