"""Digits, a budget of a tenth of the teacher's latency and one point: does the search find what was made by hand?

    python benchmarks/search_digits.py            # about 8 minutes on 2 cores
    python benchmarks/search_digits.py --smoke    # few epochs; nothing has to hold

`kdexport search` gets the recipe of models/digits without its student, and two spaces: the student's class and the
teacher's, by their widths. The time is that of the whole command, in a fresh process: teacher, measuring, trainings,
the pick's own run with its report. Then the student of models/digits is trained by its own recipe, and teacher, pick
and hand-made student are measured together, later and for longer than the search did.

Must hold: the command takes at most 5 minutes; the pick is within the budget in the later measurement; it scores at
least what the hand-made student does, at no more latency (both: not shown to be worse, 95 %).
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import tomli_w
from bench_common import OtherLoad, finish

from kdexport import RunDirectory, bench, distill, export, statistics
from kdexport.data.datasets import load_data
from kdexport.recipe import Bench, Recipe
from kdexport.results import ExportResult, ModelFile, from_json

PAIR = Path(__file__).resolve().parents[1] / "models" / "digits"
SEARCH = {
    "budget": {"speedup": 10.0, "drop": 0.01},
    "trials": 8,
    "trained": 4,
    "space": [
        {"model": f"{PAIR / 'nets.py'}:Student", "args": {"width": [8, 12, 16, 20, 24, 32]}},
        {"model": f"{PAIR / 'nets.py'}:Teacher", "args": {"width": [4, 8]}},
    ],
}
LATER = Bench(rounds=7, min_seconds=1.0, max_seconds=20.0)
FIVE_MINUTES = 300.0


def recipe_of(folder: Path, *, smoke: bool) -> Path:
    """Write the recipe of the search."""
    document = tomllib.loads((PAIR / "recipe.toml").read_text())
    del document["student"]
    document["teacher"]["model"] = f"{PAIR / 'nets.py'}:Teacher"
    document |= {"search": SEARCH, "name": "search-digits"}
    if smoke:
        document["distill"]["epochs"], document["teacher"]["train"]["epochs"] = 6, 3
        document["search"]["budget"] = {"speedup": 2.0, "drop": 0.5}
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps(document))
    return path


def hand_made(folder: Path, *, smoke: bool) -> ModelFile:
    """Train and export the student of models/digits as its recipe says, by the same teacher."""
    less = ("distill.epochs=6", "teacher.train.epochs=3") if smoke else ()
    recipe = Recipe.load(PAIR / "recipe.toml", ["distill.baseline=false", "export.quantize=[]", *less])
    directory = RunDirectory(folder / "hand-made")
    made = export(recipe, distill(recipe, directory), directory)
    return file_in(directory.root, made.models, "student", "hand-made")


def file_in(root: Path, models: tuple[ModelFile, ...], name: str, called: str) -> ModelFile:
    file = next(model for model in models if model.name == name)
    return dataclasses.replace(file, name=called, file=str((root / file.file).absolute()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke
    with tempfile.TemporaryDirectory() as name, OtherLoad() as load:
        folder = Path(name)
        path = recipe_of(folder, smoke=smoke)
        command = [sys.executable, "-m", "kdexport", "search", str(path), "--out", str(folder / "s")]
        started = time.monotonic()
        done = subprocess.run(command, check=False)
        seconds, spent = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads((folder / "s" / "search.json").read_text())
        if done.returncode:
            raise SystemExit(f"the search ended with {done.returncode}: {found.get('nearest')}")
        pick = found["pick"]
        exported = json.loads((folder / "s" / "picked" / "export.json").read_text())
        models = from_json(ExportResult, {key: exported[key] for key in ("name", "models", "failures")}).models
        network = "student" if pick["precision"] == "fp32" else f"student.{pick['precision']}"
        files = [
            file_in(folder / "s" / "picked", models, "teacher", "teacher"),
            file_in(folder / "s" / "picked", models, network, "picked"),
            hand_made(folder, smoke=smoke),
        ]
        recipe = Recipe.load(PAIR / "recipe.toml")
        dataset = load_data(recipe.data, recipe.seed, folder / "cache")
        later = bench(files, LATER, name="later", dataset=dataset)
    by_name = {one.model: one.latency_ms for one in later.measurements}
    scores = {model.name: model for model in later.models}
    faster, faster_ci = statistics.speedup(by_name["teacher"], by_name["picked"])
    ratio, ratio_ci = statistics.speedup(by_name["hand-made"], by_name["picked"])
    gain, gain_ci = statistics.score_delta(scores["picked"], scores["hand-made"])
    drop, drop_ci = statistics.score_delta(scores["teacher"], scores["picked"])
    holds = {
        "at most 5 minutes": seconds <= FIVE_MINUTES,
        "within the latency budget": faster_ci is not None and faster_ci[1] >= SEARCH["budget"]["speedup"],
        "score: not shown to be worse than hand-made": gain_ci is not None and gain_ci[1] >= 0,
        "latency: not shown to be more than hand-made": ratio_ci is not None and ratio_ci[1] >= 1,
    }
    document = {
        "search_seconds": round(seconds, 1),
        "search_cpu_seconds": round(
            spent.ru_utime + spent.ru_stime, 1
        ),  # of all its processes: what a quiet core takes
        "measuring_share": found["seconds"]["measuring_share"],
        "pick": pick,
        "trials": [{key: trial[key] for key in ("name", "outcome", "why")} for trial in found["trials"]],
        "later": {
            "speedup_of_the_pick": [faster, faster_ci],
            "pick_against_hand_made_speed": [ratio, ratio_ci],
            "pick_minus_hand_made_accuracy": [gain, gain_ci],
            "drop_against_the_teacher": [drop, drop_ci],
            "accuracy": {name: model.score.value for name, model in scores.items() if model.score},
            "latency_ms": {name: latency.p50 for name, latency in by_name.items()},
        },
        "holds": holds,
    }
    return finish("search_digits", document, load, smoke=smoke)


if __name__ == "__main__":
    raise SystemExit(main())
