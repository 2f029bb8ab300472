import importlib
import io
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from kdexport import results
from kdexport.cli import app
from kdexport.cli.bench_tables import bench_columns, bench_lines
from kdexport.onnx.describe import describe_file
from kdexport.results import BenchResult, ExportResult
from kdexport.terminal import table

FAST = ["--min-seconds", "0.03", "--max-seconds", "0.05", "--rounds", "1", "--precision", "0.5", "-q"]


def kdexport(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_bare_files_give_a_table_and_with_out_a_file(models, tmp_path):
    done = kdexport("bench", models / "a.onnx", models / "b.onnx", "--out", tmp_path / "o.json", *FAST)
    assert done.exit_code == 0, done.output
    assert "p50, " in done.stdout
    result = results.from_json(BenchResult, json.loads((tmp_path / "o.json").read_text()))
    assert [model.name for model in result.models] == ["a", "b"]
    assert (tmp_path / "o.samples.npz").exists()


def test_files_of_one_name_are_told_apart_by_their_folders(models, tmp_path):
    import shutil

    (tmp_path / "new").mkdir()
    shutil.copy(models / "a.onnx", tmp_path / "new" / "a.onnx")
    done = kdexport("bench", models / "a.onnx", tmp_path / "new" / "a.onnx", "--json", *FAST)
    names = [model["name"] for model in json.loads(done.stdout)["models"]]
    assert names == [f"{models.name}/a", "new/a"]


def test_json_is_one_document_on_stdout(models):
    done = kdexport("bench", models / "a.onnx", "--json", *FAST)
    assert json.loads(done.stdout)["measurements"][0]["model"] == "a"


def test_a_run_directory_is_measured_whole_and_keeps_the_result(models, monkeypatch, tmp_path):
    import dataclasses
    import shutil

    root = tmp_path / "run"
    root.mkdir()
    for name in ("a", "b"):
        shutil.copy(models / f"{name}.onnx", root)
    files = [dataclasses.replace(describe_file(root / f"{name}.onnx"), file=f"{name}.onnx") for name in ("a", "b")]
    document = {**results.to_json(ExportResult("two", tuple(files))), "key": "x"}
    (root / "export.json").write_text(json.dumps(document))
    done = kdexport("bench", root, *FAST)
    assert done.exit_code == 0, done.output
    result = results.from_json(BenchResult, json.loads((root / "bench.json").read_text()))
    assert len(result.measurements) == 2
    monkeypatch.setattr("kdexport.bench.stage.bench", lambda *_, **__: shutil.rmtree(root) or result)
    gone = kdexport("bench", root, *FAST)
    assert gone.exit_code == 1
    assert "was taken away while it was used" in gone.stderr
    assert not root.exists()  # exit 0, a result and no model


def test_one_that_fails_is_exit_1_and_the_others_are_shown(models, tmp_path):
    done = kdexport("bench", models / "a.onnx", models / "broken.onnx", "--out", tmp_path / "o.json", *FAST)
    assert done.exit_code == 1
    assert "p50, " in done.stdout
    assert "broken at batch 1 on cpu" in done.stderr
    assert "Traceback" not in done.output
    assert len(json.loads((tmp_path / "o.json").read_text())["measurements"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads 0"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--precision", "0"], "--precision 0"),
        (["--device", "cuda"], "device 'cuda' is not there"),
        (["--device", "cpuu"], "did you mean 'cpu'?"),
        (["--dim", "sequence"], "is not of the form NAME=VALUE"),
        (["--dim", "batch=2"], "that axis is the batch"),
        (["--dim", "batch=0"], "a size is a whole number from 1 on"),
        (["--dim", "sequence=²"], "a size is a whole number from 1 on"),
        (["--dim", f"sequence={'9' * 5000}"], "a size is a whole number from 1 on"),
        (["--batch-axis", "9" * 5000], "has no such axis"),
        (["--dim", "sequence=3"], "no model has a dynamic axis of that name"),
        (["--input", "absent.npz"], "there is no file absent.npz"),
        (["--input", __file__], "is not an .npz file"),
        (["--provider-option", "x"], "--provider-option"),
        (["--remote", "-x"], "is not a host"),
        (["--out", "."], "--out . is a folder"),
        (["--pack", "."], "--pack . is a folder"),
        (["--out", __file__], "is a file, and no result of a bench"),
        (["--out", "/dev/null/bench.json"], "no file can be written there"),
        (["--timeout", "inf"], "--timeout inf: it should be a finite number"),
        (["--timeout", "nan"], "--timeout nan: it should be a finite number"),
        (["--timeout", "0"], "--timeout 0.0: it should be greater than 0"),
        (["--timeout", "-1"], "--timeout -1.0: it should be greater than 0"),
        (["--timeout", "1e30"], "--timeout 1e+30: it should be less than or equal to 86400"),
        (["--max-seconds", "inf"], "--max-seconds inf: it should be a finite number"),
    ],
)
def test_bad_flags_are_one_message_and_one_hint(models, arguments, message):
    done = kdexport("bench", models / "a.onnx", *arguments, "-q")
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.count("hint:") == 1
    assert "Traceback" not in done.output


@pytest.mark.parametrize("name", ["absent.onnx", "."])
def test_what_is_no_model_is_told(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    done = kdexport("bench", name)
    assert done.exit_code == 1
    assert done.stderr.count("hint:") == 1


def test_real_inputs_are_fed(models, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.zeros((2, 64), np.float32))
    assert kdexport("bench", models / "a.onnx", "--input", tmp_path / "in.npz", *FAST).exit_code == 0
    np.savez(tmp_path / "other.npz", z=np.zeros((2, 64), np.float32))
    done = kdexport("bench", models / "a.onnx", "--input", tmp_path / "other.npz", *FAST)
    assert done.exit_code == 1
    assert "holds no array 'x'" in done.stderr


def test_a_pack_is_written_and_nothing_measured(models, tmp_path):
    done = kdexport("bench", models / "a.onnx", "--pack", tmp_path / "p.pyz", "-q")
    assert done.exit_code == 0
    assert (tmp_path / "p.pyz").stat().st_size > 1000
    assert "python p.pyz" in done.stdout


def test_the_table_keeps_the_models_names_at_80_columns(models):
    import dataclasses

    from rich.console import Console

    done = kdexport("bench", models / "a.onnx", "--json", *FAST)
    result = results.from_json(BenchResult, json.loads(done.stdout))
    model, one = result.models[0], result.measurements[0]
    names = ("teacher", "student-plain.int8")
    many = dataclasses.replace(
        result,
        models=tuple(
            dataclasses.replace(model, name=name, score=results.Score("accuracy", 0.9876, None)) for name in names
        ),
        measurements=tuple(
            dataclasses.replace(
                one, model=name, batch_size=batch, threads=threads, energy_mj=1.5, throughput_by_streams={"2": 12345.6}
            )
            for name in names
            for batch in (1, 64)
            for threads in (1, 2)
        ),
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(bench_columns(many), width=80))
    shown = console.export_text().splitlines()
    assert max(map(len, shown)) <= 80
    assert sum("student-plain.int8" in line for line in shown) == 4
    assert "p50, " in shown[0]


def test_doctor_shows_each_check_and_its_json():
    done = kdexport("doctor", "-q")
    assert done.exit_code in (0, 1)
    assert "fault" in done.stdout
    document = json.loads(kdexport("doctor", "--json").stdout)
    assert {"name", "status", "message", "fix"} == set(document["checks"][0])


def test_a_warning_says_at_which_threads_it_was_given(models):
    import dataclasses

    done = kdexport("bench", models / "a.onnx", "--json", *FAST)
    result = results.from_json(BenchResult, json.loads(done.stdout))
    one = result.measurements[0]
    message = {1: ("noisy",), 2: ("noisy", "every core is taken")}
    rows = tuple(dataclasses.replace(one, threads=threads, warnings=message[threads]) for threads in message)
    shown = [line.plain for line in bench_lines(dataclasses.replace(result, measurements=rows))]
    assert "device cpu, batch 1" in shown[0]
    assert "threads" not in shown[0]
    assert shown[1:] == ["! all: noisy", "! a, threads 2: every core is taken"]


def test_data_are_kept_where_evaluate_keeps_them(models, tmp_path, monkeypatch):
    from kdexport.data import datasets
    from kdexport.errors import SourceError
    from kdexport.recipe import Data

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def load(data, seed, cache, progress, task=None):
        asked.append(cache)
        raise SourceError("enough", hint="none")

    importlib.import_module("kdexport.models.fitted_data")  # before the patch, which it would keep

    monkeypatch.setattr(datasets, "load_data", load)
    assert kdexport("bench", models / "a.onnx", "--data", "digits", "-q").exit_code == 1
    assert asked == [datasets.cache_folder(Data(source="digits"))]
    assert tmp_path in asked[0].parents


def test_a_fixed_batch_is_not_measured_as_another_with_real_inputs_either(tmp_path):
    from onnx import TensorProto, helper

    from .conftest import save, value

    sides = [value("x", TensorProto.FLOAT, [8, 3])], [value("y", TensorProto.FLOAT, [8, 3])]
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], *sides)
    np.savez(tmp_path / "in.npz", x=np.zeros((8, 3), np.float32))
    done = kdexport("bench", path, "--input", tmp_path / "in.npz", "-q")
    assert done.exit_code == 1
    assert "fixed to 8; batch size 1" in done.stderr
