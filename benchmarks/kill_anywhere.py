"""SIGKILL, SIGTERM and SIGINT at 100 random moments of eight kinds of run; the same command then goes on.

    python benchmarks/kill_anywhere.py                        # about 40 minutes on 2 cores; goes on where it stopped
    python benchmarks/kill_anywhere.py --smoke [--only qat]   # two moments of each kind
    python benchmarks/kill_anywhere.py --faketime libfaketime.so.1

Each kind is run undisturbed twice: what differs then is no fault of a kill. The CPU seconds that it takes with its
children (other load does not shift them) are cut into as many slices as there are moments, and in each slice one is
drawn with a fixed seed: which signal, whether the process alone or its group gets it, and in every fourth run a second
moment, in the run that goes on. In every third run Python starts anew and imports are among the moments; the others
are forked from a process that holds torch, for half of a short run would be imports. In the runs called ``clock`` what
goes on believes that it is a day earlier: by libfaketime where it is given, else all files are dated a day ahead.

Must hold, after each signal: no process is left; after SIGTERM and SIGINT the exit code is 143 or 130 (two processes:
torchrun's own), the message says how to go on, a checkpoint of that moment lies there where a training was at work, no
temporary file lies anywhere, no traceback is shown. And at the end of the run that came through: every network and ONNX
file is the undisturbed run's, byte for byte; so are the files' names (no stale temporary one) and all that the JSON
files and the epoch log say but times, machine and measurements; each epoch stands once in the log. A search: its pick
too, no trial lost or twice; two processes share one, and the death of either is made up for by the other.
"""

import argparse
import atexit
import contextlib
import copy
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
NETS = f"{HERE.parent / 'models' / 'digits' / 'nets.py'}:"
MARK = "KDEXPORT_KILL_ANYWHERE"  # in the environment of all processes of one sitting
SIGNALS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
HANGS = -1000  # in place of an exit code
PATIENCE_S, ORPHAN_S, LOOK_S, DAY_S = 300.0, 5.0, 0.03, 86400
TORCH = ("torchinductor_", "torchelastic_")  # folders of torch's own that it keeps in TMPDIR
MEASURED = {  # what two undisturbed runs differ in, wherever it stands in a JSON file
    *("seconds", "samples_per_s", "teacher_from", "created", "measurements", "tradeoffs", "pick", "gates", "findings"),
    *("machine", "machines", "devices", "dominated", "files", "key", "seal", "latency_ms", "latency_ms_ci95"),
    *("untrained_latency_ms", "teacher_latency_ms", "memory_mib", "speedup", "speedup_ci95", "why"),
}
BASE: dict[str, Any] = {
    "name": "kill",
    "data": {"source": "digits", "fraction": 0.4},
    "teacher": {
        "model": f"{NETS}Teacher",
        "args": {"width": 8},
        "train": {"epochs": 4, "batch_size": 32, "lr": 0.003, "augment": ["shift"]},
    },
    "student": {"model": f"{NETS}Student", "args": {"width": 4}},
    "distill": {"epochs": 6, "batch_size": 32, "lr": 0.008, "augment": ["shift"], "views": 3},
    "bench": {"min_seconds": 0.05, "max_seconds": 0.1, "rounds": 1},
}
HINTS = [{"method": "soft_targets", "weight": 0.9}, {"method": "hint", "weight": 0.1}]
QAT = {"quantize_aware": True, "quantize_aware_epochs": 3}
SEARCH: dict[str, Any] = {
    "student": {"model": "searched"},
    "distill": {**BASE["distill"], "epochs": 8, "baseline": False},
    "search": {
        "budget": {"size_mib": 0.03},
        "min_epochs": 2,
        "finalists": {"count": 1},
        "space": [{"model": f"{NETS}Student", "args": {"width": [4, 6, 8, 256]}}],
    },
}


@dataclass(frozen=True)
class Kind:
    """One kind of run: what its recipe changes, and how it is started."""

    moments: int
    changes: dict[str, Any] = field(default_factory=dict)
    command: str = "distill"
    processes: int = 1  # of one training
    at_once: int = 1  # commands on one directory
    clock: bool = False  # what goes on has a clock that was set back

    @property
    def recipe(self) -> dict[str, Any]:
        made = copy.deepcopy(BASE)
        for table, changes in self.changes.items():
            made[table] = {**made.get(table, {}), **changes}
        return made

    def argv(self, recipe: Path, place: Path) -> list[str]:
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.processes}"]
        head = [sys.executable, *(several if self.processes > 1 else [])]
        return [*head, "-m", "kdexport", self.command, str(recipe), "--out", str(place)]


KINDS = {
    "plain": Kind(20),
    "qat": Kind(18, {"distill": {**QAT, "baseline": False}, "export": {"quantize": ["int8"]}}),
    "features": Kind(16, {"distill": {**QAT, "terms": HINTS, "baseline": False}, "export": {"quantize": ["int8"]}}),
    "data-free": Kind(
        14, {"distill": {"label_weight": 0.0, "data_free": {"samples": 600, "steps": 40}, "baseline": False}}
    ),
    "two processes": Kind(8, {"distill": {"epochs": 4, "baseline": False}}, processes=2),
    "export": Kind(
        10,
        {
            "distill": {"epochs": 1, "quantize_aware": True, "quantize_aware_epochs": 1, "baseline": False},
            "export": {"quantize": ["int8", "fp16"]},
        },
        command="run",
    ),
    "search": Kind(4, SEARCH, command="search"),
    "shared search": Kind(2, SEARCH, command="search", at_once=2),
    "clock": Kind(8, {"distill": {"baseline": False}}, clock=True),
}


@dataclass
class Sitting:
    """How one command went."""

    code: int
    seconds: float  # of CPU
    said: str
    began_at: float
    signalled_at: float | None  # wall clock; None where it ended by itself
    number: signal.Signals
    group: bool  # whether the process's group got it
    orphans: list[str]
    temporary: list[str]


class Forked:
    """A command in a process of its own session that need not import what this one has imported."""

    def __init__(self, argv: list[str], *, stdout: Any, stderr: Any, env: dict[str, str]) -> None:
        del stderr
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            os.setsid()
            atexit._clear()  # what the parent does at its end is none of a command's
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            for target in (1, 2):
                os.dup2(stdout.fileno(), target)
            os.environ.update(env)
            tempfile.tempdir = None
            sys.argv = [argv[0], *argv[argv.index("kdexport") + 1 :]]
            code = command_line()
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        """Return the exit code as ``Popen`` does."""
        if self.code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if ended else None
        return self.code

    def wait(self, timeout: float) -> int:
        """Return the exit code; raises as ``Popen``."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("kdexport", timeout)
            time.sleep(0.02)
        return code


def command_line() -> int:
    """Run ``kdexport`` as sys.argv says, and all that a Python does at its end; return the exit code."""
    from kdexport.cli import main

    code = 0
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:  # before or after all that kdexport does: what Python does then
        traceback.print_exc()
        code = 130
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code


def import_all() -> None:
    """Import what each kind of run imports."""
    import kdexport.bench.stage
    import kdexport.distill.stage
    import kdexport.export.stage
    import kdexport.report.stage
    import kdexport.search.stage  # noqa: F401


def sit(
    kind: Kind,
    recipe: Path,
    place: Path,
    moment: float | None,
    draw: random.Random,
    faketime: str = "",
    *,
    cold: bool = False,
) -> Sitting:
    """Give the command, send a signal after ``moment`` seconds where one is given, and see what is left."""
    mark, folder = uuid.uuid4().hex, place.parent / "tmp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = {**os.environ, MARK: mark, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    if faketime:
        environment |= {"LD_PRELOAD": faketime, "FAKETIME": "-1d", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    log = place.parent / "said.txt"
    began_at, signalled_at = time.time(), None
    with log.open("wb") as handle:
        cold = cold or bool(faketime) or kind.processes > 1
        starting = partial(subprocess.Popen, start_new_session=True) if cold else Forked
        started = [
            starting(kind.argv(recipe, place), stdout=handle, stderr=handle, env=environment)
            for _ in range(kind.at_once)
        ]
        process, seconds = draw.choice(started), 0.0
        number, group = draw.choice(list(SIGNALS)), draw.random() < 0.5
        while process.poll() is None and (moment is None or seconds < moment):
            time.sleep(LOOK_S * random.random())
            seconds = max(seconds, cpu_seconds(process.pid))
        if process.poll() is None:
            signalled_at = time.time()
            (os.killpg if group else os.kill)(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_S)
        others = [one for one in started if one is not process]
        codes = [one.wait(PATIENCE_S) for one in others]
    code = process.poll()
    orphans = left(mark)
    found = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    temporary = sorted(name for name in found if not name.startswith(TORCH))
    said = log.read_text(errors="replace")
    if any(codes):
        raise SystemExit(f"the other of two processes ended with {codes}:\n{said[-3000:]}")
    return Sitting(
        HANGS if code is None else code, seconds, said, began_at, signalled_at, number, group, orphans, temporary
    )


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process and its children, those that have ended included."""
    total = 0.0
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(cpu_seconds(int(child)) for child in (task / "children").read_text().split())
    return total


def marked(mark: str) -> dict[int, str]:
    """Return the living processes of one sitting."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
    return found


def left(mark: str) -> list[str]:
    """Return the processes of a sitting that still live some seconds after its end, and end them."""
    deadline = time.monotonic() + ORPHAN_S
    while (found := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return list(found.values())


def hidden(place: Path) -> list[str]:
    """Return the temporary files in a run directory."""
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if ".tmp" in path.name)


def newest(place: Path) -> float:
    """Return when the last file of a run was written."""
    return max((path.stat().st_mtime for path in place.rglob("*")), default=0.0)


def epochs(place: Path) -> dict[str, Any]:
    """Return what each epoch log says of its epochs, in its order, without times."""
    found = {}
    for log in sorted(place.rglob("metrics.jsonl")):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        found[str(log.relative_to(place))] = without(lines)
    return found


def without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without(item) for key, item in value.items() if key not in MEASURED}
    return [without(item) for item in value] if isinstance(value, list) else value


def stage(place: Path) -> str:
    """Say how far a run had come, by what it had written."""
    for name in ("report", "bench", "export", "distill"):
        if (place / f"{name}.json").exists():
            return f"after {name}"
    if place.joinpath("study.db").exists():
        return f"search, {len(list(place.glob('trials/*')))} trials begun"
    lines = read_lines(place)
    return f"{lines[-1][0]}, epoch {lines[-1][1] + 1}" if lines else "before the first epoch"


def read_lines(place: Path) -> list[tuple[str, int]]:
    """Return phase and epoch of each whole line."""
    found = []
    with contextlib.suppress(OSError):
        for line in (place / "metrics.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                found.append((entry["phase"], entry["epoch"]))
    return found


def training_at(place: Path, whole: list[tuple[str, int]], sitting: Sitting) -> str | None:
    """Return the phase that was in its loop when the signal came; None where none was, or none surely."""
    log = place / "metrics.jsonl"
    lines = read_lines(place)
    if not lines or not log.exists() or log.stat().st_mtime < sitting.began_at:
        return None
    phase, epoch = lines[-1]
    return phase if (phase, epoch + 1) in whole else None


def after_signal(kind: Kind, place: Path, sitting: Sitting, whole: list[tuple[str, int]]) -> Iterator[str]:
    """Say what is wrong after a signal."""
    number = sitting.number
    if sitting.orphans:
        yield f"left running: {sitting.orphans}"
    if sitting.code == HANGS:
        yield f"still running {PATIENCE_S:g} s after {number.name}"
    if sitting.code == 0 and newest(place) > (sitting.signalled_at or 0) + 2:
        yield f"went on to its end after {number.name}"
    if number == signal.SIGKILL or sitting.code == 0:
        return
    begun = " -> " in sitting.said
    if "Traceback" in sitting.said and kind.processes == 1:
        yield "a traceback"
    if sitting.temporary:
        yield f"temporary files: {sitting.temporary}"
    if place.exists() and hidden(place):
        yield f"temporary files in the run directory: {hidden(place)}"
    if not begun and (sitting.code == -number or kind.processes > 1):
        return  # Python itself was starting: kdexport had not begun
    if kind.processes == 1 and sitting.code != SIGNALS[number]:
        yield f"exit code {sitting.code} after {number.name}"
    if "error: interrupted" not in sitting.said or "go on with: " not in sitting.said:
        yield "no message that says how to go on"
    phase = training_at(place, whole, sitting)
    if phase is not None and not kind.clock and sitting.signalled_at is not None:
        kept = [path.stat().st_mtime for path in (place / "checkpoints" / phase).glob("step-*.pt")]
        if max(kept, default=0) < sitting.signalled_at - 0.01:
            yield f"no checkpoint of {phase} was saved"


def at_end(place: Path, whole: Path) -> Iterator[str]:
    """Say in what a finished run differs from the undisturbed one."""

    def files(root: Path) -> set[str]:
        return {str(path.relative_to(root)) for path in root.rglob("*") if not path.name.startswith("study.db")}

    if files(place) != files(whole):
        yield f"other files: {sorted(files(place) ^ files(whole))}"
    for path in sorted(whole.rglob("*")):
        same = place / path.relative_to(whole)
        if path.suffix in (".safetensors", ".onnx") and same.is_file() and digest(path) != digest(same):
            yield f"other bytes: {path.relative_to(whole)}"
        elif path.suffix == ".json" and same.is_file():
            try:
                if without(json.loads(same.read_text())) != without(json.loads(path.read_text())):
                    yield f"another result: {path.relative_to(whole)}"
            except ValueError:
                yield f"no JSON: {path.relative_to(whole)}"
    if epochs(place) != epochs(whole):
        yield "another epoch log"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Bench:
    """The runs of one call, and what came out of those before."""

    def __init__(self, work: Path, out: Path, seed: int, faketime: str) -> None:
        self.work, self.out, self.seed, self.faketime = work, out, seed, faketime
        self.found: dict[str, Any] = json.loads(out.read_text())["runs"] if out.exists() else {}

    def recipe(self, name: str) -> Path:
        folder = self.work / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "recipe.toml"
        path.write_text(tomli_w.dumps(KINDS[name].recipe))
        return path

    def undisturbed(self, name: str) -> tuple[Path, float]:
        """Return an undisturbed run of a kind and its seconds; two are made, and have to be the same."""
        recipe, draw = self.recipe(name), random.Random(0)
        seconds, places = [], [recipe.parent / which / "run" for which in ("whole", "again")]
        for place in places:
            record = place.parent / "seconds.json"
            if not record.exists():
                shutil.rmtree(place.parent, ignore_errors=True)
                sitting = sit(KINDS[name], recipe, place, None, draw)
                if sitting.code or sitting.orphans or sitting.temporary:
                    raise SystemExit(f"an undisturbed run of {name}: {sitting}")
                record.write_text(json.dumps(sitting.seconds))
            seconds.append(json.loads(record.read_text()))
        if faults := list(at_end(places[1], places[0])):
            raise SystemExit(f"two undisturbed runs of {name} differ: {faults}")
        return places[0], min(seconds)

    def killed(self, name: str, number: int, moments: int) -> dict[str, Any]:
        """Kill a run at its moment, once or twice, let it come through and return what was wrong."""
        kind, draw = KINDS[name], random.Random(f"{self.seed}/{name}/{number}")
        whole, seconds = self.undisturbed(name)
        recipe, place = self.recipe(name), self.work / name.replace(" ", "-") / f"killed-{number}" / "run"
        expected = read_lines(whole)
        shutil.rmtree(place.parent, ignore_errors=True)
        moment: float | None = seconds * (number + draw.random()) / moments
        faults, kills, anew = [], [], 0
        while True:
            faketime = self.faketime if kills and kind.clock else ""
            sitting = sit(kind, recipe, place, moment, draw, faketime, cold=number % 3 == 2)
            if sitting.signalled_at is None and not kills:  # it was done before its moment came
                if sitting.code:
                    faults.append(f"ended with {sitting.code} by itself")
                    break
                moment, anew = draw.random() * sitting.seconds, anew + 1
                shutil.rmtree(place)
                continue
            if sitting.signalled_at is None or sitting.code == 0:
                if sitting.code:
                    faults.append(f"ended with {sitting.code}: {sitting.said[-1500:]}")
                if sitting.orphans or sitting.temporary:
                    faults.append(f"left at the end: {sitting.orphans} {sitting.temporary}")
            if sitting.signalled_at is None:
                break
            how = f"{sitting.number.name}{' to the group' if sitting.group else ''}"
            kills.append({"moment_s": round(moment or 0.0, 2), "signal": how, "where": stage(place)})
            kills[-1]["exit_code"] = sitting.code
            faults += [
                f"after {how} at {moment:.2f} s: {fault}" for fault in after_signal(kind, place, sitting, expected)
            ]
            (place.parent / f"said-{len(kills)}.txt").write_text(sitting.said)
            if kind.clock and not self.faketime and place.exists():
                date_ahead(place)
            moment = draw.random() * seconds * 0.8 if number % 4 == 3 and len(kills) == 1 else None
        faults += at_end(place, whole)
        if not faults:
            shutil.rmtree(place.parent)
        print(f"{name} {number}: {kills} {faults or 'holds'}", flush=True)
        return {"kills": kills, "drawn_anew": anew, "seconds_to_finish": round(sitting.seconds, 1), "faults": faults}

    def run(self, names: list[str], moments: dict[str, int]) -> dict[str, Any]:
        for number, name in itertools.product(range(max(moments.values())), names):
            key = f"{name}/{number}"
            if number < moments[name] and (key not in self.found or self.found[key]["faults"]):
                self.found[key] = self.killed(name, number, moments[name])
                self.keep()
        return self.keep()

    def keep(self) -> dict[str, Any]:
        """Write what is known: a cut at any moment leaves a true table."""
        from kdexport.machine import cpu_model, usable_cores

        kinds = {name: [run for key, run in self.found.items() if key.split("/")[0] == name] for name in KINDS}
        document = {
            "benchmark": "kill_anywhere",
            "cpu": cpu_model(),
            "cores": usable_cores(),
            "seed": self.seed,
            "moments": len(self.found),
            "signals": sum(len(run["kills"]) for run in self.found.values()),
            "holds": not any(run["faults"] for run in self.found.values()),
            "runs": self.found,
        }
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(document, indent=1) + "\n")
        rows = [
            "| kind of run | moments | signals | SIGKILL | SIGTERM | SIGINT | faults |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for name, runs in kinds.items():
            by = Counter(kill["signal"].split()[0] for run in runs for kill in run["kills"])
            counts = [by[number.name] for number in SIGNALS]
            faults = sum(bool(run["faults"]) for run in runs)
            rows.append(f"| {' | '.join(map(str, (name, len(runs), sum(counts), *counts, faults)))} |")
        self.out.with_suffix(".md").write_text("\n".join(rows) + "\n")
        return document


def date_ahead(place: Path) -> None:
    """Date all files a day ahead: the clock was set back since."""
    for path in [place, *place.rglob("*")]:
        then = path.stat().st_mtime + DAY_S
        os.utime(path, (then, then))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="two moments of each kind; no result is kept")
    parser.add_argument("--only", nargs="+", choices=list(KINDS), metavar="KIND")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--work", type=Path, default=Path("runs/kill_anywhere"), help="for the runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "kill_anywhere.json", help="the result")
    parser.add_argument("--faketime", default="", metavar="FILE", help="libfaketime.so.1; else files are dated ahead")
    options = parser.parse_args()
    work = options.work.resolve()
    out = work / "smoke.json" if options.smoke else options.out
    names = options.only or list(KINDS)
    moments = {name: 2 if options.smoke else KINDS[name].moments for name in names}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" has it ignored, and children inherit that
    import_all()
    document = Bench(work, out, options.seed, options.faketime).run(names, moments)
    print(out.with_suffix(".md").read_text())
    return 0 if document["holds"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
