"""A call of known length, inside a wrapped session, through the worker's own binding and loop. Target: within 1 %.

    python benchmarks/bench_sleep.py

The wrapped session waits or sleeps, and notes by the same clock how long each of its calls really took: the system's
sleep comes back some 60 µs late, and later on a busy machine. What is left between the two is what the measuring adds.
A sleep below a millisecond would be mostly the system's, so there the session waits on the clock.
"""

import statistics
import time

import numpy as np
from bench_common import OtherLoad, keep

from kdexport.bench import session, timing

WAITS_MS = (0.1, 0.5)
SLEEPS_MS = (1.0, 5.0, 20.0, 100.0)
TURNS = 5


class Sleeping:
    """A session of one model, each of whose runs takes a known time."""

    def __init__(self, milliseconds: float) -> None:
        self._inner, _ = session.open_session(session.EMPTY_MODEL, session.CPU, {}, 1)
        self._seconds = milliseconds / 1e3
        self.known_ns: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def run_with_iobinding(self, binding: object) -> None:
        start = time.perf_counter_ns()
        self._inner.run_with_iobinding(binding)
        if self._seconds < 1e-3:
            while time.perf_counter_ns() - start < self._seconds * 1e9:
                pass
        else:
            time.sleep(self._seconds)
        self.known_ns.append(time.perf_counter_ns() - start)


def compare(milliseconds: float) -> dict[str, object]:
    wrapped = Sleeping(milliseconds)
    bound = session.Bound(wrapped, {"x": np.zeros(1, np.float32)}, session.CPU, 0)
    bound.run()
    bound.keep_outputs()
    samples: list[int] = []
    known: list[int] = []
    for _ in range(TURNS):
        wrapped.known_ns.clear()
        turn = timing.measure_turn(bound.run, max(100_000_000, int(milliseconds * 5e6)))
        samples += turn
        known += wrapped.known_ns[-len(turn) :]  # the calls before them warmed the caches
    measured, true = statistics.median(samples), statistics.median(known)
    return {
        "asked_ms": milliseconds,
        "known_p50_ms": round(true / 1e6, 5),
        "measured_p50_ms": round(measured / 1e6, 5),
        "off_by": f"{measured / true - 1:+.4%}",
        "samples": len(samples),
    }


def main() -> None:
    with OtherLoad() as load:
        found = [compare(length) for length in (*WAITS_MS, *SLEEPS_MS)]
    keep("bench_sleep", {"target": "within 1 %", "lengths": found}, load)


if __name__ == "__main__":
    main()
