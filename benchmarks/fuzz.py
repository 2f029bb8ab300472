"""Damaged and hostile files: each ends in a result or in one message with a hint; in no traceback, no crash, no hang.

    python benchmarks/fuzz.py                            # 5,000 mutations of each kind, some hours; resumes
    python benchmarks/fuzz.py --kinds npz csv --count 300 --seed 7
    python benchmarks/fuzz.py --seconds 100              # of each kind as many as that takes

A mutation is drawn from (seed, kind, number): bytes flipped, cut, repeated or moved, or one field changed so that the
rest is still of its form (JSON, archives, safetensors, graphs, databases, requests), by what has gone wrong elsewhere:
other types, missing and renamed keys, deep nesting, huge numbers, NaN, lone surrogates, markup, paths. A process of its
own reads one file after the other; it may take 20 s and 2 GiB more than it began with, and write beside the file alone.
A file that ends otherwise is kept in --work. Of a run's own files each 100th is tried with the whole `kdexport run`.
`fuzz_mutations` damages, `fuzz_kinds` and `fuzz_own` make and read.

Must hold: zero faults, with a seed that was not used before.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import random
import resource
import shutil
import sys
import time
import traceback
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import fuzz_kinds
import fuzz_own
from fuzz_kinds import Kind
from fuzz_mutations import mutated

RESULTS = Path(__file__).parent / "results"
SECONDS, MIB = 20, 2048
WHOLE_SECONDS = 240  # for a whole run again, which trains, exports and measures
WHOLE = 100  # of so many one is tried with what takes longer, where a kind has that; ``damaged_run`` tries more so
KINDS = {kind.name: kind for kind in (*fuzz_kinds.KINDS, *fuzz_own.KINDS)}


def work(name: str, seed: int, numbers: list[int], folder: Path, parent: Connection) -> None:
    """Read one mutation after the other and send how each ended."""
    from kdexport.errors import KDExportError

    kind = KINDS[name]
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = open("/dev/null", "w")  # noqa: SIM115, PTH123 - for as long as the process lives
    (folder / "seed").mkdir(parents=True, exist_ok=True)
    (folder / "one").mkdir(exist_ok=True)
    seeds = kind.seeds(folder / "seed")
    for one in seeds[:1]:
        (folder / "one" / f"file{kind.suffix}").write_bytes(one)
        kind.read(folder / "one" / f"file{kind.suffix}")  # what is whole is read; and imports are not counted
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parent.send(None)
    for number in numbers:
        draw = random.Random(f"{seed}/{kind.name}/{number}")
        path = folder / "one" / f"file{kind.suffix}"
        path.write_bytes(mutated(seeds, draw, kind.form))
        ended = "read"
        try:
            kind.read(path)
            if kind.whole is not None and number % WHOLE == 0:
                kind.whole(path)
        except KDExportError as error:
            ended = "refused" if error.message and error.hint else "no hint"
        except BaseException as error:  # noqa: BLE001 - a panic of a library in Rust too: that is what is looked for
            last = traceback.extract_tb(error.__traceback__)[-1]
            ours = [one for one in traceback.extract_tb(error.__traceback__) if "kdexport" in one.filename][-1:]
            at = " ".join(f"{Path(one.filename).name}:{one.lineno}" for one in (*ours, last))
            ended = f"{type(error).__name__} at {at}"
        if {item.name for item in folder.iterdir()} != {"seed", "one"}:
            ended = "a file outside"
        if ended not in ("read", "refused"):
            shutil.copyfile(path, folder.parent / "faults" / f"{name}-{seed}-{number}{kind.suffix}")
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began > MIB * 1024:
            ended = "memory"
        parent.send((number, ended))
        if ended == "memory":
            return


def run(kind: Kind, seed: int, count: int, folder: Path, seconds: float = math.inf) -> Counter[str]:
    """Try a kind, for so many seconds at most; what is done is not done again."""
    until = time.monotonic() + seconds
    record = folder / f"{kind.name}-{seed}.jsonl"
    (folder / "faults").mkdir(parents=True, exist_ok=True)
    done = {} if not record.is_file() else dict(json.loads(line) for line in record.read_text().splitlines())
    context = multiprocessing.get_context("spawn")
    place = folder / kind.name
    with record.open("a", buffering=1) as log:

        def note(number: int, ended: str) -> None:
            done[number] = ended
            log.write(json.dumps([number, ended]) + "\n")
            kept = folder / "faults" / f"{kind.name}-{seed}-{number}{kind.suffix}"
            if ended not in ("read", "refused") and not kept.exists():  # it hangs, or ended the process
                shutil.copyfile(place / "one" / f"file{kind.suffix}", kept)

        while (left := [number for number in range(count) if number not in done]) and time.monotonic() < until:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(kind.name, seed, left, place, theirs))
            process.start()
            theirs.close()
            try:
                if not ours.poll(300):
                    raise SystemExit(f"{kind.name}: the whole file is not read")
                ours.recv()
                for number in left:
                    if time.monotonic() > until:
                        break
                    limit = WHOLE_SECONDS if kind.whole is not None and number % WHOLE == 0 else SECONDS
                    if not ours.poll(limit):
                        note(number, f"longer than {limit} s")
                        break
                    note(*ours.recv())
            except EOFError:  # the process is dead: by this one, unless it could not read the whole file
                process.join()
                if not any(number in done for number in left) and process.exitcode == 1:
                    raise SystemExit(f"{kind.name}: the whole file is not read") from None
                if (first := next((number for number in left if number not in done), None)) is not None:
                    note(first, f"ended the process: {process.exitcode}") if done.get(first - 1) != "memory" else None
            process.kill()
            process.join()
    return Counter(done[number] for number in range(count) if number in done)


def main() -> int:
    """Try every kind, write ``results/fuzz.json`` and ``fuzz.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="For each kind, at most.")
    parser.add_argument("--work", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    faulty = False
    for name in options.kinds:
        started = time.perf_counter()
        found = run(KINDS[name], options.seed, options.count, options.work.resolve(), options.seconds)
        print(f"{name}: {dict(found.most_common())} in {time.perf_counter() - started:.0f} s", flush=True)
        write(options, name, found)
        faulty = faulty or bool(set(found) - {"read", "refused"})
    return int(faulty)


def write(options: argparse.Namespace, name: str, found: Counter[str]) -> None:
    """Write a kind's row; each says with which seed and which code it was tried, and other kinds' stay."""
    path = options.out / "fuzz.json"
    rows = json.loads(path.read_text())["kinds"] if path.is_file() else {}
    code = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(Path(__file__).parents[1].glob("kdexport/**/*.py"))))
    rows[name] = {"seed": options.seed, "code": code.hexdigest()[:12], "ended": dict(found.most_common())}
    rows = {kind: rows[kind] for kind in (*KINDS, *rows) if kind in rows}
    path.write_text(json.dumps({"kinds": rows}, indent=2) + "\n")
    lines = ["# Damaged files", "", "| kind | seed | code | tried | read | refused | faults |"]
    lines += ["|---|---:|---|---:|---:|---:|---|"]
    for kind, row in rows.items():
        ended = row["ended"]
        faults = "; ".join(f"{key}: {count}" for key, count in ended.items() if key not in ("read", "refused")) or "0"
        told = f"{sum(ended.values())} | {ended.get('read', 0)} | {ended.get('refused', 0)} | {faults}"
        lines.append(f"| {kind} | {row['seed']} | {row['code']} | {told} |")
    (options.out / "fuzz.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
