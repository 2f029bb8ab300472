"""What the chosen model costs: score, latency, size, memory and energy, each beside the baseline's."""

from collections.abc import Callable
from dataclasses import dataclass

from kdexport.report import figures, scores
from kdexport.report.view import ConditionView, Row

SAME = 0.01  # ratios nearer to 1 are no difference


@dataclass(frozen=True)
class Cost:
    """One of the figures that answer what the pick costs."""

    title: str
    value: str
    interval: str
    against: str  # the change against the baseline, in words
    against_interval: str
    better: bool | None  # None: not shown either way
    baseline: str  # the baseline's own figure
    share: float | None  # of the longer of the two bars
    baseline_share: float | None
    of_score: bool = False

    @property
    def in_words(self) -> str:
        """The change with its interval, where that says that none is shown."""
        if not self.of_score:
            return self.against
        interval = f" ({self.against_interval})" if self.better is None and self.against_interval else ""
        return f"{self.title[0].lower()}{self.title[1:]} {self.against}{interval}"


def costs_of(view: ConditionView) -> tuple[Cost, ...]:
    """Return what the chosen model costs, each figure beside the baseline's."""
    row, base = view.chosen, view.base
    if row is None:
        return ()
    size, base_size = row.model.size_bytes, base.model.size_bytes if base else None
    smaller = base_size / size if base_size and size and row.tradeoff else None
    less_memory, less_energy = (row.saving.memory_ratio, row.saving.energy_ratio) if row.saving else (None, None)
    base_memory = base.memory if base else None
    costs = [
        _score(row, base),
        _latency(row, base, view.unit),
        _amount("File size", figures.size, size, base_size, smaller, ("smaller", "larger")),
        _amount("Peak memory", figures.mib, row.memory, base_memory, less_memory),
    ]
    energy = row.measurement.energy_mj
    if energy is not None:
        base_energy = base.measurement.energy_mj if base else None
        costs.append(_amount("Energy per call", figures.energy, energy, base_energy, less_energy))
    return tuple(costs)


def speed_words(ratio: float | None) -> str:
    """``5.0x as fast``, or for what is slower ``1.3x slower``."""
    if ratio is None:
        return ""
    return f"{figures.times(ratio)} as fast" if ratio >= 1 else f"{figures.times(1 / ratio)} slower"


def _score(row: Row, base: Row | None) -> Cost:
    gains = row.metric.gains(row.tradeoff.score_delta_ci95) if row.tradeoff else None
    same = gains is not None and gains[0] <= 0 <= gains[1]
    change = row.metric.change(row.tradeoff.score_delta) if row.change and row.tradeoff else ""
    shares = _shares(scores.value(row.model), scores.value(base.model) if base else None)
    return Cost(
        row.metric.title,
        row.score,
        row.score_interval,
        f"indistinguishable from {base.name}'s" if same and base else change,
        row.change_interval,
        None if gains is None or same else gains[0] > 0,
        base.score if base else "",
        *(shares if min(filter(None, shares), default=0) >= 0 else (None, None)),
        of_score=True,
    )


def _latency(row: Row, base: Row | None, unit: figures.Unit) -> Cost:
    latency, speedup = row.measurement.latency_ms, row.speedup
    interval = speedup.ci95 if speedup and not speedup.disturbed else None
    doubt = " (undecided: the machine was busy)" if speedup and speedup.disturbed else ""
    return Cost(
        "Median latency",
        f"{unit.write(latency.p50)} {unit.name}",
        unit.write_interval(latency.p50_ci95),
        speed_words(speedup.ratio if speedup else None) + doubt,
        figures.times_interval(interval),
        None if interval is None or interval[0] <= 1 <= interval[1] else interval[0] > 1,
        f"{unit.write(base.measurement.latency_ms.p50)} {unit.name}" if base else "",
        *_shares(latency.p50, base.measurement.latency_ms.p50 if base else None),
    )


def _amount(
    title: str,
    write: Callable[[float | None], str],
    value: float | None,
    base: float | None,
    ratio: float | None,
    words: tuple[str, str] = ("less", "more"),
) -> Cost:
    """Return a cost that has no interval: bytes, memory, energy."""
    return Cost(
        title,
        write(value),
        "",
        _less(ratio, *words),
        "",
        None if ratio is None or abs(ratio - 1) < SAME else ratio > 1,
        "" if base is None else write(base),
        *_shares(value, base),
    )


def _less(ratio: float | None, less: str, more: str) -> str:
    if ratio is None:
        return ""
    return f"{figures.times(ratio)} {less}" if ratio >= 1 else f"{figures.times(1 / ratio)} {more}"


def _shares(value: float | None, base: float | None) -> tuple[float | None, float | None]:
    if value is None or base is None:
        return None, None
    largest = max(value, base) or 1.0
    return value / largest, base / largest
