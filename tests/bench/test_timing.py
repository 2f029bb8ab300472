import gc
import json
import time

import pytest

from kdexport.bench import timing


@pytest.mark.parametrize("milliseconds", [2, 10])
def test_a_known_sleep_is_measured_to_one_percent(milliseconds):
    """The sleep is a busy wait on the clock: the system's own sleep oversleeps by some 60 µs."""

    def spin():
        end = time.perf_counter_ns() + milliseconds * 1_000_000
        while time.perf_counter_ns() < end:
            pass

    # The quickest tenth: on a machine that others use, what is added is their time, not the measuring's.
    samples = sorted(timing.measure_turn(spin, 100_000_000))
    assert samples[len(samples) // 10] == pytest.approx(milliseconds * 1e6, rel=0.01)


def test_a_turn_is_one_call_at_least_and_ends_in_time():
    assert len(timing.timed(lambda: time.sleep(0.01), 0, time.perf_counter_ns)) == 1
    start = time.perf_counter()
    timing.measure_turn(lambda: None, 20_000_000)
    assert time.perf_counter() - start < 0.5


def test_the_collector_rests_during_a_turn_and_is_left_as_it_was():
    seen = []
    timing.measure_turn(lambda: seen.append(gc.isenabled()), 0)
    assert not any(seen)
    assert gc.isenabled()


def test_warm_up_goes_on_until_calls_take_the_same_time():
    state = {"ns": 0, "calls": 0}

    def run():
        state["calls"] += 1
        state["ns"] += 1_000_000 + max(60 - state["calls"], 0) * 100_000  # each of the first calls is quicker

    warm = timing.warm_up(run, clock=lambda: state["ns"])  # a clock that only the calls advance
    assert warm.stable
    assert warm.call_ns == 1_000_000
    assert warm.runs > 60


def test_warm_up_ends_although_calls_never_settle():
    state = {"ns": 0, "step": 1_000_000}

    def run():
        state["step"] = state["step"] * 11 // 10
        state["ns"] += state["step"]

    warm = timing.warm_up(run, clock=lambda: state["ns"])
    assert not warm.stable


def test_callers_together_are_counted_together():
    runs, seconds = timing.together([lambda: time.sleep(0.01)] * 3, 0.1)
    assert 20 <= runs <= 33
    assert 0.09 < seconds < 1


def test_shares_are_read_from_a_profile(tmp_path):
    events = [
        {"cat": "Node", "dur": 30, "args": {"provider": "CUDAExecutionProvider"}},
        {"cat": "Node", "dur": 10, "args": {"provider": "CPUExecutionProvider"}},
        {"cat": "Session", "dur": 99, "args": {}},
    ]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(events))
    assert timing.shares_of_profile(str(path)) == {"CUDAExecutionProvider": 0.75, "CPUExecutionProvider": 0.25}
