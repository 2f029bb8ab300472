"""What the timings' warnings mean: a line for each kind, in words that say whether the median is touched."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kdexport.report import figures
from kdexport.results import Measurement


@dataclass(frozen=True)
class Kind:
    """A kind of warning."""

    pattern: str  # that bench's words of this kind match
    cause: str
    effect: str  # on the median
    noise: bool = True  # whether the timing varied more than the model does; else a fact to know


# The gravest first: a timing that carries several is counted under the first.
KINDS = (
    Kind(
        r"other work|hypervisor took|quiet machine",
        "the machine was busy",
        "medians may be too high and speed-ups wrong",
    ),
    Kind(r"slowed down for heat|throttled\)", "the CPU slowed down for heat", "medians are those of a hot machine"),
    Kind(
        r"slower while it was measured",
        "it became slower while it was measured",
        "the median lies between both speeds; models took turns, so that speed-ups hardly move",
    ),
    Kind(
        r"fresh processes differ",
        "fresh processes differ",
        "the median depends on the process; its interval says by how much",
    ),
    Kind(r"too few rounds", "too few rounds", "the median has no interval"),
    Kind(
        r"median is known to",
        "the median is known less well than requested",
        "the median's interval says how well",
    ),
    Kind(r"did not settle", "the warm-up was too short", "the median may be a little too high"),
    Kind(r"noisy|vary by", "single calls vary", "the median is hardly touched; mean and slowest calls are"),
    Kind(r"take every core", "no core was left free", "the median is hardly touched; the slowest calls are"),
    Kind(r"threads share", "more threads than cores", "the median holds the waiting for a core", noise=False),
    Kind(r"governor", "the clock follows the load", "medians may be too high for short calls", noise=False),
    Kind(r"debug build", "a debug build of ONNX Runtime", "medians are too high", noise=False),
)


def is_noisy(measurement: Measurement) -> bool:
    """Return whether a timing varied by more than the model does."""
    return _gravest(measurement) is not None


def summary(measurements: Sequence[Measurement]) -> str:
    """Return ``5 of 5 timings noisy: the machine was busy``, or nothing where none is noisy."""
    noisy = [kind for item in measurements if (kind := _gravest(item)) is not None]
    if not noisy:
        return ""
    gravest = min(noisy, key=KINDS.index)
    return f"{len(noisy)} of {len(measurements)} timings noisy: {gravest.cause}"


def elsewhere(summaries: Sequence[str]) -> str:
    """Return on how many of several devices timings are noisy; nothing where on none."""
    noisy = sum(bool(summary) for summary in summaries)
    return f"noisy timings on {noisy} of {len(summaries)} devices" if noisy else ""


def lines(measurements: Sequence[Measurement]) -> list[str]:
    """Return a sentence for each kind of warning: how many timings, an example, and whether the median is touched."""
    found: dict[Kind, list[tuple[Measurement, str]]] = {}
    for measurement in measurements:
        for text in measurement.warnings:
            found.setdefault(_kind(text), []).append((measurement, text))
    return [_line(kind, warned, len(measurements)) for kind, warned in sorted(found.items(), key=_gravity)]


def _line(kind: Kind, warned: Sequence[tuple[Measurement, str]], every: int) -> str:
    timings = {(item.model, item.machine, item.device, item.batch_size, item.threads) for item, _ in warned}
    first, text = warned[0]
    text = text.removeprefix("noisy: ").removeprefix(f"{kind.cause}: ")
    where = f"{first.model} on {first.device} of {first.machine}, batch {first.batch_size}"
    models = figures.joined_names(list(dict.fromkeys(item.model for item, _ in warned)))
    example = f"{where}: {text}" if len(timings) > 1 else f"{where}"
    which = f"{len(timings)} of {every} timings ({models}), e.g. {example}" if len(timings) > 1 else example
    cause = kind.cause[0].upper() + kind.cause[1:]
    detail = f": {text}" if len(timings) == 1 and kind.effect else ""
    effect = f" {kind.effect[0].upper()}{kind.effect[1:]}." if kind.effect else ""
    return f"{cause}: {which}{detail}.{effect}"


def _gravest(measurement: Measurement) -> Kind | None:
    kinds = [kind for kind in map(_kind, measurement.warnings) if kind.noise]
    return min(kinds, key=KINDS.index) if kinds else None


def _kind(text: str) -> Kind:
    known = next((kind for kind in KINDS if re.search(kind.pattern, text)), None)
    return known or Kind("", re.sub(r"\d[\d.,]*", "…", text), "", noise=False)


def _gravity(item: tuple[Kind, Iterable[object]]) -> int:
    return KINDS.index(item[0]) if item[0] in KINDS else len(KINDS)
