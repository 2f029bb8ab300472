"""Networks that return more than one tensor: which is meant, what is done to it, and what becomes of the others."""

import json
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdexport.distill import layers
from kdexport.errors import KDExportError, SourceError
from kdexport.models.outputs import Output, install, named_outputs, output_of
from kdexport.models.weights import postprocessing_in, save_weights
from kdexport.pipeline import run
from kdexport.recipe import Recipe
from kdexport.tasks.postprocessing import Postprocessing


class Heads(NamedTuple):
    scores: torch.Tensor
    aux: torch.Tensor


@dataclass
class Answer:
    logits: torch.Tensor
    hidden_states: tuple
    loss: None = None


class Net(nn.Module):
    """Gives what it is told to: its first layer's output and its last's."""

    def __init__(self, form):
        super().__init__()
        self.first, self.last, self.form = nn.Linear(4, 6), nn.Linear(6, 3), form

    def forward(self, x):
        hidden = self.first(x)
        return self.form(self.last(hidden), hidden)


FORMS = {
    "a lone tensor": (lambda last, _: last, None),
    "a dict with logits": (lambda last, hidden: {"hidden": hidden, "logits": last}, None),
    "torchvision's segmentation": (lambda last, hidden: {"out": last, "aux": hidden}, None),
    "a list of one": (lambda last, _: [last], None),
    "a dataclass": (lambda last, hidden: Answer(last, (hidden, hidden)), None),
    "a tuple by index": (lambda last, hidden: (hidden, last), 1),
    "a tuple by a digit": (lambda last, hidden: (hidden, last), "1"),
    "a named tuple": (lambda last, hidden: Heads(last, hidden), "scores"),
    "a nest": (lambda last, hidden: {"a": [hidden, {"b": last}]}, "a.1.b"),
}


@pytest.mark.parametrize(("form", "wanted"), FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("training", [False, True])
def test_one_tensor_whatever_forward_returns(form, wanted, training):
    network, x = Net(form).train(training), torch.randn(5, 4)
    expected = network.last(network.first(x))
    names = list(network.state_dict())
    install(network, Output(wanted, None, "student"))
    assert torch.equal(network(x), expected)
    assert list(network.state_dict()) == names


def test_names_of_what_a_forward_gives():
    one = torch.zeros(2)
    given = {"a": one, "b": (one, [one]), "c": Answer(one, (one,)), "d": Heads(one, one), "e": "text", "f": None}
    names = ["a", "b.0", "b.1.0", "c.logits", "c.hidden_states.0", "d.scores", "d.aux"]
    assert list(named_outputs(given)) == names
    assert named_outputs("text") == {}


@pytest.mark.parametrize(
    ("form", "wanted", "message", "hint"),
    [
        (
            lambda last, hidden: (hidden, last),
            None,
            "gives a tuple of 2, and nothing says",
            r"0 \[5, 6\], 1 \[5, 3\]: set",
        ),
        (
            lambda last, hidden: {"scores": last, "aux": hidden},
            "score",
            "has no output 'score'",
            "did you mean 'scores'",
        ),
        (lambda last, _: last, "aux", "has no output 'aux'", r"one tensor \[5, 3\]"),
        (lambda *_: "nothing", None, "gives a str, and nothing says", "a str without tensors"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(form, wanted, message, hint):
    network = Net(form).eval()
    install(network, Output(wanted, None, "student", "student.output"))
    with pytest.raises(KDExportError, match=message) as caught:
        network(torch.zeros(5, 4))
    assert caught.match(message)
    assert re.search(hint, caught.value.hint)


@pytest.mark.parametrize("wanted", ["0", "main"])
def test_a_head_that_is_there_in_training_alone_is_chosen_by_name(wanted):
    """In evaluation such networks give one tensor: that is taken, of a network that is trained."""

    class TwoHeads(Net):
        def forward(self, x):
            main, aux = self.last(self.first(x)), self.first(x)
            if not self.training:
                return main
            return (main, aux) if wanted == "0" else {"main": main, "aux": aux}

    network, x = TwoHeads(None), torch.randn(5, 4)
    expected = network.last(network.first(x))
    install(network, Output(wanted, None, "student", trained=True))
    assert torch.equal(network.train()(x), expected)
    assert torch.equal(network.eval()(x), expected)
    lone = Net(lambda last, _: last).train()
    install(lone, Output(wanted, None, "student", trained=True))
    with pytest.raises(KDExportError, match="in training mode the student has no output"):
        lone(x)


def test_another_output_is_a_layer_that_a_term_can_name():
    network, x = Net(lambda last, hidden: Answer(last, (hidden, hidden * 2))).eval(), torch.randn(2, 4)
    install(network, Output(None, None, "teacher"))
    found = layers.trace(network, (x,))
    (layer,) = layers.find(found, "output:hidden_states.1", "teacher")
    assert (layer.shape, layer.calls) == ((6,), 1)
    kept = {}
    with layers.capture_outputs(network, {"it": layer.path}, kept.__setitem__):
        network(x)
    assert torch.equal(kept["it"], network.first(x) * 2)
    assert layers.embedding(found, "teacher").path == "first"  # further outputs are no stages


def test_postprocessing_is_float64s():
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    given = torch.from_numpy(values)
    scaled = Postprocessing("scale", mean=(1.0, -2.0, 0.5), std=(3.0, 0.1, 7.0)).apply(given)
    np.testing.assert_allclose(scaled, values.astype(np.float64) * [3, 0.1, 7] + [1, -2, 0.5], rtol=1e-6)
    unit = Postprocessing("normalize").apply(given)
    np.testing.assert_allclose(unit, values / np.linalg.norm(values.astype(np.float64), axis=1)[:, None], rtol=1e-6)
    maps = torch.randn(2, 3, 4, 5)
    larger = Postprocessing("resize", size=(8, 10)).apply(maps)
    assert torch.equal(larger, F.interpolate(maps, (8, 10), mode="bilinear", align_corners=False))
    assert Postprocessing("resize", size=(4, 5)).apply(maps) is maps


@pytest.mark.parametrize(
    "document",
    [
        {"kind": "divide"},
        {"kind": "scale", "mean": [1.0]},
        {"kind": "scale", "mean": [float("nan")], "std": [1.0]},
        {"kind": "resize", "size": [4]},
        {"kind": "resize", "size": [0, 4]},
        {"kind": "normalize", "axis": 2},
    ],
)
def test_postprocessing_of_a_strange_file_is_refused(document):
    with pytest.raises(SourceError, match="postprocessing cannot be used"):
        Postprocessing.from_json(document)


def test_weights_say_what_is_done_to_the_output(tmp_path):
    network, scale = Net(lambda last, _: last), Postprocessing("scale", mean=(1.0,) * 3, std=(2.0,) * 3)
    save_weights(network, tmp_path / "plain.safetensors")
    assert postprocessing_in(tmp_path / "plain.safetensors") is None
    install(network, Output(None, scale, "student"))
    save_weights(network, tmp_path / "scaled.safetensors")
    assert postprocessing_in(tmp_path / "scaled.safetensors") == Postprocessing.from_json(
        json.loads(json.dumps(scale.to_json()))
    )
    assert output_of(network).postprocessing == scale


NETS = """
from torch import nn


class Two(nn.Module):
    def __init__(self, num_classes=10, width=8):
        super().__init__()
        self.body, self.head, self.side = nn.Linear(64, width), nn.Linear(width, num_classes), nn.Linear(width, 4)

    def forward(self, x):
        hidden = self.body(x.flatten(1)).relu()
        return {"side": self.side(hidden), "scores": self.head(hidden)}
"""


def test_a_run_of_networks_with_two_heads(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "recipe.toml").write_text(
        """
        name = "two"
        [data]
        source = "digits"
        [teacher]
        model = "nets.py:Two"
        output = "scores"
        args = { width = 32 }
        train = { epochs = 6, lr = 0.01, batch_size = 64 }
        [student]
        model = "nets.py:Two"
        output = "scores"
        [distill]
        epochs = 6
        lr = 0.01
        batch_size = 64
        terms = [{ method = "hint", student_layer = "output:side", teacher_layer = "output:side" }]
        [export]
        quantize = ["int8-dynamic"]
        also_outputs = ["side"]
        max_drop = 1.0
        [bench]
        min_seconds = 0.02
        max_seconds = 0.05
        rounds = 1
        threads = [1]
        batch_sizes = [1]
        """
    )
    report = run(Recipe.load(tmp_path / "recipe.toml"), tmp_path / "run")
    assert next(model for model in report.models if model.name == "student").score.value > 0.5
    outputs = {
        name: onnxruntime.InferenceSession(tmp_path / "run" / f"{name}.onnx").get_outputs()
        for name in ("teacher", "student", "student.int8-dynamic")
    }
    assert [(output.name, output.shape[1]) for output in outputs["teacher"]] == [("logits", 10)]
    assert [(output.name, output.shape[1]) for output in outputs["student"]] == [("logits", 10), ("side", 4)]
    assert [output.name for output in outputs["student.int8-dynamic"]] == ["logits", "side"]
