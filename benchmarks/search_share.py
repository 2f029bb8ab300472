"""What share of a search's time goes to measuring, where trainings are as long as a real pair's?

    python benchmarks/search_share.py RECORDINGS            # about 4 minutes on 2 cores
    python benchmarks/search_share.py RECORDINGS --smoke    # few epochs; nothing has to hold

Spoken digits by the recipe of models/spoken_digits, its student replaced by a search over the widths of its two
classes, for four times the teacher's speed and three points. Measuring is all that is built, exported, measured and
scored, before training and after it.

Must hold: at most 10 % of the time.
"""

import argparse
import tempfile
import tomllib
from pathlib import Path

from bench_common import OtherLoad, finish

from kdexport.recipe import Recipe
from kdexport.search.stage import search

PAIR = Path(__file__).resolve().parents[1] / "models" / "spoken_digits"
WIDTHS = [8, 12, 16, 20, 24]


def recipe_of(recordings: Path, *, smoke: bool) -> Recipe:
    """Return the pair's own recipe with a search in place of its student."""
    document = tomllib.loads((PAIR / "recipe.toml").read_text())
    del document["student"], document["require"]
    document["data"] = {"source": f"{PAIR / 'data.py'}:load", "args": {"folder": str(recordings.resolve())}}
    document["teacher"]["model"] = f"{PAIR / 'nets.py'}:Teacher"
    document["distill"]["baseline"] = False
    document["export"] = {}
    if smoke:
        document["distill"]["epochs"], document["teacher"]["train"]["epochs"] = 4, 1
    document["search"] = {
        "budget": {"speedup": 4.0, "drop": 0.03},
        "trials": 10,
        "trained": 6,
        "space": [
            {"model": f"{PAIR / 'nets.py'}:{name}", "args": {"width": WIDTHS}} for name in ("Student", "Teacher")
        ],
    }
    return Recipe.parse({**document, "name": "share"})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    recipe = recipe_of(options.recordings, smoke=options.smoke)
    with tempfile.TemporaryDirectory() as folder, OtherLoad() as load:
        found = search(recipe, Path(folder) / "s")
    share = found.seconds.measuring_share or 0.0
    document = {
        "measuring_share": share,
        "seconds_of": {
            name: round(getattr(found.seconds, name), 1) for name in ("teacher", "measuring", "training", "final")
        },
        "candidates": len(found.trials),
        "pick": found.pick.name if found.pick else None,
        "holds": share <= 0.1,
    }
    return finish("search_share", document, load, smoke=options.smoke)


if __name__ == "__main__":
    raise SystemExit(main())
