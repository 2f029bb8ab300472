"""Each file of a run, damaged in eleven ways; the same command then ends with the undisturbed run's bytes, or refuses.

    python benchmarks/damaged_run.py                     # an hour on two cores; goes on where it stopped
    python benchmarks/damaged_run.py --states stopped --files metrics.jsonl --damages pipe

Three states of a run directory: a `kdexport run` that is done, one that was killed while its student trained, and a
search that is done. A file is what a bad shutdown or an edit leaves: empty, cut, all or partly zeros, a bit flipped,
something behind its end, gone, a folder, a pipe, a link to itself, or the file of the same name of another run.

Must hold: exit 0 with every network, ONNX file, figure and line of the
log as undisturbed (``kill_anywhere.at_end``); or exit 1 with one message that names the file, and a hint, no other file
changed, and the undisturbed result once the file is taken away. No traceback, no process, no temporary file left.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kill_anywhere
from kill_anywhere import KINDS, at_end, digest, import_all, sit

RESULTS = Path(__file__).parent / "results"
KIND = {"done": KINDS["export"], "stopped": KINDS["export"], "search": KINDS["search"]}


def flipped(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]


CONTENTS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "empty": lambda _data, _draw: b"",
    "cut": lambda data, draw: data[: draw.randrange(1, max(2, len(data)))],
    "zeros": lambda data, _draw: bytes(len(data)),
    "zeros at its end": lambda data, _draw: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "a bit": flipped,
    "more": lambda data, _draw: data + b"\0\xff} more",
}
SPENT = ("cache/", "locks/", "measured/")  # aids, and what a run that is done reads no more: it may stay as it is
MADE_ANEW = {"bench.json", "bench.samples.npz"}  # measured times
WRITTEN_ONLY = (".svg", ".html", ".md")  # nothing reads them: three of the damages stand for all
DAMAGES = (*CONTENTS, "gone", "folder", "pipe", "link", "other")


def damage(path: Path, how: str, other: Path, draw: random.Random) -> bool:
    """Damage a file; returns whether it is another than it was."""
    data = path.read_bytes()
    if how in CONTENTS:
        changed = CONTENTS[how](data, draw) if data else data
        path.write_bytes(changed)
        return changed != data
    if how == "other":
        same = not other.is_file() or other.read_bytes() == data
        return False if same else bool(shutil.copyfile(other, path))
    path.unlink()
    if how == "folder":
        path.mkdir()
        (path / "file").write_text("something")
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "link":
        path.symlink_to(path.name)
    return True


class Sweep:
    """The runs of one call, and what came out of those before."""

    def __init__(self, work: Path, out: Path) -> None:
        self.work, self.out = work, out
        self.found: dict[str, Any] = json.loads(out.read_text())["cases"] if out.exists() else {}

    def place(self, name: str) -> Path:
        """Return a run directory as deep as the undisturbed ones: their files name what lies elsewhere from there."""
        return self.work / "damaged" / name.replace(" ", "-") / "a" / "run"

    def state(self, name: str) -> tuple[Path, Path, Path]:
        """Return the directory to be damaged, that of the undisturbed run, and that of another run; made once."""
        bench = kill_anywhere.Bench(self.work / "undisturbed", self.work / "none.json", 0, "")
        kind = "search" if name == "search" else "export"
        whole, seconds = bench.undisturbed(kind)
        self.recipe = bench.recipe(kind)
        other = self.run_once(kind, self.place(f"other {kind}"), seed=1)
        if name != "stopped":
            return whole, whole, other
        place = self.place(name)
        for attempt in itertools.count():
            if place.exists() and kill_anywhere.stage(place).startswith("student"):
                break
            shutil.rmtree(place.parent, ignore_errors=True)
            draw = random.Random(attempt)
            if sit(KIND[name], self.recipe, place, seconds * draw.random(), draw).number != signal.SIGKILL:
                shutil.rmtree(place, ignore_errors=True)
        return place, whole, other

    def run_once(self, kind: str, place: Path, seed: int) -> Path:
        if not place.exists():
            recipe = place.parents[1] / "recipe.toml"
            recipe.parent.mkdir(parents=True, exist_ok=True)
            recipe.write_text(f"seed = {seed}\n" + self.recipe.read_text())
            sitting = sit(KINDS[kind], recipe, place, None, random.Random(0))
            if sitting.code:
                raise SystemExit(f"another run: {sitting.said[-2000:]}")
        return place

    def case(self, state: str, base: Path, whole: Path, other: Path, file: str, how: str) -> dict[str, Any] | None:
        """Damage one file and give the command again; returns what came of it, None where nothing was changed."""
        kind, place = KIND[state], self.place(f"{state} damaged")
        shutil.rmtree(place.parent, ignore_errors=True)
        shutil.copytree(base, place)
        draw = random.Random(f"{state}/{file}/{how}")
        if not damage(place / file, how, other / file, draw):
            return None
        before = contents(place)
        sitting = sit(kind, self.recipe, place, None, draw)
        faults, ended = standing(sitting), "made again"
        if sitting.code == 1:
            ended = "refused"
            if "\nhint: " not in sitting.said:
                faults.append(f"no hint: {sitting.said[-300:]}")
            if Path(file).name not in sitting.said:
                faults.append(f"the file is not named: {sitting.said[-300:]}")
            after, right = contents(place), contents(whole)
            if (
                changed := {name for name in before if after.get(name) not in (before[name], right.get(name))}
                - MADE_ANEW
            ):
                faults.append(f"refused, and changed: {sorted(changed)}")
            remove(place / file)
            sitting = sit(kind, self.recipe, place, None, draw)
            faults += standing(sitting)
        if sitting.code not in (0, 1):
            faults.append(f"ended with {sitting.code}: {sitting.said[-600:]}")
        if spent := file.startswith(SPENT if state == "stopped" else (*SPENT, "checkpoints/", "trials/")):
            remove(place / file)
        faults += [one for one in at_end(place, whole) if not spent or one != f"other files: {[file]}"]
        return {"ended": ended, "seconds": round(sitting.seconds, 1), "faults": faults}

    def run(self, states: list[str], files: list[str], damages: list[str]) -> dict[str, Any]:
        for state in states:
            base, whole, other = self.state(state)
            names = [str(path.relative_to(base)) for path in sorted(base.rglob("*")) if path.is_file()]
            for file, how in itertools.product(names, damages):
                key = f"{state}/{file}/{how}"
                if (file, how) == ("infer.py", "folder"):  # the user's own stays
                    continue
                if (files and Path(file).name not in files) or self.found.get(key, {"faults": 1})["faults"] == []:
                    continue
                if (found := self.case(state, base, whole, other, file, how)) is not None:
                    self.found[key] = found
                    print(key, found, flush=True)
                    self.keep()
        return self.keep()

    def keep(self) -> dict[str, Any]:
        """Write what is known: a cut at any moment leaves a true table."""
        faulty = sum(bool(case["faults"]) for case in self.found.values())
        document = {"benchmark": "damaged_run", "cases": self.found, "faulty": faulty, "holds": not faulty}
        self.out.write_text(json.dumps(document, indent=1) + "\n")
        return document


def standing(sitting: kill_anywhere.Sitting) -> list[str]:
    """Say what is wrong with how a command ended."""
    faults = []
    if "Traceback" in sitting.said:
        faults.append(f"a traceback: {sitting.said[-600:]}")
    if sitting.orphans or sitting.temporary:
        faults.append(f"left: {sitting.orphans} {sitting.temporary}")
    return faults


def contents(place: Path) -> dict[str, str]:
    """Return the hash of each file of a run but its lock's."""
    files = (path for path in place.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(place)): digest(path) for path in files}


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", nargs="+", choices=list(KIND), default=list(KIND))
    parser.add_argument("--files", nargs="+", default=[], help="Their names; else all.")
    parser.add_argument("--damages", nargs="+", choices=DAMAGES, default=list(DAMAGES))
    parser.add_argument("--work", type=Path, default=Path("runs/damaged"))
    parser.add_argument("--out", type=Path, default=RESULTS / "damaged_run.json")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import_all()
    options.work.mkdir(parents=True, exist_ok=True)
    document = Sweep(options.work.resolve(), options.out).run(options.states, options.files, options.damages)
    print(Counter(case["ended"] for case in document["cases"].values()), f"{document['faulty']} faulty")
    return int(not document["holds"])


if __name__ == "__main__":
    sys.exit(main())
