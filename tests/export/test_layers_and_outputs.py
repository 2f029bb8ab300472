"""Where a spoiled file parts from its network, and what comes out besides logits."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from kdexport.errors import KDExportError
from kdexport.export import diagnosis, graph, network_export
from kdexport.export.target import ExportTarget, Form
from kdexport.export.to_onnx import operators, to_onnx
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx.sessions import OnnxSession

LABELS = tuple("abcdefghij")


@pytest.fixture(scope="module")
def network(load_net):
    torch.manual_seed(0)
    return load_net("Net", width=6).eval()


@pytest.fixture
def samples():
    return (np.random.default_rng(0).standard_normal((40, 1, 8, 8), dtype=np.float32),)


def test_the_first_layer_that_differs_is_named(network, samples):
    example = (torch.from_numpy(samples[0][:2]),)
    exported = to_onnx(network, example, input_names=["image"])
    assert diagnosis.first_difference(exported, example, (samples[0][:2],), 1e-4) is None
    weight = exported.model.graph.initializers["conv.weight"]
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.01), name="conv.weight")
    found = diagnosis.first_difference(exported, example, (samples[0][:2],), 1e-4)
    assert found is not None
    assert found.startswith("conv (aten.conv")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("last", [(True, False), (False, True), (True, True)])
def test_channels_last_leaves_no_trace_in_the_file(channels, last):
    """Pooling ended in a gather by strides, with torch 2.11 in a loop over sequences, which no fp16 file holds."""
    layers = [nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    network, image = nn.Sequential(*layers).eval(), torch.ones(2, channels, 8, 8)
    formats = [torch.channels_last if one else torch.contiguous_format for one in last]
    exported = to_onnx(
        network.to(memory_format=formats[0]), (image.to(memory_format=formats[1]),), input_names=["image"]
    )
    count = operators(exported.model)
    expected = {"Conv": 1, "Relu": 1, "ReduceMean": 1, "Reshape": 1, "Gemm": 1}
    assert count in (expected, expected | {"Shape": 1, "Concat": 1})  # what older libraries add


def test_probabilities_and_the_best_classes_by_name_come_out(network, samples, tmp_path):
    subject = ExportTarget("net", network, Preprocessing("none"), ("image",), samples, class_names=LABELS)
    network_export.write(subject, Form(18, 8, 1e-4, softmax=True, top_k=3), tmp_path / "net.onnx")
    session = OnnxSession(tmp_path / "net.onnx")
    assert session.output_names == ("probabilities", "top_scores", "top_labels")
    probabilities, scores, labels = session(samples)
    with torch.no_grad():
        expected = torch.softmax(network(torch.from_numpy(samples[0])), dim=1)
    np.testing.assert_allclose(probabilities, expected.numpy(), atol=1e-6)
    best = expected.topk(3)
    np.testing.assert_allclose(scores, best.values.numpy(), atol=1e-6)
    assert labels.tolist() == [[LABELS[index] for index in row] for row in best.indices.tolist()]


def test_of_several_labels_a_sample_each_has_a_probability_of_its_own(network, samples, tmp_path):
    subject = ExportTarget(
        "net", network, Preprocessing("none"), ("image",), samples, class_names=LABELS, activation="sigmoid"
    )
    network_export.write(subject, Form(18, 8, 1e-4, softmax=True, top_k=2), tmp_path / "net.onnx")
    session = OnnxSession(tmp_path / "net.onnx", expects="sigmoid")
    with torch.no_grad():
        logits = network(torch.from_numpy(samples[0]))
    np.testing.assert_allclose(session(samples)[0], torch.sigmoid(logits).numpy(), atol=1e-6)
    np.testing.assert_array_equal(session.predict(samples) > 0, (logits > 0).numpy())
    np.testing.assert_allclose(session(samples)[1], torch.sigmoid(logits).topk(2).values.numpy(), atol=1e-6)


def test_more_classes_than_there_are_is_an_error(network, samples, tmp_path):
    subject = ExportTarget("net", network, Preprocessing("none"), ("image",), samples, class_names=LABELS)
    with pytest.raises(KDExportError, match="there are 10 classes"):
        network_export.write(subject, Form(18, 8, 1e-4, top_k=11), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_the_reference_for_top_k_is_worked_out_by_hand():
    scores, best, named = graph.reference(np.array([[0.0, np.log(3)]]), softmax=True, top_k=1, labels=("no", "yes"))
    np.testing.assert_allclose(scores, [[0.25, 0.75]])
    np.testing.assert_allclose(best, [[0.75]])
    assert named.tolist() == [["yes"]]
