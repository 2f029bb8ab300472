"""The run directory: whole files or none, one writer at a time."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdexport.artifacts import RunDirectory, read_json, temporary_of, write_atomically, write_json, write_text
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
    assert len(list(tmp_path.iterdir())) == 2
    with RunDirectory(tmp_path).lock():  # the next run finds what the dead one has left, and removes it
        assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "weights.bin"]


def test_what_others_are_writing_stays(tmp_path: Path) -> None:
    """Another process that lives, another machine, and a name that is the user's."""
    host = temporary_of(tmp_path / "a.pt").name.split(".")[2].partition("-")[0]
    theirs = [f".a.{host}-1.tmp.pt", ".a.00000000-99999999.tmp.pt", ".a.tmp.pt", ".a.12.tmp"]
    stale = [f".a.{host}-{os.getpid()}.tmp.pt", f".a.{host}-99999999.tmp", f"cache/.b.{host}-99999999.tmp.u8"]
    (tmp_path / "cache").mkdir()
    for name in (*theirs, stale[0], stale[2]):
        (tmp_path / name).write_text("half")
    (tmp_path / stale[1] / "inner").mkdir(parents=True)  # a graph with its weights beside it
    RunDirectory(tmp_path).prepare()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([*theirs, "cache"])
    assert not any((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("then", ["nothing", "a write", "while it writes", "made anew", "another fault"])
def test_a_directory_that_is_taken_away_ends_the_run_that_holds_it(then: str, tmp_path: Path) -> None:
    """It was made again by the next write: exit 0, a report and no model."""
    root = tmp_path / "run"

    def run() -> None:
        with RunDirectory(root).lock():
            if then == "while it writes":  # that made the folder again, with one file in it that is nobody's

                def write(temporary: Path) -> None:
                    shutil.rmtree(root)
                    root.mkdir()
                    temporary.write_text("{}")

                write_atomically(root / "metrics.jsonl", write)
            shutil.rmtree(root)
            if then == "a write":
                write_text(root / "checkpoints" / "a.json", "{}")
            elif then == "made anew":
                root.mkdir()
                (root / ".lock").touch()
            elif then == "another fault":
                raise ValueError("a file that is not there")

    with pytest.raises(KDExportError, match="was taken away while it was used") as caught:
        run()
    assert "same command again" in caught.value.hint
    assert root.exists() == (then in ("made anew", "while it writes"))
    with RunDirectory(root).lock():
        write_text(root / "a.json", "{}")


def test_a_folder_in_the_place_of_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.json" / "inner").mkdir(parents=True)
    with pytest.raises(KDExportError, match=r"a\.json could not be written") as caught:
        write_text(tmp_path / "a.json", "{}")
    assert "remove the folder" in caught.value.hint


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


@pytest.mark.parametrize("name", ["report.html", "export.json", "student.int8.onnx", "checkpoints/student/done.json"])
def test_a_folder_in_a_files_place_is_told_before_anything_is_trained(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir(parents=True)
    with (
        pytest.raises(KDExportError, match=f"{name} would be written, and a folder") as caught,
        RunDirectory(tmp_path).lock(),
    ):
        pass
    assert "remove the folder" in caught.value.hint
    assert not (tmp_path / ".lock").exists()


def test_two_runs_in_one_directory(tmp_path: Path) -> None:
    first, second = RunDirectory(tmp_path), RunDirectory(tmp_path)
    who = rf"another kdexport \(process {os.getpid()} on .+\) is at work in"
    with first.lock(), pytest.raises(KDExportError, match=who), second.lock():
        pass
    with second.lock():  # free again
        pass
    assert (tmp_path / ".lock").read_bytes() == b""


def test_a_recipe_that_was_damaged_is_replaced_and_comes_back_as_it_was_where_the_run_fails(tmp_path: Path) -> None:
    directory, damaged = RunDirectory(tmp_path), b"name = 'a'\n\0\xff} more"
    directory.recipe.write_bytes(damaged)

    def run() -> None:
        with directory.holding("name = 'b'\n"):
            assert directory.recipe.read_text() == "name = 'b'\n"
            raise KDExportError("no", hint="stop")

    with pytest.raises(KDExportError):
        run()
    assert directory.recipe.read_bytes() == damaged


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
