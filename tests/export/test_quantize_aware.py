"""Quantization-aware distillation, from the rounding to the file: what was trained is what the file computes."""

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn

from kdexport.artifacts import RunDirectory, read_epochs
from kdexport.distill.qat import FakeQuantized, settings_of
from kdexport.distill.qat_graph import rounded_activation, rounded_weight, scale_and_zero
from kdexport.distill.stage import distill
from kdexport.distill.state import Checkpoints
from kdexport.errors import KDExportError, RecipeError
from kdexport.export import network_export, variants
from kdexport.export.target import ExportTarget, Form
from kdexport.export.variant_inputs import CalibrationData, VariantSpec
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx.sessions import OnnxSession
from kdexport.progress import Silent
from kdexport.recipe import Distill, Recipe

RECIPE = Path(__file__).parents[2] / "models" / "digits" / "recipe.toml"


@pytest.fixture(scope="module")
def trained(load_net, tmp_path_factory):
    """A network whose ranges have moved away from what was observed, with its fp32 file and its int8 file."""
    torch.manual_seed(1)
    network = load_net("Net", width=8).eval()
    samples = (np.random.default_rng(0).standard_normal((300, 1, 8, 8), dtype=np.float32),)
    rounded = FakeQuantized(network, [(torch.from_numpy(samples[0][:64]),)], weight_bits=7)
    with torch.no_grad():
        rounded.growth.uniform_(-0.05, 0.02)
    folder = tmp_path_factory.mktemp("qat")
    subject = ExportTarget("net", network, Preprocessing("none"), ("x",), samples)
    made = network_export.write(subject, Form(18, 8, 1e-4), folder / "net.onnx")
    data = CalibrationData(lambda: samples, lambda: samples, lambda: None)
    spec = VariantSpec("int8", learnt=rounded.ranges())
    variant = variants.write(folder / "net.onnx", made, spec, folder / "net.int8.onnx", data, Silent(), key=None)
    return rounded, network, samples, folder, variant


def test_the_file_computes_what_the_rounded_network_does(trained):
    rounded, network, samples, folder, _ = trained
    inputs = torch.from_numpy(samples[0])
    with torch.no_grad():
        expected, plain = rounded(inputs).numpy(), network(inputs).numpy()
    actual = OnnxSession(folder / "net.int8.onnx")(samples)[0]
    rounding, difference = np.abs(expected - plain).mean(), np.abs(actual - expected).mean()
    assert rounding > 0  # the ranges clip: there is something to agree on
    assert difference < 0.05 * rounding


def test_the_scales_in_the_file_are_the_learnt_ones(trained):
    rounded, _, _, folder, variant = trained
    graph = onnx.load(folder / "net.int8.onnx").graph
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    ranges = rounded.ranges()
    assert set(ranges) == {
        "stem.weight:input",
        "stem.weight:activated",
        "conv.weight:input",
        "conv.weight:output",
        "head.weight:input",
        "head.weight:output",
    }
    layers = {"norm/Conv": "stem.weight", "conv/Conv": "conv.weight", "head/Gemm": "head.weight"}
    for node in graph.node:
        if node.name not in layers:
            continue
        quantized = producers[node.input[0]]
        scale, zero = scale_and_zero(torch.tensor(ranges[f"{layers[node.name]}:input"]))
        assert constants[quantized.input[1]] == scale.numpy()
        assert constants[quantized.input[2]] == zero.numpy()
    assert "learnt by quantization-aware distillation, beside 3 layers" in variant.notes[0]


def test_the_weights_in_the_file_are_the_rounded_ones(trained):
    """Rounded before the batch normalization is folded, as in training, or after it, as in the file: the same."""
    _, network, _, folder, _ = trained
    constants = {
        item.name: numpy_helper.to_array(item) for item in onnx.load(folder / "net.int8.onnx").graph.initializer
    }
    weight = network.stem.weight.detach()
    step = (weight.abs().amax(dim=(1, 2, 3)) / 64)[:, None, None, None]
    expected = torch.round(rounded_weight(weight, 0, 7) / step).numpy()
    np.testing.assert_array_equal(constants["stem.weight_quantized"], expected)
    assert np.abs(expected).max() == 64


def test_gradients_of_a_range():
    """Against LSQ's formulas by autograd: clip, divide by the step, round straight through, multiply."""
    torch.manual_seed(0)
    low, high = -1.1, 2.3
    drawn = torch.randn(500) * 2
    away = (drawn - low).abs().minimum((drawn - high).abs()) > 0.02  # at an end it is a matter of half a step
    value, weights = drawn[away].requires_grad_(), torch.randn(int(away.sum()))
    bounds = torch.tensor([low, high], requires_grad=True)
    (rounded_activation(value, bounds) * weights).sum().backward()
    assert value.grad is not None
    assert bounds.grad is not None
    passed, ends = value.grad.clone(), bounds.grad * (len(value) * 255) ** 0.5
    value.grad = bounds.grad = None
    step = (bounds[1] - bounds[0]) / 255
    scaled = torch.maximum(torch.minimum(value, bounds[1]), bounds[0]) / step
    through = scaled + (torch.round(scaled) - scaled).detach()
    (through * step * weights).sum().backward()
    torch.testing.assert_close(passed, value.grad)
    torch.testing.assert_close(ends, bounds.grad, atol=1e-2, rtol=1e-3)  # rounded scaled ends are not the zero point's


def test_training_with_the_rounding_brings_back_what_rounding_takes(load_net):
    """Real digits, and weights of 2 bits, which ruin the network that was trained without them."""
    digits = load_digits()
    images = torch.from_numpy((digits.images / 16).astype(np.float32))[:, None]
    labels = torch.from_numpy(digits.target)
    train, val = slice(0, 1300), slice(1300, None)
    torch.manual_seed(0)
    network = load_net("Net", width=8)

    def fit(module, targets, steps, lr):
        optimizer = torch.optim.Adam(module.parameters(), lr)
        for _ in range(steps):
            rows = torch.randint(1300, (128,))
            loss = nn.functional.cross_entropy(module(images[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def agreement(module, reference):
        with torch.no_grad():
            return float((module.eval()(images[val]).argmax(1) == reference[val]).float().mean())

    fit(network.train(), labels, 250, 0.01)
    with torch.no_grad():
        answers = copy.deepcopy(network).eval()(images)
    rounded = FakeQuantized(network, [(images[train],)], weight_bits=2)
    before = agreement(rounded, answers.argmax(1))
    fit(rounded, answers.softmax(1), 150, 0.002)
    after = agreement(rounded, answers.argmax(1))
    assert after > before + 0.1, (before, after)


@pytest.fixture
def tiny():
    """Return a function that gives a run of seconds that trains for int8."""
    settings = (
        "teacher.args.width=8",
        "teacher.train.epochs=1",
        "student.args.width=4",
        "distill.epochs=2",
        "distill.views=1",
        "distill.baseline=false",
        "data.fraction=0.3",
        "distill.quantize_aware=true",
        "distill.quantize_aware_epochs=2",
        'export.quantize=["int8"]',
    )
    return lambda *more: Recipe.load(RECIPE, [*settings, *more])


def test_the_phase_is_its_own_and_leaves_a_plain_student(tiny, tmp_path):
    directory, recorder = RunDirectory(tmp_path), Recorder()
    plain = distill(tiny("distill.quantize_aware=false"), directory)
    assert plain.networks[1].activation_ranges == {}
    aware = distill(tiny(), directory, recorder).networks[1]
    assert recorder.unchanged() == ["student", "teacher"]  # what was distilled is not distilled again
    assert [line["phase"] for line in read_epochs(directory.metrics)][-2:] == ["student-qat"] * 2
    assert (aware.name, aware.weights, aware.epochs) == ("student", "student.safetensors", 4)
    before, after = load_file(tmp_path / "student-distilled.safetensors"), load_file(tmp_path / "student.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert {name.partition(":")[0] for name in aware.activation_ranges} <= set(after)
    # A bit more per weight is another rounding; what came before stays.
    distill(tiny("export.weight_bits=8"), directory, recorder.clear())
    assert recorder.unchanged() == ["student", "teacher"]
    distill(tiny("export.weight_bits=8"), directory, recorder.clear())
    assert recorder.unchanged() == ["student", "student-qat", "teacher"]
    # Without it the distilled weights are the student's again.
    again = distill(tiny("distill.quantize_aware=false"), directory, recorder.clear()).networks[1]
    assert recorder.unchanged() == ["student", "teacher"]
    assert again.weights_sha256 == plain.networks[1].weights_sha256


def test_an_interrupted_stretch_ends_with_the_same_bytes_and_ranges(tiny, tmp_path, monkeypatch):
    whole = distill(tiny(), RunDirectory(tmp_path / "whole")).networks[1]
    saved = Checkpoints.save

    def save(self, step, state):
        path = saved(self, step, state)
        if path.parent.name == "student-qat":
            raise KeyboardInterrupt
        return path

    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(KeyboardInterrupt):
        distill(tiny(), RunDirectory(tmp_path / "broken"))
    monkeypatch.undo()
    broken = distill(tiny(), RunDirectory(tmp_path / "broken")).networks[1]
    assert broken.weights_sha256 == whole.weights_sha256
    assert broken.activation_ranges == whole.activation_ranges


def test_layers_are_not_compared_in_the_stretch(tiny):
    terms = "distill.terms=[{ method = 'hint' }, { method = 'logit_mse' }]"
    assert [term.method for term in settings_of(tiny(terms).distill).terms] == ["logit_mse"]
    assert settings_of(tiny("distill.terms=[{ method = 'hint' }]").distill).terms == Distill().terms


def test_training_for_int8_without_int8_is_told_at_once(tiny):
    with pytest.raises(RecipeError, match=r"export\.quantize does not ask for it"):
        tiny("export.quantize=[]")


def test_what_cannot_be_captured_is_told_in_the_users_terms(load_net):
    with pytest.raises(KDExportError, match=r"torch\.export cannot capture Branches"):
        FakeQuantized(load_net("Branches"), [(torch.randn(4, 3),)], weight_bits=7)
    with pytest.raises(KDExportError, match="no convolution or linear layer"):
        FakeQuantized(nn.ReLU(), [(torch.randn(4, 3),)], weight_bits=7)


class Recorder(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.messages = []

    def message(self, message):
        self.messages.append(message)

    def clear(self):
        self.messages.clear()
        return self

    def unchanged(self):
        return sorted(message.split(":")[0] for message in self.messages if "unchanged" in message)
