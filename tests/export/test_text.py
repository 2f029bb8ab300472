"""Text: two inputs of any length, masks of minus infinity, and every variant that suits matrix products."""

import numpy as np
import pytest
import torch
from torch import nn

from kdexport.export import network_export, variants
from kdexport.export.target import ExportTarget, Form
from kdexport.export.variant_inputs import CalibrationData, VariantSpec
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx.sessions import OnnxSession
from kdexport.progress import Silent


class Encoder(nn.Module):
    """One transformer layer over masked tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(100, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, input_ids, attention_mask):
        hidden = self.layer(self.tokens(input_ids), src_key_padding_mask=attention_mask == 0)
        mask = attention_mask.unsqueeze(-1).float()
        return self.head((hidden * mask).sum(1) / mask.sum(1))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 40, 128)
    mask = (np.arange(48) < lengths[:, None]).astype(np.int64)
    ids = generator.integers(1, 100, mask.shape) * mask
    preprocessing = Preprocessing("tokens", length=48)
    subject = ExportTarget("text", Encoder().eval(), preprocessing, ("input_ids", "attention_mask"), (ids, mask))
    path = tmp_path_factory.mktemp("text") / "text.onnx"
    return subject, path, network_export.write(subject, Form(18, 8, 1e-4), path)


def test_any_length_goes_in(text):
    subject, path, made = text
    assert made.inputs == {"input_ids": ["batch", "length"], "attention_mask": ["batch", "length"]}
    session = OnnxSession(path)
    for length in (1, 5, 100):
        ids = np.random.default_rng(1).integers(1, 100, (3, length))
        with torch.no_grad():
            expected = subject.network(torch.from_numpy(ids), torch.ones(3, length, dtype=torch.int64)).numpy()
        np.testing.assert_allclose(session((ids, np.ones_like(ids)))[0], expected, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "int8-dynamic"])
def test_variants_answer_as_fp32_does(precision, text, tmp_path):
    subject, path, made = text

    def ready():
        return network_export.numpy_inputs(subject, subject.samples)

    data = CalibrationData(ready, ready, lambda: None)
    spec = VariantSpec(precision)
    small = variants.write(path, made, spec, tmp_path / "small.onnx", data, Silent(), key=None)
    assert small.parity is not None
    assert small.parity.passed
    assert small.parity.argmax_agreement >= 0.98
    assert small.size_bytes < made.size_bytes
