"""Variants: what overflows stays in fp32, what harms goes back, and what is asked for is there."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from kdexport.errors import KDExportError
from kdexport.export import accuracy_guard, int8, network_export, quantize, variants
from kdexport.export.target import ExportTarget, Form
from kdexport.export.variant_inputs import CalibrationData, VariantSpec
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx.sessions import OnnxSession
from kdexport.progress import Silent

FORM = Form(18, 8, 1e-4)


class Wide(nn.Module):
    """Matrix products; the first layer's outputs are far beyond what fp16 holds, the second brings them back."""

    def __init__(self, gain: float = 1.0):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.head = nn.Linear(64, 96), nn.Linear(96, 96), nn.Linear(96, 10)
        with torch.no_grad():
            self.up.weight *= gain
            self.down.weight /= gain
            self.head.weight *= 5

    def forward(self, x):
        return self.head(torch.relu(self.down(torch.relu(self.up(x)))))


@pytest.fixture(scope="module")
def samples():
    return (np.random.default_rng(0).standard_normal((300, 64), dtype=np.float32),)


@pytest.fixture(scope="module")
def wide(samples, tmp_path_factory):
    return _write(Wide(), samples, tmp_path_factory.mktemp("wide") / "wide.onnx")


def _write(network, samples, path):
    subject = ExportTarget("wide", network.eval(), Preprocessing("none"), ("x",), samples)
    return path, network_export.write(subject, FORM, path)


def _data(samples, labels=None):
    labelled = None if labels is None else (samples, labels)
    return CalibrationData(lambda: samples, lambda: samples, lambda: labelled)


def _labels(path, samples):
    """The fp32 file's own answers: it is right by definition, so that any drop is the variant's."""
    return OnnxSession(path)(samples)[0].argmax(1)


def test_what_overflows_stays_in_fp32(samples, tmp_path):
    path, made = _write(Wide(gain=1e6), samples, tmp_path / "wide.onnx")
    spec = VariantSpec("fp16")
    model = variants.write(path, made, spec, tmp_path / "half.onnx", _data(samples), Silent(), key=None)
    assert model.parity is not None
    assert model.parity.passed
    assert any("up/Gemm" in note for note in model.notes)
    graph = onnx.load(tmp_path / "half.onnx").graph
    kinds = {item.name: item.data_type for item in graph.initializer}
    assert kinds["up.weight"] == onnx.TensorProto.FLOAT
    assert kinds["head.weight"] == onnx.TensorProto.FLOAT16


def test_without_overflow_all_is_fp16(wide, samples, tmp_path):
    path, made = wide
    model = variants.write(path, made, VariantSpec("fp16"), tmp_path / "half.onnx", _data(samples), Silent(), key=None)
    assert model.notes == ()
    assert model.size_bytes < 0.6 * made.size_bytes


def test_int4_is_for_large_matrices(wide, samples, tmp_path):
    path, made = wide
    model = variants.write(path, made, VariantSpec("int4"), tmp_path / "four.onnx", _data(samples), Silent(), key=None)
    assert model.operators["MatMulNBits"] == 2  # the head, 96 x 10, is too small
    assert model.size_bytes < 0.35 * made.size_bytes
    assert model.oldest_runtime == "1.17"
    assert model.parity is not None
    assert model.parity.passed


def test_int4_without_a_large_matrix_is_an_error(samples, tmp_path):
    few = (samples[0][:, :8],)
    path, made = _write(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), few, tmp_path / "small.onnx")
    with pytest.raises(KDExportError, match="no matrix product"):
        variants.write(path, made, VariantSpec("int4"), tmp_path / "f.onnx", _data(few), Silent(), key=None)
    assert not (tmp_path / "f.onnx").exists()


def test_the_best_calibration_is_kept(wide, samples, tmp_path):
    path, made = wide
    data = _data(samples, _labels(path, samples))
    guard = accuracy_guard.AccuracyGuard(path, samples, _labels(path, samples))
    prepared = quantize.prepared(path)
    scores = {
        method: guard.score(int8.static_int8(prepared, int8.ranges(prepared, samples, method)))
        for method in int8.CALIBRATION_METHODS
    }
    best = max(scores, key=lambda method: scores[method])
    model = variants.write(path, made, VariantSpec("int8"), tmp_path / "q.onnx", data, Silent(), key=None)
    assert f"calibrated by {best}" in model.notes[0]


class Fragile(nn.Module):
    """One layer carries the answer in small values beside one huge one: 8 bits wipe it out. The others are harmless."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.fragile, self.head = nn.Linear(64, 64), nn.Linear(64, 65), nn.Linear(65, 10)
        with torch.no_grad():
            self.fragile.weight[64] *= 5e3
            self.head.weight[:, 64] = 0
            self.head.weight[:, :64] *= 20

    def forward(self, x):
        return self.head(self.fragile(torch.relu(self.first(x))))


def test_the_guard_returns_the_sensitive_layers(samples, tmp_path):
    path, made = _write(Fragile(), samples, tmp_path / "net.onnx")
    data = _data(samples, _labels(path, samples))
    loose = VariantSpec("int8", calibration="minmax")
    unguarded = variants.write(path, made, loose, tmp_path / "loose.onnx", data, Silent(), key=None)
    answers = OnnxSession(path)(samples)[0].argmax(1)

    def right(file):
        return float((OnnxSession(file)(samples)[0].argmax(1) == answers).mean())

    assert right(tmp_path / "loose.onnx") < 0.9  # there is something to guard
    tight = dataclasses.replace(loose, max_drop=0.01)
    guarded = variants.write(path, made, tight, tmp_path / "tight.onnx", data, Silent(), key=None)
    assert right(tmp_path / "tight.onnx") >= 0.99
    assert any("returned to fp32" in note and "of 3 layers" in note for note in guarded.notes)
    assert any("the guard cost" in note and "KiB" in note and "ms" in note for note in guarded.notes)
    assert unguarded.size_bytes < guarded.size_bytes < made.size_bytes


class Offset(nn.Module):
    """Two layers with a large number between them, which the second takes away again: fp16 drops what rides on it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        with torch.no_grad():
            self.up.bias += 300
            self.down.bias -= 300 * self.down.weight.sum(1)
            self.head.weight *= 5

    def forward(self, x):
        return self.head(self.down(self.up(x)))


class Spread(nn.Module):
    """One matrix whose every row holds huge weights that nothing reaches: few bits leave the others nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.fragile, self.head = nn.Linear(64, 96), nn.Linear(96, 96), nn.Linear(96, 10)
        with torch.no_grad():
            self.fragile.weight[:, ::32] *= 300
            self.first.weight[::32] = 0
            self.first.bias[::32] = 0
            self.head.weight *= 20

    def forward(self, x):
        return self.head(self.fragile(torch.relu(self.first(x))))


@pytest.mark.parametrize(
    ("precision", "network", "culprit", "of"),
    [
        ("int8-dynamic", Spread, "fragile/Gemm", 3),
        ("int4", Spread, "fragile/Gemm", 2),
        ("fp16", Offset, "down/Gemm", 3),
    ],
)
def test_every_precision_is_guarded(precision, network, culprit, of, samples, tmp_path):
    path, made = _write(network(), samples, tmp_path / "net.onnx")
    answers = _labels(path, samples)
    data, loose = _data(samples, answers), VariantSpec(precision)
    variants.write(path, made, loose, tmp_path / "loose.onnx", data, Silent(), key=None)

    def right(file):
        return float((OnnxSession(file)(samples)[0].argmax(1) == answers).mean())

    assert right(tmp_path / "loose.onnx") < 0.9  # there is something to guard
    tight = dataclasses.replace(loose, max_drop=0.1)
    guarded = variants.write(path, made, tight, tmp_path / "tight.onnx", data, Silent(), key=None)
    assert right(tmp_path / "tight.onnx") >= 0.9
    returned = next(note for note in guarded.notes if "returned to fp32" in note)
    assert culprit in returned
    assert f"of {of} layers" in returned
    assert guarded.size_bytes < made.size_bytes


def test_a_variant_that_cannot_be_guarded_is_an_error(samples, tmp_path):
    path, made = _write(Spread().fragile, (np.tile(samples[0], 2)[:, :96],), tmp_path / "net.onnx")
    few = (np.tile(samples[0], 2)[:, :96],)
    spec = VariantSpec("int8-dynamic", max_drop=0.0)
    with pytest.raises(KDExportError, match="int8-dynamic loses more than max_drop"):
        variants.write(path, made, spec, tmp_path / "q.onnx", _data(few, _labels(path, few)), Silent(), key=None)
    assert not (tmp_path / "q.onnx").exists()


def test_no_calibration_samples_is_an_error(wide):
    path, _ = wide
    with pytest.raises(KDExportError, match="needs calibration samples"):
        int8.ranges(quantize.prepared(path), (np.zeros((0, 64), np.float32),), "minmax")
