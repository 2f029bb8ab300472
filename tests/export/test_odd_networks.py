"""What people bring, beyond one image in and logits out: each file gives PyTorch's values, or is refused with a reason.

Values are checked here with ONNX Runtime and PyTorch themselves, on inputs that no proof has seen.
"""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from kdexport.errors import KDExportError, ParityError
from kdexport.export import standalone
from kdexport.export.graph import OWN
from kdexport.export.random_inputs import parse_shape
from kdexport.export.target import Form
from kdexport.models.networks import load_network
from kdexport.onnx import runtimes
from kdexport.progress import Silent

ODD = Path(__file__).with_name("odd_nets.py")


@pytest.fixture
def made(tmp_path):
    """Return a function that exports a network of odd_nets.py, and gives its entry, a session, and the network."""

    def export(name, *shapes, args=None, dynamic=(), opset=18, **form):
        request = standalone.Request(
            f"{ODD}:{name}",
            tmp_path / "net.onnx",
            args=args or {},
            inputs=tuple(parse_shape(text, number) for number, text in enumerate(shapes)),
            dynamic=dynamic,
            force=True,
        )
        whole = Form(opset, runtimes.ir_for(opset), form.pop("tolerance", 1e-4), **form)
        (model,) = standalone.export(request, whole, Silent()).models
        torch.manual_seed(0)
        network = load_network(f"{ODD}:{name}", args or {}).eval()
        return model, onnxruntime.InferenceSession(tmp_path / "net.onnx"), network

    return export


def same(session, network, feed, *, named=True, **tolerances):
    """Hold that a session gives what the network gives, output by output."""
    tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
    with torch.no_grad():
        output = network(**tensors) if named else network(*tensors.values())
    flat = torch.utils._pytree.tree_leaves(output)
    found = session.run(None, feed)
    for expected, actual in zip(flat, found, strict=True):
        np.testing.assert_allclose(actual, expected.detach().numpy(), **{"rtol": 1e-4, "atol": 1e-5, **tolerances})


def random(*shape):
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def test_constants_that_are_nearly_0_or_1_stay(made):
    _, session, network = made("Guarded", "8")
    x = random(3, 8)
    x[1] = 0
    with torch.no_grad():
        expected = network.double()(torch.from_numpy(x).double())
    for name, wanted, found in zip(
        ("norm", "log", "factor", "quotient", "minus"), expected, session.run(None, {"input": x}), strict=True
    ):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)
    graph = onnx.load(session._model_path).graph
    count = Counter(node.op_type for node in graph.node)
    assert (count["Add"], count["Div"], count["Sub"]) >= (2, 2, 1), count
    assert any(
        onnx.numpy_helper.to_array(item).item() == np.float32(1.000001) for item in graph.initializer if not item.dims
    )


def test_exactly_0_and_1_still_go(made):
    _, session, _ = made("Guarded", "8", args={"exact": True})
    assert [node.op_type for node in onnx.load(session._model_path).graph.node] == ["Gemm"]


def test_states_come_out_and_go_in(made):
    _, session, network = made("Lstm", "2,6")
    same(session, network, {"input": random(3, 2, 6)}, named=False)
    _, session, network = made("Lstm", "x:2,6", "h:2,batch,8", "c:2,batch,8")
    assert [item.shape for item in session.get_inputs()] == [["batch", 2, 6], [2, "batch", 8], [2, "batch", 8]]
    same(session, network, {"x": random(3, 2, 6), "h": random(2, 3, 8), "c": random(2, 3, 8) / 2})
    _, session, network = made("Lstm", "x:2,6", "h:2,batch,8", "c:2,batch,8", static=True)
    same(session, network, {"x": random(1, 2, 6), "h": random(2, 1, 8), "c": random(2, 1, 8) / 2})
    with pytest.raises(KDExportError, match="is to be dynamic") as caught:  # two layers, and two samples to capture it
        made("Lstm", "x:2,6", "h:2,8", "c:2,8")
    assert "h:2,batch,64" in caught.value.hint


def test_inputs_go_to_the_parameters_that_they_are_named_after(made):
    model, session, network = made("Words", "ids:12:int64", "mask:12:int64")
    assert any("ids below" in note for note in model.notes)  # 28 symbols: ids up to 99 are not taken
    ids = np.arange(36).reshape(3, 12) % 28
    same(session, network, {"ids": ids, "mask": (np.arange(36).reshape(3, 12) % 5 > 1).astype(np.int64)})
    model, session, network = made("Words", "segments:4:int64", "ids:4:int64<28")
    feed = {"segments": np.arange(8).reshape(2, 4) % 2, "ids": np.arange(8).reshape(2, 4) + 20}
    same(session, network, feed)
    with pytest.raises(KDExportError, match="takes batch alone, and 2 inputs are given") as caught:
        made("Batched", "x:4", "y:5")
    assert "forward(self, x, y)" in caught.value.hint
    with pytest.raises(KDExportError, match="no parameter 'attention'") as caught:
        made("Words", "ids:12:int64<28", "attention:12:int64")
    assert "segments, mask" in caught.value.hint


def test_an_input_of_one_number_a_sample(made):
    _, session, network = made("Denoiser", "sample:3,8,8", "timestep::int64")
    assert session.get_inputs()[1].shape == ["batch"]
    same(session, network, {"sample": random(2, 3, 8, 8), "timestep": np.array([3, 70])})


@pytest.mark.parametrize("text", ["ids:0:int64", "h:2,batch,batch", "x:3:float33", "::", "a b:3", "x:3:bfloat16"])
def test_what_is_no_shape_says_what_one_is(text):
    with pytest.raises(KDExportError) as caught:
        parse_shape(text, 0)
    assert "timestep::int64" in caught.value.hint or "types: float32" in caught.value.hint


@pytest.mark.parametrize("gives", ["constants", "matrix"])
def test_outputs_that_are_no_samples(gives, made):
    model, session, network = made("Clip", "image:12", "text:10", args={"gives": gives})
    same(session, network, {"image": random(5, 12), "text": random(5, 10)})
    same(session, network, {"image": random(1, 12), "text": random(1, 10)})
    constant = [note for note in model.notes if "same for every sample" in note]
    assert len(constant) == (0 if gives == "matrix" else 3)


def test_no_module_is_taken_for_kdexports_own(made):
    _, session, network = made("Named", "6", softmax=True, top_k=2)
    names = [node.name for node in onnx.load(session._model_path).graph.node]
    assert [name for name in names if name.startswith(OWN)] == [f"{OWN}output/Softmax", f"{OWN}output/TopK"]
    assert [name for name in names if name.startswith(("preprocessing/", "output/"))]  # the user's
    expected = network(torch.from_numpy(random(4, 6))).softmax(-1).detach().numpy()
    np.testing.assert_allclose(session.run(["probabilities"], {"input": random(4, 6)})[0], expected, rtol=1e-5)
    with pytest.raises(KDExportError, match="two inputs or outputs are called input"):
        made("Named", "6", output_names=("input",))
    with pytest.raises(KDExportError, match="2 output names"):
        made("Named", "6", output_names=("a", "b"))


AXES = ("input:2=height", "input:3=width")


def test_every_dynamic_axis_holds_at_other_sizes(made):
    model, session, network = made("Sized", "3,16,16", args={"kind": "up"}, dynamic=AXES)
    assert model.parity.other_sizes == 4
    for height, width in ((16, 16), (23, 9), (40, 64)):
        same(session, network, {"input": random(2, 3, height, width)}, named=False)


@pytest.mark.parametrize("kind", ["pool", "number", "cut"])
def test_a_size_taken_for_a_constant_is_refused_or_right(kind, made):
    if kind != "cut":
        with pytest.raises(KDExportError, match=r"is to be dynamic|inputs of shape \[2, 3, ") as caught:
            made("Sized", "3,16,16", args={"kind": kind}, dynamic=AXES)
        assert "leave that axis fixed" in caught.value.hint
        return
    _, session, network = made("Sized", "3,16,16", args={"kind": kind}, dynamic=AXES)
    for height, width in ((24, 20), (32, 12)):
        same(session, network, {"input": random(2, 3, height, width)}, named=False)


FICKLE = {
    "random": "its forward is random",
    "batch": "it depends on the batch",
    "state": r"keeps state from one call to the next \(last",
    "assertion": "does not take inputs of shape",
}


@pytest.mark.parametrize("kind", FICKLE)
def test_a_forward_that_has_no_file_is_named_as_what_it_is(kind, made):
    with pytest.raises(KDExportError, match=FICKLE[kind]) as caught:
        made("Fickle", "6", args={"kind": kind})
    assert "tolerance" not in caught.value.hint
    if kind == "batch":
        made("Fickle", "6", args={"kind": "counts"})  # counts its calls, and gives the same each time


def test_a_program_captured_in_training_mode_is_named_as_that(made, tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3))
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(network.train(), (torch.randn(4, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "train.pt2")
    request = standalone.Request(str(tmp_path / "train.pt2"), tmp_path / "t.onnx", inputs=(parse_shape("4", 0),))
    with pytest.raises(KDExportError, match="batch"):
        standalone.export(request, Form(18, 8, 1e-4), Silent())
    assert not (tmp_path / "t.onnx").exists()
    network.insert(2, torch.nn.Dropout(0.5))  # random as well: its statistics show first
    program = torch.export.export(network.train(), (torch.randn(4, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "train.pt2")
    with pytest.raises(KDExportError, match="keeps state") as caught:
        standalone.export(request, Form(18, 8, 1e-4), Silent())
    assert "from network.eval()" in caught.value.hint


def test_entries_of_a_dataclass_are_chosen_by_name(made):
    with pytest.raises(KDExportError, match="returns a Found with logits, hidden") as caught:
        made("Answers", "x:6")
    assert "--output-name logits" in caught.value.hint
    _, session, network = made("Answers", "x:6", output_names=("hidden", "logits"))
    found = network(x=torch.from_numpy(random(3, 6)))
    hidden, logits = session.run(["hidden", "logits"], {"x": random(3, 6)})
    np.testing.assert_allclose(hidden, found.hidden.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits, found.logits.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_padding_is_proved_and_pytorchs_fast_path_is_named(made):
    """In evaluation its nested tensors give zeros at padded positions; a mask with holes never went that way."""
    shapes = ("ids:7:int64<15", "mask:7:int64")
    with pytest.raises(KDExportError, match=r"zeros at padded positions .* of nn\.TransformerEncoder") as caught:
        made("Encoder", *shapes, args={"nested": True})
    assert "enable_nested_tensor=False" in caught.value.hint
    _, session, network = made("Encoder", *shapes, args={"nested": False})
    mask = (np.arange(7) < np.array([[2], [7], [5]])).astype(np.int64)
    same(session, network, {"ids": np.arange(21).reshape(3, 7) % 15, "mask": mask})


def test_packed_sequences_are_named(made):
    with pytest.raises(KDExportError, match="its forward packs sequences") as caught:
        made("Packed", "x:6,5", "lengths::int64<6")
    assert "lengths - 1" in caught.value.hint


@pytest.mark.parametrize("kind", ["index", "key", "cat", "sum"])
def test_a_list_or_a_dict_as_input_is_told_as_that(kind, made):
    with pytest.raises(KDExportError) as caught:
        made("OfAList", "8", args={"kind": kind})
    assert "list" in caught.value.hint
    assert "wrap" in caught.value.hint


@pytest.mark.parametrize(("name", "kind"), [("half", "float16"), ("double", "double"), ("bfloat16", "float")])
def test_networks_of_other_types(name, kind, made):
    _, session, network = made(name, "8")
    assert session.get_inputs()[0].type == f"tensor({kind})"
    own = np.float16 if kind == "float16" else np.float64 if kind == "double" else np.float32
    x = random(3, 8).astype(own)
    with torch.no_grad():
        expected = network.double()(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(session.run(None, {"input": x})[0], expected, atol=5e-3 if name == "half" else 1e-5)


REFUSED = {
    "scripted": "TorchScript",
    "ScriptedPart": "part is TorchScript",
    "Bf16Inside": "of which ONNX Runtime's CPU has no kernels",
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_says_what_to_give_instead(name, made):
    with pytest.raises(KDExportError) as caught:
        made(name, "8")
    assert REFUSED[name] in caught.value.message + caught.value.hint
    assert ".tmp" not in caught.value.message


def test_wrappers_are_looked_through(made):
    _, session, network = made("parallel", "8")
    inner = network.module._orig_mod  # a compiled one would be compiled here
    same(session, inner, {"input": random(3, 8)}, named=False)


def test_an_opset_that_cannot_be_had_is_an_error(made):
    with pytest.raises(KDExportError, match=r"cannot be written in opset 17: .*ReduceMean") as caught:
        made("Mean", "1,8,8", opset=17)
    assert "--opset 18" in caught.value.hint
    with pytest.raises(KDExportError, match=r"cannot be written in opset 26") as caught:
        made("Normed", "8", opset=26)
    assert "--opset 25" in caught.value.hint
    assert made("Normed", "8", opset=25)[0].opset == 25
    model, session, _ = made("mlp", "8", opset=17)
    whole = onnx.load(session._model_path)
    stamped = {item.key: item.value for item in whole.metadata_props}["kdexport.opset"]
    assert (model.opset, whole.opset_import[0].version, stamped) == (17, 17, "17")


def test_the_tolerance_of_a_failed_proof_hides_nothing(made, monkeypatch):
    """A file that is off by a tenth is refused, and no tolerance is offered."""
    from kdexport.export import network_export

    real = network_export.OnnxSession

    def off(path):
        run = real(path)
        return lambda inputs: tuple(array * np.float32(1.1) for array in run(inputs))

    monkeypatch.setattr(network_export, "OnnxSession", off)
    with pytest.raises(ParityError) as caught:
        made("mlp", "8")
    assert "would pass" not in caught.value.hint


def test_dynamic_axes_are_counted_within_the_input(made):
    for text in itertools.chain(["input:4=depth"], ["inputs:2"]):
        with pytest.raises(KDExportError, match="names no axis"):
            made("Sized", "3,16,16", args={"kind": "up"}, dynamic=(text,))


def test_the_nearest_pixel_is_told_where_it_is_another_one(made):
    """onnxruntime 28310: 26 pixels to 64 by floor, of which a dozen are others than PyTorch's."""
    with pytest.raises(ParityError, match=r'interpolate\(mode="nearest"\) rounds otherwise') as caught:
        made("Enlarged", "image:1,26,26")
    assert "nearest-exact" in caught.value.message
    image = np.random.default_rng(0).normal(size=(3, 1, 26, 26)).astype(np.float32)
    for args in ({"mode": "nearest-exact"}, {"mode": "bilinear", "size": 1}):  # pytorch 183523: to one pixel
        _, session, network = made("Enlarged", "image:1,26,26", args=args)
        same(session, network, {"image": image})
