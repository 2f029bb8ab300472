"""What long work shows on a terminal."""

import contextlib
import importlib.metadata
import io
import re
import sys
import threading

import pytest

from kdexport import progress as progress_module
from kdexport.errors import KDExportError
from kdexport.progress import for_terminal


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 80 columns, to be put where stderr goes."""
    for name, value in {"TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    return Terminal()


def test_bars_go_on_while_a_stage_catches_what_a_library_prints(terminal: Terminal) -> None:
    with contextlib.redirect_stderr(terminal):
        progress = for_terminal(quiet=False)
        with progress.task("export", 2) as task, contextlib.redirect_stderr(io.StringIO()) as caught:
            task.advance(note="student")
            progress.message("a fact")
    assert caught.getvalue() == ""
    assert "a fact" in terminal.getvalue()


# Between the column of names and the next: rich before 14.3 adds its padding to a column's least width.
GAP = " " * (1 if tuple(map(int, importlib.metadata.version("rich").split(".")[:2])) >= (14, 3) else 2)
FACTS = ("97.9 % val", "97.2 % agrees", "loss 0.204", "20 k/s")


def last_line(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).rstrip().splitlines()[-1].rstrip()


def training_line(terminal: Terminal, facts: tuple[str, ...] = FACTS) -> str:
    with contextlib.redirect_stderr(terminal), for_terminal(quiet=False).task("student-plain", 60, still=True) as task:
        for _ in range(14):
            task.advance(1, note=facts)
        return last_line(terminal.getvalue())


def test_a_training_stands_whole_in_80_columns(terminal: Terminal) -> None:
    line = training_line(terminal)
    whole = f"student-plain{GAP}14/60 97.9 % val · 97.2 % agrees · loss 0.204 · 20 k/s · "
    assert re.fullmatch(re.escape(whole) + r"\d s left", line), line
    assert len(line) <= 80


def test_what_has_no_room_is_dropped_from_the_right(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert training_line(terminal) == f"student-plain{GAP}14/60 97.9 % val · 97.2 % agrees · loss 0.204"


def test_a_wide_terminal_has_a_bar(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    line = training_line(terminal)
    assert re.match(rf"student-plain{GAP}━+╸? +14/60 97\.9 % val .* s left$", line), line
    assert len(line) <= 120


def test_a_finished_task_says_how_long_it_took_and_names_stand_in_a_column(terminal: Terminal) -> None:
    with contextlib.redirect_stderr(terminal):
        progress = for_terminal(quiet=False)
        for name in ("teacher", "student-plain"):
            with progress.task(name, 2, still=True) as task:
                task.advance(2, note="[x]")
    lines = [last_line(part) for part in terminal.getvalue().split("\n") if "2/2" in part]
    assert sorted(set(lines)) == [f"student-plain{GAP}2/2 [x] · 0 s", f"teacher      {GAP}2/2 [x] · 0 s"]


def test_a_warning_is_yellow_and_begins_with_a_mark(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR")
    with contextlib.redirect_stderr(terminal):
        for_terminal(quiet=False).warn("no [labels]\x1b[2J")
    assert "\x1b[33m! no [labels] [2J\x1b[0m" in terminal.getvalue()


def test_a_library_that_takes_long_to_load_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    monkeypatch.setattr(progress_module.importlib, "import_module", lambda _: told.append(capsys.readouterr().err))
    progress_module.load("sys", progress_module.PlainLines())
    progress_module.load("no_such_library", progress_module.PlainLines())
    assert len(told) == 1
    assert "loading no_such_library..." in told[0]


def test_a_still_task_is_drawn_where_it_is_advanced_and_has_no_thread(terminal: Terminal) -> None:
    threads = threading.active_count()
    with contextlib.redirect_stderr(terminal), for_terminal(quiet=False).task("measuring", 5, still=True) as task:
        assert threading.active_count() == threads
        task.advance(note="round 1")
        assert re.search(r"1/5 .*round 1", terminal.getvalue())
        task.advance(0, note="memory")
        assert re.search(r"1/5 .*memory", terminal.getvalue())


def test_plain_lines_tell_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = iter(range(0, 1000, 30))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: float(next(now)))
    with progress_module.PlainLines().task("student", 100) as task:
        task.advance(50, note="going on")  # of an earlier sitting: no measure of speed
        for _ in range(3):
            task.advance(0.25)
    lines = capsys.readouterr().err.splitlines()
    assert "left" not in lines[1]
    assert re.search(r"student 50\.2/100  going on · \d\.\d h left", lines[2])


def test_a_notebook_shows_bars_and_a_script_nothing(monkeypatch):
    assert progress_module.for_python() is progress_module.SILENT
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert isinstance(progress_module.for_python(), progress_module.Bars)


def test_a_library_that_cannot_be_loaded_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise ImportError("libtorch.so: failed to map segment from shared object")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(KDExportError, match="torch_of_no_one cannot be loaded: libtorch") as caught:
        progress_module.load("torch_of_no_one", progress_module.SILENT)
    assert "ulimit -v" in caught.value.hint
