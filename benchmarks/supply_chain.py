"""No network unless it is asked for: every command on digits without a network, and under a trace of system calls.

    python benchmarks/supply_chain.py --work DIR         # Linux, as root, with strace and unshare; 10 minutes

Each command runs twice in turn: in a network namespace of its own that holds nothing (`unshare -n`), where whatever
needs a network fails; and with a network there, under `strace -f`, which follows every process that it starts and
counts the sockets of the internet's families (AF_INET, AF_INET6) that are opened and the names that are looked up.
HOME is an empty folder, whose files are listed afterwards. `--serve` alone is meant to listen: it is here as the proof
that a socket would be seen. Last, `pip-audit` on what is installed, where its data can be reached.

Must hold: every command ends with 0 without a network, and opens no such socket where there is one.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SEARCH = """
[search]
budget = { drop = 0.9 }
trials = 2
min_epochs = 1
finalists = { count = 1 }
[[search.space]]
model = "nets.py:Student"
args = { width = [8, 16] }
"""
SHORT = ("--set", "distill.epochs=4", "--set", "teacher.train.epochs=2", "--set", "require={}")


def commands(work: Path) -> dict[str, list[str]]:
    """Return the commands by name, in the order in which one needs the other's files."""
    tool = [sys.executable, "-m", "kdexport"]
    recipe = str(work / "digits" / "recipe.toml")
    return {
        "init digits": [*tool, "init", "digits", str(work / "digits")],
        "run, all of digits": [*tool, "run", recipe, "--out", str(work / "run")],
        "run again": [*tool, "run", recipe, "--out", str(work / "run")],
        "export RUN": [*tool, "export", str(work / "run"), "--onnx", "--quantize", "int8"],
        "export nets.py:Student": [
            *(*tool, "export", f"{work}/digits/nets.py:Student", "--onnx", "--input-shape", "1,8,8"),
            *("--out", str(work / "bare.onnx"), "--force"),
        ],
        "bench RUN": [*tool, "bench", str(work / "run"), "--max-seconds", "1", "--out", str(work / "bench.json")],
        "bench --pack": [*tool, "bench", str(work / "run"), "--pack", str(work / "bench.pyz"), "--max-seconds", "1"],
        "the pack": [sys.executable, str(work / "bench.pyz"), "--out", str(work / "packed.json")],
        "evaluate": [*tool, "evaluate", str(work / "run" / "student.onnx"), "--data", "digits"],
        "report": [*tool, "report", str(work / "run"), "--out", str(work / "report")],
        "infer.py": [sys.executable, str(work / "run" / "infer.py"), str(work / "one.png")],
        "search": [*tool, "search", str(work / "digits" / "search.toml"), "--out", str(work / "search"), *SHORT],
        "doctor": [*tool, "doctor"],
    }


def prepared(work: Path) -> None:
    """Make what a command needs that no other one makes."""
    from PIL import Image

    Image.new("L", (8, 8), 7).save(work / "one.png")
    recipe = work / "digits" / "recipe.toml"
    if recipe.is_file():
        (work / "digits" / "search.toml").write_text(recipe.read_text() + SEARCH)


def environment(home: Path) -> dict[str, str]:
    home.mkdir(exist_ok=True)
    dropped = ("ORT_DISABLE_TELEMETRY", "HF_HUB_OFFLINE", "XDG_CACHE_HOME")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    return {**kept, "HOME": str(home), "OMP_NUM_THREADS": "1"}


def traced(command: list[str], work: Path, log: Path, seconds: float | None = None) -> dict[str, Any]:
    """Run a command under strace; returns its exit code and the sockets of all its processes."""
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=%network", "-o", str(log)]
    process = subprocess.Popen(
        [*strace, *command], cwd=work, env=environment(work / "home"), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        _, told = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:  # of what serves until it is ended
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate()
    return {"exit": process.returncode, "told": told[-300:], **read(log)}


def read(log: Path) -> dict[str, Any]:
    """Count the sockets in a trace."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if " socket(" in line]
    families = [match.group(1) for line in lines if (match := re.search(r"socket\((\w+)", line))]
    internet = [line for line in lines if "socket(AF_INET" in line]
    processes = {line.split()[0] for line in log.read_text(errors="replace").splitlines() if line[:1].isdigit()}
    return {
        "internet": len(internet),
        "families": {name: families.count(name) for name in sorted(set(families))},
        "traced": len(processes),
    }


def audit() -> str:
    """Ask pip-audit, and say what came of it in words."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--local"],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        listed = json.loads(done.stdout)["dependencies"]
    except (OSError, ValueError, KeyError, subprocess.TimeoutExpired):
        return "its data could not be reached from here, or it is not installed"
    found = {one["name"]: [fault["id"] for fault in one.get("vulns", [])] for one in listed}
    skipped = [one["name"] for one in listed if "skip_reason" in one]
    faulty = {name: names for name, names in found.items() if names}
    if len(skipped) == len(listed):
        return f"of {len(listed)} packages none could be looked up: its data cannot be reached from here"
    return f"of {len(listed)} packages {len(skipped)} could not be looked up; known faults: {faulty or 'none'}"


def write(document: dict[str, Any], out: Path) -> None:
    """Write ``supply_chain.json`` and its table."""
    (out / "supply_chain.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    lines = ["# No network unless it is asked for", ""]
    lines += ["| command | exit code without a network | exit code | internet sockets | all sockets | threads traced |"]
    lines += ["|---|---:|---:|---:|---|---:|"]
    for name, row in document["commands"].items():
        kinds = ", ".join(f"{family} {count}" for family, count in row.get("families", {}).items()) or "none"
        counts = f"{row.get('exit', '')} | {row.get('internet', '')} | {kinds} | {row.get('traced', '')}"
        lines.append(f"| {name} | {row.get('without', '')} | {counts} |")
    if "home" in document:
        lines += ["", f"Left in an empty HOME: {', '.join(document['home']) or 'nothing'}."]
    if "audit" in document:
        lines += ["", f"pip-audit: {document['audit']}."]
    (out / "supply_chain.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    work = options.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    document: dict[str, Any] = {"python": sys.version.split()[0], "commands": {}}
    rows = document["commands"]
    for way in ("without", "traced"):
        place = work / way
        place.mkdir(parents=True)
        for name, command in commands(place).items():
            prepared(place)
            row, started = rows.setdefault(name, {}), time.perf_counter()
            if way == "without":
                alone = ["unshare", "-n", *command]
                home = environment(place / "home")
                done = subprocess.run(alone, cwd=place, env=home, capture_output=True, text=True, check=False)
                row["without"] = done.returncode
                row["told"] = done.stderr[-300:] if done.returncode else ""
            else:
                row |= traced(command, place, place / "trace.log")
            row["seconds"] = round(time.perf_counter() - started, 1)
            print(name, row, flush=True)
            write(document, options.out)
    serve = [sys.executable, "-m", "kdexport", "bench", "run", "--serve", "--timeout", "5"]
    rows["bench --serve (listens: it is asked to)"] = traced(serve, work / "traced", work / "traced" / "trace.log", 60)
    homes = [work / way / "home" for way in ("without", "traced")]
    left = {str(one.relative_to(home)) for home in homes for one in home.rglob("*") if one.is_file()}
    document["home"] = sorted(left)
    document["audit"] = audit()
    write(document, options.out)
    asked = [row for name, row in rows.items() if "--serve" not in name]
    return int(any(row["without"] or row["exit"] or row["internet"] for row in asked))


if __name__ == "__main__":
    sys.exit(main())
