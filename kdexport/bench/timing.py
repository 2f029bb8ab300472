"""The measuring loops, and nothing else: what runs between two looks at the clock is one call.

Inputs are made and bound before; nothing is allocated, printed or decided while a round runs.
"""

from __future__ import annotations

import gc
import json
import statistics
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WARM_UP_MIN_NS = 50_000_000
WARM_UP_MAX_NS = 1_000_000_000
WARM_UP_BLOCK_NS = 10_000_000
STABLE = 0.02  # two blocks whose medians differ by less are alike
BLOCK_NS = 200_000  # of calls between two looks at how long this process had to wait
WAITED = 0.05  # share of a block that it waited for a core: beyond, the block's calls are not the model's alone
TURN_NS, TURNS_NS, TURNS_MAX_NS = 10_000_000, 300_000_000, 30_000_000_000  # of several runs: see ``in_turns``
REWARM_NS = 2_000_000  # at the start of a turn: other processes have used the caches since the last one


@dataclass(frozen=True)
class WarmUp:
    """How the time per call settled."""

    runs: int
    stable: bool
    call_ns: int  # median of the last block


def warm_up(run: Callable[[], object], clock: Callable[[], int] = time.perf_counter_ns) -> WarmUp:
    """Call ``run`` until three blocks in a row take the same time, for 1 s at most.

    Args:
        run: One inference.
        clock: Nanoseconds, monotonic.
    """
    start = clock()
    medians: list[int] = []
    runs = 0
    while True:
        block = sorted(timed(run, WARM_UP_BLOCK_NS, clock))
        runs += len(block)
        medians.append(block[len(block) // 2])
        spent = clock() - start
        last = medians[-3:]
        stable = len(last) == 3 and max(last) <= min(last) * (1 + STABLE)
        if (stable and spent >= WARM_UP_MIN_NS) or spent >= WARM_UP_MAX_NS:
            return WarmUp(runs, stable, medians[-1])


def measure_turn(
    run: Callable[[], object], budget_ns: int, waited_ns: Callable[[], int] | None = None, block_ns: int = BLOCK_NS
) -> array[int]:
    """Warm the caches again, then time single calls for ``budget_ns``, one at least; arguments as ``watched``."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        timed(run, REWARM_NS, time.perf_counter_ns)
        if waited_ns is None:
            return timed(run, budget_ns, time.perf_counter_ns)
        return watched(run, budget_ns, time.perf_counter_ns, waited_ns, block_ns)
    finally:
        if collecting:
            gc.enable()


def timed(run: Callable[[], object], budget_ns: int, clock: Callable[[], int]) -> array[int]:
    """Return the nanoseconds of each call, one at least.

    Each call is timed by itself: a block's mean would hide the tail. Two looks at the clock cost under 0.1 µs.
    """
    samples: array[int] = array("q")
    append = samples.append
    end = clock() + budget_ns
    while True:
        before = clock()
        run()
        after = clock()
        append(after - before)
        if after >= end:
            return samples


def watched(
    run: Callable[[], object],
    budget_ns: int,
    clock: Callable[[], int],
    waited_ns: Callable[[], int],
    block_ns: int = BLOCK_NS,
) -> array[int]:
    """Return the nanoseconds of each call as ``timed`` does, negative where other work took the core meanwhile.

    On a busy machine a short call mostly fits between two interruptions and a long one never does: the long one's
    median then holds the others' work, and its ratio to the short one is wrong however narrow its interval.

    Args:
        run: One inference.
        budget_ns: When to stop.
        clock: Nanoseconds, monotonic.
        waited_ns: How long this process has waited for a core so far. Asked between blocks of calls, so that the look
            costs no call anything.
        block_ns: How long a block is; a longer call is a block by itself.
    """
    samples: array[int] = array("q")
    append = samples.append
    end = clock() + budget_ns
    waited = waited_ns()
    while True:
        first, start = len(samples), clock()
        block_end = min(start + block_ns, end)
        while True:
            before = clock()
            run()
            after = clock()
            append(after - before)
            if after >= block_end:
                break
        earlier, waited = waited, waited_ns()
        if waited - earlier > WAITED * (after - start):
            for position in range(first, len(samples)):
                samples[position] = -samples[position]
        if after >= end:
            return samples


def in_turns(
    runs: Sequence[Callable[[], object]],
    waited_ns: Callable[[], int] | None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[array[int]]:
    """Let several calls take turns of some 10 ms, and return the nanoseconds of each one's calls as ``watched`` does.

    Each is called for 0.3 s, and 8 times, at least; 3 times where that would take longer than 30 s.
    """
    samples: list[array[int]] = [array("q") for _ in runs]
    start = clock()
    turn = 0
    while True:
        for at in range(len(runs)) if turn % 2 == 0 else reversed(range(len(runs))):
            calls = watched(runs[at], TURN_NS, clock, waited_ns or _never)
            samples[at].extend(calls)
        turn += 1
        fewest, spent = min(map(len, samples)), clock() - start
        if (fewest >= 8 and spent >= len(runs) * TURNS_NS) or (fewest >= 3 and spent >= TURNS_MAX_NS):
            return samples


def _never() -> int:
    return 0


def together(runs: Sequence[Callable[[], object]], seconds: float) -> tuple[int, float]:
    """Call every function again and again, each from a thread of its own, for some seconds.

    Returns:
        All calls that were finished, and the seconds from the common start to the last call's end.
    """
    counts = [0] * len(runs)
    barrier = threading.Barrier(len(runs) + 1)

    def caller(position: int) -> None:
        run, count = runs[position], 0
        barrier.wait()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            run()
            count += 1
        counts[position] = count

    threads = [threading.Thread(target=caller, args=(position,)) for position in range(len(runs))]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return sum(counts), time.perf_counter() - start


def median_ms(run: Callable[[], object], count: int) -> float:
    """Return the median of ``count`` calls in milliseconds, after one that is not counted."""
    run()
    samples = []
    for _ in range(count):
        before = time.perf_counter_ns()
        run()
        samples.append(time.perf_counter_ns() - before)
    return statistics.median(samples) / 1e6


def shares_of_profile(path: str) -> dict[str, float]:
    """Return provider -> share of the nodes' time, from a profile that ONNX Runtime wrote."""
    with open(path, encoding="utf-8") as handle:  # noqa: PTH123 - pathlib is not loaded here
        events = json.load(handle)
    spent: dict[str, float] = {}
    for event in events:
        provider = event.get("args", {}).get("provider") if event.get("cat") == "Node" else None
        if provider:
            spent[provider] = spent.get(provider, 0.0) + event["dur"]
    total = sum(spent.values())
    return {provider: duration / total for provider, duration in spent.items()} if total else {}
