import numpy as np
import pytest

from kdexport.bench.host import Surroundings
from kdexport.bench.plan import Condition, Device, Settings
from kdexport.bench.runner import Runner, Series
from kdexport.bench.warnings import in_words, measurement_warnings
from kdexport.progress import Silent
from kdexport.statistics import latency


@pytest.mark.parametrize(
    ("text", "batch", "message"),
    [
        ("Fail: Unsupported model IR version: 99, max supported IR version: 13", None, "needs ONNX IR version 99"),
        ("RuntimeException: std::bad_alloc", 512, "batch size 512 does not fit in memory"),
        ("Fatal error: my.ops:MyOp(-1) is not a registered function/op", None, "it needs the operator my.ops:MyOp,"),
        (
            "Error in execution: Got invalid dimensions for input: x for the following indices index: 0 Got: 3 "
            "Expected: 0 Please fix either the inputs/outputs or the model.",
            3,
            "its input x states a size of 0",
        ),
        ("Failed to allocate memory for requested buffer of size 99", None, "the model does not fit in memory"),
        ("the worker was killed by SIGKILL", 8, "batch size 8 does not fit in memory"),
        (
            "Fail: [ONNXRuntimeError] : 1 : FAIL : Load model from /somewhere/m.onnx failed:Node () has no inputs",
            None,
            "Node () has no inputs",
        ),
    ],
)
def test_the_runtimes_messages_are_explained(text, batch, message):
    reason = in_words(text, batch)
    assert reason.startswith(message) or message in reason
    assert "ONNXRuntimeError" not in reason
    assert "/somewhere" not in reason


CONDITION = Condition(Device("cpu", "CPUExecutionProvider"), 1, (1,))
HERE = {"CPUExecutionProvider": {"Gemm": 1}}


def warned(rounds, condition=CONDITION, placement=HERE, precision=0.01, **more):
    series = Series(None, 1, placement=placement, precision=precision, settled=[True], **more)
    return " | ".join(measurement_warnings(series, latency(rounds), Settings(), condition, None))


def steady(scale=1.0):
    return np.random.default_rng(0).normal(1e6 * scale, 1e4, 100)


def test_a_quiet_measurement_has_no_warning_of_its_own():
    assert "noisy" not in (message := warned([steady()] * 6))
    assert "differ" not in message
    assert "slower" not in message
    assert "heat" not in message
    assert "slower" not in warned([steady(), steady(), steady(), steady(1.08)])  # too few to tell it from chance


@pytest.mark.parametrize(
    ("message", "more"),
    [
        ("known to ±9.00 %, not to the ±2.00 % asked for", {"rounds": [steady()] * 6, "precision": 0.09}),
        ("noisy: single calls vary by", {"rounds": [np.where(np.arange(100) % 5, 1e6, 4e6)] * 6}),
        ("fresh processes differ: their medians run from 1", {"rounds": [steady(), steady(1.2), steady()]}),
        ("slower while it was measured", {"rounds": [steady(1 + 0.05 * step) for step in range(6)]}),
        ("8 % slower while it was measured", {"rounds": [steady(scale) for scale in (1, 1, 1, 1.08, 1.08)]}),
        ("other work kept 0.8 of", {"rounds": [steady()] * 6, "surroundings": [Surroundings(other_cores=0.8)]}),
        ("the hypervisor took 0.30 cores", {"rounds": [steady()] * 6, "surroundings": [Surroundings(stolen=0.3)]}),
        (
            "slowed down for heat in 1 of 5 rounds",
            {"rounds": [steady()] * 5, "surroundings": [Surroundings(throttled=bad) for bad in (0, 0, 0, 1, 0)]},
        ),
        ("999 threads share", {"rounds": [steady()] * 6, "condition": Condition(CONDITION.device, 999, (1,))}),
        ("placement is not proved", {"rounds": [steady()] * 6, "placement": {}}),
        (
            "1 of 2 nodes fell back to CPUExecutionProvider (NonZero)",
            {
                "rounds": [steady()] * 6,
                "condition": Condition(Device("cuda", "CUDAExecutionProvider"), 1, (1,)),
                "placement": {"CUDAExecutionProvider": {"Conv": 1}, "CPUExecutionProvider": {"NonZero": 1}},
            },
        ),
    ],
)
def test_what_a_reader_must_know_is_reported(message, more):
    assert message in warned(**more)


def measured(ratios, seconds=1.5):
    """Two models' records: medians known to the last digit, the second's turns ``ratios`` times as long, per round."""
    rounds = [np.full(100, seconds * 1e9 / 100 / len(ratios)) for _ in ratios]
    first = Series(None, 1, rounds=rounds, turns=[[1e6] * 10 for _ in ratios])
    other = Series(None, 1, rounds=rounds, turns=[[1e6 * ratio] * 10 for ratio in ratios])
    return [first, other]


def test_measuring_goes_on_until_the_speed_up_is_known_too():
    enough = Runner([], Settings(precision=0.02), "here", Silent())._enough
    narrow, wide = [1.0, 1.01, 0.99, 1.01, 0.99], [1.0, 1.05, 0.95, 1.05, 0.95]
    assert enough(measured(narrow), late=False)
    assert not enough(measured(wide), late=False)
    assert not enough(measured(narrow, seconds=0.5), late=False)
    assert enough(measured(wide), late=True)
    assert enough([], late=False)  # every model has failed
