"""How everything looks on a terminal."""

import io

import pytest

from kdexport.terminal import Column, fit, fitting, heading, line, table, warning


def printed(what: object, width: int) -> list[str]:
    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(what)
    return file.getvalue().splitlines()


FACTS = ("97.9 % val", "97.2 % agrees", "loss 0.204", "20 k/s", "4 s left")


@pytest.mark.parametrize(("width", "kept"), [(80, 5), (59, 5), (58, 4), (48, 4), (47, 3), (30, 2), (25, 1), (10, 1)])
def test_facts_are_dropped_from_the_right(width: int, kept: int) -> None:
    assert fit(FACTS, width) == " · ".join(FACTS[:kept])
    assert len(fit(FACTS, width)) <= width


def test_the_first_fact_is_cut_and_never_dropped() -> None:
    assert fit(FACTS, 6) == "97.9 …"
    assert fit((), 10) == ""
    assert fit(("", "a"), 10) == "a"


def test_text_from_outside_does_nothing_to_a_terminal() -> None:
    assert line("a\x1b[31mb\nc\x07") == "a [31mb c "
    assert printed(warning("[red]x"), 80) == ["! [red]x"]
    assert "[bold]m" in printed(table([Column("model", ["[bold]m"])]), 80)[-1]


def columns() -> list[Column]:
    return [
        Column("model", ["student-plain.int8"], left=True),
        Column("p50, ms", ["0.123"]),
        Column("memory", ["12.3 MiB"], spare=2),
        Column("size", ["27.1 KiB"], spare=1),
    ]


@pytest.mark.parametrize(("width", "names"), [(80, 4), (47, 4), (46, 3), (37, 3), (36, 2), (10, 2)])
def test_spare_columns_go_first_that_of_least_worth(width: int, names: int) -> None:
    everything = ["model", "p50, ms", "size", "memory"]
    assert {one.name for one in fitting(columns(), width)} == set(everything[:names])


@pytest.mark.parametrize("width", [80, 60, 40])
def test_a_table_is_never_wider_than_the_terminal_and_cuts_nothing(width: int) -> None:
    shown = printed(table(columns(), width=width), width)
    assert max(map(len, shown)) <= width
    assert "…" not in "".join(shown)
    assert "student-plain.int8" in shown[-1]
    assert "0.123" in shown[-1]


def test_a_long_name_folds_and_the_figures_stay_whole() -> None:
    name = "a-very-long-name-of-a-file-in-some-folder/" * 3
    shown = printed(table([Column("file", [name], left=True, folds=True), Column("size", ["27.1 KiB"])]), 60)
    assert max(map(len, shown)) <= 60
    assert "27.1 KiB" in shown[2]
    assert "".join(row.removesuffix("27.1 KiB").strip() for row in shown[2:]) == name


def test_a_long_heading_stands_in_lines() -> None:
    assert heading("mean average precision") == "mean\naverage\nprecision"
    assert heading("accuracy") == "accuracy"
