"""Every command in bad surroundings: a full disk, no rights, no HOME, names that are no text, a clock set back.

    sudo python benchmarks/surroundings.py [--only ROOM... ] [--commands NAME...]     # an hour on two cores; resumes

Each cell is a process of its own that carries one command out on a fully connected pair of digits, in a mount namespace
that only this script sees. A full disk is a tmpfs of stepped sizes, or of stepped numbers of files: what is written
k-th finds no room, and nothing after it does. Rights are taken by dropping the capabilities that let root pass.

Must hold: exit 0 with a right result (weights, ONNX files and pages byte for byte), or exit 1 or 2 with one message and
a hint; no traceback; JSON whole; no temporary file left; and the same command, given again in sane surroundings, ends
with the undisturbed run's bytes.
"""

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tiny_net import NETS

RESULTS = Path(__file__).parent / "results"
SECONDS = 240  # a command, at most: the machine may be busy
RECIPE = """name = "tiny"
[data]
source = "npz:digits.npz"
[teacher]
model = "nets.py:Net"
args = { width = 24 }
[teacher.train]
epochs = 2
[student]
model = "nets.py:Net"
[distill]
epochs = 2
baseline = false
[export]
quantize = ["int8"]
[bench]
min_seconds = 0.05
max_seconds = 0.1
rounds = 1
[search]
budget = { size_mib = 0.05 }
min_epochs = 1
finalists = { count = 1 }
[[search.space]]
model = "nets.py:Net"
args = { width = [4, 8] }
"""
SHORT = ("--min-seconds", "0.05", "--max-seconds", "0.1", "--rounds", "1")
# What a command is given, where i is the folder of its inputs and o that of its output; and what must not vary.
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "run": (("run", "{i}/recipe.toml", "--out={o}/run"), ("run/*.safetensors", "run/*.onnx")),
    "distill": (("distill", "{i}/recipe.toml", "--out={o}/run"), ("run/*.safetensors",)),
    "export": (
        ("export", "{i}/nets.py:Net", "--weights={i}/student.safetensors", "--onnx", "--quantize=int8",
         "--data=npz:{i}/digits.npz", "--out={o}/net.onnx"),
        ("*.onnx",),
    ),
    "bench": (("bench", "{i}/teacher.onnx", "{i}/student.onnx", *SHORT, "--out={o}/bench.json"), ()),
    "serve": (("bench", "{i}/student.onnx", "--serve", "--timeout=60", "--out={o}/bench.json"), ()),
    "pack": (("bench", "{i}/student.onnx", "--pack={o}/bench.pyz"), ()),
    "evaluate": (("evaluate", "{i}/student.onnx", "--data=npz:{i}/digits.npz"), ()),
    "report": (("report", "{i}/bench.json", "--out={o}/report"), ("report/report.md",)),
    "search": (("search", "{i}/recipe.toml", "--out={o}/search"), ("search/picked/*.safetensors",)),
    "init": (("init", "digits", "{o}/pair"), ("pair/*",)),
    "doctor": (("doctor",), ()),
}  # fmt: skip
WRITES = tuple(name for name in COMMANDS if name not in ("evaluate", "doctor"))
INTERRUPTED = {"serve": (130, 143)}  # it waits for devices until it is ended
ODD_NAMES = {
    "spaces": "a b  c",
    "letters beyond Latin": "数字 Ünï العربية",
    "quotes": 'it\'s "so" `x` $(y)',
    "a leading dash": "-rf",
    "a newline": "a\nb",
    "brackets of markup": "[red][link=x]",
    "5,000 characters": "n" * 5000,
    "bytes that are not UTF-8": os.fsdecode(b"caf\xe9"),
}


@dataclass
class Start:
    """How one command is started; a room changes it."""

    folder: Path
    arguments: list[str]
    environment: dict[str, str]
    before: list[str] = field(default_factory=list)  # a command that starts the command
    shell: str = 'exec "$@"'  # so that a signal reaches the command, and no shell in its place
    fresh: bool = False  # an interpreter of its own: what is read while it starts matters
    during: Callable[["Start", int], None] = lambda _start, _pid: None
    stderr: bool = True  # whether it can be seen

    @property
    def out(self) -> Path:
        return self.folder / "out"


Room = Callable[[Start], contextlib.AbstractContextManager[None]]


def shell(*command: Any) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr}")


@contextlib.contextmanager
def mounted(place: Path, *arguments: str, read_only: bool = False) -> Iterator[None]:
    shell("mount", *arguments, place)
    try:
        if read_only:
            shell("mount", "-o", "remount,bind,ro", place)
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


def small_disk(part: str, **limits: int) -> Room:
    """The folder is a disk of its own of some bytes or files; its content is kept when it goes."""

    @contextlib.contextmanager
    def room(start: Start) -> Iterator[None]:
        place, kept = start.folder / part, start.folder / f"{part}.kept"
        options = ",".join(f"{name}={value}" for name, value in limits.items())
        with mounted(place, "-t", "tmpfs", "-o", options, "none"):
            yield
            shutil.copytree(place, kept, symlinks=True)
        shutil.rmtree(place)
        kept.rename(place)

    return room


def read_only(part: str) -> Room:
    @contextlib.contextmanager
    def room(start: Start) -> Iterator[None]:
        place = start.folder / part
        with mounted(place, "--bind", str(place), read_only=True):
            yield

    return room


@contextlib.contextmanager
def no_temporary_folder(start: Start) -> Iterator[None]:
    """Nothing can be written but the output."""
    start.fresh = True
    start.environment.pop("TMPDIR")
    with contextlib.ExitStack() as stack:
        stack.enter_context(mounted(start.out, "--bind", str(start.out)))  # stays as it is within the others
        for place in (Path("/tmp"), Path("/var/tmp"), start.folder):
            stack.enter_context(mounted(place, "--rbind", str(place), read_only=True))
        yield


def without_rights(part: str, mode: int) -> Room:
    @contextlib.contextmanager
    def room(start: Start) -> Iterator[None]:
        place = start.folder / part
        start.before, start.fresh = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"], True
        former = place.stat().st_mode
        place.chmod(mode)
        try:
            yield
        finally:
            place.chmod(former)

    return room


def environment(**changes: str | None) -> Room:
    @contextlib.contextmanager
    def room(start: Start) -> Iterator[None]:
        start.fresh = True
        for name, value in changes.items():
            start.environment.pop(name, None)
            if value is not None:
                start.environment[name] = value.replace("{folder}", str(start.folder))
        yield

    return room


def started_by(text: str, *, stderr: bool = True) -> Room:
    """The command is started by a line of shell, in which it is ``"$@"``."""

    @contextlib.contextmanager
    def room(start: Start) -> Iterator[None]:
        start.fresh, start.shell, start.stderr = True, text, stderr
        yield

    return room


def deleted(after_files: int) -> Room:
    """All that is written is deleted once there are so many files of it."""

    @contextlib.contextmanager
    def room(start: Start) -> Iterator[None]:
        gone = False

        def during(start: Start, _pid: int) -> None:
            nonlocal gone
            found = [path for path in start.out.rglob("*") if path.is_file()]
            if not gone and len(found) >= after_files:
                for place in start.out.iterdir():
                    shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink()
                gone = True

        start.during = during
        yield

    return room


def clock(when: str | int, *, later: bool = False) -> Room:
    """The clock says a date, or is so many seconds off; with ``later`` from when the first weights are written."""
    shift = when if isinstance(when, int) else int(datetime.fromisoformat(when).timestamp() - time.time())

    @contextlib.contextmanager
    def room(start: Start) -> Iterator[None]:
        library, place = start.folder / "other_clock.so", start.folder / "clock"
        shell("cc", "-shared", "-fPIC", "-O1", "-o", library, Path(__file__).with_name("other_clock.c"), "-ldl")
        place.write_bytes(struct.pack("q", 0 if later else shift))
        start.fresh = True
        start.environment |= {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(place)}

        def during(start: Start, _pid: int) -> None:
            if later and any(start.out.rglob("*.safetensors")):
                with place.open("r+b") as kept:  # in its place: the processes have it mapped
                    kept.write(struct.pack("q", shift))

        start.during = during
        yield

    return room


def named(name: str, part: str) -> Room:
    """The folder of the inputs or of the output has an odd name."""

    @contextlib.contextmanager
    def room(start: Start) -> Iterator[None]:
        start.fresh = not name.isascii()
        start.arguments = [re.sub(rf"(^|[=:]){part}/", rf"\g<1>{ESCAPED}/", one) for one in start.arguments]
        start.arguments = [one.replace(ESCAPED, name) for one in start.arguments]
        if name.startswith("-"):  # as a word of its own it would be an option
            start.arguments = [f"./{one}" if one.startswith(name) else one for one in start.arguments]
        link = None
        if len(name) < 200 and "/" not in name:
            link = start.folder / name
            link.symlink_to(start.folder / part)
        yield
        if link is not None:
            link.unlink()

    return room


ESCAPED = "\0name\0"


def rooms() -> dict[str, tuple[Room, tuple[str, ...]]]:
    """Return each kind of surroundings and the commands that have sense there."""
    every = tuple(COMMANDS)
    most = tuple(name for name in every if name not in ("run", "search"))  # their parts are here one by one
    made: dict[str, tuple[Room, tuple[str, ...]]] = {"none": (lambda _: contextlib.nullcontext(), every)}
    steps = {
        "run": range(4, 400, 44), "distill": range(1, 100, 7), "export": range(1, 30, 4), "bench": (1, 8, 13),
        "serve": (1, 2), "pack": (1, 8, 20, 40), "report": (1, 6, 12, 24, 30, 40), "init": (1, 2, 4, 8),
        "search": (*range(8, 500, 90), *range(110, 180, 10)),  # closer together while candidates train
    }  # fmt: skip
    for pages in sorted({pages for some in steps.values() for pages in some}):
        chosen = tuple(name for name, some in steps.items() if pages in some)
        made[f"disk of {pages * 4} KiB"] = (small_disk("out", size=pages * 4096), chosen)
    files = {
        "run": (6, 17, 28, 33), "distill": range(2, 24, 2), "export": (2, 3, 4, 5), "bench": (1, 2), "pack": (1, 2),
        "report": range(2, 9), "search": (8, 30, 60), "init": (2, 4, 6),
    }  # fmt: skip
    for count in sorted({count for some in files.values() for count in some}):
        chosen = tuple(name for name, some in files.items() if count in some)
        made[f"disk of {count} files"] = (small_disk("out", nr_inodes=count), chosen)
    for size in (4, 12, 20, 28, 40):
        made[f"temporary folder of {size} KiB"] = (
            small_disk("tmp", size=size * 1024), ("run", "export", "bench", "pack"),
        )  # fmt: skip
    made["files of at most 8 KiB"] = (
        started_by('ulimit -f 8; exec "$@"'), ("run", "export", "bench", "pack", "report", "search", "init"),
    )  # fmt: skip
    made["at most 18 open files"] = (
        started_by('ulimit -n 18; exec "$@"'),
        ("run", "export", "bench", "evaluate", "search"),
    )
    made["output read-only"] = (read_only("out"), WRITES)
    made["inputs read-only"] = (read_only("in"), every)
    made["no rights in the output"] = (without_rights("out", 0o555), (*(n for n in most if n in WRITES), "run"))
    for name in ("recipe.toml", "digits.npz", "nets.py", "student.onnx", "student.safetensors", "bench.json"):
        users = {
            "recipe.toml": ("run", "distill", "search"), "digits.npz": ("distill", "export", "evaluate", "search"),
            "nets.py": ("run", "export"), "student.onnx": ("bench", "serve", "pack", "evaluate"),
            "student.safetensors": ("export",), "bench.json": ("report",),
        }  # fmt: skip
        made[f"no rights to read {name}"] = (without_rights(f"in/{name}", 0o000), users[name])
    made["no rights in the cache folder"] = (
        _both(without_rights("home", 0o000), environment(HOME="{folder}/home")), ("distill", "evaluate", "doctor"),
    )  # fmt: skip
    for count in (1, 3, 6, 9, 12):
        made[f"output deleted after {count} files"] = (deleted(count), ("distill", "run", "search"))
    made["output deleted after 1 file of the result"] = (deleted(1), ("export", "report"))
    made["clock of 1971"] = (clock("1971-01-02"), (*most, "run"))
    made["clock of 2050"] = (clock("2050-01-02"), ("run", "report", "init", "serve", "pack"))
    made["clock set back by 30 days meanwhile"] = (clock(-30 * 86400, later=True), ("run", "search", "distill"))
    made["TMPDIR missing"] = (environment(TMPDIR="/nonexistent/tmp"), most)
    made["no folder for temporary files"] = (no_temporary_folder, (*most, "run"))
    made["no HOME"] = (environment(HOME=None), most)
    made["HOME missing"] = (environment(HOME="/nonexistent"), (*most, "run", "search"))
    made["LC_ALL=C without UTF-8"] = (
        environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"), (*most, "run", "search"),
    )  # fmt: skip
    for name, text in ODD_NAMES.items():
        made[f"output with {name}"] = (named(text, "out"), WRITES if name != "brackets of markup" else ("report",))
        made[f"inputs with {name}"] = (named(text, "in"), tuple(n for n in most if n not in ("init", "doctor")))
    for name in ("letters beyond Latin", "bytes that are not UTF-8"):
        plain = environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
        made[f"output with {name}, LC_ALL=C"] = (_both(named(ODD_NAMES[name], "out"), plain), ("distill", "report"))
    made["stdout closed"] = (started_by('exec "$@" >&-'), (*most, "run", "search"))
    made["stdout full"] = (started_by('exec "$@" >/dev/full'), (*most, "run", "search"))
    made["stdout read one line of"] = (started_by('trap : TERM; "$@" | head -n 1; exit ${PIPESTATUS[0]}'), most)
    made["stderr closed"] = (started_by('exec "$@" 2>&-', stderr=False), most)
    made["stderr full"] = (started_by('exec "$@" 2>/dev/full', stderr=False), most)
    made["stdin closed"] = (started_by('exec "$@" <&-'), most)
    made["all three closed"] = (started_by('exec "$@" <&- >&- 2>&-', stderr=False), ("run", "bench", "init"))
    made["TERM=dumb, COLUMNS=1"] = (environment(TERM="dumb", COLUMNS="1"), most)
    made["COLUMNS=-5"] = (environment(COLUMNS="-5", LINES="x"), ("bench", "report", "doctor"))
    return made


def _both(*several: Room) -> Room:
    @contextlib.contextmanager
    def room(start: Start) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for one in several:
                stack.enter_context(one(start))
            yield

    return room


def prepare(seed: Path) -> None:
    """Make the inputs of all commands, once."""
    if (seed / "bench.json").is_file():
        return
    seed.mkdir(parents=True, exist_ok=True)
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures, labels = (digits.images * 15).astype(np.uint8)[..., None], digits.target
    np.savez(
        seed / "digits.npz",
        x_train=pictures[:600],
        y_train=labels[:600],
        x_test=pictures[600:900],
        y_test=labels[600:900],
    )
    (seed / "nets.py").write_text(NETS)
    (seed / "recipe.toml").write_text(RECIPE)
    command = [sys.executable, "-m", "kdexport", "run", "recipe.toml", "--out", "run"]
    subprocess.run(command, cwd=seed, check=True, capture_output=True)
    for name in ("teacher.onnx", "student.onnx", "student.safetensors", "bench.json"):
        shutil.copyfile(seed / "run" / name, seed / name)
    shutil.rmtree(seed / "run")


def carried_out(start: Start, log: Path) -> tuple[int, str, str]:
    """Carry the command out and return its exit code, stdout and stderr."""
    out, err = log.with_suffix(".out"), log.with_suffix(".err")
    with out.open("wb") as stdout, err.open("wb") as stderr:
        if start.fresh:
            command = [*start.before, sys.executable, "-m", "kdexport", *start.arguments]
            pid = subprocess.Popen(
                ["bash", "-c", start.shell, "bash", *map(os.fsencode, command)], stdin=subprocess.DEVNULL,
                stdout=stdout, stderr=stderr, cwd=start.folder, env=start.environment, start_new_session=True,
            ).pid  # fmt: skip
        else:
            pid = _forked(start, stdout.fileno(), stderr.fileno())
        began, served = time.monotonic(), False
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
            start.during(start, pid)
            text = err.read_text(errors="replace")
            if "--serve" in start.arguments and not served and "Ctrl-C ends it" in text:
                _page_of(text)
                served = True
                os.killpg(pid, signal.SIGTERM)
            elif "--serve" in start.arguments and not start.stderr and not served and time.monotonic() - began > 15:
                served = True
                os.killpg(pid, signal.SIGTERM)
            if time.monotonic() - began > SECONDS:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status), out.read_text(errors="replace"), err.read_text(errors="replace")


def _page_of(text: str) -> None:
    """Open the page that is served."""
    found = re.search(r"http://127\.0\.0\.1:\d+/\S*", text)
    if found:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(found[0], timeout=20).read()


def _forked(start: Start, stdout: int, stderr: int) -> int:
    """Start the command in a copy of this process, which has the libraries loaded: that halves the script's time."""
    import atexit

    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.chdir(start.folder)
        os.environ.clear()
        os.environ.update(start.environment)
        import tempfile

        tempfile.tempdir = None
        sys.argv = ["kdexport", *start.arguments]
        from kdexport.cli import main

        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:  # noqa: BLE001 - as the interpreter does
            import traceback

            traceback.print_exc()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def begin(work: Path, command: str) -> Start:
    """Lay out a case's folder."""
    folder = work / "case"
    if folder.exists():
        shutil.rmtree(folder)
    for name in ("out", "tmp", "home"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(work / "seed", folder / "in")
    return sane(folder, command)


def sane(folder: Path, command: str) -> Start:
    """Return a command in surroundings as they should be."""
    given = [part.replace("{i}", "in").replace("{o}", "out") for part in COMMANDS[command][0]]
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "LC_ALL")}
    return Start(folder, given, {**kept, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"})


def stable(start: Start, command: str) -> dict[str, str]:
    """Return the hashes of what the command must always write alike."""
    return {
        str(path.relative_to(start.out)): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for pattern in COMMANDS[command][1]
        for path in sorted(start.out.glob(pattern))
        if path.is_file()
    }


def unclean(start: Start) -> str:
    """Say what is half-written or left over, or nothing."""
    for path in (*start.out.rglob("*"), *start.folder.joinpath("tmp").rglob("*")):
        if ".tmp" in path.name or (path.parent == start.folder / "tmp" and not path.name.startswith("torchinductor_")):
            return f"left behind: {path.relative_to(start.folder)}"
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".jsonl":
                [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            return f"not JSON: {path.relative_to(start.folder)}: {error}"
    return ""


def fault_of(start: Start, command: str, code: int, out: str, err: str, expected: dict[str, str] | None) -> str:
    """Say how the end of a command breaks what must hold, or nothing."""
    if "Traceback" in out + err or "Exception ignored" in err:
        return "traceback"
    if code == 0 or code in INTERRUPTED.get(command, ()):
        if expected is not None and stable(start, command) != expected:
            return "exit 0 and another result"
        return unclean(start)
    broken_pipe = "head" in start.shell and code in (1, 141)  # whoever reads has enough: as any other command
    if code not in (1, 2) and not broken_pipe:
        return f"exit {code}"
    if start.stderr and not broken_pipe and not re.search(r"^hint: \S|^Error: |Usage: |usage: ", err, re.MULTILINE):
        return "no hint"
    if err.count("\nerror: ") + err.startswith("error: ") > 1:
        return "two messages"
    return unclean(start)


def case(work: Path, room: Room, command: str, expected: dict[str, str] | None) -> dict[str, Any]:
    """Carry out one cell: in the surroundings, then, where it failed there, again in sane ones."""
    start, log = begin(work, command), Path("/dev/shm") / f"kdexport-surroundings-{os.getpid()}"  # never read-only
    with room(start):
        code, out, err = carried_out(start, log)
        message = next((line[7:] for line in err.splitlines() if line.startswith("error: ")), "")
        if not message and code:  # a usage error, which Typer frames; or none of ours
            lines = [line.strip("│ ") for line in err.splitlines() if line.strip("│╭╰─╮╯ ")]
            message = (lines or [""])[-1]
        fault = fault_of(start, command, code, out, err, expected) if os.access(start.out, os.R_OK) else ""
    if not fault:
        fault = fault_of(start, command, code, out, err, expected if code == 0 and start.out.is_dir() else None)
    again = None
    left = start.out.is_dir() and any(path.is_file() and path.stat().st_size for path in start.out.rglob("*"))
    if code and code not in INTERRUPTED.get(command, ()) and not fault and left:  # else it would be undisturbed
        plain = sane(start.folder, command)
        plain.arguments += ["--force"] if command == "export" and any(start.out.glob("*.onnx")) else []
        again, out, err = carried_out(plain, log)
        if again not in (0, *INTERRUPTED.get(command, ())):
            fault = f"in sane surroundings: exit {again}: {(err.strip().splitlines() or [''])[-1]}"
        else:
            fault = fault_of(plain, command, again, out, err, expected)
            fault = fault and f"in sane surroundings: {fault}"
    if fault:
        shutil.copyfile(log.with_suffix(".err"), work / f"{time.time():.0f}.err")
    return {
        "exit": code,
        "message": shown(message, work),
        "again": again,
        "fault": fault,
    }


def shown(message: str, work: Path) -> str:
    """Return a message without where this machine keeps things."""
    for place in (work, Path(__file__).resolve().parents[1]):
        message = message.replace(str(place), "")
    return message[:200]


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the results as Markdown: a line for each kind of surroundings."""
    faults = [name for name, one in found.items() if one["fault"]]
    lines = [
        f"# {len(found)} commands in bad surroundings, {len(faults)} faults", "",
        "Exit code of each; where it is not 0 and something had been written, the same command ended with the "
        "undisturbed run's bytes afterwards.", "",
        "| surroundings | " + " | ".join(COMMANDS) + " | message, for one |", "|---|" + "---|" * (len(COMMANDS) + 1),
    ]  # fmt: skip
    for room in dict.fromkeys(name.partition(" / ")[0] for name in found):
        cells = {command: found.get(f"{room} / {command}") for command in COMMANDS}
        shown = [
            "" if one is None else f"**{one['fault']}**" if one["fault"] else str(one["exit"]) for one in cells.values()
        ]
        message = next((one["message"] for one in cells.values() if one is not None and one["message"]), "")
        message = message.replace("|", "\\|").replace("`", "'").replace("\n", " ")
        message = f"{message[:60]}...{message[-40:]}" if len(message) > 104 else message
        lines.append(f"| {room} | {' | '.join(shown)} | {f'`{message}`' if message else ''} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="ROOM", help="Kinds of surroundings that hold one of these words.")
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS))
    parser.add_argument("--again", action="store_true", help="Do again what has had a fault.")
    parser.add_argument("--redo", action="store_true", help="Do again what has been done, on today's code.")
    parser.add_argument("--work", type=Path, default=Path("runs/surroundings"))
    parser.add_argument("--smoke", action="store_true", help="Does it run? Nothing is kept.")
    asked = parser.parse_args()
    if ctypes.CDLL(None, use_errno=True).unshare(0x20000) or os.geteuid():  # CLONE_NEWNS
        raise SystemExit("needs root and mount namespaces: sudo")
    shell("mount", "--make-rprivate", "/")
    os.environ["OMP_NUM_THREADS"] = "1"  # sums of several threads differ in their last bits
    work = asked.work.resolve()
    prepare(work / "seed")
    from kdexport.progress import SILENT, load

    for module in ("torch", "onnxruntime", "onnx_ir", "onnxscript", "accelerate", "kdexport.pipeline"):
        load(module, SILENT)
    kept = (work if asked.smoke else RESULTS) / "surroundings.json"
    found: dict[str, dict[str, Any]] = json.loads(kept.read_text())["cells"] if kept.is_file() else {}
    bytes_file = work / "undisturbed.json"  # of this machine alone
    undisturbed: dict[str, dict[str, str]] = json.loads(bytes_file.read_text()) if bytes_file.is_file() else {}
    for name, (room, commands) in rooms().items():
        for command in commands:
            cell = f"{name} / {command}"
            wanted = (asked.only is None or any(word in name for word in asked.only)) and (
                asked.commands is None or command in asked.commands
            )
            done = cell in found and not asked.redo and not (asked.again and found[cell]["fault"])
            if not wanted or (done and not (name == "none" and command not in undisturbed)):
                continue
            began = time.monotonic()
            found[cell] = case(work, room, command, undisturbed.get(command))
            if name == "none":
                undisturbed[command] = stable(Start(work / "case", [], {}), command)
                bytes_file.write_text(json.dumps(undisturbed))
            print(f"{cell}: {found[cell]} {time.monotonic() - began:.0f} s", flush=True)
            ordered = {
                f"{room} / {one}": found[f"{room} / {one}"]
                for room, (_, some) in rooms().items()
                for one in some
                if f"{room} / {one}" in found
            }
            kept.write_text(
                json.dumps({"benchmark": "surroundings", "cells": ordered}, indent=1) + "\n", encoding="utf-8"
            )
            kept.with_suffix(".md").write_text(table(ordered), encoding="utf-8")
    faults = [cell for cell, one in found.items() if one["fault"]]
    print(f"{len(found)} cells, faults: {faults or 'none'}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
