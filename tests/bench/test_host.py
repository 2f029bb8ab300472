"""What other work does to a measurement: disturbed calls do not count, and where they are many nothing is decided."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from kdexport.bench import host, timing
from kdexport.bench.host import LeftOut, Surroundings, disturbance, undisturbed
from kdexport.bench.plan import Condition, Device

CPU = Condition(Device("cpu", "CPUExecutionProvider"), 1, (1,))


def played(calls_ns, waits_ns, budget_ns):
    """Calls of known length on a clock of their own; in each, some of the time is waiting."""
    state = {"now": 0, "waited": 0, "call": 0}

    def run():
        position = state["call"] % len(calls_ns)
        state["now"] += calls_ns[position] + waits_ns[position]
        state["waited"] += waits_ns[position]
        state["call"] += 1

    return timing.watched(run, budget_ns, lambda: state["now"], lambda: state["waited"], block_ns=1_000_000)


def test_calls_that_waited_are_marked_and_others_are_not():
    samples = played([2_000_000] * 4, [0, 0, 3_000_000, 50_000], 22_000_000)
    assert list(samples[:4]) == [2_000_000, 2_000_000, -5_000_000, 2_050_000]  # a wait of 2.5 % changes no median


def test_a_block_of_short_calls_is_marked_whole():
    samples = np.array(played([100_000] * 20, [0] * 15 + [500_000] + [0] * 4, 2_400_000))
    assert set(samples[:10]) == {100_000}  # the first block of 1 ms
    assert (samples[10:16] < 0).all()


def test_long_and_short_calls_keep_their_ratio_although_only_long_ones_are_interrupted():
    # Every 4 ms another process takes the core for 4 ms: a call of 3 ms seldom runs through, one of 0.3 ms mostly.
    def measured(call_ns):
        now, waited = 0, 0

        def run():
            nonlocal now, waited
            left = call_ns
            while left:
                free = 4_000_000 - now % 8_000_000
                if free <= 0:
                    waited += 8_000_000 - now % 8_000_000
                    now += 8_000_000 - now % 8_000_000
                    continue
                now += min(left, free)
                left -= min(left, free)

        calls = timing.watched(run, 2_000_000_000, lambda: now, lambda: waited)
        return np.array(calls)

    long, short = measured(3_100_000), measured(300_000)
    counted = undisturbed({"long": [long], "short": [short]})
    assert np.median(np.abs(long)) / np.median(np.abs(short)) > 15
    assert np.median(counted["long"][0]) / np.median(counted["short"][0]) == pytest.approx(3.1 / 0.3)


def test_a_turn_without_an_undisturbed_call_is_left_out_for_all():
    good, bad, mixed = np.array([10, 10]), np.array([-50]), np.array([10, -90])
    counted = undisturbed({"a": [good, bad, good, good], "b": [mixed, good, mixed]})
    assert [list(calls) for calls in counted["a"]] == [[10, 10], [10, 10], [10, 10]]
    assert [list(calls) for calls in counted["b"]] == [[10], [10]]
    whole = undisturbed({"a": [bad, bad, good], "b": [good, good, good]})
    assert [list(calls) for calls in whole["a"]] == [[50], [50], [10, 10]]  # too few remain: every call counts


def test_what_does_not_count_is_counted():
    turns = [np.array([10, -50, 10]), np.array([-30])]
    found = LeftOut().more(turns, [np.array([10, 10])]).more([np.array([20])], [np.array([20])])
    assert (found.calls, found.waited_calls, found.all_calls) == (2, 2, 5)
    assert found.share == pytest.approx(80 / 120)


@pytest.mark.parametrize(
    ("found", "surroundings", "message"),
    [
        (LeftOut(3, 3, 100, 5, 1000), Surroundings(0.1), None),
        (LeftOut(30, 30, 100, 300, 1000), Surroundings(0.1), "other work took its core during 30 % of the measured"),
        (LeftOut(3, 3, 100, 600, 1000), Surroundings(0.1), "other work took its core during 60 % of the measured"),
        (LeftOut(), Surroundings(0.1, stolen=0.2), "the hypervisor took 0.20 cores"),
        (LeftOut(), Surroundings(os.cpu_count() - 0.5), "cores busy"),
        (LeftOut(), Surroundings(os.cpu_count() - 0.9), None),
    ],
)
def test_when_nothing_is_decided(found, surroundings, message):
    told = disturbance(found, [surroundings], CPU)
    assert told is None if message is None else message in told


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="two processes are pinned to one core")
def test_a_process_knows_that_it_waited_for_its_core():
    clock, threads = host.wait_clock()
    assert threads >= 1
    mine = os.sched_getaffinity(0)
    cpu = max(mine)
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(other.pid, {cpu})
        os.sched_setaffinity(threading.get_native_id(), {cpu})
        before, end = clock(), time.perf_counter() + 0.3
        while time.perf_counter() < end:
            pass
        assert clock() - before > 30_000_000
    finally:
        os.sched_setaffinity(threading.get_native_id(), mine)
        other.kill()
        other.wait()
