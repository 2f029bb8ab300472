"""Each form of checkpoint, written with plain torch, gives the same logits; nothing in one ever runs."""

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import tarfile
import time
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from kdexport.errors import SourceError
from kdexport.models.checkpoints import read
from kdexport.models.pruned import plan_in
from kdexport.models.weights import fit, load_weights, postprocessing_in, save_weights


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
    "torchvision's references": lambda state: {
        "model": state,
        "args": argparse.Namespace(lr=0.1, path="x"),
        "epoch": 3,
    },
    "numpy scalars": lambda state: {"state_dict": state, "best": np.float64(0.9), "count": np.int32(4)},
    "numpy array": lambda state: {"state_dict": state, "history": np.arange(5.0)},
    "paths and times": lambda state: {"net": state, "out": pathlib.Path("x"), "when": datetime.datetime(2024, 1, 1)},
    "defaultdict": lambda state: {"state_dict": state, "log": collections.defaultdict(list, {"a": [1]})},
    "names of one's own": lambda state: {"my_best_network": state, "optimizer_state": {"state": {0: state}}},
    "a list": lambda state: [state, {"epoch": 3}],
    "an average that is none": lambda state: {"model": state, "ema": {"step": torch.tensor(3)}},
    "mmrazor": lambda state: {"meta": {}, "state_dict": prefixed(state, "architecture.")},
    "within data parallel": lambda state: {k.replace("body.", "body.module."): v for k, v in state.items()},
    "profiler": lambda state: {**state, "total_ops": torch.zeros(1), "body.0.total_ops": torch.zeros(1)},
    "loss beside it": lambda state: {**prefixed(state, "net."), "criterion.weight": torch.ones(9)},
    "before 0.4.1": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    "half": lambda state: {k: v.bfloat16().float() if v.is_floating_point() else v for k, v in state.items()},
    "nested twice": lambda state: {"checkpoint": 1, "state_dict": {"model": prefixed(state, "module.")}},
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".ckpt"])
@pytest.mark.parametrize("form", FORMS)
def test_round_trip(form, suffix, trained, tmp_path):
    path = tmp_path / f"weights{suffix}"
    torch.save(FORMS[form](trained.state_dict()), path)
    fresh, inputs = Net(), torch.randn(8, 5)
    load_weights(fresh, path, strict=form != "lightning")
    assert torch.allclose(fresh.eval()(inputs), trained(inputs), atol=0.05 if form == "half" else 0, rtol=0)


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


def test_another_head_is_reported_and_left_out_when_not_strict(trained, tmp_path):
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
        path.write_bytes(pickle.dumps(Trap(str(sign)), protocol=2))
    else:
        torch.save(document, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(SourceError, match=r"posix\.mkdir") as caught:
        load_weights(Net(), path)
    assert "nothing in it was run" in caught.value.message
    assert not sign.exists()


def test_a_newer_pickle_is_refused_and_never_runs(tmp_path):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Trap(str(tmp_path / "ran")), protocol=4))
    with pytest.raises(SourceError, match="nothing in it was run"):
        load_weights(Net(), tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_module_is_refused_by_name(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(SourceError, match=r"torch\.nn\.modules\.linear\.Linear"):
        load_weights(Net(), tmp_path / "module.pt")


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
        load_weights(Net(), tmp_path / name)


def test_a_tied_weight_may_be_written_once(tmp_path):
    """As safetensors' save_model does."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    torch.manual_seed(1)
    trained, fresh, inputs = Tied(), Tied(), torch.randn(4, 5)
    safetensors.torch.save_model(trained, str(tmp_path / "tied.safetensors"))
    assert load_weights(fresh, tmp_path / "tied.safetensors") == ()
    assert torch.equal(fresh(inputs), trained(inputs))
    assert fresh.second.weight is fresh.first.weight


def _archive(path):
    torch.save({"w": torch.ones(2)}, path.parent / "inner.pth")
    with tarfile.open(path, "w") as archive:
        archive.add(path.parent / "inner.pth", "inner.pth")


def _oldest(path):
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            (path.parent / name).write_bytes(b"\x80\x02N.")
            archive.add(path.parent / name, name)


OTHER_FORMATS = {
    "oldest.pt": (_oldest, r"before version 0\.2, which it does not load safely: nothing in it was run"),
    "w.h5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "an HDF5 file"),
    "w.npz": (lambda path: np.savez(path, w=np.ones(3)), "numpy's arrays"),
    "w.tar": (_archive, r"an archive that holds inner\.pth"),
    "w.pth": (lambda path: path.write_bytes(b"\x1f\x8b" + bytes(99)), "packed by gzip"),
    "w.onnx": (lambda path: path.write_bytes(b"\x08\x07" + bytes(99)), "an ONNX file"),
    "model.safetensors.index.json": (lambda path: path.write_text("{}"), "JSON"),
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_files_of_other_formats_are_called_by_their_names(name, tmp_path):
    write, message = OTHER_FORMATS[name]
    write(tmp_path / name)
    with pytest.raises(SourceError, match=message) as caught:
        load_weights(Net(), tmp_path / name)
    assert caught.value.hint


def test_absent_and_empty_of_tensors(tmp_path):
    with pytest.raises(SourceError, match="there is no weights file"):
        load_weights(Net(), tmp_path / "nothing.pt")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(SourceError, match="no weights are found"):
        load_weights(Net(), tmp_path / "none.pt")


def zeros(state):
    return OrderedDict((name, torch.zeros_like(tensor)) for name, tensor in state.items())


AMBIGUOUS = {
    "two networks": lambda state: {"student": state, "teacher": zeros(state)},
    "two prefixes": lambda state: {"state_dict": {**prefixed(state, "student."), **prefixed(zeros(state), "teacher.")}},
    "names of one's own": lambda state: {"student": state, "snapshot": zeros(state), "epoch": 3},
}


@pytest.mark.parametrize("form", AMBIGUOUS)
@pytest.mark.parametrize("strict", [True, False])
def test_two_that_fit_equally_are_an_error_that_a_key_solves(form, strict, trained, tmp_path):
    path = tmp_path / "w.pt"
    torch.save(AMBIGUOUS[form](trained.state_dict()), path)
    with pytest.raises(SourceError, match=r"holds 2 sets of weights that fit the network equally.*student") as caught:
        load_weights(Net(), path, strict)
    assert "weights_key" in caught.value.hint
    fresh, inputs = Net(), torch.randn(8, 5)
    load_weights(fresh, path, strict, "student")
    assert torch.equal(fresh.eval()(inputs), trained(inputs))
    with pytest.raises(SourceError, match="has no weights under 'pupil'") as caught:
        load_weights(Net(), path, strict, "pupil")
    assert "student" in caught.value.hint


def test_of_teacher_and_student_in_one_file_the_one_that_fits_is_taken(trained, tmp_path):
    """Another width: with strict = false the teacher's part, which shares some shapes, must not get in."""
    state = trained.state_dict()
    wide = {name: torch.full_like(tensor, 9) for name, tensor in Net(classes=6).state_dict().items()}
    torch.save({"state_dict": {**prefixed(wide, "teacher."), **prefixed(state, "student.")}}, tmp_path / "kd.ckpt")
    for strict in (True, False):
        fresh, inputs = Net(), torch.randn(8, 5)
        assert load_weights(fresh, tmp_path / "kd.ckpt", strict) == ()
        assert torch.equal(fresh.eval()(inputs), trained(inputs))


def test_counters_are_forgiven_only_where_load_state_dict_forgives(trained):
    state = trained.state_dict()
    del state["body.1.num_batches_tracked"]  # its version says that it should be there
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        Net().load_state_dict(state)
    with pytest.raises(SourceError, match=r"body\.1\.num_batches_tracked: missing"):
        fit(Net(), state, "w.pt")
    state._metadata["body.1"]["version"] = 1
    Net().load_state_dict(state)
    assert fit(Net(), {"model": prefixed(state, "")}, "w.pt").left_out == ()


def test_what_fits_nothing_lists_the_names_of_both(tmp_path):
    torch.save({"model": {"encoder.weight": torch.zeros(2, 2), "decoder.weight": torch.zeros(2)}}, tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"(?s)body\.0\.weight: missing.*decoder\.weight: not in the network"):
        load_weights(Net(), tmp_path / "w.pt", strict=False)


def test_a_network_without_weights_comes_back_from_the_file_that_it_wrote(tmp_path):
    save_weights(nn.Identity(), tmp_path / "none.safetensors")  # as an ONNX file as the teacher does
    assert load_weights(nn.Identity(), tmp_path / "none.safetensors") == ()


def test_a_number_takes_a_tensor_of_one_element(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

    scaled = Scaled()
    assert fit(scaled, {"scale": torch.tensor([3.0])}, "w.pt").left_out == ()
    assert scaled.scale.item() == 3


def test_a_module_that_renames_older_names_itself_is_let(trained):
    class Renames(Net):
        def _load_from_state_dict(self, state, prefix, *rest):
            for name in ("weight", "bias"):
                if f"{prefix}classifier.{name}" in state:
                    state[f"{prefix}head.{name}"] = state.pop(f"{prefix}classifier.{name}")
            super()._load_from_state_dict(state, prefix, *rest)

    older = {name.replace("head.", "classifier."): tensor for name, tensor in trained.state_dict().items()}
    fresh, inputs = Renames(), torch.randn(8, 5)
    assert fit(fresh, {"state_dict": older}, "w.pt").left_out == ()
    assert torch.equal(fresh.eval()(inputs), trained(inputs))


def test_an_archive_that_claims_far_more_than_it_is_does_not_get_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("kdexport.models.checkpoints.SPARE_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (4 << 20))
    with pytest.raises(SourceError, match="would unpack to"):
        load_weights(Net(), tmp_path / "bomb.pt")


def test_many_names_are_matched_in_linear_time_and_twenty_shown(tmp_path):
    tensors = {f"block.{number}.weight": torch.zeros(1) for number in range(10_000)}
    with pytest.raises(SourceError) as caught:
        fit(Net(), tensors, "many.pt")
    assert caught.value.message.count("\n") <= 22


@pytest.mark.parametrize("old", [True, False])
def test_a_damaged_file_is_a_message_wherever_it_is_cut_or_changed(old, trained, tmp_path):
    path = tmp_path / "whole.pt"
    torch.save({"state_dict": trained.state_dict()}, path, _use_new_zipfile_serialization=not old)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for trial in range(60):
        spoilt = bytearray(whole)
        spoilt[int(generator.integers(len(whole)))] ^= int(generator.integers(1, 256))
        path.write_bytes(bytes(spoilt[: int(generator.integers(len(whole)))] if trial % 2 else spoilt))
        try:
            load_weights(Net(), path)
        except SourceError as error:
            assert str(path) in error.message  # noqa: PT017 many are whole enough to load


@pytest.mark.parametrize("form", ["zip", "legacy", "bare", "safetensors"])
def test_a_damaged_file_is_refused_in_words_whatever_is_wrong_with_it(form, tmp_path):
    state = {"a.weight": torch.randn(4, 3), "a.bias": torch.randn(4), "n": torch.tensor(3)}
    path = tmp_path / ("net.safetensors" if form == "safetensors" else "net.pt")
    if form == "safetensors":
        safetensors.torch.save_file(state, str(path))
    else:
        torch.save(torch.randn(3) if form == "bare" else state, path, _use_new_zipfile_serialization=form == "zip")
    whole, random = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        if random.random() < 0.3:
            damaged = damaged[: random.integers(len(damaged))]
        else:
            for place in random.integers(0, len(damaged), random.choice([1, 2, 8])):
                damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            read(path)
        except SourceError:
            refused += 1
    assert refused > 20  # a changed number of a tensor is another tensor: nothing can tell


def test_an_archive_of_many_disks_is_refused_in_words(tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"w": torch.zeros(2)}, path)
    data = bytearray(path.read_bytes())
    locator = data.rindex(b"PK\x06\x07")  # of the zip64 end record: the number of disks stands in its last bytes
    data[locator + 16] = 5
    path.write_bytes(data)
    with pytest.raises(SourceError):
        read(path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_weights_without_the_right_to_read_them(tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_bytes(b"w")

    def refused(*_, **__):
        raise FileNotFoundError("No such file or directory")  # safetensors' own words for it

    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read all
    monkeypatch.setattr(safetensors, "safe_open", refused)
    with pytest.raises(SourceError, match="may not be read") as caught:
        load_weights(nn.Linear(1, 1), path)
    assert "chmod" in caught.value.hint
    assert postprocessing_in(path) is None
    assert plan_in(path) is None


def test_a_name_without_end_in_a_pickle_takes_no_minutes(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, b"\x80\x02c" + b"a" * 300_000 if entry.endswith("data.pkl") else content)
    started = time.process_time()
    with pytest.raises(SourceError):
        read(path)
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda weight: weight.to_sparse(), r"\[3, 7\] sparse_coo in the file"),
        (lambda weight: weight.to(torch.complex64), r"\[3, 7\] of complex64 in the file"),
        (lambda weight: (weight * 100).to(torch.int8), r"\[3, 7\] of int8 in the file"),
        (lambda weight: weight > 0, r"\[3, 7\] of bool in the file"),
        (lambda weight: weight.to("meta"), r"without data \(device meta\)"),
    ],
)
def test_a_tensor_that_is_no_plain_weight_is_never_cast_without_a_word(trained, changed, told):
    state = trained.state_dict()
    odd = {**state, "head.weight": changed(state["head.weight"])}
    with pytest.raises(SourceError, match=told) as caught:
        fit(Net(), {"a": odd, "b": odd | {}}, "x.pt")
    assert "plain floats" in caught.value.hint


def test_nests_within_themselves_and_sets_without_end_end_soon(trained, tmp_path):
    state = trained.state_dict()
    cyclic = {"weights": state}
    cyclic.update(dict.fromkeys(range(300), cyclic))
    laughs = [state]
    for _ in range(8):
        laughs = [laughs] * 60
    for document in (cyclic, [*laughs[:1], state]):
        torch.save(document, tmp_path / "w.pt")
        net = Net()
        started = time.perf_counter()
        load_weights(net, tmp_path / "w.pt")
        assert torch.equal(net.head.weight, trained.head.weight)
        assert time.perf_counter() - started < 5
    many = {f"n{number}": {**state, "head.bias": torch.full((3,), float(number))} for number in range(400)}
    with pytest.raises(SourceError, match="holds 21 sets of weights and more that fit"):
        fit(Net(), many, "x.pt")


def test_none_and_what_a_file_notes_of_versions(trained, tmp_path):
    torch.save(None, tmp_path / "none.pt")
    with pytest.raises(SourceError, match="it holds None"):
        read(tmp_path / "none.pt")
    state = trained.state_dict()
    state._metadata = OrderedDict({"body.1": {"version": "2"}, "head": 3, 5: {"version": 1}})
    net = Net()
    assert fit(net, state, "x.pt").left_out == ()
    assert torch.equal(net.head.weight, trained.head.weight)
