"""ONNX files whose words and paths are meant to harm: shown as text, or refused with a message, never a traceback."""

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

DEEP = "[" * 2000 + "]" * 2000
TITLE = "\x1b]0;title\x07"


def model(path: Path, metadata: dict[str, str] | None = None, location: str | None = None, name: str = "x") -> Path:
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    if location is None:
        weights.float_data.extend([1.0] * 4)
    else:
        weights.data_location = TensorProto.EXTERNAL
        entry = weights.external_data.add()
        entry.key, entry.value = "location", location
    values = [helper.make_tensor_value_info(one, TensorProto.FLOAT, ["batch", 4]) for one in (name, "y")]
    graph = helper.make_graph([helper.make_node("Add", [name, "w"], ["y"])], "g", values[:1], values[1:], [weights])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(made, metadata or {})
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize(
    "metadata",
    [
        {"kdexport.labels": "{", "kdexport.preprocessing": "no JSON"},
        {"kdexport.labels": "3", "kdexport.parameters": "[/]", "kdexport.opset": "[/red]"},
        {"kdexport.labels": DEEP, "kdexport.preprocessing": DEEP},
        {"kdexport.labels": json.dumps(["[/]", TITLE, "[link=http://x]a"]), "kdexport.license": f"[/]{TITLE}"},
    ],
)
def test_words_of_strangers_are_text(metadata: dict[str, str], tmp_path: Path, kdexport) -> None:
    done = kdexport("export", "--describe", model(tmp_path / "net.onnx", metadata, name=f"[/]{TITLE}"))
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output
    assert "\x07" not in done.output
    assert "[/]" in done.output


@pytest.mark.parametrize("command", [["bench", "--max-seconds", "0.2"], ["evaluate", "--data", "digits"]])
@pytest.mark.parametrize("location", ["a\0b", "a" * 5000, "/etc/passwd", "../../etc/passwd", "loop"])
def test_weights_in_places_that_are_none_are_refused(command, location, tmp_path: Path, kdexport) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    done = kdexport(command[0], model(tmp_path / "net.onnx", location=location), *command[1:])
    assert done.exit_code == 1
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert "error: " in done.output
    assert "hint: " in done.output
    assert "Traceback" not in done.output


def test_metadata_that_is_no_utf8_is_shown(tmp_path: Path, kdexport) -> None:
    path = model(tmp_path / "net.onnx", {"kdexport.labels": "QQQQ", "QQQQ": "x"})
    path.write_bytes(path.read_bytes().replace(b"QQQQ", b"Q\xff\xfeQ"))
    done = kdexport("export", "--describe", path)
    assert done.exit_code == 0, done.output
    assert "Q\ufffd\ufffdQ" in done.output


def test_words_without_end_are_cut(tmp_path: Path, kdexport) -> None:
    words = {"kdexport.labels": json.dumps(["word"] * 300_000), "k" * 100_000: "x"}
    done = kdexport("export", "--describe", model(tmp_path / "net.onnx", words, name="n" * 100_000))
    assert done.exit_code == 0
    assert "2,400,000 characters, all of them in --json" in " ".join(done.output.split())
    assert len(done.output) < 200_000


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_classes_whose_names_steer_a_terminal_are_shown_as_text(form, tmp_path: Path, kdexport) -> None:
    names = [f"[/]{TITLE}", "\u202eevil", "\x9b2J", "a\nb"]
    inputs, labels = np.random.default_rng(0).random((40, 4), np.float32), np.arange(40) % 4
    split = {"x_train": inputs, "y_train": labels, "x_test": inputs, "y_test": labels}
    np.savez(tmp_path / "d.npz", class_names=np.array(names), **split)
    done = kdexport("evaluate", model(tmp_path / "net.onnx"), "--data", f"npz:{tmp_path / 'd.npz'}", *form)
    assert done.exit_code == 0, done.output
    assert done.output.replace("\n", "").isprintable()
    if form:
        assert [one["name"] for one in json.loads(done.stdout)["per_class"]] == names


def test_a_test_split_of_another_shape_is_told_by_its_shape(tmp_path: Path, kdexport) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\nNet = lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 2))\n"
    )
    labels = np.arange(8) % 2
    images = np.random.default_rng(0).random((8, 1, 4, 4), np.float32)
    split = {"x_train": images, "y_train": labels, "x_test": images[:, :, :3], "y_test": labels}
    np.savez(tmp_path / "d.npz", **split)
    done = kdexport("evaluate", f"{tmp_path / 'nets.py'}:Net", "--data", f"npz:{tmp_path / 'd.npz'}")
    assert (done.exit_code, "does not take the data ([8, 1, 3, 4] float32)" in done.output) == (1, True), done.output
