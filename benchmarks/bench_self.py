"""A model against itself: how often the speed-up's interval holds 1.00, and how wide it is.

    python benchmarks/bench_self.py [--trials 100]

Each trial is a whole measurement of two names for one file by `kdexport bench`'s own runner and the report's own
interval. Must hold: 1.00 is held in at least 95 of 100 trials, and the half-width is at most 0.03 in as many.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from bench_common import SIZES, OtherLoad, keep, make_model

from kdexport.bench.plan import Plan, Settings, Target
from kdexport.bench.runner import run_plan
from kdexport.progress import Silent
from kdexport.statistics import median_ratio


def trial(path: Path, side: int, settings: Settings) -> tuple[float, float, float, int]:
    shape = {"x": ["batch", 1, side, side]}
    targets = (Target("one", str(path), shape), Target("other", str(path), shape))
    first, second = run_plan(Plan(targets, settings), "here", Silent()).measurements
    ratio, interval = median_ratio(first.latency_ms, second.latency_ms)
    return ratio, *interval, len(first.latency_ms.rounds_p50)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--model", choices=SIZES, default="tiny", help="the smallest is the hardest")
    parser.add_argument("--min-seconds", type=float, default=0.5)
    parser.add_argument("--max-seconds", type=float, default=20.0)
    flags = parser.parse_args()
    settings = Settings(min_seconds=flags.min_seconds, max_seconds=flags.max_seconds)
    with tempfile.TemporaryDirectory() as folder, OtherLoad() as load:
        path = make_model(Path(folder), flags.model)
        trials = [trial(path, SIZES[flags.model][2], settings) for _ in range(flags.trials)]
    held = sum(low <= 1 <= high for _, low, high, _ in trials)
    halves = sorted((high - low) / 2 for _, low, high, _ in trials)
    keep(
        f"bench_self_{flags.model}",
        {
            "trials": flags.trials,
            "min_seconds": flags.min_seconds,
            "max_seconds": flags.max_seconds,
            "held_1.00": held,
            "half_width_median": round(statistics.median(halves), 4),
            "half_width_p90": round(halves[int(0.9 * len(halves))], 4),
            "half_width_at_most_0.03": sum(half <= 0.03 for half in halves),
            "rounds_median": statistics.median(rounds for *_, rounds in trials),
            "ratios": [round(ratio, 4) for ratio, *_ in trials],
            "target": "1.00 held in at least 95 of 100, half-width at most 0.03 in as many",
        },
        load,
    )


if __name__ == "__main__":
    main()
