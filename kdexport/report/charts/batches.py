"""Latency against batch size: where a device stops being kept busy by more samples at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdexport.report import figures
from kdexport.report.charts.marks import Mark
from kdexport.report.charts.picture import Drawing, Picture
from kdexport.report.charts.svg import CHARACTER, Scale, picture, short, tag, text
from kdexport.report.join import condition_of
from kdexport.results import Report

CAPTION = "Median time of one call by how many samples it takes at once"


@dataclass(frozen=True)
class Sweep:
    """One model's median latency of a call at each batch size."""

    mark: Mark
    batch_sizes: tuple[int, ...]
    latency_ms: tuple[float, ...]


def batches(sweeps: Sequence[Sweep], *, label: str, width: int = 700, height: int = 340) -> Markup:
    """Draw a line per model, both axes logarithmic: one that climbs with slope 1 gains nothing from larger batches."""
    narrow = width < 500
    left, right, top, bottom = 62.0, width - 20.0, (44.0 if narrow else 26.0), height - 40.0
    sizes = sorted({size for sweep in sweeps for size in sweep.batch_sizes})
    latencies = [value for sweep in sweeps for value in sweep.latency_ms]
    across = Scale(sizes[0], sizes[-1], left + 10, right, log=True)
    up = Scale(min(latencies) / 1.2, max(latencies) * 1.2, bottom, top, log=True)
    drawn: list[Markup] = []
    for tick in up.ticks(5):
        drawn.append(tag("line", x1=left, x2=right, y1=up(tick), y2=up(tick), class_="grid"))
        drawn.append(text(left - 8, up(tick) + 4, figures.ms(tick), "end", class_="tick"))
    for size in sizes:
        drawn.append(text(across(size), bottom + 18, str(size), "middle", class_="tick"))
    drawn.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    drawn.append(text(right, height - 4, "batch size (log scale)", "end", class_="title"))
    drawn.append(text(left - 56, 12, "median latency of a call ↑ (log scale)", class_="title"))
    at, row = (left, 30.0) if narrow else (270.0, 12.0)
    for sweep in sweeps:
        places = [(across(size), up(value)) for size, value in zip(sweep.batch_sizes, sweep.latency_ms, strict=True)]
        name = short(sweep.mark.name, 12 if narrow else 20)
        curve = f"curve c{sweep.mark.color}"
        dash = None if sweep.mark.shape == "circle" else "5 3"  # a variant has its network's color
        parts = [
            tag("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places), class_=curve, stroke_dasharray=dash),
            *(tag("circle", cx=x, cy=y, r=3.0, class_=f"solid c{sweep.mark.color}") for x, y in places),
            tag("line", x1=at, x2=at + 16, y1=row - 4, y2=row - 4, class_=curve, stroke_dasharray=dash),
            text(at + 21, row, name, class_="name"),
        ]
        at += 40 + CHARACTER * len(name)
        drawn.append(
            tag("g", *parts, class_="row", data_model=sweep.mark.name, data_tip=tip(sweep), aria_hidden="true")
        )
    return picture(width, height, label, *drawn)


def tip(sweep: Sweep) -> str:
    """Return a model's latency and throughput at each batch size, in lines."""
    lines = [
        f"batch {size}: {figures.ms(value)}, {figures.plain(1000 * size / value)} samples a second"
        for size, value in zip(sweep.batch_sizes, sweep.latency_ms, strict=True)
    ]
    return "\n".join([sweep.mark.name, *lines])


def draw(report: Report, look: Mapping[str, Mark], width: int) -> Iterator[Drawing]:
    """Draw each machine, device and thread count that was measured at several batch sizes."""
    swept: dict[tuple[str, str, int], dict[str, dict[int, float]]] = {}
    for item in report.measurements:
        view = swept.setdefault((item.machine, item.device, item.threads), {})
        view.setdefault(item.model, {})[item.batch_size] = item.latency_ms.p50
    for (machine, device, threads), models in swept.items():
        sweeps = [
            Sweep(look[name], tuple(sorted(by_size)), tuple(by_size[size] for size in sorted(by_size)))
            for name, by_size in models.items()
            if len(by_size) > 1
        ]
        if sweeps:
            title = f"{device} of {machine}, {threads} thread{'s' if threads > 1 else ''}"
            parts = [
                f"{sweep.mark.name} from {figures.ms(sweep.latency_ms[0])} at batch {sweep.batch_sizes[0]}"
                f" to {figures.ms(sweep.latency_ms[-1])} at batch {sweep.batch_sizes[-1]}"
                for sweep in sweeps
            ]
            label = f"Latency by batch on {title}: {'; '.join(parts)}."
            conditions = tuple(
                condition
                for condition in dict.fromkeys(map(condition_of, report.measurements))
                if (condition.machine, condition.device, condition.threads) == (machine, device, threads)
            )
            yield Drawing(batches(sweeps, label=label, width=width), f"{CAPTION}, {title}.", conditions)


PICTURE = Picture("batches", "Latency by batch", draw)
