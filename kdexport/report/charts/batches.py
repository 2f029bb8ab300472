"""Latency against batch size: where a device stops being kept busy by more samples at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdexport import figures
from kdexport.report.charts.marks import Drawing, Mark, Picture
from kdexport.report.charts.svg import Scale, picture, short, tag, text
from kdexport.report.join import condition_of
from kdexport.results import Report

CAPTION = "Median time of one call by how many samples it takes at once. Faint: the baseline."
PANEL, GAP, AXIS, LABEL, LINE = (
    190.0,
    26.0,
    68.0,
    92.0,
    14.0,
)  # pixels: a panel's height, between panels, for names, between these


@dataclass(frozen=True)
class Sweep:
    """One model's median latency of a call at each batch size."""

    mark: Mark
    batch_sizes: tuple[int, ...]
    latency_ms: tuple[float, ...]


def batches(sweeps: Sequence[Sweep], *, label: str, width: int = 700, baseline: str = "") -> Markup:
    """Draw a panel per network, a line per precision in it, named at its end; both axes logarithmic, common to all.

    A line that climbs with slope 1 gains nothing from larger batches. The baseline is repeated in every panel, faint.
    """
    networks: dict[str, list[Sweep]] = {}
    for sweep in sweeps:
        networks.setdefault(sweep.mark.network or sweep.mark.name, []).append(sweep)
    reference = next((sweep for sweep in sweeps if sweep.mark.name == baseline), None)
    columns = max(1, min(len(networks), round(width / 390)))
    panel_width = (width - GAP * (columns - 1)) / columns
    sizes = sorted({size for sweep in sweeps for size in sweep.batch_sizes})
    latencies = [value for sweep in sweeps for value in sweep.latency_ms]
    parts: dict[str, list[Markup]] = {}
    drawn: list[Markup] = [text(0.0, 12.0, "median latency of a call ↑ (log scale)", class_="title")]
    for index, (network, members) in enumerate(networks.items()):
        left = (index % columns) * (panel_width + GAP) + AXIS
        top = 40.0 + (index // columns) * (PANEL + 60.0)
        right, bottom = left + panel_width - AXIS - LABEL, top + PANEL
        across = Scale(sizes[0], sizes[-1], left + 8, right, log=True)
        up = Scale(min(latencies) / 1.2, max(latencies) * 1.2, bottom, top, log=True)
        drawn.append(text(left, top - 8, short(network, 30), class_="panel"))
        for tick in up.ticks(4):
            drawn.append(tag("line", x1=left, x2=right, y1=up(tick), y2=up(tick), class_="grid"))
            drawn.append(text(left - 8, up(tick) + 4, figures.ms(tick), "end", class_="tick"))
        for size in sizes:
            drawn.append(text(across(size), bottom + 18, str(size), "middle", class_="tick"))
        drawn.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
        drawn.append(text(right, bottom + 34, "batch size (log scale)", "end", class_="title"))
        if reference is not None and reference not in members:
            drawn.append(tag("g", *_line(reference, across, up), class_="reference", aria_hidden="true"))
        heights = _spread([up(sweep.latency_ms[-1]) for sweep in members])
        for sweep, height in zip(members, heights, strict=True):
            end = across(sweep.batch_sizes[-1])
            name = sweep.mark.name.removeprefix(f"{network}.")
            name = "fp32" if name == network and len(members) > 1 and sweep.mark.shape == "circle" else short(name, 14)
            lead = tag("line", x1=end, x2=right + 8, y1=up(sweep.latency_ms[-1]), y2=height, class_="grid")
            parts[sweep.mark.name] = [
                lead,
                *_line(sweep, across, up),
                text(right + 11, height + 4, name, class_="name"),
            ]
    for sweep in sweeps:
        drawn.append(
            tag(
                "g",
                *parts[sweep.mark.name],
                class_="row",
                data_model=sweep.mark.name,
                data_tip=tip(sweep),
                aria_hidden="true",
            )
        )
    rows = -(-len(networks) // columns)
    return picture(width, 40.0 + rows * (PANEL + 60.0) - 20.0, label, *drawn)


def _line(sweep: Sweep, across: Scale, up: Scale) -> list[Markup]:
    """Draw a model's line; a variant has its network's color, and is dashed."""
    at = [(across(size), up(value)) for size, value in zip(sweep.batch_sizes, sweep.latency_ms, strict=True)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
    dash = None if sweep.mark.shape == "circle" else "5 3"
    return [
        tag("path", d=path, class_=f"curve c{sweep.mark.color}", stroke_dasharray=dash),
        *(tag("circle", cx=x, cy=y, r=3.0, class_=f"solid c{sweep.mark.color}") for x, y in at),
    ]


def _spread(heights: Sequence[float]) -> list[float]:
    """Return heights near these, no two nearer than a line of text."""
    placed: dict[int, float] = {}
    last = float("-inf")
    for index in sorted(range(len(heights)), key=heights.__getitem__):
        last = max(heights[index], last + LINE)
        placed[index] = last
    over = max(0.0, last - max(heights) - LINE * (len(heights) - 1) / 2)  # half of what was pushed down goes back up
    return [placed[index] - over for index in range(len(heights))]


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
            yield Drawing(
                batches(sweeps, label=label, width=width, baseline=report.baseline), f"{CAPTION} {title}.", conditions
            )


PICTURE = Picture("batches", "Latency by batch", draw)
