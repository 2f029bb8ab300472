"""How figures are written."""

import pytest

from kdexport import figures


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.0341, "34.1 µs"), (0.31, "0.310 ms"), (2.0, "2.00 ms"), (12.345, "12.3 ms"), (1234.0, "1.23 s"), (None, "n/a")],
)
def test_milliseconds(value, written: str) -> None:
    assert figures.ms(value) == written


def test_sizes_counts_ratios() -> None:
    assert figures.size(512) == "512 B"
    assert figures.size(27 * 1024) == "27.0 KiB"
    assert figures.size(1650 * 1024) == "1.61 MiB"
    assert figures.count(19_900) == "19.9 k"
    assert figures.times(5.04) == "5.0×"
    assert figures.times(1.05) == "1.05×"
    assert figures.times(0.7609) == "0.76×"
    assert figures.times(62.3) == "62.3×"
    assert figures.percent(0.98611) == "98.6 %"


def test_signs() -> None:
    assert figures.signed(0.44) == "+0.4"
    assert figures.signed(-0.31) == "−0.3"
    assert figures.signed(-0.01) == "0.0"
    assert figures.points_interval((-0.0004, 0.028)) == "−0.04 to +2.8"


def test_one_unit_for_a_column() -> None:
    assert figures.Unit.of([0.03, 0.3]).name == "µs"
    assert figures.Unit.of([0.3, 30.0]).name == "ms"
    assert figures.Unit.of([5000.0, 9000.0]).name == "s"
    assert figures.Unit.of([0.03, 0.3]).write(0.062) == "62.0"


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.5, "0.50/s"), (9.5, "9.5/s"), (263.4, "263/s"), (999, "1.0 k/s"), (19_900, "20 k/s"), (2.34e6, "2.3 M/s")],
)
def test_rates(value: float, written: str) -> None:
    assert figures.rate(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [(3.6, "4 s"), (99.4, "99 s"), (99.6, "2 min"), (720, "12 min"), (5_900, "98 min"), (11_520, "3.2 h")],
)
def test_durations(value: float, written: str) -> None:
    assert figures.duration(value) == written
