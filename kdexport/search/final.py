"""The end of a search: finalists are exported, measured together with the teacher and scored; one becomes a run."""

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from kdexport import artifacts, figures, pipeline, results
from kdexport.artifacts import RunDirectory
from kdexport.bench import devices
from kdexport.bench.scoring import session_for
from kdexport.errors import KDExportError, RequirementError, StorageError
from kdexport.export.stage import export
from kdexport.models.class_names import by_name
from kdexport.recipe import Recipe, Require, Search
from kdexport.results import DistillResult, Evaluation, ModelFile
from kdexport.scoring import evaluate
from kdexport.search.candidates import measured_of
from kdexport.search.context import SearchContext, relative_to
from kdexport.search.measure import SECOND_LOOK, figures_of, within
from kdexport.search.outcome import PICKED, outcome
from kdexport.search.pick import Finals, Finished
from kdexport.search.results import SearchResult
from kdexport.search.space import recipe_of
from kdexport.search.study import Entry
from kdexport.stage_cache import result_of

RESULT, PAGE, FINALS = "search.json", "search.html", "finals.json"
Scores = Mapping[str, tuple[Evaluation, Evaluation]]  # by a file's name: on validation and on test


def conclude(context: SearchContext, finalists: Sequence[int]) -> SearchResult:
    """Measure and score the finalists, pick one, and write search.json, search.html and the picked run.

    Raises:
        KDExportError: No finalist could be trained, exported or measured.
    """
    entries = [entry for entry in context.entries(finalists) if entry.trained]
    if not entries:
        raise _all_failed(context.entries())
    finals = _known_finals(context, entries) or _measure_finalists(context, entries)
    for entry in entries:
        _end(context, entry, finals)
    result = outcome(context, finals)
    write(result, context.root)
    if result.pick is not None:
        picked = next(entry for entry in entries if entry.number == result.pick.trial)
        _make_picked(context, picked, result.pick.precision)
    return result


def _known_finals(context: SearchContext, entries: Sequence[Entry]) -> Finals | None:
    """Return what was measured of the same finalists before."""
    try:
        known = results.from_json(Finals, artifacts.read_json(context.root / FINALS))
    except ValidationError:  # none, or written by another version
        return None
    return known if set(known.finalists) == {entry.number for entry in entries} else None


def _end(context: SearchContext, entry: Entry, finals: Finals) -> None:
    """Tell the study how a finalist has ended."""
    if any(one.number == entry.number for one in finals.files):
        context.study.finished(entry.number, float((entry.trained or {})["score"]))
    else:
        context.study.failed(entry.number, "its trained files could not be exported or measured")


def nothing_fits(context: SearchContext) -> SearchResult:
    """Write what is known where no candidate is within the budget, and return it.

    Raises:
        KDExportError: None could be measured.
    """
    if not any(entry.measured for entry in context.entries()):
        raise _all_failed(context.entries())
    result = outcome(context, None)
    write(result, context.root)
    return result


def enforce(result: SearchResult) -> None:
    """Hold that something was picked.

    Raises:
        RequirementError: Nothing is within the budget; what is nearest is named.
    """
    if result.pick is not None:
        return
    nearest = result.nearest
    told = ""
    if nearest is not None:
        told = f"; nearest is {nearest.name}, {figures.percent(nearest.by, 0)} beyond: {nearest.misses}"
    raise RequirementError(
        f"no candidate is within the budget{told}",
        hint="raise search.budget to what is said of the nearest, or give [[search.space]] smaller students",
    )


def write(result: SearchResult, root: Path) -> None:
    """Write search.json and search.html, each whole or not at all."""
    from kdexport.search.page import page

    artifacts.write_text(root / PAGE, page(result))
    artifacts.write_json(root / RESULT, results.to_json(result))


def _all_failed(entries: Sequence[Entry]) -> KDExportError:
    failed = [entry for entry in entries if entry.state == "failed"]
    first = f": {failed[0].label}: {failed[0].reason}" if failed else ""
    return KDExportError(
        f"none of {len(entries)} candidates could be built, measured and trained{first}",
        hint="fix the factory, or the arguments in [[search.space]]; then give another --out, for failed trials stay",
    )


def _measure_finalists(context: SearchContext, entries: Sequence[Entry]) -> Finals:
    started = time.monotonic()
    files = [(entry, *item) for entry in entries for item in _exported(context, entry).items()]
    if not files:
        raise KDExportError(
            "none of the finalists could be exported", hint="see the warnings above; `kdexport export` says more"
        )
    every = [context.teacher_file, *(file for _, _, file in files)]
    benched = context.candidates.measure(every[1:], context.recipe, context.dataset, SECOND_LOOK)
    scores = _scores(context, every)
    if context.teacher_file.name not in scores:
        raise KDExportError("the teacher's file cannot be scored", hint="see the warning above")
    finished = [
        Finished(entry.number, precision, file, costs, *scores[file.name])
        for entry, precision, file in files
        if (costs := figures_of(benched, file)) is not None and file.name in scores
    ]
    models = [
        dataclasses.replace(_with_score(file, scores), file=relative_to(Path(file.file), context.root))
        for file in every
    ]
    benched = dataclasses.replace(
        benched,
        name=context.recipe.name,
        models=tuple(models),
        tested_on=context.dataset.splits_made_by.get("test", ""),
        data_warnings=context.dataset.warnings,
    )
    finals = Finals(
        tuple(entry.number for entry in entries),
        benched,
        scores[context.teacher_file.name],
        tuple(finished),
        time.monotonic() - started,
    )
    artifacts.write_json(context.root / FINALS, results.to_json(finals))
    return finals


def _exported(context: SearchContext, entry: Entry) -> dict[str, ModelFile]:
    """Return a finalist's files by precision, those that were not over the budget before training."""
    directory = context.trial_run(entry)
    distilled = results.from_json(DistillResult, result_of(artifacts.read_json(directory.stage("distill")) or {}))
    student = tuple(network for network in distilled.networks if network.name == "student")
    wanted = within(measured_of(entry), context.search.budget)
    recipe = _with_precisions(context.recipe_of(entry.candidate), wanted)
    try:
        made = export(recipe, dataclasses.replace(distilled, networks=student), directory, context.quieter)
    except StorageError:
        raise
    except KDExportError as error:
        context.progress.warn(f"{entry.label} is left out: {error.message}")
        return {}
    return {
        model.precision: dataclasses.replace(
            model,
            name=entry.label if model.precision == "fp32" else f"{entry.label}.{model.precision}",
            file=str((directory.root / model.file).absolute()),
        )
        for model in made.models
        if model.precision in wanted
    }


def _with_precisions(recipe: Recipe, precisions: Sequence[str]) -> Recipe:
    quantize = tuple(precision for precision in precisions if precision != "fp32")
    return recipe.model_copy(update={"export": recipe.export.model_copy(update={"quantize": quantize})})


def _scores(context: SearchContext, files: Sequence[ModelFile]) -> Scores:
    """Score files inside ONNX Runtime on validation and test; another machine's and a browser's here on the CPU."""
    search = context.search
    elsewhere = search.remote is not None or search.device.partition(":")[0] == "web"
    wanted = "cpu" if elsewhere else search.device
    device = devices.find([wanted], devices.available(), context.recipe.bench.provider_options)[0]
    found: dict[str, tuple[Evaluation, Evaluation]] = {}
    dataset = context.dataset
    for file in files:
        try:
            session = session_for(Path(file.file), device, dataset.task, dataset.preprocessing)
            predict = by_name(session.predict, session.class_names, dataset.class_names, file.name)
            val, _ = evaluate(predict, dataset.val, dataset.class_names, name="val")
            test, _ = evaluate(predict, dataset.test, dataset.class_names, name="test")
        except KDExportError as error:
            context.progress.warn(f"{file.name} has no score: {error.message}")
            continue
        found[file.name] = (val, test)
    return found


def _with_score(file: ModelFile, scores: Scores) -> ModelFile:
    if file.name not in scores:
        return file
    test = scores[file.name][1]
    return dataclasses.replace(file, score=test.score, evaluation=test)


def picked_recipe(context: SearchContext, entry: Entry, precision: str) -> Recipe:
    """Return the recipe that makes the pick alone: the budget is what it requires."""
    search = context.search
    recipe = _with_precisions(recipe_of(entry.candidate, context.recipe, context.root), [precision])
    require = recipe.require.model_copy(update=requirements(search))
    bench = recipe.bench
    if search.remote is None:
        where = {"devices": (search.device,), "batch_sizes": (search.batch_size,), "threads": (search.threads,)}
        bench = bench.model_copy(update=where)
    return recipe.model_copy(update={"require": Require.model_validate(require.model_dump()), "bench": bench})


def _share_cache(source: Path, target: Path) -> None:
    """Let a run have what is decoded and kept of the teacher under names of its own, without taking space for it."""
    target.mkdir()
    for file in source.rglob("*"):
        place = target / file.relative_to(source)
        with contextlib.suppress(OSError):  # another file system: it is made again
            place.mkdir(exist_ok=True) if file.is_dir() else os.link(file, place)


def requirements(search: Search) -> dict[str, float]:
    """Return a budget as [require] has it; what another machine was measured for is not required of this one."""
    budget, here = search.budget, search.remote is None
    limits = {
        "max_latency_ms": budget.latency_ms if here else None,
        "min_speedup": budget.speedup if here else None,
        "max_size_mib": budget.size_mib,
        "max_memory_mib": budget.memory_mib if here else None,
        "max_drop": budget.drop,
        "min_score": budget.min_score,
    }
    return {key: value for key, value in limits.items() if value is not None}


COPIED = ("*.safetensors", "*.pt2", "*.onnx", "*.json", "metrics.jsonl", "checkpoints/*/*.json")


def _make_picked(context: SearchContext, entry: Entry, precision: str) -> None:
    """Make the picked student's run directory, and run its recipe there: what is trained is not trained again."""
    source, target = context.trial_run(entry).root, context.root / PICKED
    recipe = picked_recipe(context, entry, precision)
    text = recipe.to_toml(relative_to=target)
    directory = RunDirectory(target)
    if not directory.recipe.is_file() or directory.recipe.read_bytes() != text.encode():
        fresh = context.root / f".{PICKED}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            fresh.mkdir()
            for file in (file for pattern in COPIED for file in source.glob(pattern)):
                place = fresh / file.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
            artifacts.write_text(fresh / directory.recipe.name, text)
            _share_cache(context.root / "cache", fresh / "cache")
            shutil.rmtree(target, ignore_errors=True)
            fresh.rename(target)
        except OSError as error:
            raise StorageError(
                f"{target} could not be written: {error.strerror or error}",
                hint="free some space, then give the same command again: nothing is done twice",
            ) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)  # whole, it has another name
    pipeline.run(recipe, target, context.progress, on_change="restart")
