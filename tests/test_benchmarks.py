"""The benchmarks' list and their README name each script."""

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks"
SHARED = {
    "bench_common",
    "engine_common",
    "engine_nets",
    "engine_pairs",
    "engine_race",
    "fuzz_kinds",
    "fuzz_mutations",
    "fuzz_own",
    "methods_nets",
    "pruning_nets",
    "segmentation_nets",
    "strangers_nets",
    "tiny_net",
}
SCRIPTS = {path.stem for path in FOLDER.glob("*.py")} - SHARED - {"run_all"}


def test_every_script_is_listed() -> None:
    command = [sys.executable, str(FOLDER / "run_all.py"), "--list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in listed.splitlines()} == SCRIPTS


def test_the_readme_tells_of_every_script_and_links_to_what_is_there() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\|[^|]*\| `(\w+)\.py", text, re.M)) == SCRIPTS
    assert [name for name in re.findall(r"\]\(([^)]+)\)", text) if not (FOLDER / name).is_file()] == []
