"""How figures are written for people: the same way on the terminal, in Markdown and on the page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdexport.results import Interval, MeasuredPrecision, Pruned, Speedup, TimedOn

if TYPE_CHECKING:
    from typing import Self

MINUS, DASH = "\u2212", "\u2013"
UNKNOWN = "n/a"  # not measured
NO_XML = re.compile("[^\t\n -~\u00a0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def ms(value: float | None) -> str:
    """Milliseconds with three significant digits, in µs below 0.1 ms and in s from 1000 ms on."""
    if value is None:
        return UNKNOWN
    if value < 0.0995:
        return f"{_significant(value * 1000)} µs"
    if value >= 999.5:
        return f"{_significant(value / 1000)} s"
    return f"{_significant(value)} ms"


def ms_interval(interval: Interval | None) -> str:
    """An interval of milliseconds, both ends in the unit of the upper one."""
    if interval is None:
        return ""
    scale, unit = (1000, "µs") if interval[1] < 0.0995 else (0.001, "s") if interval[1] >= 999.5 else (1, "ms")
    return f"{_significant(interval[0] * scale)}{DASH}{_significant(interval[1] * scale)} {unit}"


def size(count: int | float | None) -> str:
    """Bytes in KiB, MiB or GiB."""
    if count is None:
        return UNKNOWN
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= 0.98 * factor:  # 0.995 MiB rather than 1,019 KiB
            return f"{_significant(count / factor)} {unit}"
    return f"{count:g} B"


def mib(value: float | None) -> str:
    """MiB, without a decimal from 10 on."""
    return UNKNOWN if value is None else f"{_significant(value)} MiB"


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 in percent."""
    return UNKNOWN if share is None else f"{100 * share:.{digits}f} %"


def percent_interval(interval: Interval | None) -> str:
    """An interval of shares in percent."""
    return "" if interval is None else f"{100 * interval[0]:.1f}{DASH}{100 * interval[1]:.1f} %"


def points(delta: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return UNKNOWN if delta is None else f"{signed(100 * delta)} points"


def points_interval(interval: Interval | None) -> str:
    """An interval of a difference in points: ``-0.3 to +1.1``."""
    if interval is None:
        return ""
    return " to ".join(signed(100 * end, 2 if 0 < abs(100 * end) < 0.05 else 1) for end in interval)


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign; what rounds to zero has none."""
    rounded = round(value, digits)
    if rounded == 0:
        return f"{0:.{digits}f}"
    return f"{'+' if rounded > 0 else MINUS}{abs(rounded):.{digits}f}"


def signed_plain(value: float) -> str:
    """A number with its sign and three significant digits."""
    text = _significant(abs(value))
    return text if value == 0 else f"{'+' if value > 0 else MINUS}{text}"


def times(ratio: float | None) -> str:
    """A ratio as ``3.4x``."""
    return UNKNOWN if ratio is None else f"{_significant(ratio, 3 if 1 <= ratio < 2 or ratio >= 10 else 2)}×"


def speedup(found: Speedup | None) -> str:
    """A speed-up as ``times``; "undecided" where the machine was too busy to tell, nothing where there is none."""
    if found is None:
        return ""
    return "undecided" if found.disturbed else times(found.ratio)


def times_interval(interval: Interval | None) -> str:
    """An interval of ratios as ``3.2-3.6x``."""
    if interval is None:
        return ""
    return f"{_significant(interval[0])}{DASH}{_significant(interval[1])}×"


def count(value: int | None) -> str:
    """A count in k, M or G."""
    if value is None:
        return UNKNOWN
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= factor:
            return f"{_significant(value / factor)} {unit}"
    return str(value)


def thousands(value: float) -> str:
    """A whole number with commas."""
    return f"{value:,.0f}"


def rate(per_second: float) -> str:
    """Samples per second, in two digits from a thousand on: ``263/s``, ``20 k/s``."""
    for unit, factor in (("M", 10**6), ("k", 10**3)):
        if per_second >= 0.995 * factor:
            return f"{per_second / factor:.{0 if per_second >= 9.95 * factor else 1}f} {unit}/s"
    return f"{per_second:.0f}/s" if per_second >= 10 else f"{_significant(per_second, 2)}/s"


def duration(seconds: float | None) -> str:
    """A time to wait or that was spent, in seconds, minutes or hours: ``4 s``, ``12 min``, ``3.2 h``."""
    if seconds is None:
        return UNKNOWN
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{_significant(seconds / 3600, 2)} h"


def energy(value: float | None) -> str:
    """Millijoules per call."""
    return UNKNOWN if value is None else f"{_significant(value)} mJ"


def _significant(value: float, digits: int = 3) -> str:
    """Round to so many significant digits, without an exponent and without rounding whole digits away."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 6)}f}"


def _middle(values: Iterable[float]) -> float:
    """Return the geometric mean of those above 0; 1 where there is none."""
    positive = [value for value in values if value > 0]
    return math.exp(sum(math.log(value) for value in positive) / len(positive)) if positive else 1.0


@dataclass(frozen=True)
class Unit:
    """One unit of time for all figures of a column or an axis: mixed units cannot be compared at a glance."""

    name: str
    scale: float  # times milliseconds

    @classmethod
    def of(cls, values_ms: Iterable[float]) -> Self:
        """Choose by the values' middle on a log scale."""
        middle = _middle(values_ms)
        if middle < 0.25:
            return cls("µs", 1000.0)
        return cls("s", 0.001) if middle >= 2000 else cls("ms", 1.0)

    def write(self, value_ms: float | None) -> str:
        """Write a figure without its unit."""
        return UNKNOWN if value_ms is None else _significant(value_ms * self.scale)

    def write_interval(self, interval: Interval | None) -> str:
        """Write an interval without its unit."""
        return "" if interval is None else f"{self.write(interval[0])}{DASH}{self.write(interval[1])}"


@dataclass(frozen=True)
class SizeUnit:
    """One unit of size for all files of a column."""

    name: str
    scale: float  # times bytes

    @classmethod
    def of(cls, sizes: Iterable[int]) -> Self:
        """Choose by the values' middle on a log scale."""
        middle = _middle(sizes)
        return cls("MiB", 2.0**-20) if middle >= 0.5 * 2**20 else cls("KiB", 2.0**-10)

    def write(self, size_bytes: int) -> str:
        """Write a size without its unit."""
        return _significant(size_bytes * self.scale)


def plain(value: float | None) -> str:
    """Write a figure with three significant digits and no unit."""
    return UNKNOWN if value is None else _significant(value)


def joined_names(names: Sequence[str], most: int = 6) -> str:
    """Return names in a row, the rest counted."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def within_a_sentence(title: str) -> str:
    """Return a heading as it stands within a sentence; an abbreviation (MAE) stays."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


def xml_text(text: str) -> str:
    """Return text without the characters that XML 1.0 cannot hold, and without those that steer a terminal."""
    return NO_XML.sub("", text)


def cuts(pruned: Pruned, most: int) -> list[tuple[str, str, str]]:
    """Return what was taken out of the layers with channels: name, shape of the weight before, and after."""
    rows = []
    for layer in pruned.layers:
        if layer.after is None:
            rows.append((layer.layer, f"{layer.before[0]:,} parameters", "taken out"))
        elif len(layer.before) > 1:
            rows.append((layer.layer, " x ".join(map(str, layer.before)), " x ".join(map(str, layer.after))))
    more = [(f"... and {len(rows) - most} more in distill.json", "", "")] if len(rows) > most else []
    return rows[:most] + more


def cut_totals(pruned: Pruned) -> list[tuple[str, str, str]]:
    """Return what pruning has left of the whole: name, before, after."""
    rows = [("parameters", pruned.parameters_before, pruned.parameters)]
    if pruned.macs_before and pruned.macs:
        rows.append(("MACs", pruned.macs_before, pruned.macs))
    return [(name, f"{before:,}", f"{after:,} ({after / before:.1%})") for name, before, after in rows]


def timed_on(on: TimedOn) -> str:
    """Return where files were timed: ``cpu, 1 thread, batch 1 (AMD EPYC, without VNNI)``."""
    threads = f"{on.threads} thread{'s' if on.threads != 1 else ''}"
    vnni = ""
    if on.device == "cpu" and on.cpu_features and not {"asimd", "asimddp"} & set(on.cpu_features):
        vnni = ", with VNNI" if any("vnni" in name for name in on.cpu_features) else ", without VNNI"
    return f"{on.device}, {threads}, batch {on.batch_size} ({on.cpu}{vnni})"


def tried_rows(measured: MeasuredPrecision) -> list[tuple[str, str, str, str, str, str]]:
    """Return a row for each graph that was tried: name, how it was made, operators in fewer bits, speed against fp32,
    its interval, what came of it.
    """
    rows = []
    for one in measured.tried:
        came = "the file" if one.name == measured.chosen else one.told
        if one.name == measured.chosen and one.told:
            came = f"the file; {one.told}"
        fewer = "" if one.quantized is None else f"{one.quantized[0]} of {one.quantized[1]}"
        rows.append((one.name, one.made, fewer, times(one.speedup), times_interval(one.speedup_ci95), came))
    return rows
