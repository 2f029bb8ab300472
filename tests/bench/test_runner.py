"""The order of things and whose fault a fault is, with workers that are played: no process, no model."""

import contextlib
import itertools
import re

import numpy as np
import pytest

from kdexport.bench import energy, runner, worker_group
from kdexport.bench.plan import Condition, Device, Settings, Target
from kdexport.bench.process import ChildError
from kdexport.errors import DeviceError, KDExportError
from kdexport.progress import Silent

SETTINGS = Settings(min_seconds=0.03, max_seconds=0.05, rounds=3, precision=0.5)
CPU = Condition(Device("cpu", "CPUExecutionProvider"), 1, (1,))
CUDA = Condition(Device("cuda", "CUDAExecutionProvider"), 1, (1,))


class Played:
    """A worker that answers at once; ``does`` is called before each answer, with its label and the task."""

    asked: list
    does: staticmethod
    cpu_s = 0.0

    def __init__(self, label, _timeout_s):
        self.label = label

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def ask(self, **task):
        self.asked.append((self.label, task["do"]))
        self.does(self.label, task)
        placed = {"providers": ["CPUExecutionProvider"], "placement": {"CPUExecutionProvider": {"Gemm": 1}}}
        replies = {
            "memory": {**placed, "peak_rss": 1.0, "model": 1.0, "device_peak": None},
            "load": {**placed, "load_ms": 1.0},
            "prepare": {"first_run_ms": 1.0, "stable": True, "memory": "cpu", "nan": []},
            "sustain": {"runs": 10},
            "streams": {"runs": 10, "seconds": 2.0},
        }
        return replies.get(task["do"], {}), np.full(20, 1_000_000).tobytes()

    def ready(self):
        self.ask(do="ready")

    def kill(self):
        pass


@pytest.fixture
def played(monkeypatch):
    """Put played workers where real ones are started; nothing reads energy."""
    monkeypatch.setattr(Played, "asked", [], raising=False)
    monkeypatch.setattr(Played, "does", staticmethod(lambda *_: None), raising=False)
    for module in (worker_group, energy):
        monkeypatch.setattr(module, "Child", Played)
    monkeypatch.setattr(energy, "find_meter", lambda *_: None)
    return Played


def measure(*cases, models=("a", "b"), settings=SETTINGS):
    targets = [Target(name, f"{name}.onnx", {"x": [1, 4]}) for name in models]
    return runner.Runner(targets, settings, "here", Silent()).run(cases)


def test_a_device_that_does_not_take_a_model_is_refused_before_anything_is_timed(played):
    with pytest.raises(DeviceError, match="'cuda' could not be used"):
        measure(CPU, CUDA)
    assert {do for _, do in played.asked} == {"memory"}


@pytest.mark.parametrize("command", ["false", "x 'y", ""])
def test_a_power_command_that_does_not_work_is_refused_before_anything_runs(played, command):
    with pytest.raises(KDExportError, match="--power-command"):
        measure(CPU, settings=Settings(power_command=command))
    assert played.asked == []


def test_a_worker_that_dies_at_its_start_costs_its_own_model_only(played, monkeypatch):
    def dies(label, task):
        if (label, task["do"]) == ("b", "ready"):
            raise ChildError("b died of its imports")

    monkeypatch.setattr(played, "does", staticmethod(dies))
    outcome = measure(CPU)
    assert [one.model for one in outcome.measurements] == ["a"]
    assert [(failure.model, failure.reason) for failure in outcome.failures] == [("b", "b died of its imports")]


def test_what_is_refused_in_a_later_round_costs_its_own_model_only(played, monkeypatch):
    loads = itertools.count()

    def refuses(label, task):
        if (label, task["do"]) == ("b", "load") and next(loads) == 1:
            raise KDExportError("the device went away", hint="look for it")

    monkeypatch.setattr(played, "does", staticmethod(refuses))
    outcome = measure(CPU)
    assert [one.model for one in outcome.measurements] == ["a"]
    assert [failure.reason for failure in outcome.failures] == ["the device went away"]


def test_a_meter_that_fails_later_costs_the_energy_only(played, monkeypatch):
    class Broken:
        name = "test"

        def joules(self, _work):
            raise KDExportError("the meter is gone", hint="plug it in")

    monkeypatch.setattr(energy, "find_meter", lambda *_: Broken())
    outcome = measure(CPU, models=("a",), settings=Settings(min_seconds=0.03, max_seconds=0.05, rounds=3, streams=(2,)))
    (one,) = outcome.measurements
    assert one.energy_mj is None
    assert one.throughput_by_streams == {"2": 5.0}
    assert "the energy could not be measured: the meter is gone" in one.warnings


class Notes(Silent):
    """Keeps what a task is said to be doing."""

    def __init__(self):
        self.notes = []

    @contextlib.contextmanager
    def task(self, *_arguments, **_options):
        yield self

    def advance(self, steps=1, note=""):
        self.notes.append((steps, note))


def test_rounds_that_are_added_are_announced_with_their_reason(played, monkeypatch):
    # Each process is of another speed, so that the medians' intervals stay wide until the time is up.
    speeds = itertools.cycle([1_000_000, 1_500_000, 700_000, 1_300_000])

    def answered(self, **task):
        reply, payload = ask(self, **task)
        if task["do"] == "turn":
            calls = np.full(20, next(speeds))
            calls[:2] *= -1  # in a tenth of them other work had the core
            payload = calls.tobytes()
        return reply, payload

    ask = Played.ask
    monkeypatch.setattr(Played, "ask", answered)
    progress = Notes()
    targets = [Target(name, f"{name}.onnx", {"x": [1, 4]}) for name in ("a", "b")]
    settings = Settings(min_seconds=0.03, max_seconds=0.2, rounds=3, precision=0.001)
    outcome = runner.Runner(targets, settings, "here", progress).run([CPU])
    added = [note for steps, note in progress.notes if not steps and "added" in note]
    assert added
    assert re.fullmatch(
        r"batch 1, round 4, added: medians are known to ±\d+\.\d %, 10 % of the time beside other work", added[0]
    )
    one = outcome.measurements[0]
    assert one.latency_ms.left_out * 9 == one.latency_ms.samples
    assert f"{one.latency_ms.left_out:,} of" in " ".join(one.warnings)


def test_a_shorter_time_than_any_call_still_measures_one_turn_a_round(played):
    outcome = measure(CPU, settings=Settings(min_seconds=1e-300, max_seconds=1e-300, rounds=3, precision=0.5))
    assert [(item.model, item.latency_ms.samples) for item in outcome.measurements] == [("a", 60), ("b", 60)]
