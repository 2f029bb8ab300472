"""Networks by reference, whatever they come from, and what is wrong with them."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from kdexport.errors import KDExportError, SourceError
from kdexport.models.checkpoints import OnnxNetwork
from kdexport.models.loading import load_model
from kdexport.models.networks import check_output, load_network
from kdexport.models.predictors import load_predictor
from kdexport.models.preprocessing import Preprocessing
from kdexport.models.programs import Program
from kdexport.recipe import PreprocessingSpec, Student, Teacher, Training
from kdexport.tasks import TASKS

NETS = """
import torch
from torch import nn
from parts import width

class Fits(nn.Module):
    def __init__(self, num_classes=7, scale=1.0):
        super().__init__()
        self.scale = scale
        self.body = nn.Linear(64, width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.body(x.flatten(1))) * self.scale

def factory(depth=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

ready = factory()

class Pair(Fits):
    def forward(self, x):
        return super().forward(x), x

class Named(Fits):
    def forward(self, x):
        return {"logits": super().forward(x)}

class Broken(nn.Module):
    def __init__(self):
        raise ValueError("no weights today")

class Deaf(Fits):
    def forward(self, x):
        raise RuntimeError("cannot hear")

def text():
    return "a network"

number = 3
"""


@pytest.fixture
def nets(tmp_path):
    (tmp_path / "parts.py").write_text("width = 5\n")
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path / "nets.py"


@pytest.fixture
def digits(load):
    return load("digits")


def test_a_class_gets_the_number_of_classes_and_its_arguments(nets):
    network = load_network(f"{nets}:Fits", {"scale": 2.0}, 4)
    assert network.head.out_features == 4
    assert network.scale == 2.0
    assert load_network(f"{nets}:Fits", {"num_classes": 9}, 4).head.out_features == 9
    assert load_network(f"{nets}:Fits", {}, None).head.out_features == 7


def test_a_factory_and_a_ready_network(nets):
    assert load_network(f"{nets}:factory", {}, 4)[1].out_features == 10  # it doesn't take num_classes: it isn't given
    assert load_network(f"{nets}:ready", {}, 4)[1].out_features == 10


def test_a_package_and_torchvision():
    assert load_network("torch.nn:Linear", {"in_features": 3, "out_features": 2}).weight.shape == (2, 3)
    assert load_network("torchvision:squeezenet1_1", {}, 6)(torch.zeros(2, 3, 64, 64)).shape == (2, 6)


@pytest.mark.parametrize(
    ("reference", "args", "message", "hint"),
    [
        ("torchvision:resnet81", {}, "torchvision has no classifier 'resnet81'", "did you mean 'resnet18'"),
        ("torchvision:resnet18", {"widht": 3}, "raises TypeError: .*widht", "args"),
        ("torch.nn.nowhere:Linear", {}, "cannot be imported: ModuleNotFoundError", "install"),
        ("torch.nn:Linaer", {}, "has no 'Linaer'", "did you mean 'Linear'"),
        ("digits", {}, "is no network that can be built", "torchvision:NAME"),
        ("absent.py:Net", {}, r"there is no file absent\.py", "check the path"),
        ("weights.pth", {}, "is no network that can be built", "weights alone are no network"),
        ("absent.pt2", {}, r"there is no file absent\.pt2", "check the path"),
        ("absent.onnx", {}, r"there is no ONNX file absent\.onnx", "check the path"),
    ],
)
def test_references_that_do_not_work(reference, args, message, hint):
    with pytest.raises(SourceError, match=message) as caught:
        load_network(reference, args, 10)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Broken", r"raises ValueError: no weights today \(nets\.py, line 31\)"),
        ("text", "gives a str, not a torch.nn.Module"),
        ("number", "is a int, not a class or function"),
        ("Fit", "has no 'Fit'"),
    ],
)
def test_files_that_do_not_give_a_network(name, message, nets):
    with pytest.raises(SourceError, match=message):
        load_network(f"{nets}:{name}", {}, 10)


def test_a_file_that_does_not_import(tmp_path):
    (tmp_path / "bad.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(SourceError, match=r"cannot be imported: ModuleNotFoundError.*nothing_of_that_name.*line 1"):
        load_network(f"{tmp_path / 'bad.py'}:Net", {})
    (tmp_path / "worse.py").write_text("def (:\n")
    with pytest.raises(SourceError, match="cannot be imported: SyntaxError"):
        load_network(f"{tmp_path / 'worse.py'}:Net", {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Pair", "the teacher gives a tuple of 2, and nothing says which tensor of it is meant"),
        ("Deaf", r"does not take the data \(\[2, 1, 8, 8\] float32\): RuntimeError: cannot hear"),
    ],
)
def test_outputs_that_are_no_logits(name, message, nets, digits):
    with pytest.raises(KDExportError, match=message):
        load_model("teacher", Teacher(model=f"{nets}:{name}"), digits)


def test_a_wrong_width_names_both_counts(nets, digits):
    with pytest.raises(SourceError, match=r"the student gives \[2, 7\] for 2 samples; the data have 10 classes"):
        load_model("student", Student(model=f"{nets}:Fits", args={"num_classes": 7}), digits)


def test_the_recipe_changes_the_preprocessing(nets, digits):
    spec = Student(model=f"{nets}:Fits", preprocessing=PreprocessingSpec(mean=(0.5,), std=(0.25,)))
    assert load_model("student", spec, digits).preprocessing == Preprocessing("image", mean=(0.5,), std=(0.25,))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

    def forward(self, x):
        return self.body(x)


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Small().eval()


@pytest.mark.parametrize("batch", ["any", 2])
def test_a_torch_export_program(batch, small, digits, tmp_path):
    shapes = ({0: torch.export.Dim("batch")},) if batch == "any" else None
    path = tmp_path / "small.pt2"
    torch.export.save(torch.export.export(small, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=shapes), path)
    model = load_model("teacher", Teacher(model=str(path)), digits)
    assert isinstance(model.network, Program)
    inputs = torch.randn(5, 1, 8, 8)
    assert torch.allclose(model.network.eval()(inputs), small(inputs), atol=1e-6)


def test_a_file_that_is_no_program(tmp_path):
    (tmp_path / "no.pt2").write_text("nothing")
    with pytest.raises(SourceError, match=r"is no torch\.export program"):
        load_network(str(tmp_path / "no.pt2"), {})


def write_onnx(network, path, batch="batch"):
    """Write a network as a user's own exporter does: no metadata of kdexport's."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = network.weight.detach().numpy()
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    wanted = path.stem
    graph = helper.make_graph(
        nodes if wanted == "probabilities" else nodes[:2],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info(wanted, TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(network.bias.detach().numpy(), "b")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


@pytest.mark.parametrize("batch", ["batch", 3])
@pytest.mark.parametrize("gives", ["logits", "probabilities"])
def test_an_onnx_teacher_gives_what_its_module_gives(gives, batch, digits, tmp_path):
    torch.manual_seed(0)
    linear = nn.Linear(64, 10)
    path = tmp_path / f"{gives}.onnx"
    write_onnx(linear, path, batch)
    model = load_model("teacher", Teacher(model=str(path)), digits)
    assert isinstance(model.network, OnnxNetwork)
    assert model.preprocessing == digits.preprocessing
    inputs = model.preprocessing.apply(digits.test.take(slice(0, 7)).inputs)
    expected = linear(inputs[0].flatten(1))
    assert torch.allclose(model.network(*inputs).softmax(1), expected.softmax(1), atol=1e-5)
    assert model.network.onnx.activation == {"logits": "none", "probabilities": "softmax"}[gives]
    if gives == "logits":
        assert torch.allclose(model.network(*inputs), expected, atol=1e-5)


def test_the_same_scores_for_module_and_onnx(nets, digits, tmp_path):
    torch.manual_seed(0)
    linear = nn.Linear(64, 10)
    write_onnx(linear, tmp_path / "logits.onnx")
    (tmp_path / "one.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    torch.save({"1.weight": linear.weight, "1.bias": linear.bias}, tmp_path / "w.pt")
    images = digits.test.take(slice(0, 50)).inputs
    onnx = load_predictor(Student(model=str(tmp_path / "logits.onnx")), digits).predict
    weighted = Student(model=f"{tmp_path / 'one.py'}:net", weights=str(tmp_path / "w.pt"))
    module = load_predictor(weighted, digits).predict
    assert np.allclose(onnx(images), module(images), atol=1e-5)
    bare = load_predictor(Student(model=f"{tmp_path / 'one.py'}:net"), digits)
    assert "no weights are given" in bare.warnings[0]


def test_timm(digits):
    timm = pytest.importorskip("timm", reason="timm is an extra: pip install 'kdexport[timm]'")
    name = "test_resnet" if timm.is_model("test_resnet") else "resnet10t"  # since timm 1.0.10
    network = load_network(f"timm:{name}", {"in_chans": 1}, 10)
    check_output(network, (torch.zeros(2, 1, 32, 32),), TASKS["classification"], list("0123456789"), "student")
    with pytest.raises(SourceError, match=f"timm has no network '{name}t'") as caught:
        load_network(f"timm:{name}t", {}, 10)
    assert "did you mean" in caught.value.hint


def test_pretrained_weights_that_cannot_be_had(nets, digits, monkeypatch):
    with pytest.raises(SourceError, match='"pretrained" is for torchvision: and timm: networks'):
        load_model("teacher", Teacher(model=f"{nets}:Fits", weights="pretrained"), digits)

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(SourceError, match="cannot be had: no network") as caught:
        load_model("teacher", Teacher(model="torchvision:squeezenet1_1", weights="pretrained"), digits)
    assert "as a file" in caught.value.hint


def test_pretrained_torchvision_brings_its_weights_and_its_preprocessing(load, monkeypatch, tmp_path):
    from torchvision.models import squeezenet1_1

    torch.manual_seed(5)
    published = squeezenet1_1(num_classes=3).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: published)
    images = np.random.default_rng(0).integers(0, 255, (30, 40, 50, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=np.arange(30) % 3)
    data = load(f"npz:{tmp_path / 'd.npz'}")
    model = load_model("teacher", Teacher(model="torchvision:squeezenet1_1", weights="pretrained"), data)
    assert model.preprocessing == Preprocessing(
        "image", (224, 224), "crop", 224 / 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    assert torch.equal(model.network.features[0].weight, published["features.0.weight"])
    assert load_model("student", Student(model="torchvision:squeezenet1_1"), data).preprocessing == data.preprocessing


def test_a_hub_name_while_offline(monkeypatch):
    pytest.importorskip("transformers", reason="it is an extra: pip install 'kdexport[text]'")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="hf:someone/nothing-of-that-name cannot be loaded") as caught:
        load_network("hf:someone/nothing-of-that-name", {}, 3)
    assert "offline, give a folder" in caught.value.hint
    assert "hf auth login" in caught.value.hint


def test_a_fresh_head_may_be_trained_but_does_not_teach(load, tmp_path):
    transformers = pytest.importorskip("transformers", reason="it is an extra: pip install 'kdexport[text]'")
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=5)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "hf")
    transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.5).save_pretrained(tmp_path / "hf")
    images = np.random.default_rng(0).integers(0, 255, (30, 40, 50, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=np.arange(30) % 3)
    data = load(f"npz:{tmp_path / 'd.npz'}")
    with pytest.raises(SourceError, match=r"comes without classifier\.1\.bias, classifier\.1\.weight"):
        load_model("teacher", Teacher(model=f"hf:{tmp_path / 'hf'}"), data)
    model = load_model("teacher", Teacher(model=f"hf:{tmp_path / 'hf'}", train=Training()), data)
    assert [note.partition(":")[0] for note in model.left_out] == ["classifier.1.bias", "classifier.1.weight"]
    assert (model.preprocessing.size, model.preprocessing.crop_share) == ((32, 32), 0.5)
    with pytest.raises(SourceError, match="cannot be loaded") as caught:
        load_network(f"hf:{tmp_path}", {}, 3)
    assert "offline" in caught.value.hint


@pytest.mark.parametrize("name", ["densenet121", "googlenet"])
def test_torchvisions_own_weights_load_as_torchvision_loads_them(name, monkeypatch):
    """Its files name DenseNet's layers otherwise, and hold GoogLeNet's second heads, whose inputs it normalizes."""
    import re

    from torchvision import models

    from kdexport.models.networks import load_with_fresh, pretrained_weights, with_pretrained_args
    from kdexport.models.weights import fit_weights

    torch.manual_seed(0)
    if name == "googlenet":
        theirs = models.googlenet(weights=None, aux_logits=True, transform_input=True, init_weights=False)
        published = theirs.state_dict()
        theirs.aux_logits, theirs.aux1, theirs.aux2 = False, None, None
    else:
        theirs = models.densenet121(weights=None)
        renamed = r"(denselayer\d+\.)(norm|conv)([12])\."
        published = {re.sub(renamed, r"\1\2.\3.", key): value for key, value in theirs.state_dict().items()}
        assert "features.denseblock1.denselayer1.norm.1.weight" in published
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: published)
    reference = f"torchvision:{name}"
    network, _ = load_with_fresh(reference, with_pretrained_args(reference, {}, "pretrained"), 1000)
    assert fit_weights(network, pretrained_weights(reference, {}), reference) == ()
    inputs = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(network.eval()(inputs), theirs.eval()(inputs), atol=1e-5)


def test_a_given_teacher_is_never_left_with_a_random_part(nets, digits, tmp_path):
    state = load_network(f"{nets}:Fits", {}, 10).state_dict()
    torch.save({key: value for key, value in state.items() if "head" not in key}, tmp_path / "w.pt")
    spec = {"model": f"{nets}:Fits", "weights": str(tmp_path / "w.pt"), "strict": False}
    with pytest.raises(SourceError, match=r"comes without head\.weight, head\.bias: it would teach noise"):
        load_model("teacher", Teacher(**spec), digits)
    assert len(load_model("teacher", Teacher(**spec, train=Training()), digits).left_out) == 2
    assert len(load_model("student", Student(**spec), digits).left_out) == 2


def test_normalization_by_the_datas_own_statistics_is_reported(nets, digits, tmp_path):
    """A network to be trained takes it; weights from a file had something else, unless the recipe says what."""
    digits = dataclasses.replace(digits, measured=True)
    fresh = load_model("student", Student(model=f"{nets}:Fits"), digits)
    assert "normalized with your data's mean" in fresh.notes[0]
    assert fresh.warnings == ()
    torch.save(load_network(f"{nets}:Fits", {}, 10).state_dict(), tmp_path / "w.pt")
    given = {"model": f"{nets}:Fits", "weights": str(tmp_path / "w.pt")}
    (warning,) = load_model("teacher", Teacher(**given), digits).warnings
    assert "give the mean and std they were trained with (teacher.preprocessing)" in warning
    told = load_model("teacher", Teacher(**given, preprocessing={"mean": (0.3,), "std": (0.4,)}), digits)
    assert not any("normalized" in text for text in (*told.notes, *told.warnings))
