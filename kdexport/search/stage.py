"""`kdexport search`: a budget in, a student out. OPEN FIRST in this folder.

    teacher -> measure candidates untrained -> successive halving -> finalists in full -> measure, score, pick

All that is known stands in the study and in files; each step takes what is there and adds what is missing. So a killed
search goes on, and several processes on one directory share the trainings.
"""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from kdexport.artifacts import RunDirectory, held
from kdexport.bench import devices
from kdexport.bench.web.devices import check_there
from kdexport.errors import KDExportError, StorageError
from kdexport.models.fitted_data import load_run_data, loaded_once
from kdexport.progress import SILENT, Progress, Task
from kdexport.recipe import Recipe
from kdexport.search import halving
from kdexport.search.candidates import measure_candidates, measured_of
from kdexport.search.context import SearchContext, ready_teacher, search_of, study_key, teacher_run
from kdexport.search.final import conclude, nothing_fits
from kdexport.search.halving import Rung
from kdexport.search.measure import surely_within
from kdexport.search.results import SearchResult
from kdexport.search.space import Candidate, Spaces, variations
from kdexport.search.study import LOCKS, Entry, Study, alone, check_optuna, check_own, storage_faults, worker
from kdexport.search.train import bring_teacher, drop_checkpoints, evaluation_at, train_in_full, train_to

WAIT_S = 0.3  # between two looks at what other processes do


def search(recipe: Recipe, out: Path | None = None, progress: Progress = SILENT) -> SearchResult:
    """Find the student that fits the budget of a recipe's [search].

    Args:
        recipe: What to search for, and in which spaces.
        out: The search's directory; ``searches/NAME`` where none is given. The same call on the same directory goes
            on; several processes may do so at a time.
        progress: Where to say how it goes.

    Returns:
        Every trial and the pick, as search.json holds them.

    Raises:
        KDExportError: A fault that the user can fix.
        KeyboardInterrupt: Ctrl-C; the same call goes on.
    """
    search_of(recipe)
    check_optuna()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise KDExportError(
            "a search does not run under torchrun: its processes share candidates, and not one training",
            hint="start `kdexport search RECIPE --out DIR` several times instead, with the same DIR",
        )
    if search_of(recipe).remote is None:  # told now, not after hours of the teacher's training
        found = devices.find([search_of(recipe).device], devices.available(), recipe.bench.provider_options)
        check_there(found, recipe.bench)
    directory = RunDirectory(out or default_directory(recipe))
    directory.prepare()
    check_own(directory.root)
    progress.message(f"{recipe.name} -> {directory.root}/")
    if code := recipe.code():
        progress.message(code)
    (directory.root / LOCKS).mkdir(exist_ok=True)
    with held(directory.root.resolve(), LOCKS), storage_faults(), loaded_once():
        return _search(recipe, directory, progress)


def _search(recipe: Recipe, directory: RunDirectory, progress: Progress) -> SearchResult:
    root = directory.root.resolve()
    context = _opened(recipe, root, progress)
    recipe.write(directory.recipe)
    with context.study.claim("measuring", wait=True):  # one process measures: others would disturb it
        measure_candidates(context)
    entrants = _entrants(context)
    if not entrants:
        return nothing_fits(context)
    rungs = halving.rungs(context.search, context.epochs, len(entrants))
    with progress.task("trainings", total=_trainings(len(entrants), rungs, context)) as task:
        for rung in rungs:
            _train_all(context, entrants, partial(_to_rung, context, rung), rung.epochs, task)
            _decide(context, entrants, rung)
        finalists = _finalists(context, entrants, rungs)
        _train_all(context, finalists, partial(_in_full, context), None, task)
    with context.study.claim("concluding", wait=True):
        return conclude(context, finalists)


def default_directory(recipe: Recipe) -> Path:
    """Return ``searches/NAME`` in the working directory."""
    return Path("searches") / recipe.name


def _opened(recipe: Recipe, root: Path, progress: Progress) -> SearchContext:
    """Open the study, before the teacher costs an hour, and make the teacher ready; one process at a time."""
    spaces = Spaces(search_of(recipe), root)
    with alone(root, "teacher"):
        started = time.monotonic()
        task = load_run_data(recipe, root / "cache", progress).task
        study = Study(recipe, root, study_key(recipe), maximize=task.higher_is_better)
        dataset, teachers, file = ready_teacher(recipe, root, progress)
        if study.kept("teacher_seconds") is None:
            study.keep("teacher_seconds", time.monotonic() - started)
    return SearchContext(recipe, root, dataset, teachers, file, study, spaces, progress)


def _entrants(context: SearchContext) -> list[int]:
    """Return the numbers of the candidates that begin to train; settled once."""
    study = context.study
    with study.claim("entrants", wait=True):
        settled: list[int] | None = study.kept("entrants")
        if settled is None:
            left = [entry for entry in context.entries() if entry.state == "open" and entry.measured]
            costs = []
            for entry in left:
                measured = entry.measured or {}
                latency = min(found["latency_ms"] for found in measured["files"].values())
                costs.append((entry.number, latency, float(measured["parameters"]) * float(measured["macs"] or 1)))
            settled = sorted(halving.first_places(costs, context.search.trained, _sure(context, left)))
            study.keep("entrants", settled)
        for entry in context.entries():
            if entry.state == "open" and entry.number not in settled and not entry.begins_late:
                study.out(entry.number, f"not trained: no place left among the {context.search.trained} that begin")
    return settled


def _train_all(
    context: SearchContext, numbers: list[int], train: Callable[[Entry], None], epochs: int | None, task: Task
) -> None:
    """Train what no process has trained yet, one after the other, until all are at the rung (None: at their end)."""

    def waiting() -> list[Entry]:
        entries = [entry for entry in context.entries(numbers) if entry.state == "open" and not entry.trained]
        return entries if epochs is None else [entry for entry in entries if epochs not in entry.rungs]

    counted = 0
    while left := waiting():
        worked = False
        for entry in left:
            with context.study.claim(f"trial-{entry.number}") as mine:
                now = {one.number: one for one in waiting()} if mine else {}
                if entry.number in now:
                    context.quieter.label = entry.label
                    train(now[entry.number])
                    worked = True
            if worked:
                break
        counted += int(worked)
        if worked:
            task.advance(1, note=_best_so_far(context, numbers))
        else:
            time.sleep(WAIT_S)
    task.advance(max(0, len(numbers) - counted) if epochs is None else 0)


def _to_rung(context: SearchContext, rung: Rung, entry: Entry) -> None:
    directory = context.trial_run(entry)
    try:
        bring_teacher(teacher_run(context.root), tuple(one.name for one in context.teachers), directory)
        recipe = context.recipe_of(entry.candidate)
        seconds = train_to(recipe, directory, rung.epochs, context.dataset, context.quieter)
        score = evaluation_at(directory, rung.epochs, context.dataset).score.value
    except StorageError:
        raise
    except KDExportError as error:
        context.study.failed(entry.number, error.message)
        context.progress.warn(f"{entry.label} failed: {error.message}")
    else:
        context.study.note_rung(entry, rung.epochs, score, seconds)


def _in_full(context: SearchContext, entry: Entry) -> None:
    directory, started = context.trial_run(entry), time.monotonic()
    try:
        bring_teacher(teacher_run(context.root), tuple(one.name for one in context.teachers), directory)
        distilled = train_in_full(context.recipe_of(entry.candidate), directory, context.quieter)
    except StorageError:
        raise
    except KDExportError as error:
        context.study.failed(entry.number, error.message)
        context.progress.warn(f"{entry.label} failed: {error.message}")
    else:
        student = next(network for network in distilled.networks if network.name == "student")
        spent = {
            **{"seconds": time.monotonic() - started, "epochs": student.epochs, "score": student.val_score},
            "worker": worker(),
        }
        context.study.note(entry.number, trained=spent)


def _decide(context: SearchContext, entrants: list[int], rung: Rung) -> None:
    """Say who is out at a rung; settled once, by whichever process comes first."""
    study, name = context.study, f"rung-{rung.epochs}"
    with study.claim("deciding", wait=True):
        settled: dict[str, str] | None = study.kept(name)
        if settled is None:
            left = [
                entry for entry in context.entries(entrants) if rung.epochs in entry.rungs and entry.state == "open"
            ]
            scored = {
                entry.number: evaluation_at(context.trial_run(entry), rung.epochs, context.dataset) for entry in left
            }
            latency = {entry.number: fastest(entry) for entry in left}
            labels = {entry.number: entry.label for entry in left}
            sure = _sure(context, left)
            decided = halving.decide(scored, rung.places, latency, labels, sure) if left else {}
            settled = {
                str(number): f"after {rung.epochs} epoch{'' if rung.epochs == 1 else 's'} {why}"
                for number, why in decided.items()
            }
            study.keep(name, settled)
        for number, why in settled.items():
            study.out(int(number), why)
        for entry in context.entries([int(number) for number in settled]):
            drop_checkpoints(context.trial_run(entry))


def _finalists(context: SearchContext, entrants: list[int], rungs: list[Rung]) -> list[int]:
    """Return who trains in full: those that are left, and the best of them once more by each other method."""
    study = context.study
    with study.claim("finalists", wait=True):
        settled: list[int] | None = study.kept("finalists")
        if settled is not None:
            return settled
        left = [entry for entry in context.entries(entrants) if entry.state == "open"]
        methods = variations(context.search)
        if left and methods:
            best = left[0]
            if rungs:
                scored = {
                    entry.number: evaluation_at(context.trial_run(entry), rungs[-1].epochs, context.dataset)
                    for entry in left
                }
                first = halving.ranked(scored, {entry.number: fastest(entry) for entry in left})[0]
                best = next(entry for entry in left if entry.number == first)
            _add_variations(context, best, methods)
        late = [entry.number for entry in context.entries() if entry.begins_late]
        settled = [entry.number for entry in left] + late
        study.keep("finalists", settled)
        return settled


def _add_variations(context: SearchContext, best: Entry, methods: list[dict[str, object]]) -> None:
    own = context.recipe_of(best.candidate).distill
    known = {entry.candidate.key for entry in context.entries()}
    for method in methods:
        base = best.candidate
        candidate = Candidate(base.space, base.values, base.precisions, method)
        if candidate.key not in known and context.recipe_of(candidate).distill != own:
            context.study.add(candidate, context.spaces, measured=best.measured, begins_late=True)


def _sure(context: SearchContext, entries: Sequence[Entry]) -> set[int]:
    """Return the numbers of those that hold the budget with their whole interval."""
    return {entry.number for entry in entries if surely_within(measured_of(entry), context.search.budget)}


def fastest(entry: Entry) -> float:
    """Return the latency of a candidate's fastest file, in milliseconds."""
    return min(float(found["latency_ms"]) for found in (entry.measured or {})["files"].values())


def _trainings(entrants: int, rungs: list[Rung], context: SearchContext) -> int:
    """Return how many trainings there will be, those to a rung counted each."""
    places = [entrants, *(rung.places for rung in rungs)]
    return sum(places) + len(variations(context.search))


def _best_so_far(context: SearchContext, numbers: list[int]) -> tuple[str, ...]:
    """Return the best score on the validation split so far, with its candidate, as a line shows it."""
    task = context.dataset.task
    scores: list[tuple[int, float, str]] = []
    for entry in context.entries(numbers):
        if entry.trained and entry.trained["score"] is not None:
            scores.append((context.epochs, float(entry.trained["score"]), entry.label))
        elif entry.rungs:
            epochs = max(entry.rungs)
            scores.append((epochs, float(entry.rungs[epochs]["score"]), entry.label))
    if not scores:
        return ()
    furthest = max(epochs for epochs, _, _ in scores)
    leading = [item for item in scores if item[0] == furthest]
    _, score, label = max(leading, key=lambda item: item[1] if task.higher_is_better else -item[1])
    return f"best {label}", f"{task.write(score)} val after {furthest} epochs"
