"""What a user can get wrong: exit 1, one message, one hint, no traceback, nothing half-written."""

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

Kdexport = Callable[..., Result]
DIGITS = Path(__file__).parents[2] / "models" / "digits" / "recipe.toml"


def complaint(result: Result) -> tuple[str, str]:
    """Return message and hint of a command that failed as a command should."""
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("[")]  # progress has a time in front
    message, hint = "\n".join(lines).removeprefix("error: ").split("\nhint: ")
    assert message
    assert hint
    assert result.stderr.count("error: ") == 1
    return message, hint


def test_a_recipe_that_is_not_there(kdexport: Kdexport, tmp_path: Path) -> None:
    message, hint = complaint(kdexport("run", tmp_path / "none.toml"))
    assert "no recipe at" in message
    assert "kdexport init --list" in hint


def test_a_recipe_that_is_not_toml(kdexport: Kdexport, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("name = [")
    assert "is not TOML" in complaint(kdexport("run", tmp_path / "r.toml"))[0]


def test_two_faults_at_once(kdexport: Kdexport, tmp_path: Path) -> None:
    text = DIGITS.read_text().replace("epochs = 60", 'epohs = 60\nlr_ = 1\noptimizer = "adam"')
    (tmp_path / "r.toml").write_text(text)
    message = complaint(kdexport("run", tmp_path / "r.toml", "--out", tmp_path / "out"))[0]
    assert "distill.epohs: unknown key; did you mean 'epochs'?" in message
    assert "distill.optimizer: should be 'adamw' or 'sgd', not 'adam'" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("none.py:Net", "none.py"),
        ("nets.py:Missing", "Missing"),
        ("broken.py:Net", "broken"),
        ("raises.py:Net", "no weights today"),
        ("no_such_package.nets:Net", "no_such_package"),
        ("torchvision:resnet1", "resnet1"),
    ],
)
def test_a_model_that_cannot_be_had(kdexport: Kdexport, tmp_path: Path, model: str, expected: str) -> None:
    (tmp_path / "nets.py").write_text("class Net: ...\n")
    (tmp_path / "broken.py").write_text("import no_such_module_at_all\n")
    (tmp_path / "raises.py").write_text("def Net():\n    raise RuntimeError('no weights today')\n")
    reference = str(tmp_path / model) if model.partition(":")[0].endswith(".py") else model
    message, _ = complaint(
        kdexport("distill", DIGITS, "--student", reference, "--set", "student.args={}", "--out", tmp_path / "out")
    )
    assert expected in message
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_class_counts_that_differ(kdexport: Kdexport, tmp_path: Path) -> None:
    message, hint = complaint(kdexport("run", DIGITS, "--set", "student.args.num_classes=7", "--out", tmp_path / "out"))
    assert "student" in message
    assert "7" in message
    assert "10 classes" in message
    assert "num_classes" in hint
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


@pytest.mark.skipif(os.name != "posix", reason="writes to a device file")
def test_a_run_directory_that_cannot_be_written(kdexport: Kdexport) -> None:
    message, hint = complaint(kdexport("run", DIGITS, "--out", "/dev/null/run"))
    assert "cannot be written" in message
    assert "--out" in hint


@pytest.mark.parametrize("is_there", [False, True])
def test_a_pair_that_the_disk_has_no_room_for_leaves_nothing(
    kdexport: Kdexport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    def full(source: str, target: str) -> None:
        Path(target).write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    if is_there:
        (tmp_path / "pair").mkdir()
    monkeypatch.setattr(shutil, "copy2", full)
    monkeypatch.setattr(shutil.copytree, "__defaults__", (False, None, full, False, False))
    message, hint = complaint(kdexport("init", "digits", tmp_path / "pair"))
    assert message.endswith("cannot be written: [Errno 28] No space left on device")
    assert "free some space" in hint
    assert list(tmp_path.rglob("*")) == ([tmp_path / "pair"] if is_there else [])


def test_a_bench_of_a_file_that_is_not_onnx(kdexport: Kdexport, tmp_path: Path) -> None:
    (tmp_path / "page.onnx").write_text("<html>not found</html>")
    message, _ = complaint(kdexport("bench", tmp_path / "page.onnx", "--out", tmp_path / "bench.json"))
    assert "page.onnx" in message
    assert not (tmp_path / "bench.json").exists()


def tiny_onnx(path: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.eye(4, 2, dtype=np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_a_device_that_is_not_there_is_never_the_cpu(kdexport: Kdexport, tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine may have a CUDA device")
    model = tiny_onnx(tmp_path / "tiny.onnx")
    message, hint = complaint(kdexport("bench", model, "--device", "cuda", "--out", tmp_path / "bench.json"))
    assert "cuda" in message.lower()
    assert hint
    assert not (tmp_path / "bench.json").exists()


def test_a_device_that_is_spelled_nearly_right(kdexport: Kdexport, tmp_path: Path) -> None:
    message, hint = complaint(kdexport("bench", tiny_onnx(tmp_path / "tiny.onnx"), "--device", "cpuu"))
    assert "cpuu" in message
    assert "cpu" in hint


def test_nothing_to_distill(kdexport: Kdexport) -> None:
    message, hint = complaint(kdexport("distill", "--teacher", "torchvision:resnet18"))
    assert "--student" in message
    assert "kdexport distill recipe.toml" in hint


def test_a_flag_that_is_not_there_is_bad_usage(kdexport: Kdexport) -> None:
    assert kdexport("run", DIGITS, "--ouut", "x").exit_code == 2


def test_a_run_for_a_device_that_is_not_there_trains_nothing(kdexport: Kdexport, tmp_path: Path) -> None:
    asked = ("run", DIGITS, "--out", tmp_path / "out", "--set", 'bench.devices=["migraphx"]')
    assert "migraphx" in complaint(kdexport(*asked))[0]
    assert not list((tmp_path / "out").glob("*"))[1:], "the lock at most"


def test_a_negative_seed(kdexport: Kdexport, tmp_path: Path) -> None:
    assert "seed" in complaint(kdexport("run", DIGITS, "--out", tmp_path / "out", "--set", "seed=-1"))[0]


@pytest.mark.parametrize(
    "setting",
    ["data.source=npz:{}.npz", "data.source=imagefolder:{}", "teacher.weights={}.pt",
     "student.model={}.py:Net", "teacher.model={}.onnx", "distill.teacher_cache={}"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["a" * 5000, "a/" * 3000 + "b"], ids=["a name", "folders"])
def test_a_path_that_no_file_system_takes(kdexport: Kdexport, tmp_path: Path, setting: str, path: str) -> None:
    done = kdexport("distill", DIGITS, "--out", tmp_path / "out", "--set", setting.format(path))
    assert "longer than any path" in complaint(done)[0]
    assert len(done.stderr) < 500
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [("bench", "{}.onnx"), ("report", "{}"), ("export", "--describe", "{}.onnx"), ("run", "{}.toml"),
     ("evaluate", "{}.onnx", "--data", "digits"), ("evaluate", "nets.py:A", "--data", "digits", "--weights", "{}.pt"),
     ("run", DIGITS, "--out", "{}"), ("export", "nets.py:A", "--onnx", "--out", "{}.onnx")],
)  # fmt: skip
def test_names_of_5000_characters_on_the_command_line(kdexport: Kdexport, arguments: tuple[object, ...]) -> None:
    complaint(kdexport(*(str(one).format("a" * 5000) for one in arguments)))


@pytest.mark.parametrize("arguments", [("run",), ("report",), ("distill",)])
def test_a_pipe_or_a_device_where_a_file_is_read(
    kdexport: Kdexport, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/zero")):
        assert "a pipe or a device" in complaint(kdexport(*arguments, place))[0]


@pytest.mark.parametrize("value", ["1e300", "inf", "1e7"])
def test_a_temperature_beyond_all_sense(kdexport: Kdexport, value: str) -> None:
    message = complaint(kdexport("distill", DIGITS, "--set", f"distill.terms.0.temperature={value}"))[0]
    assert "distill.terms[0].temperature: should be" in message


def test_memory_that_is_used_up_is_said(kdexport: Kdexport, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("kdexport.report.reading.read_benches", read)
    monkeypatch.setattr("kdexport.recipe.Recipe.load", read)
    assert "memory" in complaint(kdexport("run", "recipe.toml"))[0]


@pytest.mark.parametrize("command", [("doctor",), ("evaluate", "nets.py:Net", "--data", "digits")])
def test_no_folder_for_temporary_files(
    kdexport: Kdexport, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """torch "could not be loaded: free some memory"; a worker's start was "check the path"."""

    def none(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr("kdexport.bench.process.tempfile.TemporaryFile", none)
    monkeypatch.setattr("importlib.import_module", none)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    message, hint = complaint(kdexport(*command))
    assert message == "no folder for temporary files can be written to: ['/tmp', '/var/tmp']"
    assert "TMPDIR" in hint


def test_what_the_system_refuses_comes_with_its_own_way_out(
    kdexport: Kdexport, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """ "check the path" was no help where the working directory, or a number for one more file, is what is missing."""

    def no_number(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr("kdexport.recipe.Recipe.load", no_number)
        assert "ulimit -n" in complaint(kdexport("run", DIGITS))[1]
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert "the working directory was removed" in complaint(kdexport("run", DIGITS))[1]
