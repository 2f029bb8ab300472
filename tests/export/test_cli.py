"""`kdexport export` as a user types it: bare references, runs, descriptions, and every kind of bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from kdexport.artifacts import write_json
from kdexport.cli import app
from kdexport.errors import KDExportError
from kdexport.results import to_json

NETS = Path(__file__).with_name("nets.py")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with the networks in it."""
    shutil.copy(NETS, tmp_path / "nets.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["export", *arguments])


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".onnx", ".ort", ".data"))


def test_a_bare_reference_becomes_a_proved_file(here):
    done = run("nets.py:Net", "--onnx", "--input-shape", "1,8,8", "--json", "--license", "MIT")
    assert done.exit_code == 0, done.stderr
    (model,) = json.loads(done.stdout)["models"]
    assert model["parity"]["passed"]
    assert model["parity"]["batch_sizes"] == [1, 2, 7]
    assert model["oldest_runtime"] == "1.14"
    assert model["macs"] == 8 * 8 * 8 * 9 + 8 * 8 * 8 * 8 * 9 + 8 * 10  # two convolutions and the head
    assert sum(model["operators_before"].values()) > sum(model["operators"].values())
    assert any("random inputs" in note for note in model["notes"])
    assert files(here) == ["Net.onnx"]
    described = json.loads(run("--describe", "Net.onnx", "--json").stdout)
    assert described["metadata"]["license"] == "MIT"
    assert described["inputs"] == {"input": {"type": "float", "shape": ["batch", 1, 8, 8]}}
    shown = run("--describe", "Net.onnx").stdout
    assert "loads in onnxruntime >= 1.14" in shown


def test_real_data_make_int8_possible(here):
    done = run("nets.py:Net", "--onnx", "--data", "digits", "--quantize", "int8", "--out", "d.onnx", "--json")
    assert done.exit_code == 0, done.stderr
    plain, small = json.loads(done.stdout)["models"]
    assert plain["inputs"] == {"input": ["batch", 8, 8, 1]}  # images: the preprocessing is in the graph
    assert plain["parity"]["samples"] == 256
    assert small["file"] == "d.int8.onnx"
    assert files(here) == ["d.int8.onnx", "d.onnx"]
    labels = json.loads(run("--describe", "d.int8.onnx", "--json").stdout)["metadata"]["labels"]
    assert labels == [str(digit) for digit in range(10)]


def test_runtime_axes_and_names_are_the_users(here):
    done = run(
        "nets.py:Wide", "--onnx", "--ort", "--input-shape", "picture:1x16x16", "--for-runtime", "1.13", "--softmax",
        "--dynamic", "picture:2=height", "--dynamic", "picture:3=width", "--output-name", "scores", "--top-k", "2",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert files(here) == ["Wide.onnx", "Wide.ort"]
    model = onnx.load("Wide.onnx")
    assert (model.opset_import[0].version, model.ir_version) == (17, 8)
    described = json.loads(run("--describe", "Wide.onnx", "--json").stdout)
    assert described["inputs"]["picture"]["shape"] == ["batch", 1, "height", "width"]
    assert list(described["outputs"]) == ["probabilities", "top_scores", "top_indices"]
    assert described["oldest_runtime"] == "1.12"


def test_static_has_no_dynamic_axis(here):
    done = run("nets.py:Net", "--onnx", "--input-shape", "1,8,8", "--static", "--json")
    assert done.exit_code == 0, done.stderr
    (model,) = json.loads(done.stdout)["models"]
    assert model["inputs"] == {"input": [1, 1, 8, 8]}
    assert model["parity"]["batch_sizes"] == [1]


def test_a_network_that_fixes_the_batch_exports_only_static(here):
    refused = run("nets.py:FixedBatch", "--onnx", "--input-shape", "4")
    assert refused.exit_code == 1
    assert "--static" in refused.stderr
    assert files(here) == []


def test_a_captured_program_of_fixed_batch_exports_only_static(here, load_net):
    network, example = load_net("Net").eval(), torch.zeros(1, 1, 8, 8)
    torch.export.save(torch.export.export(network, (example,)), here / "net.pt2")
    refused = run("net.pt2", "--onnx", "--input-shape", "1,8,8")
    assert refused.exit_code == 1
    assert "a .pt2's capture, fixes the batch size" in refused.stderr.replace("\n", " ")
    done = run("net.pt2", "--onnx", "--input-shape", "1,8,8", "--static", "--json")
    assert done.exit_code == 0, done.stderr
    found = onnxruntime.InferenceSession(here / "net.onnx").run(None, {"input": example.numpy()})[0]
    np.testing.assert_allclose(found, network(example).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_library_that_gives_an_untrained_network_is_told(here):
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'kdexport[timm]'")
    name = "test_resnet" if timm.is_model("test_resnet") else "resnet10t"  # since timm 1.0.10
    arguments = ["--onnx", "--input-shape", "3,32,32", "--arg", "num_classes=3"]
    done = run(f"timm:{name}", *arguments)
    assert done.exit_code == 0, done.stderr
    assert "no weights are given" in done.stderr
    assert files(here) == [f"{name}.onnx"]


def test_a_transformer_from_a_folder_says_which_of_its_weights_are_fresh(here):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: kdexport[text]")
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1}
    transformers.BertModel(transformers.BertConfig(vocab_size=120, **sizes)).save_pretrained(here / "bert")
    shapes = ["--input-shape", "input_ids:6:int64", "--input-shape", "attention_mask:6:int64"]
    done = run("hf:bert", "--onnx", *shapes, "--json")
    assert done.exit_code == 0, done.stderr
    assert "classifier.bias, classifier.weight" in done.stderr.replace("\n", " ")
    assert json.loads(done.stdout)["models"][0]["parity"]["passed"]


def test_a_run_is_brought_up_to_date(make_run, monkeypatch, tmp_path):
    recipe, distilled, directory = make_run(tmp_path / "run", networks=("student",))
    recipe.write(directory.recipe)
    write_json(directory.stage("distill"), {**to_json(distilled), "key": "k"})
    done = run(str(directory.root), "--onnx", "--quantize", "fp16", "--json")
    assert done.exit_code == 0, done.stderr
    assert [model["name"] for model in json.loads(done.stdout)["models"]] == ["student", "student.fp16"]
    assert (directory.root / "infer.py").is_file()
    again = run(str(directory.root), "--onnx", "--json")  # the recipe remembers what was asked for
    assert again.stdout == done.stdout
    refused = run(str(directory.root), "--onnx", "--input-shape", "1,8,8")
    assert refused.exit_code == 1
    assert "--input-shape is for a bare model reference" in refused.stderr
    monkeypatch.setattr("kdexport.cli.export_request.load", lambda *_: shutil.rmtree(directory.root))
    gone = run(str(directory.root), "--onnx")
    assert "was taken away while it was used" in gone.stderr
    assert not directory.root.exists()  # it was made again, with a recipe and no weights


BAD = {
    "an operator that ONNX lacks": (
        ["nets.py:NoOperator", "--onnx", "--input-shape", "4"],
        "ONNX has no aten._linalg_svd, which inner (Svd) uses",
    ),
    "control flow on data": (["nets.py:Branches", "--onnx", "--input-shape", "4"], "depends on the data: `if "),
    "a shape that does not fit": (["nets.py:Net", "--onnx", "--input-shape", "3,8,8"], "does not take inputs of shape"),
    "no shape": (["nets.py:Net", "--onnx"], "shape of the network's input is not known"),
    "no such shape": (["nets.py:Net", "--onnx", "--input-shape", "eight"], "is no shape"),
    "no calibration set": (
        ["nets.py:Net", "--onnx", "--input-shape", "1,8,8", "--quantize", "int8"],
        "leave int8 out, then make it of the ONNX file: kdexport export Net.onnx --onnx --quantize int8 --input",
    ),
    "a dict": (["nets.py:Dict", "--onnx", "--input-shape", "4"], "returns a dict with logits"),
    "answers that never change": (["nets.py:Zeros", "--onnx", "--input-shape", "4"], "would prove nothing"),
    "ONNX already": (["net.onnx", "--onnx"], "is ONNX already"),
    "no such network": (["nets.py:Nett", "--onnx", "--input-shape", "1,8,8"], "has no 'Nett'"),
    "two faults": (
        ["nets.py:Net", "--onnx", "--input-shape", "1,8,8", "--opset", "5", "--quantize", "int9"],
        "has 2 faults",
    ),
    "a runtime from the past": (["nets.py:Net", "--onnx", "--for-runtime", "1.2"], "no file can be written"),
    "opset beyond the runtime": (
        ["nets.py:Net", "--onnx", "--for-runtime", "1.15", "--opset", "21"],
        "reads opsets up to",
    ),
    "static and dynamic": (
        ["nets.py:Net", "--onnx", "--input-shape", "1,8,8", "--static", "--dynamic", "input:2=h"],
        "opposite things",
    ),
    "an axis of no input": (
        ["nets.py:Net", "--onnx", "--input-shape", "1,8,8", "--dynamic", "picture:2"],
        "names no axis of an input",
    ),
    "a folder to write to": (["nets.py:Net", "--onnx", "--input-shape", "1,8,8", "--out", "."], ". is a folder"),
    "no file to describe": (["--describe", "absent.onnx"], "there is no file"),
    "a text to describe": (["--describe", "nets.py"], "is no ONNX file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_one_hint(case, here):
    arguments, message = BAD[case]
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    assert message in done.stderr.replace("\n", " ")
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert files(here) == []
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


def test_a_file_that_is_there_needs_force(here):
    (here / "Net.onnx").write_text("mine")
    refused = run("nets.py:Net", "--onnx", "--input-shape", "1,8,8")
    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    assert (here / "Net.onnx").read_text() == "mine"
    assert run("nets.py:Net", "--onnx", "--input-shape", "1,8,8", "--force").exit_code == 0


def test_nothing_to_write_is_bad_usage(here):
    assert run("nets.py:Net").exit_code == 2
    assert run("--onnx").exit_code == 2


TALKATIVE = """
import argparse, sys
print("loading my networks")
parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=3)
options = parser.parse_args()
from torch import nn
class Net(nn.Linear):
    def __init__(self):
        print("=> creating model")
        super().__init__(4, options.width)
    def forward(self, x):
        print("shape", tuple(x.shape))
        return super().forward(x)
"""


def test_code_that_prints_and_parses_arguments_leaves_stdout_and_the_command_line_alone(here, monkeypatch):
    (here / "mine.py").write_text(TALKATIVE)
    monkeypatch.setattr("sys.argv", ["kdexport", "export", "mine.py:Net", "--onnx"])
    done = run("mine.py:Net", "--onnx", "--input-shape", "4", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["models"][0]["inputs"] == {"input": ["batch", 4]}
    assert "=> creating model" in done.stderr
    (here / "strict.py").write_text("import argparse\nargparse.ArgumentParser().parse_args(['--none'])\n")
    refused = run("strict.py:Net", "--onnx", "--input-shape", "4", "--out", "strict.onnx")
    assert refused.exit_code == 1
    assert "strict.py cannot be imported: SystemExit" in refused.stderr.replace("\n", " ")


def test_the_users_own_files_stay(here):
    (here / "infer.py").write_text("# weeks of work\n")
    done = run("nets.py:Wide", "--onnx", "--input-shape", "1,8,8")
    assert done.exit_code == 0
    assert "infer.py that kdexport did not write" in done.stderr.replace("\n", " ")
    assert (here / "infer.py").read_text() == "# weeks of work\n"
    assert run("nets.py:Wide", "--onnx", "--input-shape", "1,8,8", "--force").exit_code == 0
    assert "Wide.onnx" in (here / "infer.py").read_text()
    (here / "other.onnx.data").write_text("another program's")
    refused = run("nets.py:Wide", "--onnx", "--input-shape", "1,8,8", "--out", "other.onnx")
    assert refused.exit_code == 1
    assert "other.onnx.data" in refused.stderr.replace("\n", "")


@pytest.mark.parametrize("text", ["{", "[]", '{"name": 3}', "[" * 5000, "\ud800"])
def test_a_run_whose_record_of_training_is_damaged_is_told(text, here):
    (here / "run").mkdir()
    (here / "run" / "recipe.toml").write_text("")
    (here / "run" / "distill.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    done = run("run", "--onnx")
    assert done.exit_code == 1
    assert "distill.json cannot be read: it is damaged" in " ".join(done.stderr.split())
    assert "it makes it anew" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("9" * 5000, "larger than any network's input"),
        (",".join("1" * 1000), "larger than any network's input"),
        ("1,99999999999,9", "larger than any network's input"),
        ("ids:4:int64<0", "do not end below that limit"),
        (f"ids:4:int64<{'9' * 19}", "do not end below that limit"),
        ("ids:4:int8<1000", "do not end below that limit"),
    ],
)
def test_shapes_that_no_network_takes_are_refused(text, told):
    from kdexport.export.random_inputs import parse_shape

    with pytest.raises(KDExportError, match=told) as caught:
        parse_shape(text, 0)
    assert caught.value.hint
