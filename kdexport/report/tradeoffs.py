"""What each model gives up and gains, and which are dominated. Pure functions of ``Joined``."""

from collections.abc import Iterable
from typing import NamedTuple

from kdexport.report.join import Condition, Joined
from kdexport.report.scores import goodness
from kdexport.results import Dominated, Measurement, ModelFile, Saving, Speedup, Tradeoff
from kdexport.statistics import disturbed, median_ratio

SAME_SIZE = 0.01  # files whose sizes differ by less hold the same network


def tradeoffs(joined: Joined) -> tuple[Tradeoff, ...]:
    """Hold every model against the baseline, and against the student trained without a teacher where there is one."""
    against = [joined.baseline]
    if joined.plain_student and joined.plain_student != joined.baseline:
        against.append(joined.plain_student)
    return tuple(
        tradeoff(joined, model.name, other)
        for other in against
        for model in joined.models
        if model.name not in (other, joined.baseline)
    )


def tradeoff(joined: Joined, model: str, against: str) -> Tradeoff:
    """Hold one model against another, under every condition that both were measured under."""
    here, there = joined.model_by_name[model], joined.model_by_name[against]
    delta, interval = joined.score_delta(model, against)
    speedups, savings = [], []
    for condition, measured in joined.by_condition.items():
        if model not in measured or against not in measured:
            continue
        ratio, ratio_interval = median_ratio(measured[against].latency_ms, measured[model].latency_ms)
        speedups.append(
            Speedup(
                condition.device,
                condition.batch_size,
                condition.threads,
                ratio,
                ratio_interval,
                condition.machine,
                disturbed(measured[against], measured[model]),
            )
        )
        savings.append(
            Saving(
                *condition,
                memory_ratio=memory_ratio(measured[against], measured[model]),
                energy_ratio=_ratio(measured[against].energy_mj, measured[model].energy_mj),
            )
        )
    return Tradeoff(
        model=model,
        against=against,
        score_delta=delta,
        score_delta_ci95=interval,
        metric="accuracy" if here.score is None else here.score.metric,
        size_ratio=there.size_bytes / max(here.size_bytes, 1),
        speedup=tuple(speedups),
        savings=tuple(savings),
    )


def memory(measurement: Measurement) -> float | None:
    """Return the peak in MiB that a device must have: its own where it has one, else the process's."""
    peak = measurement.memory_mib
    return peak.device_peak if peak.device_peak is not None else peak.peak_rss


def memory_ratio(baseline: Measurement, model: Measurement) -> float | None:
    """Return the baseline's peak over the model's: the device's own where both have it, else the processes'."""
    first, second = baseline.memory_mib, model.memory_mib
    if first.device_peak is not None and second.device_peak is not None:
        return _ratio(first.device_peak, second.device_peak)
    return _ratio(first.peak_rss, second.peak_rss)


def dominated(joined: Joined) -> tuple[Dominated, ...]:
    """Mark the models that another equals or beats in score, median latency and size, and beats in at least one.

    Figures are compared as measured; ``shown`` says whether a difference is beyond its interval. Of several that
    dominate, the fastest that is itself not dominated is named. Without a score, latency and size decide.
    """
    found: list[Dominated] = []
    for condition, measured in joined.by_condition.items():
        known = joined.model_by_name
        entries = [_Entry.of(known[name], figures) for name, figures in measured.items() if name in known]
        leaders: list[_Entry] = []  # dominated by none; what dominates an entry stands before it in this order
        for entry in sorted(entries, key=lambda entry: (entry.latency, entry.size, -entry.good)):
            if not any(_dominates(leader, entry) for leader in leaders):
                leaders.append(entry)
        leading = {id(entry) for entry in leaders}
        leaders = [entry for entry in entries if id(entry) in leading]
        for entry in entries:
            winners = [leader for leader in leaders if _dominates(leader, entry)]
            if winners:
                best = min(winners, key=lambda winner: winner.latency)
                shown = _shown(joined, best.model, best.figures, entry.model, entry.figures)
                found.append(Dominated(entry.model.name, best.model.name, *condition, shown=shown))
    return tuple(found)


def front(points: Iterable[tuple[str, float, float]]) -> list[str]:
    """Return the names on the score-latency front, fastest first.

    Args:
        points: Name, latency (lower is better) and goodness (higher is better) of each model.
    """
    names: list[str] = []
    best = float("-inf")
    for name, _, good in sorted(points, key=lambda point: (point[1], -point[2])):
        if good > best:
            names.append(name)
            best = good
    return names


def speedup_at(tradeoff: Tradeoff | None, condition: Condition) -> Speedup | None:
    """Return the speed-up under one condition."""
    if tradeoff is None:
        return None
    wanted = tuple(condition)
    return next(
        (item for item in tradeoff.speedup if (item.machine, item.device, item.batch_size, item.threads) == wanted),
        None,
    )


class _Entry(NamedTuple):
    """A model under one condition, by what decides."""

    latency: float
    size: int
    good: float  # negative infinity without a score
    model: ModelFile
    figures: Measurement

    @classmethod
    def of(cls, model: ModelFile, figures: Measurement) -> "_Entry":
        return cls(figures.latency_ms.p50, model.size_bytes, goodness(model), model, figures)


def _dominates(other: _Entry, entry: _Entry) -> bool:
    if (other.model.score is None) != (entry.model.score is None):
        return False
    if other.latency > entry.latency or other.size > entry.size or other.good < entry.good:
        return False
    return other[:3] != entry[:3]


def _shown(
    joined: Joined, other: ModelFile, other_figures: Measurement, model: ModelFile, figures: Measurement
) -> bool:
    if model.size_bytes > other.size_bytes * (1 + SAME_SIZE):
        return True
    _, ratio = median_ratio(figures.latency_ms, other_figures.latency_ms)
    if ratio is not None and ratio[0] > 1 and disturbed(figures, other_figures) is None:
        return True
    _, delta = joined.score_delta(other.name, model.name)
    gains = joined.metric.gains(delta)
    return gains is not None and gains[0] > 0


def _ratio(baseline: float | None, model: float | None) -> float | None:
    return None if baseline is None or not model else baseline / model
