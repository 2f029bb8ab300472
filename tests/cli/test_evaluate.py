"""`kdexport evaluate` and `kdexport init` as a user calls them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

NETS = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.fixture
def net(tmp_path):
    """A linear network with weights that are worth something: ridge regression on the digits' own training split."""
    from kdexport.data.datasets import load_data
    from kdexport.recipe import Data

    data = load_data(Data(source="digits"), 0, tmp_path)
    inputs = data.preprocessing.apply(data.train.inputs)[0].flatten(1)
    wanted = torch.nn.functional.one_hot(torch.from_numpy(data.train.labels), 10).float()
    weight = torch.linalg.solve(inputs.T @ inputs + 50 * torch.eye(64), inputs.T @ (wanted - 0.1))
    (tmp_path / "nets.py").write_text(NETS)
    torch.save({"model": {"1.weight": weight.T.contiguous(), "1.bias": torch.full((10,), 0.1)}}, tmp_path / "w.pth")
    return tmp_path


def scores(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_checkpoint_is_scored_with_interval_classes_and_confusions(kdexport, net):
    arguments = ("evaluate", f"{net / 'nets.py'}:Net", "--weights", net / "w.pth", "--data", "digits", "--quiet")
    found = scores(kdexport(*arguments, "--json"))
    assert found["samples"] == 359
    assert 0.85 < found["accuracy"] < 1
    low, high = found["accuracy_ci95"]
    assert low < found["accuracy"] < high
    assert len(found["per_class"]) == 10
    shown = " ".join(kdexport(*arguments).stdout.split())
    for text in (
        f"accuracy {100 * found['accuracy']:.1f} %",
        "macro-F1",
        "most often confused",
        "stratified 0.2 of all",
    ):
        assert text in shown


def test_the_onnx_file_scores_as_the_module_does(kdexport, net):
    import onnx_ir

    from kdexport.export.to_onnx import to_onnx
    from kdexport.models.networks import load_network
    from kdexport.models.weights import load_weights

    network = load_network(f"{net / 'nets.py'}:Net", {}, 10)
    load_weights(network, net / "w.pth")
    onnx_ir.save(to_onnx(network, (torch.zeros(2, 1, 8, 8),), input_names=("input",)).model, net / "net.onnx")
    module = scores(
        kdexport("evaluate", f"{net / 'nets.py'}:Net", "--weights", net / "w.pth", "--data", "digits", "--json")
    )
    onnx = scores(kdexport("evaluate", net / "net.onnx", "--data", "digits", "--json"))
    assert onnx["per_sample"] == module["per_sample"]


def test_other_splits_and_settings(kdexport, net):
    arguments = ("evaluate", f"{net / 'nets.py'}:Net", "--weights", net / "w.pth", "--data", "digits", "--json")
    assert scores(kdexport(*arguments, "--split", "val"))["samples"] == 143
    assert scores(kdexport(*arguments, "--set", "data.test_fraction=0.5"))["samples"] == 898
    recipe = Path(__file__).parents[2] / "models" / "digits" / "recipe.toml"
    same = ("evaluate", f"{net / 'nets.py'}:Net", "--weights", net / "w.pth", "--recipe", recipe, "--json")
    assert scores(kdexport(*same)) == scores(kdexport(*arguments))


def test_weights_that_fit_in_part_are_taken_only_when_requested(kdexport, net):
    state = torch.load(net / "w.pth")["model"]
    torch.save({"1.weight": state["1.weight"], "head.bias": state["1.bias"]}, net / "part.pth")
    arguments = ("evaluate", f"{net / 'nets.py'}:Net", "--weights", net / "part.pth", "--data", "digits")
    refused = kdexport(*arguments, "--json")
    assert refused.exit_code == 1
    assert "1.bias: missing in the file" in refused.stderr
    assert "head.bias: not in the network" in refused.stderr
    taken = kdexport(*arguments, "--json", "--no-strict")
    assert scores(taken)["accuracy"] > 0.8
    assert "1.bias: missing in the file" in taken.stderr


def test_what_makes_a_score_doubtful_is_reported(kdexport, net):
    state = torch.load(net / "w.pth")["model"]
    torch.save({name: tensor.roll(1, 0) for name, tensor in state.items()}, net / "rolled.pth")
    result = kdexport(
        "evaluate", f"{net / 'nets.py'}:Net", "--weights", net / "rolled.pth", "--data", "digits", "--json"
    )
    assert scores(result)["accuracy"] < 0.1
    message = " ".join(result.stderr.split())
    assert "its classes are in another order than the data's" in message
    assert "0 -> 1, 1 -> 2" in message
    assert "the given nets.py:Net may have been trained on these samples" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nets.py:Nat", "--data", "digits"), "has no 'Nat'"),
        (("nets.py:Net", "--data", "digitz"), "is no data that can be loaded"),
        (("nets.py:Net",), "one of --data and --recipe"),
        (("nets.py:Net", "--data", "digits", "--split", "rest"), "there is no split 'rest'"),
        (("nets.py:Net", "--data", "digits", "--weights", "absent.pt"), "there is no weights file"),
        (("nets.py:Net", "--data", "digits", "--arg", "num_classes=7"), "the data have 10 classes"),
        (("absent.onnx", "--data", "digits"), "there is no ONNX file"),
        (("w.pth", "--data", "digits"), "is no network that can be built"),
    ],
)
def test_what_cannot_be_scored(arguments, message, kdexport, net, monkeypatch):
    monkeypatch.chdir(net)
    result = kdexport("evaluate", *arguments, "--quiet")
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert "\nhint: " in result.stderr
    assert result.stdout == ""


def test_reference_pairs_are_listed_and_copied(kdexport, tmp_path):
    listed = scores(kdexport("init", "--list", "--json"))["pairs"]
    assert {"digits", "spoken_digits"} <= {pair["name"] for pair in listed}
    assert all(pair["description"] for pair in listed)
    result = kdexport("init", "digits", tmp_path / "mine")
    assert result.exit_code == 0
    assert f"kdexport run {tmp_path / 'mine' / 'recipe.toml'}" in result.stdout
    original = Path(__file__).parents[2] / "models" / "digits"
    for name in ("recipe.toml", "nets.py"):
        assert (tmp_path / "mine" / name).read_bytes() == (original / name).read_bytes()
    assert not list((tmp_path / "mine").rglob("__pycache__"))
    again = kdexport("init", "digits", tmp_path / "mine")  # as where the list could not be printed
    assert (again.exit_code, again.stdout) == (0, result.stdout)
    (tmp_path / "mine" / "nets.py").write_text("mine")
    changed = kdexport("init", "digits", tmp_path / "mine")
    assert changed.exit_code == 1
    assert "is not empty" in changed.stderr
    assert (tmp_path / "mine" / "nets.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("init", "digit"), "no reference pair is called 'digit'"), (("init",), "no reference pair is named")],
)
def test_pairs_that_cannot_be_copied(arguments, message, kdexport, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = kdexport(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(kdexport, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = kdexport("init", "digits", tmp_path)
    assert result.exit_code == 1
    assert "is not empty" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_pairs_come_with_a_wheel_too(tmp_path):
    """In a wheel the pairs lie inside the package: the same files, laid out as the wheel has them."""
    root = Path(__file__).parents[2]
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "kdexport", tmp_path / "site" / "kdexport", ignore=ignored)
    shutil.copytree(root / "models", tmp_path / "site" / "kdexport" / "_models", ignore=ignored)
    code = "from kdexport.cli import main; import sys; sys.argv = ['kdexport', 'init', 'spoken_digits', 'mine']; main()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine" / "data.py").read_bytes() == (root / "models" / "spoken_digits" / "data.py").read_bytes()
