"""Students picked by measured latency against uniform width scaling and against the same search guided by MACs.

    python benchmarks/search_rivals.py --data cifar10-jpg --recordings recordings --work rivals    # many hours
    python benchmarks/search_rivals.py --data cifar10-jpg --smoke                                  # one cell, minutes

On a tenth of CIFAR-10 and on spoken digits, for three budgets each (a half, a quarter and an eighth of the teacher's
latency) and three seeds, three students are trained by one teacher for the same number of epochs:

    search     the pick of `kdexport search` within the latency budget
    macs       the same search where a candidate's latency is taken to be its share of the teacher's MACs
    uniform    the teacher's own class at the largest width whose measured latency is within the budget

Then teacher and the three are measured together, later and for longer, and scored on the test split. A cell that is
done is not done again, and a killed one goes on, for each is a search in a directory of its own.

Must hold: at least 95 % of the students picked by latency hold the budget in the later measurement (the interval of the
speed-up reaches it); over cells whose rivals hold the budget too, the score of the pick is at least theirs (mean of
paired differences, Student's t, 95 %); where that is not shown it is said.
"""

import argparse
import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bench_common import RESULTS

from kdexport import artifacts, bench, statistics
from kdexport.models.fitted_data import load_run_data
from kdexport.recipe import Bench, Recipe
from kdexport.results import ExportResult, ModelFile, from_json
from kdexport.search import measure
from kdexport.search.stage import search

HERE = Path(__file__).resolve().parent
SPOKEN = HERE.parent / "models" / "spoken_digits"
BUDGETS, SEEDS = (2.0, 4.0, 8.0), (0, 1, 2)
METHODS = ("search", "macs", "uniform")
HUGE = 1e9  # a speed-up that any budget takes
LATER = Bench(rounds=7, min_seconds=1.0, max_seconds=30.0)


def tables(data: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return data, teacher, training and spaces of one data set."""
    if data == "cifar10":
        net, widths = f"{HERE / 'methods_nets.py'}:ResNet", list(range(4, 33, 2))
        fixed = {"num_classes": 10}
        return {
            "data": {"source": f"imagefolder:{options.data}", "fraction": 0.5 if options.smoke else 0.1},
            "teacher": {"model": net, "args": {"width": 32, "blocks": 3, **fixed}},
            "epochs": (12, 30),
            "space": [{"model": net, "args": {"width": widths, "blocks": [1, 2, 3], **fixed}}],
            "uniform": [{"model": net, "args": {"width": widths, "blocks": 3, **fixed}}],
        }
    nets, widths = SPOKEN / "nets.py", list(range(4, 25, 2))
    return {
        "data": {"source": f"{SPOKEN / 'data.py'}:load", "args": {"folder": str(options.recordings)}},
        "teacher": {"model": f"{nets}:Teacher"},
        "epochs": (12, 40),
        "space": [{"model": f"{nets}:{name}", "args": {"width": widths}} for name in ("Student", "Teacher")],
        "uniform": [{"model": f"{nets}:Teacher", "args": {"width": widths}}],
    }


def recipe_of(data: str, budget: float, seed: int, method: str, options: argparse.Namespace) -> Recipe:
    """Return the recipe of one search."""
    found = tables(data, options)
    teacher, student = (1, 2) if options.smoke else found["epochs"]
    settings: dict[str, Any] = {"budget": {"speedup": budget}, "trials": 6 if options.smoke else 24}
    settings |= {"trained": 3 if options.smoke else 9, "min_epochs": 1 if options.smoke else 3, "space": found["space"]}
    if method == "uniform":
        settings |= {"space": found["uniform"], "trained": 1, "finalists": {"count": 1}}
    return Recipe.parse(
        {
            "name": f"{data}-{method}",
            "seed": seed,
            "data": found["data"],
            "teacher": {**found["teacher"], "train": {"epochs": teacher, "batch_size": 64, "lr": 0.003}},
            "distill": {"epochs": student, "batch_size": 64, "lr": 0.005, "baseline": False},
            "bench": {"max_seconds": 1.0, "min_seconds": 0.2},
            "search": settings,
        }
    )


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

    from kdexport.search import candidates, final

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


def picked(root: Path, method: str) -> ModelFile:
    """Return the file of a search's pick, under the method's name."""
    pick = json.loads((root / "search.json").read_text())["pick"]
    folder = root / "picked"
    exported = json.loads((folder / "export.json").read_text())
    result = from_json(ExportResult, {key: exported[key] for key in ("name", "models", "failures")})
    name = "student" if pick["precision"] == "fp32" else f"student.{pick['precision']}"
    file = next(model for model in result.models if model.name == name)
    return dataclasses.replace(file, name=method, file=str((folder / file.file).absolute()))


def cell(data: str, budget: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Search by each method, then measure and score the three picks beside the teacher."""
    root = options.work / f"{data}-{budget:g}-{seed}"
    done = artifacts.read_json(root / "cell.json")
    if done is not None:
        return done
    shares, files = {}, []
    for method in METHODS:
        recipe = recipe_of(data, budget, seed, method, options)
        place = root / method
        macs = None
        if method == "macs":
            from kdexport.distill.stage import prepare_teacher
            from kdexport.search.context import teacher_run

            place.mkdir(parents=True, exist_ok=True)
            macs = prepare_teacher(recipe, teacher_run(place.resolve()))[1][0].macs
        with by_macs(macs) if macs else contextlib.nullcontext():
            found = search(recipe, place)
        shares[method] = found.seconds.measuring_share
        if found.pick is not None:
            files.append(picked(place, method))
    if not files:
        return {"data": data, "budget": budget, "seed": seed, "measuring_share": shares}
    folder = Path(files[0].file).parent  # all three searches have trained the same teacher, by the same seed
    base = dataclasses.replace(files[0], name="teacher", file=str(folder / "teacher.onnx"))
    dataset = load_run_data(Recipe.load(folder / "recipe.toml"), root / "cache")
    later = bench([base, *files], LATER, name="later", dataset=dataset)
    latency = {one.model: one.latency_ms for one in later.measurements}
    models = {model.name: model for model in later.models}
    document: dict[str, Any] = {"data": data, "budget": budget, "seed": seed, "measuring_share": shares}
    for file in files:
        ratio, interval = statistics.speedup(latency["teacher"], latency[file.name])
        score, reference = models[file.name].score, models.get("search")
        document[file.name] = {
            "speedup": [ratio, interval],
            "holds": interval is None or interval[1] >= budget,
            "score": score.value if score else None,
            "search_minus_this": statistics.score_delta(reference, models[file.name]) if reference else None,
        }
    artifacts.write_json(root / "cell.json", json.loads(json.dumps(document)))
    return document


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the shares that hold, and the mean paired differences with their 95 % intervals."""
    held = [found["search"]["holds"] for found in cells if "search" in found]
    document: dict[str, Any] = {"cells": len(cells), "picks": len(held), "picks_that_hold_the_budget": sum(held)}
    for rival in METHODS[1:]:
        both = [
            found["search"]["score"] - found[rival]["score"]
            for found in cells
            if "search" in found and rival in found and found[rival]["holds"]
        ]
        missed = sum(not found[rival]["holds"] for found in cells if rival in found)
        told: dict[str, Any] = {"compared": len(both), "rival_over_the_budget": missed}
        if len(both) > 1:
            half = statistics.student_t95(len(both) - 1) * float(np.std(both, ddof=1)) / math.sqrt(len(both))
            told |= {
                "mean_difference": float(np.mean(both)),
                "ci95": [float(np.mean(both)) - half, float(np.mean(both)) + half],
            }
            told["at_least_as_good"] = told["ci95"][1] >= 0
        document[f"search_minus_{rival}"] = told
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10 as JPEG files")
    parser.add_argument("--recordings", type=Path, help="the recordings of models/spoken_digits")
    parser.add_argument("--work", type=Path, default=Path("search_rivals"), help="folder for the searches")
    parser.add_argument("--smoke", action="store_true", help="one budget, one seed, few epochs, nothing is kept")
    options = parser.parse_args()
    sets = [name for name, given in (("cifar10", options.data), ("spoken", options.recordings)) if given is not None]
    wanted = [(data, budget, seed) for data in sets for budget in BUDGETS for seed in SEEDS]
    cells = []
    for data, budget, seed in wanted[:1] if options.smoke else wanted:
        cells.append(cell(data, budget, seed, options))
        document = {**summary(cells), "all": cells}
        print(json.dumps(cells[-1]), flush=True)
        if not options.smoke:
            artifacts.write_json(RESULTS / "search_rivals.json", document)
    print(json.dumps(summary(cells), indent=2))


if __name__ == "__main__":
    main()
