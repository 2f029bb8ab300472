"""What a reader must know before believing a figure, in words."""

from collections.abc import Sequence

from kdexport.bench.placement import Placement, fallback
from kdexport.bench.plan import Case, Settings
from kdexport.machine import cpu_quota, usable_cores
from kdexport.results import Latency

NOISY_CV = 0.25  # standard deviation over mean: beyond it the mean says little
LAUNCH_SPREAD = 0.05  # between the medians of fresh processes, as a share
DRIFT = 0.05  # last third of the rounds against the first


def words(
    latency: Latency,
    precision: float | None,
    settings: Settings,
    case: Case,
    placement: Placement,
    settled: Sequence[bool],
) -> tuple[str, ...]:
    """Return the warnings of one measurement.

    Args:
        latency: What was measured.
        precision: Half-width of the median's interval, as a share; None where there is none.
        settings: What was asked for.
        case: Device and threads.
        placement: Where the nodes ran.
        settled: For each round, whether the time per call had settled after the warm-up.
    """
    found = [
        _precision(precision, settings),
        _noise(latency),
        _spread(latency),
        _drift(latency),
        _threads(case),
        "the time per call did not settle within the warm-up" if settled and not any(settled) else "",
        fallback(case.device.provider, placement),
        "" if placement else "this ONNX Runtime cannot tell where the nodes ran; placement is not proved",
    ]
    return tuple(text for text in found if text)


def _precision(precision: float | None, settings: Settings) -> str:
    if precision is None:
        return "too few rounds for an interval"
    if precision <= settings.precision:
        return ""
    return f"the median is known to ±{precision:.1%}, not to the ±{settings.precision:.1%} asked for"


def _noise(latency: Latency) -> str:
    cv = latency.std / latency.mean if latency.mean else 0.0
    return f"noisy: single calls vary by {cv:.0%} (standard deviation over mean)" if cv > NOISY_CV else ""


def _spread(latency: Latency) -> str:
    low, high = min(latency.rounds_p50), max(latency.rounds_p50)
    if high <= low * (1 + LAUNCH_SPREAD):
        return ""
    return f"fresh processes differ: their medians run from {low:.3g} to {high:.3g} ms"


def _drift(latency: Latency) -> str:
    third = len(latency.rounds_p50) // 3
    if third < 2:  # one round against one other is chance
        return ""
    first = sum(latency.rounds_p50[:third]) / third
    last = sum(latency.rounds_p50[-third:]) / third
    if last <= first * (1 + DRIFT):
        return ""
    return f"it became {last / first - 1:.0%} slower while it was measured: throttled, or other load"


def _threads(case: Case) -> str:
    cores, quota = usable_cores(), cpu_quota()
    if case.threads > cores:
        return f"{case.threads} threads share {cores} cores"
    if quota is not None and case.threads > quota:
        return f"{case.threads} threads share the container's quota of {quota:g} CPUs"
    if case.threads == cores and cores > 1:
        return f"{case.threads} threads take every core: the tail holds whatever else the machine does"
    return ""
