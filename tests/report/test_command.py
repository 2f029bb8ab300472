"""`kdexport report`: what it reads, writes, refuses, and the code that it exits with."""

import dataclasses
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from kdexport import results
from kdexport.cli import app
from kdexport.report.findings import noise_lines
from kdexport.report.reading import read_benches
from kdexport.report.schema import make, schema
from kdexport.report.stage import report

runner = CliRunner()


@pytest.fixture
def bench_json(build, tmp_path: Path):
    """Write a bench.json and return its path."""

    def write(name: str = "run/bench.json", **arguments) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(results.dumps(build.bench(**arguments)), encoding="utf-8")
        return path

    return write


def invoke(*arguments: object):
    return runner.invoke(app, ["report", *map(str, arguments)])


def refused(*arguments: object) -> str:
    """Run the command, check that it is an ordinary user error, and return its message and hint."""
    done = invoke(*arguments)
    assert done.exit_code == 1, done.output
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    return done.stderr


def test_it_writes_all_that_a_reader_or_program_needs(bench_json) -> None:
    folder = bench_json().parent
    done = invoke(folder)
    assert done.exit_code == 0, done.output
    assert {path.name for path in folder.iterdir()} == {
        "bench.json",
        "report.json",
        "report.md",
        "report.html",
        "card.md",
        "report-tradeoff-1.svg",
        "report-latency-1.svg",
        "report-training.svg",
        "report-classes.svg",
    }
    assert "ship student" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "\x1b" not in done.stdout


def test_report_json_is_the_contract(bench_json) -> None:
    folder = bench_json().parent
    invoke(folder)
    document = json.loads((folder / "report.json").read_text())
    contract = ["schema", "name", "recipe", "machines", "models", "measurements", "tradeoffs", "pick", "gates"]
    assert list(document)[: len(contract)] == contract
    assert document["schema"] == 2
    assert {"requirement", "limit", "value", "passed"} <= document["gates"][0].keys()
    assert {
        "model",
        "against",
        "score_delta",
        "score_delta_ci95",
        "accuracy_delta",
        "size_ratio",
        "speedup",
    } <= document["tradeoffs"][0].keys()
    assert {"device", "batch_size", "threads", "ratio", "ci95"} <= document["tradeoffs"][0]["speedup"][0].keys()
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(document, schema())
    document["measurements"][0]["latency_ms"]["p50"] = "fast"
    with pytest.raises(jsonschema.ValidationError, match="fast"):
        jsonschema.validate(document, schema())


def test_the_schema_that_ships_is_that_of_the_report() -> None:
    pytest.importorskip("pydantic", minversion="2.13", reason="pydantic before 2.13 describes no dataclasses")
    assert schema() == make(), "write kdexport.report.schema.make() into report.schema.json"


def test_several_machines_and_their_names(bench_json, tmp_path: Path) -> None:
    first, second = bench_json("a.json"), bench_json("b.json", slowdown=3.0)
    out = tmp_path / "joined"
    assert invoke(first, f"pi={second}", "--out", out).exit_code == 0
    document = json.loads((out / "report.json").read_text())
    assert [machine["name"] for machine in document["machines"]] == ["laptop", "pi"]
    assert len(document["devices"]) == 2


def test_a_report_can_be_reported_again_and_joined(bench_json, build, tmp_path: Path) -> None:
    folder = bench_json().parent
    invoke(folder)
    first = json.loads((folder / "report.json").read_text())
    assert invoke(folder / "report.json", "--out", tmp_path / "again").exit_code == 0
    again = json.loads((tmp_path / "again" / "report.json").read_text())
    assert again == first
    other = bench_json("pi.json", on=build.machine("pi"))
    assert invoke(folder / "report.json", other, "--out", tmp_path / "both").exit_code == 0


def test_a_requirement_that_fails_exits_with_3_after_writing(bench_json, build) -> None:
    path = bench_json(recipe={**build.RECIPE, "require": {"max_latency_ms": 0.01}})
    done = invoke(path)
    assert done.exit_code == 3
    assert "requirements not met: latency of student" in done.stderr
    assert "nothing to ship" in done.stdout
    assert (path.parent / "report.html").exists()
    assert not (path.parent / "card.md").exists()


def test_json_is_the_report_and_nothing_else(bench_json) -> None:
    done = invoke(bench_json(), "--json")
    assert json.loads(done.stdout)["pick"]["model"] == "student"
    assert invoke(bench_json(), "--json", "--format", "junit").exit_code == 2


def test_junit(bench_json, build) -> None:
    path = bench_json(recipe={**build.RECIPE, "require": {"max_latency_ms": 0.01, "min_speedup": 3.0}})
    done = invoke(path, "--format", "junit", "-q")
    assert done.exit_code == 3
    (suite,) = ET.fromstring(done.stdout)
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    failures = [case for case in suite if case.find("failure") is not None]
    assert [case.get("classname") for case in failures] == ["kdexport.max_latency_ms"]
    assert "required: at most 10.0 µs" in failures[0].find("failure").get("message")


def test_github(bench_json) -> None:
    done = invoke(bench_json(), "--format", "github", "-q")
    assert done.exit_code == 0
    assert done.stdout.startswith("## digits: all 4 requirements pass\n")
    assert "| **student** |" in done.stdout


def test_against_a_baseline(bench_json, tmp_path: Path) -> None:
    old, new = bench_json("old/bench.json"), bench_json("new/bench.json", slowdown=1.2)
    assert invoke(old).exit_code == 0
    done = invoke(new, "--baseline", old.parent / "report.json", "-q")
    assert done.exit_code == 3
    assert "growth of the median latency" in done.stderr
    assert invoke(new, "--baseline", old, "--tolerance", "0.5").exit_code == 0
    assert "there is no file" in refused(new, "--baseline", tmp_path / "none.json")
    assert invoke(new, "--baseline", old, "--tolerance", "-1").exit_code == 2


def test_an_older_report_opens_and_a_newer_says_so(bench_json, tmp_path: Path) -> None:
    """The first release wrote no more than the contract's keys; a later one may write more than this one knows."""
    folder = bench_json().parent
    invoke(folder)
    document = json.loads((folder / "report.json").read_text())
    contract = ("schema", "name", "recipe", "machines", "models", "measurements", "tradeoffs", "pick", "gates")
    old = {key: document[key] for key in contract}
    old["gates"] = [{key: gate[key] for key in ("requirement", "limit", "value", "passed")} for gate in old["gates"]]
    for model in old["models"]:
        del model["evaluation"], model["notes"], model["operators"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    jsonschema.validate(old, schema())
    assert invoke(tmp_path / "old.json", "--out", tmp_path / "opened").exit_code == 0
    assert invoke(folder, "--baseline", tmp_path / "old.json").exit_code == 0

    (tmp_path / "more.json").write_text(json.dumps(document | {"added_later": 1}))
    assert invoke(tmp_path / "more.json", "--out", tmp_path / "opened").exit_code == 0

    (tmp_path / "new.json").write_text(json.dumps(document | {"schema": 3}))
    told = refused(tmp_path / "new.json")
    assert "made by a newer kdexport: its schema is 3, this one reads up to 2" in told
    assert "pip install --upgrade kdexport" in told


def test_bad_files(bench_json, tmp_path: Path) -> None:
    path = bench_json()
    text = path.read_text()
    assert "there is no file" in refused(tmp_path / "absent.json")
    assert "holds no bench.json" in refused(tmp_path)
    cases = {
        "of another tool": (
            json.dumps({"model": "resnet", "latency": 3.0}),
            "is not of kdexport: it has no 'measurements'",
        ),
        "a list": ("[1, 2]", "holds no JSON object"),
        "cut off half way": (text[: len(text) // 2], "is cut off in line"),
        "cut off near its end": (text.rstrip()[:-1], "is cut off in line"),
        "cut off in a word": (text[: text.index("null") + 2], "is cut off in line"),
        "empty": ("", "is empty"),
        "not JSON": ("{'name': 1}", "is not JSON"),
        "nested without end": ('{"a": ' + "[" * 100_000, "is not a bench.json: no figure or nesting is as long"),
        "a figure without end": ('{"a": ' + "9" * 5000 + "}", "is not a bench.json: no figure or nesting is as long"),
        "NaN": (text.replace('"throughput_per_s": ', '"throughput_per_s": NaN, "x": ', 1), "holds NaN where a figure"),
        "infinite": (text.replace('"load_ms": 9.1', '"load_ms": 1e999', 1), "load_ms of 'teacher' on 'laptop' is not"),
        "null where a figure must be": (
            text.replace('"load_ms": 9.1', '"load_ms": null', 1),
            "load_ms should be a valid number",
        ),
        **{
            f"{key} of a class is {value}": (
                _with_class_score(text, key, value),
                f"models.0.evaluation.per_class.0.{key} should be {'0 or more' if key == 'samples' else 'from 0 to 1'}",
            )
            for key, value in (("accuracy", 1e30), ("precision", 1.01), ("f1", -0.1), ("samples", -1), ("iou", 2))
        },
        **{
            f"{key} of a call is {value}": (_with_latency(text, key, value), f"measurements.0.latency_ms.{key}")
            for key, value in (("p50", 0), ("p50", -1.5), ("quantiles", [0.0] * 101), ("rounds_p50", [1.0, -2.0]))
        },
        "a file of less than nothing": (
            re.sub(r'"size_bytes": \d+', '"size_bytes": -1', text, count=1),
            "models.0.size_bytes should be 0 or more",
        ),
        "a score of no name": (
            re.sub(r'"metric": "accuracy"', '"metric": ""', text, count=1),
            "score.metric should be a name: it is empty",
        ),
        "a file whose name no file system takes": (
            re.sub(r'"file": "[^"]+"', f'"file": "{"n" * 256}"', text, count=1),
            "models.0.file should be the name of a file",
        ),
        "a schema that is no number": (text.replace('"schema": 2', '"schema": "x"', 1), "it has no 'schema'"),
    }
    for name, (content, told) in cases.items():
        bad = tmp_path / "bad" / "bench.json"
        bad.parent.mkdir(exist_ok=True)
        bad.write_text(content)
        assert told in refused(bad), name
        assert [item.name for item in bad.parent.iterdir()] == ["bench.json"], "nothing half-written"
    bad.write_bytes(b"\x93NUMPY\xff\xfe")
    assert "not a JSON text file" in refused(bad)


def _with_class_score(text: str, key: str, value: float) -> str:
    document = json.loads(text)
    document["models"][0]["evaluation"]["per_class"][0][key] = value
    return json.dumps(document)


def test_fields_that_are_of_another_form_and_not_needed_are_passed_over(bench_json, tmp_path: Path) -> None:
    path = bench_json()
    document = json.loads(path.read_text())
    document["gates"] = True
    document["measurements"][0]["warnings"] = ["", "noisy: single calls vary by 30 %"]
    path.write_text(json.dumps(document))
    (bench,) = read_benches(str(path))
    assert report([bench]).measurements[0].warnings[0] == ""
    assert list(noise_lines(bench.measurements))


def _with_latency(text: str, key: str, value: object) -> str:
    document = json.loads(text)
    document["measurements"][0]["latency_ms"][key] = value
    return json.dumps(document)


def test_results_that_cannot_be_joined(bench_json, build, tmp_path: Path) -> None:
    first = bench_json("a.json")
    assert "two machines are called 'laptop'" in refused(first, bench_json("b.json", on=build.machine(cores=8)))
    bench = build.bench()
    other = dataclasses.replace(
        bench, models=(dataclasses.replace(bench.models[0], sha256="0" * 64), *bench.models[1:])
    )
    (tmp_path / "c.json").write_text(results.dumps(other))
    assert "two different files are called 'teacher'" in refused(first, tmp_path / "c.json")


def test_no_file_given_is_a_usage_error() -> None:
    assert invoke().exit_code == 2


def test_a_folder_that_cannot_be_written_to(bench_json, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder would be")
    assert "could not be written" in refused(bench_json(), "--out", tmp_path / "taken")


def test_a_finished_run_is_reported_without_the_heavy_libraries(bench_json) -> None:
    code = """
import sys
from kdexport.cli import app
app(["report", sys.argv[1], "-q"], standalone_mode=False)
heavy = {"torch", "torchvision", "sklearn", "onnxruntime", "transformers"}
print("loaded:", sorted({name.partition(".")[0] for name in sys.modules} & heavy))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(bench_json().parent)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded: []"
