"""What a reader must know before believing a figure, in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from kdexport import figures
from kdexport.bench.host import LeftOut, Surroundings, disturbance
from kdexport.bench.plan import Condition, Settings
from kdexport.bench.session import Placement, fallback
from kdexport.cgroup import cpu_quota
from kdexport.machine import cpu_governor, usable_cores
from kdexport.memory import EXHAUSTED
from kdexport.results import Latency

NOISY_CV = 0.25  # standard deviation over mean: beyond it the mean says little
LAUNCH_SPREAD = 0.05  # between the medians of fresh processes, as a share
OTHER_CORES = 0.2  # kept busy by other work, on average
STOLEN_CORES = 0.02
TOLD = 0.01  # share of the time in calls that ran beside other work
DRIFT = 0.05  # last third of the rounds against the first
DRIFT_ROUNDS = 2  # at either end, at least: one round against one other is chance


class Recorded(Protocol):
    """What the runner knows of one model at one batch size."""

    precision: float | None
    placement: dict[str, dict[str, int]]
    settled: list[bool]
    surroundings: list[Surroundings]
    left_out: LeftOut
    not_a_number: tuple[str, ...]
    browser: dict[str, Any] | None
    calls_per_sample: int


def measurement_warnings(
    one: Recorded, latency: Latency, settings: Settings, condition: Condition, compute_share: Mapping[str, float] | None
) -> tuple[str, ...]:
    """Return the warnings of one measurement.

    Args:
        one: How the measuring went.
        latency: What came out.
        settings: What was asked for.
        condition: Device and threads.
        compute_share: Provider -> share of the time, where several providers took part.
    """
    provider = condition.device.provider
    disturbed = disturbance(one.left_out, one.surroundings, condition)
    found = [
        f"{disturbed}: no speed-up is decided by this, measure on a quiet machine" if disturbed else "",
        _left_out(one, latency),
        _not_a_number(one),
        _precision(one.precision, settings),
        _noise(latency),
        _spread(latency),
        _drift(latency),
        "" if disturbed else _other_load(one),
        _throttled(one),
        _undervoltage(one),
        _threads(condition),
        "the time per call did not settle within the warm-up" if one.settled and not any(one.settled) else "",
        _fallback(provider, one.placement, compute_share),
        "" if one.placement else "this ONNX Runtime cannot tell where the nodes ran; placement is not proved",
        *_browser(one, settings),
        "" if one.browser else _build(),
        _governor(condition),
    ]
    return tuple(text for text in found if text)


def page_warnings(
    one: Recorded, latency: Latency, settings: Settings, condition: Condition, disturbed: str | None
) -> tuple[str, ...]:
    """Return the warnings of what a page on another device has measured: nothing is known of that machine's other work.

    Arguments as ``measurement_warnings``; ``disturbed``: what its calls tell of that work, in words.
    """
    found = [
        f"{disturbed}: no speed-up is decided by this, measure on a quiet machine" if disturbed else "",
        _not_a_number(one),
        _precision(one.precision, settings),
        _noise(latency),
        _spread(latency),
        _drift(latency),
        "the time per call did not settle within the warm-up" if one.settled and not any(one.settled) else "",
        _fallback(condition.device.provider, one.placement, None),
        "" if one.placement else "this ONNX Runtime cannot tell where the nodes ran; placement is not proved",
        *_browser(one, settings),
    ]
    return tuple(text for text in found if text)


def _left_out(one: Recorded, latency: Latency) -> str:
    count = latency.left_out
    if one.left_out.share <= TOLD or not count:
        return ""
    return f"{count:,} of {count + latency.samples:,} calls ran beside other work and do not count"


def _not_a_number(one: Recorded) -> str:
    names = ", ".join(f"'{name}'" for name in one.not_a_number)
    return (
        f"every value of its output {names} was NaN or infinite: check its weights and inputs (--input FILE.npz)"
        if names
        else ""
    )


def _precision(precision: float | None, settings: Settings) -> str:
    if precision is None:
        return "too few rounds for an interval"
    if precision <= settings.precision:
        return ""
    known, wanted = figures.percent(precision, 2), figures.percent(settings.precision, 2)
    return f"the median is known to ±{known}, not to the ±{wanted} asked for"


def _noise(latency: Latency) -> str:
    cv = latency.std / latency.mean if latency.mean else 0.0
    return (
        f"noisy: single calls vary by {figures.percent(cv, 0)} (standard deviation over mean)" if cv > NOISY_CV else ""
    )


def _spread(latency: Latency) -> str:
    low, high = min(latency.rounds_p50), max(latency.rounds_p50)
    if high <= low * (1 + LAUNCH_SPREAD):
        return ""
    return f"fresh processes differ: their medians run from {low:.3g} to {high:.3g} ms"


def _drift(latency: Latency) -> str:
    part = max(len(latency.rounds_p50) // 3, DRIFT_ROUNDS)
    if len(latency.rounds_p50) <= 2 * part:  # fewer than five
        return ""
    first = sum(latency.rounds_p50[:part]) / part
    last = sum(latency.rounds_p50[-part:]) / part
    if last <= first * (1 + DRIFT):
        return ""
    return f"it became {figures.percent(last / first - 1, 0)} slower while it was measured: throttled, or other load"


def _threads(condition: Condition) -> str:
    cores, quota = usable_cores(), cpu_quota()
    if condition.threads > cores:
        return f"{condition.threads} threads share {cores} cores"
    if quota is not None and condition.threads > quota:
        return f"{condition.threads} threads share the container's quota of {quota:g} CPUs"
    if condition.threads == cores and cores > 1:
        return f"{condition.threads} threads take every core: the tail holds whatever else the machine does"
    return ""


def _other_load(one: Recorded) -> str:
    count = len(one.surroundings)
    if not count:
        return ""
    other = sum(around.other_cores for around in one.surroundings) / count
    stolen = sum(around.stolen for around in one.surroundings) / count
    if stolen > STOLEN_CORES:
        return f"the hypervisor took {stolen:.2f} cores away while this was measured"
    return f"other work kept {other:.1f} of {usable_cores()} cores busy" if other > OTHER_CORES else ""


def _throttled(one: Recorded) -> str:
    count = sum(around.throttled for around in one.surroundings)
    return f"the CPU slowed down for heat in {count} of {len(one.surroundings)} rounds (throttled)" if count else ""


def _undervoltage(one: Recorded) -> str:
    count, rounds = sum(around.undervoltage for around in one.surroundings), len(one.surroundings)
    return f"too little voltage from the supply in {count} of {rounds} rounds: the board slows down" if count else ""


def _fallback(provider: str, placement: Placement, compute_share: Mapping[str, float] | None) -> str:
    text = fallback(provider, placement)
    if text and compute_share:
        text += f"; {figures.percent(1 - compute_share.get(provider, 0.0), 0)} of the time is spent there"
    return text


def _browser(one: Recorded, settings: Settings) -> tuple[str, ...]:
    if one.browser is None:
        return ()
    step, calls = one.browser["clock_ms"], one.calls_per_sample
    coarse = (
        f"each sample is the mean of {calls:,} calls, because the browser's clock steps by {step:.3g} ms: "
        "percentiles of single calls are not known"
    )
    software = f"no GPU was behind this: the browser computed WebGPU in software ({one.browser['adapter']})"
    hidden = "the browser does not say which GPU was behind WebGPU, or whether there was one"
    return (
        coarse if calls > 1 else "",
        software if one.browser["software"] else "",
        hidden if one.browser["adapter"] and one.browser["software"] is None else "",
        "several callers of one session are not measured in a browser" if max(settings.streams) > 1 else "",
        "power is not measured in a browser" if settings.power_command else "",
    )


def _build() -> str:
    import onnxruntime

    info = onnxruntime.get_build_info() if hasattr(onnxruntime, "get_build_info") else ""
    return "this ONNX Runtime is a debug build" if "build type=debug" in info.lower() else ""


def _governor(condition: Condition) -> str:
    governor = cpu_governor()
    if condition.device.name != "cpu" or governor is None or governor == "performance":
        return ""
    return f"the CPU's governor is '{governor}': the clock follows the load (cpupower frequency-set -g performance)"


OPSET = re.compile(r"Opset (\d+) is under development.*?till opset (\d+)", re.DOTALL)
IR = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
CUSTOM = re.compile(r"(\S+?:\S+?)\(-?\d+\) is not a registered function/op")
ZERO_SIZE = re.compile(r"invalid dimensions for input: (.+?) for the following indices.*?Expected: 0(?!\d)", re.DOTALL)
KILLED = re.compile(r"killed by SIGKILL")
NOISE = (
    re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : "),
    re.compile(r"Load model from .*? failed:\s*"),
    re.compile(r"(Status Message: )?\S*/onnxruntime\S*:\d+ .*?\) (?=[A-Za-z])", re.DOTALL),  # C++ file and signature
    re.compile(r"^(Fail|RuntimeError|RuntimeException|InvalidArgument|InvalidGraph|NotImplemented): "),
)
MAX_CHARACTERS = 300


def in_words(text: str, batch_size: int | None) -> str:
    """Return the reason of a failure in one line.

    Args:
        text: What the worker or ONNX Runtime said.
        batch_size: What it was working on; None while loading.
    """
    if found := OPSET.search(text):
        return (
            f"it needs opset {found[1]}, and this ONNX Runtime knows opsets up to {found[2]}: "
            f"export it with --opset {found[2]}, or pip install -U onnxruntime"
        )
    if found := IR.search(text):
        return (
            f"it needs ONNX IR version {found[1]}, and this ONNX Runtime knows versions up to {found[2]}: "
            "pip install -U onnxruntime, or save it with an older onnx"
        )
    if found := CUSTOM.search(text):
        return (
            f"it needs the operator {found[1]}, which this ONNX Runtime does not have: export it without that operator"
        )
    if found := ZERO_SIZE.search(text):
        return (
            f"its input {found[1]} states a size of 0, which ONNX Runtime takes as it stands: "
            "export it with a dynamic axis, or name the axis with onnx.tools.update_model_dims"
        )
    short = text
    for pattern in NOISE:
        short = pattern.sub("", short)
    short = " ".join(short.split())
    if len(short) > MAX_CHARACTERS:
        short = short[:MAX_CHARACTERS] + "..."
    if EXHAUSTED.search(text) or (KILLED.search(text) and batch_size is not None):
        what = "the model" if batch_size is None else f"batch size {batch_size}"
        return f"{what} does not fit in memory ({short})"
    return short
