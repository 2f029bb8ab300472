"""Numeric features standardized by choice: as scikit-learn does, and in the graph of the file."""

import json

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn

from kdexport.errors import RecipeError
from kdexport.export import network_export
from kdexport.export.target import ExportTarget, Form
from kdexport.models.preprocessing import Preprocessing, of_features
from kdexport.onnx.sessions import OnnxSession

RNG = np.random.default_rng(0)
NUMBERS = (RNG.normal(size=(60, 4)) * (1e-3, 1.0, 50.0, 0.0) + (0.0, 5.0, 1e3, 7.0)).astype(np.float32)
LABELS = (NUMBERS[:, 2] > 1e3).astype(np.int64)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.npz"
    np.savez(path, x_train=NUMBERS[:40], y_train=LABELS[:40], x_test=NUMBERS[40:], y_test=LABELS[40:])
    return f"npz:{path}"


def test_it_is_what_scikit_learn_does(load, table):
    data = load(table, standardize=True)
    train = data.train.inputs[0]
    expected = StandardScaler().fit(np.asarray(train, np.float64))
    for split in (data.train, data.test):
        found = data.preprocessing.apply(split.inputs)[0].numpy()
        np.testing.assert_allclose(found, expected.transform(np.asarray(split.inputs[0], np.float64)), atol=2e-4)
        np.testing.assert_array_equal(found, data.preprocessing.apply_numpy(split.inputs)[0])
    assert any("4 features are standardized" in note for note in data.notes)
    assert Preprocessing.from_json(json.loads(json.dumps(data.preprocessing.to_json()))) == data.preprocessing


def test_a_feature_that_never_changes_keeps_its_scale():
    assert of_features(NUMBERS).std[3] == 1.0


def test_unasked_the_numbers_stay_and_that_is_said(load, table):
    data = load(table)
    assert data.preprocessing.kind == "none"
    assert any("data.standardize = true" in note for note in data.notes)


def test_images_are_refused(load):
    with pytest.raises(RecipeError, match="standardize"):
        load("digits", standardize=True)


@pytest.mark.parametrize("bake", [True, False])
def test_the_file_takes_raw_numbers(tmp_path, bake):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    preprocessing = of_features(NUMBERS)
    target = ExportTarget("net", network, preprocessing, ("x",), (NUMBERS,), class_names=("a", "b"))
    made = network_export.write(target, Form(18, 8, 1e-4, bake=bake), tmp_path / "net.onnx")
    assert made.parity is not None
    assert made.parity.passed
    scaled = (NUMBERS - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    with torch.no_grad():
        expected = network(torch.from_numpy(scaled.astype(np.float32))).numpy()
    session = OnnxSession(tmp_path / "net.onnx")
    np.testing.assert_allclose(session.predict((NUMBERS,)), expected, rtol=1e-3, atol=1e-4)
    assert (session.metadata["kdexport.baked"] == "true") is bake
