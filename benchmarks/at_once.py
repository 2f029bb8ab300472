"""Ten of a command at once, on one machine or in one directory: does each end well, and say what the others cost?

    python benchmarks/at_once.py              # three minutes
    python benchmarks/at_once.py --smoke      # three at once

Must hold: ten `bench` all end with 0, and each says of its models that other work ran beside them or decides nothing
between them; ten `export` of one network into ten folders give the same bytes; ten `report` over one run directory all
end with 0 and leave a whole report.json and report.html; of ten `run` on one directory one works and the others name
its process, and afterwards the same command finds all done.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_common import OtherLoad, finish, make_model

PAIR = Path(__file__).resolve().parents[1] / "models" / "digits"
SHORT = ("teacher.train.epochs=2", "distill.epochs=2", "distill.views=2", "distill.baseline=false",
         "export.quantize=[]", "bench.min_seconds=0.1", "bench.max_seconds=0.3", "bench.rounds=2",
         "require.max_drop=1.0", "require.min_speedup=0.01")  # fmt: skip
AT_WORK = re.compile(r"another kdexport \(process \d+ on \S+\) is at work")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="Three at once; nothing is kept.")
    smoke = parser.parse_args().smoke
    count = 3 if smoke else 10
    with tempfile.TemporaryDirectory() as folder, OtherLoad() as load:
        root = Path(folder)
        run, shared = runs(root, count)
        document = {
            "at_once": count,
            "bench": benches(root, count),
            "export": exports(root, run, count),
            "report": reports(root, run, count),
            "run_in_one_directory": shared,
        }
        document["holds"] = {name: found["holds"] for name, found in document.items() if isinstance(found, dict)}
    return finish("at_once", document, load, smoke=smoke)


def together(root: Path, commands: list[list[str]]) -> list[subprocess.CompletedProcess[str]]:
    """Start all of them at the same time and wait for each."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "kdexport", *command], cwd=root, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for command in commands
    ]  # fmt: skip
    ended = [(one, *one.communicate()) for one in started]
    return [subprocess.CompletedProcess(one.args, one.returncode, out, err) for one, out, err in ended]


def codes(done: list[subprocess.CompletedProcess[str]]) -> dict[str, int]:
    """Return how often each exit code came, and how many tracebacks."""
    found = {
        str(code): sum(one.returncode == code for one in done) for code in sorted({one.returncode for one in done})
    }
    return found | {"tracebacks": sum("Traceback" in one.stdout + one.stderr for one in done)}


def runs(root: Path, count: int) -> tuple[Path, dict[str, Any]]:
    """Run one recipe several times in one directory."""
    sets = [word for change in SHORT for word in ("--set", change)]
    command = ["run", str(PAIR / "recipe.toml"), "--out", "run", *sets]
    done = together(root, [command] * count)
    told = sum(bool(AT_WORK.search(one.stderr)) for one in done)
    after = together(root, [command])[0]
    unchanged = "not trained again" in after.stderr
    ended = codes(done)
    # One that comes when the first has ended finds all done, and ends with 0 too.
    holds = ended.get("0", 0) >= 1 and ended.get("0", 0) + told == count and not ended["tracebacks"]
    return root / "run", {
        "exit_codes": ended, "named_the_other": told, "afterwards_all_is_done": unchanged,
        "holds": holds and after.returncode == 0 and unchanged,
    }  # fmt: skip


def benches(root: Path, count: int) -> dict[str, Any]:
    """Measure a model and a copy of it, so that the true ratio is 1."""
    model = make_model(root, "small")
    (root / "same.onnx").write_bytes(model.read_bytes())
    command = ["bench", model.name, "same.onnx", "--min-seconds", "0.5", "--max-seconds", "2"]
    done = together(root, [[*command, "--out", f"bench{at}.json"] for at in range(count)])
    told = decided_wrongly = 0
    for at in range(count):
        rows = json.loads((root / f"bench{at}.json").read_text(encoding="utf-8"))["measurements"]
        told += all(row["disturbed"] or any("other" in line for line in row["warnings"]) for row in rows)
    for one in done:
        decided_wrongly += bool(re.search(r"same +.* (0\.[0-8]\d?|1\.[2-9]\d?|[2-9]\S*)×", one.stdout))
    ended = codes(done)
    return {
        "exit_codes": ended, "told_of_other_work": told, "decided_wrongly": decided_wrongly,
        "holds": ended == {"0": count, "tracebacks": 0} and told == count and not decided_wrongly,
    }  # fmt: skip


def exports(root: Path, run: Path, count: int) -> dict[str, Any]:
    """Export the student's weights into folders of their own."""
    net = ["export", f"{PAIR / 'nets.py'}:Student", "--onnx", "--weights", str(run / "student.safetensors")]
    done = together(root, [[*net, "--data", "digits", "--out", f"export{at}/net.onnx"] for at in range(count)])
    files = [root / f"export{at}" / "net.onnx" for at in range(count)]
    hashes = {hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}
    ended = codes(done)
    return {
        "exit_codes": ended, "different_files": len(hashes),
        "holds": ended == {"0": count, "tracebacks": 0} and len(hashes) == 1,
        **({} if ended.get("0") == count else {"said": done[0].stderr[-400:]}),
    }  # fmt: skip


def reports(root: Path, run: Path, count: int) -> dict[str, Any]:
    """Write the report of one run directory from several processes."""
    done = together(root, [["report", str(run)]] * count)
    whole = json.loads((run / "report.json").read_text(encoding="utf-8"))["schema"] >= 2
    page = (run / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
    left = [path.name for path in run.iterdir() if ".tmp" in path.name or path.name.startswith(".report")]
    ended = codes(done)
    return {
        "exit_codes": ended, "whole": whole and page, "left_behind": left,
        "holds": ended == {"0": count, "tracebacks": 0} and whole and page and not left,
    }  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
