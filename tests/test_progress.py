"""What long work shows on a terminal."""

import contextlib
import io
import re
import sys
import threading

import pytest

from kdexport import progress as progress_module
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


def test_a_long_note_leaves_the_figures_whole(terminal: Terminal) -> None:
    with (
        contextlib.redirect_stderr(terminal),
        for_terminal(quiet=False).task("train student-plain", 60) as task,
    ):
        task.advance(14, note="loss 1.048, accuracy 0.951, agreement [0.930], 10,630/s")
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).rstrip().splitlines()[-1]
    assert re.match(r"train student-plain \S+ +14/60 \d:\d\d:\d\d \S\S:\S\S loss 1\.048, accuracy 0\.951.*…", last), (
        last
    )


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
    with progress_module.PlainLines().task("train student", 100) as task:
        task.advance(50, note="going on")  # of an earlier sitting: no measure of speed
        for _ in range(3):
            task.advance(0.25)
    lines = capsys.readouterr().err.splitlines()
    assert "left" not in lines[1]
    assert re.search(r"train student 50\.2/100  going on  \d+ min left", lines[2])


def test_a_notebook_shows_bars_and_a_script_nothing(monkeypatch):
    assert progress_module.for_python() is progress_module.SILENT
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert isinstance(progress_module.for_python(), progress_module.Bars)
