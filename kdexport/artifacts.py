"""The run directory: every path that it may hold, and the one way to write into it.

A file is either whole or absent: everything is written beside its final name, flushed to the disk, then renamed. What
a killed process was writing is left beside it under a name that tells whose it is, and goes when the next run begins.
A directory that is taken away while a run holds it is not made again: that run ends, and says so.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kdexport.errors import KDExportError, StorageError

T = TypeVar("T")


RUN_LOCK = ".lock"
RUN_MARKS = (RUN_LOCK, "checkpoints", "distill.json", "export.json", "bench.json")  # of a directory that has a run
STALE = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)\.tmp(\..+)?")  # host and process of a temporary file
REPLACED = (  # by a run; infer.py is not
    *("recipe.toml", "metrics.jsonl", "card.md", "report.json", "report.md", "report.html"),
    *(f"{name}.{suffix}" for name in ("teacher", "student", "student-plain") for suffix in ("safetensors", "onnx")),
)


NETWORKS = ("student*.safetensors", "student*.onnx")  # whatever they are called: student.int8.onnx
FOLDER = "remove the folder of that name, then give the same command again"


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run. Making one touches nothing; see ``prepare``."""

    root: Path
    shared_cache: Path | None = None  # of several runs on the same data by the same teacher; None: its own

    @property
    def recipe(self) -> Path:
        """The resolved recipe: running it again gives the same run."""
        return self.root / "recipe.toml"

    @property
    def metrics(self) -> Path:
        """One JSON line per epoch."""
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Training state to resume from."""
        return self.root / "checkpoints"

    @property
    def cache(self) -> Path:
        """Teacher logits and decoded samples."""
        return self.shared_cache or self.root / "cache"

    @property
    def samples(self) -> Path:
        """Raw latency samples, in nanoseconds."""
        return self.root / "bench.samples.npz"

    def weights(self, network: str) -> Path:
        """Weights of ``teacher``, ``student`` or ``student-plain``."""
        return self.root / f"{network}.safetensors"

    def onnx(self, network: str, variant: str | None = None) -> Path:
        """The ONNX file of a network, or of its quantized variant."""
        return self.root / (f"{network}.{variant}.onnx" if variant else f"{network}.onnx")

    def stage(self, name: str) -> Path:
        """The result of one stage: ``distill``, ``export``, ``bench`` or ``report``."""
        return self.root / f"{name}.json"

    def report(self, suffix: str) -> Path:
        """The report as ``json``, ``md`` or ``html``."""
        return self.root / f"report.{suffix}"

    def prepare(self) -> None:
        """Make the directory, prove that it can be written to, and remove what killed processes left half-written.

        Raises:
            KDExportError: It cannot be.
        """
        check_held(self.root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
            if is_main():
                self._remove_stale()
        except OSError as error:
            raise StorageError(
                f"the run directory {self.root} cannot be written to: {error.strerror or error}",
                hint="choose another with --out DIR",
            ) from error

    def _remove_stale(self) -> None:
        """Remove temporary files of this machine's dead processes; others may be at work, here or elsewhere."""
        for pattern in (".*.tmp*", "cache/.*.tmp*", "checkpoints/*/.*.tmp*", "rungs/.*.tmp*"):
            for path in self.root.glob(pattern):
                made_by = STALE.fullmatch(path.name)
                if made_by and made_by[1] == _host() and not _lives(int(made_by[2])):
                    remove(path)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory alone: two runs in one directory would undo each other.

        The lock lives with the process; a killed run leaves none behind. Of processes that train together, the first
        holds it for all.

        Raises:
            KDExportError: Another run holds it, files of the user's would be replaced, or the directory was taken away
                meanwhile.
        """
        self.prepare()
        if not is_main():
            yield
            return
        self._check_own()
        place = self.root / RUN_LOCK
        with locked(place, wait=False) as holder:
            if holder is not None:
                raise KDExportError(
                    f"another kdexport{holder and f' ({holder})'} is at work in {self.root}",
                    hint="wait until it ends, or choose another directory with --out DIR",
                )
            with held(self.root, RUN_LOCK):
                yield

    def _check_own(self) -> None:
        """Hold that nothing of the user's would be replaced: files of a run's names where no run has been, or a folder.

        Raises:
            KDExportError: There are some.
        """
        for pattern in (*REPLACED, *RUN_MARKS[2:], *NETWORKS, "checkpoints/*/done.json"):
            if folder := next((path for path in self.root.glob(pattern) if path.is_dir()), None):
                raise StorageError(f"{folder} would be written, and a folder of that name is there", hint=FOLDER)
        if any((self.root / name).exists() for name in RUN_MARKS):
            return
        found = [name for name in REPLACED if (self.root / name).exists()]
        if found:
            raise KDExportError(
                f"{self.root} holds {', '.join(found)}, and no run of kdexport has been there: it would be replaced",
                hint="choose another directory with --out DIR, or move it elsewhere",
            )

    @contextlib.contextmanager
    def holding(self, recipe: str) -> Iterator[None]:
        """Hold the text of the resolved recipe while it is carried out; what was refused leaves the former one.

        Args:
            recipe: TOML with paths relative to this directory.
        """
        former = self.recipe.read_bytes() if self.recipe.is_file() else None
        write_text(self.recipe, recipe)
        try:
            yield
        except KDExportError:
            if former is not None:
                write_atomically(self.recipe, lambda temporary: temporary.write_bytes(former))
            raise


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[str | None]:
    """Hold a file's lock, in which the holder's process id stands; give None, or where another holds it, who that is.

    The lock is ``flock``'s: it ends with the process, however that ended, and Linux carries it to an NFS server too.

    Args:
        path: The file; made where it is absent.
        wait: Until it is free. Otherwise it may be held by another: nothing is held then.

    Raises:
        KDExportError: The file system has no locks, or the file cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be opened: {error.strerror}", hint="choose another directory with --out DIR"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):  # some network file systems say it that way
            yield os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            return
        except OSError as error:
            raise KDExportError(
                f"{path} cannot be locked: {error.strerror}",
                hint="a network file system without locks (NFS: mount it with its lock service, or with local_lock=all "
                "where one machine alone writes); or choose a directory on a local disk with --out DIR",
            ) from error
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        try:
            yield None
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def read_text(path: Path) -> str:
    """Return a file's UTF-8 text.

    Raises:
        OSError: It cannot be read, or is a pipe or a device, which may never end.
        UnicodeDecodeError: It is no text.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
    return path.read_text(encoding="utf-8")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None where the file is absent or holds anything else."""
    try:
        document = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl; what a kill cut off or another hand changed is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get("phase"), str) and isinstance(entry.get("epoch"), int):
            entries.append(entry)
    return entries


_held: dict[Path, tuple[Path, int]] = {}  # what stays in a directory that this process holds -> that, and its inode


@contextlib.contextmanager
def held(root: Path, mark: str) -> Iterator[None]:
    """Hold that a directory stays the one that it is, by what stays in it under a name (``.``: the directory itself).

    Raises:
        StorageError: It was taken away meanwhile, the reason before all others for whatever is missed then.
    """
    root = root.absolute()
    place = root / mark
    _held[place] = (root, place.stat().st_ino)
    try:
        yield
    except Exception:
        check_held(root)
        raise
    else:
        check_held(root)
    finally:
        del _held[place]


def check_held(path: Path) -> None:
    """Hold that the directory which a path is in, if this process holds one, is still the one that it took.

    Raises:
        StorageError: It was removed, moved away or made anew.
    """
    for place, (root, inode) in _held.items():
        if path.absolute().is_relative_to(root):
            try:
                there = place.stat().st_ino == inode
            except OSError:
                there = False
            if not there:
                raise StorageError(
                    f"the run directory {root} was taken away while it was used",
                    hint="give the same command again: it starts anew; or put the directory back, and it goes on there",
                )


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place in one step.

    A kill at any moment leaves the old file or the new one, whole. The temporary file keeps the suffix of ``path``.

    Raises:
        StorageError: The disk is full, the folder cannot be written to or was taken away; the old file is untouched.
    """
    check_held(path)
    temporary = temporary_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.chmod(_file_mode())  # some libraries write for the owner alone
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
        try:
            check_held(path)
        except StorageError:  # taken away since: what is written now would be left over there, as nobody's
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        hint = "free some space or choose another place with --out, then give the same command again"
        if path.is_dir():
            hint = FOLDER
        raise StorageError(f"{path} could not be written: {error.strerror or error}", hint=hint) from error
    finally:
        with contextlib.suppress(OSError):  # the folder itself may be what is wrong
            temporary.unlink(missing_ok=True)


def zip_entry(name: str) -> zipfile.ZipInfo:
    """Return a new entry of an archive, dated 1980: a board without a battery begins in 1970, which no zip can say."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    return entry


def temporary_of(path: Path) -> Path:
    """Return what a path is called until it is whole; the name tells whose it is, and keeps the suffix."""
    return path.with_name(f".{path.stem}.{_host()}-{os.getpid()}.tmp{path.suffix}")


def _host() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _lives(pid: int) -> bool:
    """Whether another process of this machine has an id; this one has written nothing yet when it asks."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return pid != os.getpid()


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there and can be removed."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; half a character (a lone surrogate) as its escape, which JSON reads back."""
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", "backslashreplace")))


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write an indented JSON document atomically."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def key_of(*parts: Any) -> str:
    """Return a short hash of JSON-able values: equal parts, equal key."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _file_mode() -> int:
    """Return the mode that the user's umask gives to a new file."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _sync_folder(folder: Path) -> None:
    """Flush a rename to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def rank() -> int:
    """Return this process's number among all, 0 where it is alone."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process writes the files that all share."""
    return rank() == 0
