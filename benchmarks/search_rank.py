"""Is the latency of an untrained network that of the trained one? What the whole of measure-first rests on.

    python benchmarks/search_rank.py            # about 5 minutes on 2 cores
    python benchmarks/search_rank.py --smoke    # 4 networks; nothing has to hold

Fourteen convolutional students of digits are measured as the search does first, untrained and for a sixth of a second
each, then trained for two epochs, exported and measured again, as it does with finalists. The budget lets all through.

Must hold: the rank correlation (Spearman) of the two latencies is at least 0.98.
"""

import argparse
import tempfile
from pathlib import Path

from bench_common import OtherLoad, finish
from scipy.stats import spearmanr

from kdexport.recipe import Recipe
from kdexport.search.stage import search

NETS = Path(__file__).resolve().parents[1] / "models" / "digits" / "nets.py"
STUDENTS, TEACHERS = [4, 8, 12, 16, 20, 24, 32, 48, 64], [4, 8, 16, 32, 64]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke
    students, teachers = (STUDENTS[::5], TEACHERS[::4]) if smoke else (STUDENTS, TEACHERS)
    count = len(students) + len(teachers)
    recipe = Recipe.parse(
        {
            "name": "rank",
            "data": {"source": "digits"},
            "teacher": {"model": f"{NETS}:Teacher", "args": {"width": 32}, "train": {"epochs": 2, "lr": 0.003}},
            "distill": {"epochs": 2, "baseline": False},
            "search": {
                "budget": {"size_mib": 100.0},
                "trials": count,
                "trained": count,
                "finalists": {"count": count},
                "space": [
                    {"model": f"{NETS}:Student", "args": {"width": students}},
                    {"model": f"{NETS}:Teacher", "args": {"width": teachers}},
                ],
            },
        }
    )
    with tempfile.TemporaryDirectory() as folder, OtherLoad() as load:
        found = search(recipe, Path(folder) / "s")
    pairs = {
        trial.name: [file.untrained_latency_ms, file.latency_ms]
        for trial in found.trials
        for file in trial.files
        if file.trained
    }
    rank = float(spearmanr(*zip(*pairs.values(), strict=True)).statistic)
    document = {
        "networks": len(pairs),
        "rank_correlation": rank,
        "largest_difference": max(abs(after / before - 1) for before, after in pairs.values()),
        "latency_ms_untrained_and_trained": pairs,
        "measuring_share": found.seconds.measuring_share,
        "holds": rank >= 0.98,
    }
    return finish("search_rank", document, load, smoke=smoke)


if __name__ == "__main__":
    raise SystemExit(main())
