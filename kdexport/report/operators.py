"""A profile as people read it: by operator type, by layer, and what made one file slower than another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdexport import figures
from kdexport.onnx.layers import family
from kdexport.results import Measurement, OperatorTime, Profile

BETWEEN = "between operators"
UNTOLD = "(not told)"
SHOWN = 10
LEAST_CHANGE = 0.01  # of the baseline's median: smaller ones are the measuring's own
CHANGES_SHOWN = 4
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "ReorderInput", "ReorderOutput")


@dataclass(frozen=True)
class Share:
    """The time of several operators together."""

    name: str
    ms: float
    operators: int


def by_type(profile: Profile) -> list[Share]:
    """Return the time of each operator type as it ran, the costliest first, with what lies between them."""
    return [*_summed((one.operator, one) for one in profile.operators), Share(BETWEEN, profile.between_ms, 0)]


def by_layer(profile: Profile) -> list[Share]:
    """Return the time of each layer, the costliest first; what no layer is told of stands under one name."""
    return _summed((one.layer or UNTOLD, one) for one in profile.operators)


def _summed(named: Iterator[tuple[str, OperatorTime]]) -> list[Share]:
    found: dict[str, list[float]] = {}
    for name, one in named:
        found.setdefault(name, []).append(one.ms)
    shares = [Share(name, sum(times), len(times)) for name, times in found.items()]
    return sorted(shares, key=lambda share: -share.ms)


def changes(base: Profile, other: Profile) -> dict[str, float]:
    """Return milliseconds that each operator takes more in another file; fused and quantized forms count as one."""
    times: dict[str, float] = {BETWEEN: other.between_ms - base.between_ms}
    for profile, sign in ((base, -1), (other, 1)):
        for one in profile.operators:
            times[family(one.operator)] = times.get(family(one.operator), 0.0) + sign * one.ms
    return times


def what_changed(base: Measurement, other: Measurement) -> str:
    """Say which operators cost more than in the file that another was made from, and which less.

    Returns:
        ``QuantizeLinear cost 0.30 ms (most of it at layer1.0), Conv takes 0.10 ms more; Gemm takes 0.05 ms less``;
        empty without both profiles, or where nothing differs by more than the medians' own intervals.
    """
    if base.profile is None or other.profile is None:
        return ""
    found = changes(base.profile, other.profile)
    least = max(LEAST_CHANGE * base.latency_ms.p50, *(_half_width(one) for one in (base, other)))
    kept = [(name, ms) for name, ms in sorted(found.items(), key=lambda item: -item[1]) if abs(ms) > least]
    own = {family(one.operator) for one in base.profile.operators} | {BETWEEN}
    slower = [_more(name, ms, other.profile, new=name not in own) for name, ms in kept if ms > 0][:CHANGES_SHOWN]
    faster = [f"{name} {figures.ms(-ms)} less" for name, ms in reversed(kept) if ms < 0][:CHANGES_SHOWN]
    parts = [", ".join(slower), f"{', '.join(faster[:1])}{', ' if faster[1:] else ''}{', '.join(faster[1:])}"]
    return "; ".join(part for part in parts if part)


def _half_width(one: Measurement) -> float:
    interval = one.latency_ms.p50_ci95
    return 0.0 if interval is None else (interval[1] - interval[0]) / 2


def _more(name: str, ms: float, profile: Profile, *, new: bool) -> str:
    if not new:
        return f"{name} {figures.ms(ms)} more"
    layers = _summed((one.layer, one) for one in profile.operators if family(one.operator) == name and one.layer)
    where = f" (most of it at {layers[0].name})" if layers and name in CONVERSIONS else ""
    return f"{name}, which it did not have, {figures.ms(ms)}{where}"


def told(one: Measurement) -> str:
    """Return in a sentence what a profile's figures are, and what was taken out of them."""
    profile = one.profile
    if profile is None:
        return ""
    count = len(profile.operators)
    return (
        f"{one.model}: {count} operator{'' if count == 1 else 's'}, {figures.ms(profile.between_ms)} between them; "
        f"the profiler's {figures.ms(profile.profiler_us / 1e3)} per operator is taken out"
    )


def worst(measurements: Sequence[Measurement], most: int = SHOWN) -> Iterator[tuple[Measurement, OperatorTime]]:
    """Yield the costliest operators of each measurement that has a profile."""
    for one in measurements:
        for operator in one.profile.operators[:most] if one.profile else ():
            yield one, operator


def layer_table(measurements: Mapping[str, Measurement]) -> list[list[str]]:
    """Return a row for each layer: its name, then what it takes in each model that has a profile."""
    profiles = {name: one.profile for name, one in measurements.items() if one.profile is not None}
    times = {name: {share.name: share.ms for share in by_layer(profile)} for name, profile in profiles.items()}
    layers = dict.fromkeys(layer for found in times.values() for layer in found)
    ranked = sorted(layers, key=lambda layer: -max(found.get(layer, 0.0) for found in times.values()))
    return [
        [layer, *(figures.ms(times[name][layer]) if layer in times[name] else figures.DASH for name in profiles)]
        for layer in ranked
    ]
