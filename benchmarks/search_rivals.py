"""Students picked by measured latency against uniform width scaling and against the same search guided by MACs.

    python benchmarks/search_rivals.py --data cifar10-jpg --recordings recordings --work rivals    # about two hours
    python benchmarks/search_rivals.py --data cifar10-jpg --smoke                                  # one cell, minutes

On 4,500 images of CIFAR-10 and on spoken digits, for three budgets each (a half, a quarter and an eighth of its
latency) and three seeds, three searches are made beside one teacher:

    search     `kdexport search` within the latency budget
    macs       the same search where a candidate's latency is taken to be its share of the teacher's MACs
    uniform    the teacher's own class by its width alone: the widest that the measured latency allows

All three train the same number of epochs by the same rules; what one of them has measured or trained of a candidate is
not done again by another, for it would be the same. Of each method's finalists within the budget by its own knowledge
the best on the validation split stands for it. Then, later and for longer, these and the search's pick are measured
beside the teacher. Scores are of the test split, which decides nothing. A killed run goes on.

Must hold: at least 95 % of the picks hold the budget in the later measurement (the interval of the speed-up reaches
it); over cells where the rival holds the budget too, the search's best scores at least as much (mean of the paired
differences, Student's t, 95 %); where that is not shown it is said.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bench_common import RESULTS

from kdexport import artifacts, bench, statistics
from kdexport.distill.stage import prepare_teacher
from kdexport.recipe import Bench, Budget, Recipe
from kdexport.results import from_json
from kdexport.search import candidates, final, measure
from kdexport.search.context import teacher_run
from kdexport.search.measure import misses
from kdexport.search.pick import Finals, Finished
from kdexport.search.stage import search

HERE = Path(__file__).resolve().parent
SPOKEN = HERE.parent / "models" / "spoken_digits"
BUDGETS, SEEDS = (2.0, 4.0, 8.0), (0, 1, 2)
METHODS = ("search", "macs", "uniform")
SHARED = ("teacher", "cache", "trials", "measured")  # folders that the searches of one data set and seed share
HUGE = 1e9  # a speed-up that any budget takes
LATER = Bench(rounds=5, min_seconds=0.5, max_seconds=10.0)


def few(folder: Path, out: Path) -> Path:
    """Copy the first images of each class: 4,500 for training and validation, 4,000 for the test."""
    for split, count in (("train", 450), ("test", 400)):
        for place in sorted(item for item in (folder / split).iterdir() if item.is_dir()):
            target = out / split / place.name
            if not target.is_dir():
                shutil.rmtree(out / ".new", ignore_errors=True)
                (out / ".new").mkdir(parents=True)
                for image in sorted(place.iterdir())[:count]:
                    shutil.copyfile(image, out / ".new" / image.name)
                target.parent.mkdir(exist_ok=True)
                (out / ".new").rename(target)
    return out


def tables(data: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return data, teacher, training and spaces of one data set."""
    if data == "cifar10":
        net, widths = f"{HERE / 'methods_nets.py'}:ResNet", list(range(4, 25, 2))
        fixed = {"num_classes": 10}
        return {
            "data": {"source": f"imagefolder:{few(options.data, options.work / 'images')}", "val_fraction": 0.33},
            "teacher": {"model": net, "args": {"width": 24, "blocks": 2, **fixed}},
            "epochs": (8, 12),
            "space": [{"model": net, "args": {"width": widths, "blocks": [1, 2, 3], **fixed}}],
            "uniform": [{"model": net, "args": {"width": widths, "blocks": 2, **fixed}}],
        }
    nets, widths = SPOKEN / "nets.py", list(range(4, 25, 2))
    return {
        "data": {"source": f"{SPOKEN / 'data.py'}:load", "args": {"folder": str(options.recordings)}},
        "teacher": {"model": f"{nets}:Teacher"},
        "epochs": (8, 12),
        "space": [{"model": f"{nets}:{name}", "args": {"width": widths}} for name in ("Student", "Teacher")],
        "uniform": [{"model": f"{nets}:Teacher", "args": {"width": widths}}],
    }


def recipe_of(data: str, budget: float, seed: int, method: str, options: argparse.Namespace) -> Recipe:
    """Return the recipe of one search."""
    found = tables(data, options)
    teacher, student = (1, 3) if options.smoke else found["epochs"]
    settings: dict[str, Any] = {"budget": {"speedup": budget}, "trials": 6 if options.smoke else 18}
    # One rung, the same in every search: what is trained up to it is the same in all three.
    settings |= {"trained": 3 if options.smoke else 6, "min_epochs": student // 3, "space": found["space"]}
    if method == "uniform":
        settings |= {"space": found["uniform"], "trained": 3}
    return Recipe.parse(
        {
            "name": f"{data}-{method}",
            "seed": seed,
            "data": found["data"],
            "teacher": {**found["teacher"], "train": {"epochs": teacher, "batch_size": 64, "lr": 0.003}},
            "distill": {"epochs": student, "batch_size": 64, "lr": 0.005, "baseline": False},
            "bench": {"max_seconds": 1.0, "min_seconds": 0.2},
            "search": {**settings, "finalists": {"count": 2}},
        }
    )


@contextlib.contextmanager
def without_a_run() -> Iterator[None]:
    """Leave out the run directory of a pick: its export, proofs and report are not compared here."""
    make, final._make_picked = final._make_picked, lambda *_: None
    try:
        yield
    finally:
        final._make_picked = make


@contextlib.contextmanager
def by_macs(teacher_macs: int) -> Iterator[None]:
    """Let a candidate's latency be its share of the teacher's MACs, in the search's own decisions alone."""
    measured = measure.measure_batch

    def counted(shared: Any, batch: Any) -> dict[str, Any]:
        found = measured(shared, batch)
        for name, costs in found.items():
            if isinstance(costs, measure.Measured) and costs.macs:
                files = {
                    precision: dataclasses.replace(
                        one,
                        latency_ms=one.latency_ms * one.speedup * costs.macs / teacher_macs,
                        latency_ms_ci95=None,
                        speedup=teacher_macs / costs.macs,
                        speedup_ci95=None,
                    )
                    for precision, one in costs.files.items()
                }
                found[name] = dataclasses.replace(costs, files=files)
        return found

    true = final.figures_of
    candidates.measure_batch = counted  # type: ignore[assignment]
    # Finalists passed by MACs: their measured latency decides nothing, as for who guides by MACs.
    final.figures_of = lambda result, file: (
        None if (one := true(result, file)) is None else dataclasses.replace(one, speedup=HUGE, speedup_ci95=None)
    )
    try:
        yield
    finally:
        candidates.measure_batch, final.figures_of = measured, true


def finalists(root: Path, by_latency: bool, budget: float) -> tuple[Finished | None, Finished | None]:
    """Return a search's pick, and its best finalist on the validation split within the budget by its own knowledge."""
    finals = from_json(Finals, json.loads((root / "finals.json").read_text()))
    pick = json.loads((root / "search.json").read_text())["pick"]
    picked = next(
        (one for one in finals.files if pick and (one.number, one.precision) == (pick["trial"], pick["precision"])),
        None,
    )
    within = [one for one in finals.files if not by_latency or not misses(one.figures, Budget(speedup=budget))]
    return picked, max(within, key=lambda one: one.val.score.value, default=None)


def searched(data: str, budget: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Search by each method; return what each took for measuring, by its share of the time."""
    root = options.work / f"{data}-{seed}"
    shares: dict[str, Any] = {}
    for method in METHODS:
        recipe, place = recipe_of(data, budget, seed, method, options), root / f"{budget:g}-{method}"
        if (done := artifacts.read_json(place / "share.json")) is not None:
            shares[method] = done["measuring_share"]
            continue
        (place / "locks").mkdir(parents=True, exist_ok=True)  # so that the search takes the links for its own
        for name in SHARED:
            (root / "shared" / name).mkdir(parents=True, exist_ok=True)
            if not (place / name).exists():
                (place / name).symlink_to((root / "shared" / name).resolve())
        macs = None
        if method == "macs":
            macs = prepare_teacher(recipe, teacher_run(place.resolve()))[1][0].macs
        with without_a_run(), by_macs(macs) if macs else contextlib.nullcontext():
            found = search(recipe, place)
        # Only the first search of a data set and seed has done all by itself.
        alone = (budget, method) == (BUDGETS[0], METHODS[0])
        shares[method] = found.seconds.measuring_share if alone else None
        artifacts.write_json(place / "share.json", {"measuring_share": shares[method]})
    return shares


def compared(data: str, budget: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure what the three searches found beside the teacher, anew and for longer."""
    root = options.work / f"{data}-{seed}"
    place = root / f"{budget:g}.json"
    if (done := artifacts.read_json(place)) is not None:
        return done
    chosen: dict[str, Finished] = {}
    for method in METHODS:
        folder = root / f"{budget:g}-{method}"
        picked, best = (
            finalists(folder, method != "macs", budget) if (folder / "finals.json").is_file() else (None,) * 2
        )
        if method == "search" and picked is not None:
            chosen["pick"] = picked
        if best is not None:
            chosen[method] = best
    document: dict[str, Any] = {"data": data, "budget": budget, "seed": seed}
    if chosen:
        files = {name: dataclasses.replace(one.file, name=name, evaluation=one.test) for name, one in chosen.items()}
        teacher = (root / "shared" / "teacher" / "teacher.onnx").resolve()
        base = dataclasses.replace(next(iter(files.values())), name="teacher", file=str(teacher), evaluation=None)
        latency = {
            one.model: one.latency_ms for one in bench([base, *files.values()], LATER, name="later").measurements
        }
        reference = files.get("search")
        for name, file in files.items():
            ratio, interval = statistics.speedup(latency["teacher"], latency[name])
            document[name] = {
                "network": chosen[name].file.name,
                "speedup": [ratio, interval],
                "holds": interval is None or interval[1] >= budget,
                "score": chosen[name].test.score.value,
                "search_minus_this": statistics.score_delta(reference, file) if reference else None,
            }
    document = json.loads(json.dumps(document, default=str))
    artifacts.write_json(place, document)
    return document


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the shares that hold, and the mean paired differences with their 95 % intervals."""
    held = [found["pick"]["holds"] for found in cells if "pick" in found]
    document: dict[str, Any] = {"cells": len(cells), "picks": len(held), "picks_that_hold_the_budget": sum(held)}
    for rival in METHODS[1:]:
        beside = [found for found in cells if "search" in found and rival in found]
        both = [
            found["search"]["score"] - found[rival]["score"]
            for found in beside
            if found["search"]["holds"] and found[rival]["holds"]
        ]
        told: dict[str, Any] = {
            "compared": len(both),
            "rival_over_the_budget": sum(not found[rival]["holds"] for found in beside),
            "rival_without_a_student": sum("search" in found and rival not in found for found in cells),
        }
        if len(both) > 1:
            half = statistics.student_t95(len(both) - 1) * float(np.std(both, ddof=1)) / math.sqrt(len(both))
            mean = float(np.mean(both))
            told |= {"mean_difference": mean, "ci95": [mean - half, mean + half], "shown_worse": mean + half < 0}
        document[f"search_minus_{rival}"] = told
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10 as JPEG files")
    parser.add_argument("--recordings", type=Path, help="the recordings of models/spoken_digits")
    parser.add_argument("--work", type=Path, default=Path("search_rivals"), help="folder for the searches")
    parser.add_argument("--smoke", action="store_true", help="one budget, one seed, few epochs, nothing is kept")
    parser.add_argument("--searches-only", action="store_true", help="leave the later measurement to a later call")
    options = parser.parse_args()
    sets = [name for name, given in (("spoken", options.recordings), ("cifar10", options.data)) if given is not None]
    wanted = [(data, budget, seed) for seed in SEEDS for data in sets for budget in BUDGETS]
    wanted = wanted[:1] if options.smoke else wanted
    shares = []
    for data, budget, seed in wanted:
        shares.append({"data": data, "seed": seed, **searched(data, budget, seed, options)})
        print(data, budget, seed, shares[-1], flush=True)
    if options.searches_only:
        return
    cells = [compared(data, budget, seed, options) for data, budget, seed in wanted]
    alone = {f"{found['data']}-{found['seed']}": found["search"] for found in shares if found["search"] is not None}
    document = {**summary(cells), "measuring_share": alone, "all": cells}
    print(json.dumps(document, indent=2))
    if not options.smoke:
        artifacts.write_json(RESULTS / "search_rivals.json", document)


if __name__ == "__main__":
    main()
