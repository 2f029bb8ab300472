"""What stdout cannot take: other encodings, a full disk, arguments that are no text."""

import codecs
import io
import json
import os
import signal
import sys
import time

import pytest
import typer

from kdexport import terminal
from kdexport.__main__ import main as program
from kdexport.cli.console import Console, as_ascii, command, prepare_streams
from kdexport.errors import KDExportError


def test_figures_keep_their_sign_where_a_terminal_has_ascii_alone() -> None:
    codecs.register_error("spelled", terminal.spelled)
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii", errors="spelled")
    stream.write("−60.4 points (−65.3 to −54.9), 0.63–0.69×, 12.3 µs ± 4 · ▶ ██▌ é")
    stream.flush()
    assert written.getvalue() == b"-60.4 points (-65.3 to -54.9), 0.63..0.69x, 12.3 us +/- 4 - > ### ?"


def test_every_sign_that_the_package_prints_has_a_spelling() -> None:
    assert set("−–×±µ·…▶✓✗≤≥█▉▊▋▌▍▎▏─") <= set(terminal.SPELLINGS)
    assert all(spelling.isascii() for spelling in terminal.SPELLINGS.values())


def test_json_for_ascii_holds_the_same_values() -> None:
    document = json.dumps({"straße": ["−1", "🙂", 'a"\\ü']}, ensure_ascii=False)
    assert as_ascii(document).isascii()
    assert json.loads(as_ascii(document)) == json.loads(document)


def test_stdout_on_a_full_disk_is_a_message_and_leaves_nothing_for_the_end() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device, not a file of ours
        with pytest.raises(KDExportError, match="could not be printed: stdout: No space left on device"):
            Console(json=False, quiet=False, verbose=False, stdout=full).result(None, "a table")
        full.flush()  # what was left of it went elsewhere


def test_an_argument_that_is_no_text_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kdexport", "bench", "m\udcff.onnx"])
    with pytest.raises(SystemExit) as stop:
        prepare_streams()
    assert stop.value.code == 1
    told = capsys.readouterr().err
    assert "an argument is not utf-8: 'm\\udcff.onnx'" in told
    assert "LC_ALL=C.UTF-8" in told
    monkeypatch.setattr(sys, "argv", ["kdexport", "bench", "größe 网.onnx"])
    prepare_streams()


@pytest.mark.parametrize("hidden", ["as another fault", "without a word"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupt_that_a_library_hides_is_told_as_one(
    number: int, code: int, hidden: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while torch imported a module: "cannot be exported: no attribute 'exc'", exit code 1; or it went on."""

    def run() -> None:
        with command(json=False, quiet=True, verbose=False, resumes=True) as console:
            try:
                signal.raise_signal(number)
            except KeyboardInterrupt:
                if hidden == "as another fault":
                    raise KDExportError("it cannot be exported", hint="see") from None
            with console.progress.task("teacher"):
                pytest.fail("the command went on")

    with pytest.raises(typer.Exit) as stop:
        run()
    assert stop.value.exit_code == code
    assert "error: interrupted\nhint: go on with: " in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)  # it is looked at before that is over


def test_sigterm_ends_a_command_as_ctrl_c_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as stop, command(json=False, quiet=True, verbose=False, resumes=True):
        _terminate()
    assert stop.value.exit_code == 143
    assert "error: interrupted\nhint: go on with: " in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_ctrl_c_while_the_command_line_is_imported_ends_it_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten lines of Typer's were shown; a shell sees 130 all the same."""
    handlers = []

    class Imported:
        def __getattr__(self, name: str) -> object:
            handlers.append(signal.getsignal(signal.SIGINT))
            return lambda: handlers.append(signal.getsignal(signal.SIGINT))

    monkeypatch.setitem(sys.modules, "kdexport.cli", Imported())
    program()
    assert handlers[-2:] == [signal.SIG_DFL, signal.default_int_handler]


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_stream_that_is_closed_takes_what_is_printed(monkeypatch, name):
    """`kdexport report bench.json >&-` ended in an AttributeError of None, after the files were written."""
    monkeypatch.setattr(sys, name, None)
    monkeypatch.setattr(sys, "argv", ["kdexport"])
    prepare_streams()
    with getattr(sys, name) as stream:
        assert stream.read() == "" if name == "stdin" else stream.write("text") == 4
