"""What `kdexport bench` shows of a result: one row per measurement, what differs between rows, and the warnings."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from kdexport.results import BenchResult, Measurement, ModelFile

NONE = "–"
Cell = Callable[[Measurement, ModelFile], str]


def table(result: BenchResult, width: int) -> Table:
    """Return the table, at most ``width`` characters wide.

    Columns that say the same in every row, or nothing, are left out (see ``lines``); where it is still too wide, the
    columns that one can best do without. bench.json holds everything.
    """
    models = {model.name: model for model in result.models}
    columns: list[tuple[str, list[str]]] = []
    for name, cell in _columns(result):
        cells = [cell(one, models[one.model]) for one in result.measurements]
        if name in ALWAYS or (len(set(cells)) > 1 if name in PLACES else set(cells) - {NONE, "1"}):
            columns.append((name, cells))
    for spare in SPARE:
        if sum(max(map(len, [name, *cells])) + BETWEEN for name, cells in columns) + BETWEEN > width:
            columns = [column for column in columns if not column[0].startswith(spare)]
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, _ in columns:
        shown.add_column(
            name, justify="left" if name in ("model", "device") else "right", no_wrap=True, overflow="fold"
        )
    for row in zip(*(cells for _, cells in columns), strict=True):
        shown.add_row(*row)
    return shown


def lines(result: BenchResult) -> Iterator[Text]:
    """Yield what holds for all rows, then each warning once with the measurements that it is about."""
    rows = result.measurements
    values = _values(rows)
    same = [f"{name} {found[0]}" for name, found in values.items() if len(found) == 1]
    machine = result.machine
    yield Text(f"{machine.cpu}, {machine.cores} cores; {', '.join(same)}".rstrip("; "), style="dim")
    about: dict[str, list[Measurement]] = {}
    for one in rows:
        for warning in one.warnings:
            about.setdefault(warning, []).append(one)
    for warning, warned in about.items():
        who = "all" if len(warned) == len(rows) > 1 else ", ".join(dict.fromkeys(one.model for one in warned))
        for name, here in _values(warned).items():
            if len(here) < len(values[name]):
                who += f", {name} {' and '.join(here)}"
        yield Text.assemble(("! ", "yellow"), f"{who}: {warning}")


def _values(rows: Iterable[Measurement]) -> dict[str, list[str]]:
    """Return which devices, batch sizes and thread counts some measurements were made at, in their order."""
    columns = zip(*map(_place, rows), strict=True)
    return {name: list(dict.fromkeys(map(str, column))) for name, column in zip(PLACES, columns, strict=False)}


BETWEEN = 2  # characters that the table puts between columns, and at its edges
PLACES = ("device", "batch", "threads")  # as `_place` returns them
ALWAYS = ("model", "p50 ms", "±", "MiB")
SPARE = ("peak MiB", "p99 ms", "MiB", "mJ", "per s")  # first to go first


def _columns(result: BenchResult) -> list[tuple[str, Cell]]:
    from kdexport.intervals import speedup

    first = result.models[0].name
    baselines = {_place(one): one for one in result.measurements if one.model == first}

    def faster(one: Measurement, _: ModelFile) -> str:
        baseline = baselines.get(_place(one))
        if baseline is None or one.model == first:
            return NONE if baseline is None else "1"
        ratio, interval = speedup(baseline.latency_ms, one.latency_ms)
        return f"{ratio:.2f}" if interval is None else f"{ratio:.2f} ±{(interval[1] - interval[0]) / 2:.2f}"

    fixed: list[tuple[str, Cell]] = [
        ("model", lambda one, _: one.model),
        ("device", lambda one, _: one.device),
        ("batch", lambda one, _: str(one.batch_size)),
        ("threads", lambda one, _: str(one.threads)),
        ("p50 ms", lambda one, _: _figure(one.latency_ms.p50)),
        ("±", lambda one, _: _half_width(one)),
        ("p99 ms", lambda one, _: NONE if one.latency_ms.p99 is None else _figure(one.latency_ms.p99)),
        ("faster", faster),
    ]
    if len({one.batch_size for one in result.measurements}) > 1:  # else it is only what p50 says already
        fixed.append(("per s", lambda one, _: f"{one.throughput_per_s:,.0f}"))
    counts = sorted({key for one in result.measurements for key in one.throughput_by_streams or {}}, key=int)
    streams: list[tuple[str, Cell]] = [(f"per s ×{count}", _stream(count)) for count in counts]
    return [
        *fixed,
        *streams,
        ("peak MiB", lambda one, _: NONE if one.memory_mib.peak_rss is None else f"{one.memory_mib.peak_rss:.0f}"),
        ("mJ", lambda one, _: NONE if one.energy_mj is None else _figure(one.energy_mj)),
        ("MiB", lambda _, model: _figure(model.size_bytes / 2**20)),
        ("accuracy", lambda _, model: NONE if model.accuracy is None else f"{model.accuracy:.4f}"),
    ]


def _stream(count: str) -> Cell:
    def cell(one: Measurement, _: ModelFile) -> str:
        rate = (one.throughput_by_streams or {}).get(count)
        return NONE if rate is None else f"{rate:,.0f}"

    return cell


def _place(one: Measurement) -> tuple[Any, ...]:
    return one.device, one.batch_size, one.threads


def _half_width(one: Measurement) -> str:
    interval = one.latency_ms.p50_ci95
    if interval is None:
        return NONE
    return f"{(interval[1] - interval[0]) / (interval[1] + interval[0]):.1%}"


def _figure(value: float) -> str:
    """Return three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 10 else f"{value:.3f}" if value >= 0.1 else f"{value:.4f}"
