"""Each form of checkpoint, written with plain torch, gives the same logits; nothing in one ever runs."""

import os
import pickle
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from torch import nn

from kdexport.errors import SourceError
from kdexport.models.weights import load_weights, read_weights, save_weights


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU())
        self.head = nn.Linear(7, classes)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.fixture
def trained():
    torch.manual_seed(1)
    net = Net()
    net.train()(torch.randn(64, 5))  # running statistics that differ from the initial ones
    return net.eval()


def prefixed(state, prefix):
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


FORMS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.5},
    "net": lambda state: {"net": state, "acc": 91.2},
    "module": lambda state: {"module": state},
    "ema": lambda state: {"ema": state},
    "data parallel": lambda state: prefixed(state, "module."),
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled and parallel": lambda state: prefixed(state, "module._orig_mod."),
    "lightning": lambda state: {
        "state_dict": {**prefixed(state, "model."), "accuracy.total": torch.zeros(())},
        "hyper_parameters": {"lr": 0.1},
        "epoch": 2,
    },
    "timm": lambda state: {
        "arch": "resnet",
        "state_dict": {name: torch.zeros_like(tensor) for name, tensor in state.items()},
        "state_dict_ema": state,
    },
    "averaged": lambda state: {"n_averaged": torch.tensor(4), **prefixed(state, "module.")},
    "nested twice": lambda state: {"checkpoint": 1, "state_dict": {"model": prefixed(state, "module.")}},
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".ckpt"])
@pytest.mark.parametrize("form", FORMS)
def test_round_trip(form, suffix, trained, tmp_path):
    path = tmp_path / f"weights{suffix}"
    torch.save(FORMS[form](trained.state_dict()), path)
    fresh, inputs = Net(), torch.randn(8, 5)
    load_weights(fresh, path, strict=form != "lightning")
    assert torch.equal(fresh.eval()(inputs), trained(inputs))


def test_safetensors_round_trip_and_equal_bytes(trained, tmp_path):
    save_weights(trained, tmp_path / "a.safetensors")
    save_weights(trained, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    fresh, inputs = Net(), torch.randn(8, 5)
    assert load_weights(fresh, tmp_path / "a.safetensors") == ()
    assert torch.equal(fresh.eval()(inputs), trained(inputs))
    assert safetensors.torch.load_file(tmp_path / "a.safetensors").keys() == trained.state_dict().keys()


def test_legacy_pickle_format_loads(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    fresh, inputs = Net(), torch.randn(8, 5)
    load_weights(fresh, tmp_path / "old.pth")
    assert torch.equal(fresh.eval()(inputs), trained(inputs))


def test_a_name_that_really_starts_like_a_wrapper_is_kept(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Net()

    torch.save(Wrapped().state_dict(), tmp_path / "w.pt")
    assert load_weights(Wrapped(), tmp_path / "w.pt") == ()
    assert load_weights(Net(), tmp_path / "w.pt") == ()  # and the same weights fit what is within


def test_another_head_is_said_and_left_out_when_not_strict(trained, tmp_path):
    save_weights(trained, tmp_path / "w.safetensors")
    with pytest.raises(SourceError, match=r"head\.weight: \[3, 7\] in the file, \[9, 7\] in the network") as caught:
        load_weights(Net(classes=9), tmp_path / "w.safetensors")
    assert "3 classes" in caught.value.hint
    assert "strict = false" in caught.value.hint
    other = Net(classes=9)
    left_out = load_weights(other, tmp_path / "w.safetensors", strict=False)
    assert [line.partition(":")[0] for line in left_out] == ["head.weight", "head.bias"]
    assert torch.equal(other.body[0].weight, trained.body[0].weight)


def test_missing_and_unexpected_are_listed(trained, tmp_path):
    state = trained.state_dict()
    del state["body.0.bias"]
    torch.save({**state, "extra.weight": torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"body\.0\.bias: missing in the file.*\n.*extra\.weight: not in the network"):
        load_weights(Net(), tmp_path / "w.pt")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_code_in_a_pickle_is_refused_by_name_and_never_runs(how, tmp_path):
    path, sign = tmp_path / "evil.pt", tmp_path / "ran"
    document = {"state_dict": {"a": torch.zeros(1)}, "x": Trap(str(sign))}
    if how == "pickle":
        path.write_bytes(pickle.dumps(Trap(str(sign))))
    else:
        torch.save(document, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(SourceError, match=r"posix\.mkdir") as caught:
        load_weights(Net(), path)
    assert "nothing in it was run" in caught.value.message
    assert not sign.exists()


def test_a_whole_pickled_module_is_refused_by_name(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(SourceError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_weights(tmp_path / "module.pt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("page.pth", b"<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
        ("page.safetensors", b"\n<html lang='en'>", "is a web page"),
        ("lfs.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        ("cut.pt", b"PK\x03\x04 cut short", "no whole weights file|no weights file"),
        ("empty.pt", b"", "no whole weights file|no weights file"),
        ("short.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "no whole safetensors file"),
    ],
)
def test_what_is_no_weights_file(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        read_weights(tmp_path / name)


def test_absent_and_empty_of_tensors(tmp_path):
    with pytest.raises(SourceError, match="there is no weights file"):
        read_weights(tmp_path / "nothing.pt")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(SourceError, match="no weights are found"):
        read_weights(tmp_path / "none.pt")
