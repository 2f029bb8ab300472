"""The run directory: whole files or none, one writer at a time."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdexport.artifacts import RunDirectory, read_json, write_atomically, write_json, write_text
from kdexport.errors import KDExportError


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")
    code = """
import os, signal, sys
from pathlib import Path
from kdexport.artifacts import write_atomically
def write(temporary):
    with temporary.open("wb") as handle:
        handle.write(b"n" * 1000)
        handle.flush()
        os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), write)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"new, cut off")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(KDExportError, match="No space left") as caught:
        write_atomically(path, write)
    assert "same command again" in caught.value.hint
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.bin"]
    assert path.read_bytes() == b"old"


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KDExportError, match="cannot be written") as caught:
        RunDirectory(tmp_path / "file" / "run").prepare()
    assert "--out" in caught.value.hint


def test_two_runs_in_one_directory(tmp_path: Path) -> None:
    first, second = RunDirectory(tmp_path), RunDirectory(tmp_path)
    who = rf"another kdexport \(process {os.getpid()} on .+\) is at work in"
    with first.lock(), pytest.raises(KDExportError, match=who), second.lock():
        pass
    with second.lock():  # free again
        pass
    assert (tmp_path / ".lock").read_bytes() == b""


@pytest.mark.parametrize(("fault", "said"), [(errno.ENOLCK, "NFS"), (errno.ENOTSUP, "local disk")])
def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault, said) -> None:
    def refuse(*_: int) -> None:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(KDExportError, match="cannot be locked") as caught, RunDirectory(tmp_path).lock():
        pass
    assert said in caught.value.hint


def test_json_that_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json") is None
    write_text(tmp_path / "list.json", "[1]")
    assert read_json(tmp_path / "list.json") is None


@pytest.mark.parametrize("name", ["recipe.toml", "card.md", "student.onnx", "teacher.safetensors"])
def test_files_of_the_users_are_not_replaced_by_a_run(name: str, tmp_path: Path) -> None:
    """A directory of one's own as --out: the recipe in it, and a model card, were written over."""
    (tmp_path / name).write_text("mine")
    for _ in range(2):  # the refusal leaves no mark that would let the second call pass
        with pytest.raises(KDExportError, match="and no run of kdexport") as caught, RunDirectory(tmp_path).lock():
            pass
        assert name in caught.value.message
        assert "--out" in caught.value.hint
    assert (tmp_path / name).read_text() == "mine"
    (tmp_path / name).unlink()
    (tmp_path / "notes.txt").write_text("mine")
    with RunDirectory(tmp_path).lock():
        (tmp_path / name).write_text("a run's")
    with RunDirectory(tmp_path).lock():
        pass


def test_half_a_character_is_written_as_its_escape(tmp_path: Path) -> None:
    document = {"name": "a\ud800b", "label": "é"}
    write_json(tmp_path / "a.json", document)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == document
