"""What the sources give, as the distill stage uses it: ONNX teachers, mixed, balanced and unlabelled samples."""

import json
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import torch

from kdexport.artifacts import RunDirectory
from kdexport.data.datasets import load_data
from kdexport.distill.stage import distill
from kdexport.export.to_onnx import to_onnx
from kdexport.models.loading import load_model
from kdexport.recipe import Recipe
from kdexport.tasks import TASKS

NETS = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width=32, num_classes=10):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))
"""


@pytest.fixture
def nets(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    return f"{tmp_path / 'nets.py'}:Net"


def trained(nets, folder, teacher, *overrides, source="digits"):
    """Distill for a few epochs; return recipe, directory, data and the student's test logits."""
    document = {
        "name": "run",
        "data": {"source": source},
        "teacher": teacher,
        "student": {"model": nets, "args": {"width": 12}},
        "distill": {"epochs": 3, "baseline": False, "views": 2, "lr": 0.01, "batch_size": 64},
    }
    recipe = Recipe.parse(document, overrides=overrides)
    directory = RunDirectory(folder)
    distill(recipe, directory)
    data = load_data(recipe.data, recipe.seed, directory.cache)
    model = load_model("student", recipe.student, data, directory.weights("student"))
    with torch.no_grad():
        return recipe, directory, data, model.network(*model.preprocessing.apply(data.test.inputs)).numpy()


@pytest.mark.slow  # three trainings and an export
def test_an_onnx_teacher_gives_the_same_student_as_its_module(nets, tmp_path):
    fitted = {"model": nets, "train": {"epochs": 4, "lr": 0.01}}
    recipe, directory, data, _ = trained(nets, tmp_path / "first", fitted)
    weights = directory.weights("teacher")
    _, _, _, from_module = trained(nets, tmp_path / "module", {"model": nets, "weights": str(weights)})

    teacher = load_model("teacher", recipe.teacher, data, weights)
    example = teacher.preprocessing.apply(data.val.take(slice(0, 2)).inputs)
    onnx_ir.save(to_onnx(teacher.network, example, input_names=("image",)).model, tmp_path / "teacher.onnx")
    _, _, _, from_onnx = trained(nets, tmp_path / "onnx", {"model": str(tmp_path / "teacher.onnx")})

    near = TASKS["classification"].agreement(from_module, from_onnx)
    assert near.top1 >= 0.99
    assert near.logit_correlation > 0.999
    accuracies = [float(np.mean(logits.argmax(1) == data.test.labels)) for logits in (from_module, from_onnx)]
    assert min(accuracies) > 0.7
    assert abs(accuracies[0] - accuracies[1]) <= 0.01


def test_mixed_samples_teach_with_soft_labels(nets, tmp_path):
    fitted = {"model": nets, "train": {"epochs": 3, "lr": 0.01, "augment": ("mixup",)}}
    changes = ('distill.augment=["cutmix", "mixup"]', "distill.label_weight=0.5")
    _, directory, data, logits = trained(nets, tmp_path / "run", fitted, *changes)
    lines = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    phases = [(line["phase"], line["teacher_from"]) for line in lines]
    assert phases[3:] == [
        ("student", "online"),
        ("student", "online"),
        ("student", "cache"),
    ]  # a mixed view is kept too
    assert float(np.mean(logits.argmax(1) == data.test.labels)) > 0.5


def test_unlabelled_samples_are_seen_by_teacher_and_student_but_not_by_the_labels(nets, tmp_path):
    digits = load_data(Recipe.parse({**MINIMAL, "data": {"source": "digits"}}).data, 0, tmp_path)
    few = digits.train.take(slice(0, 100))
    path = tmp_path / "d.npz"
    rest = digits.train.take(slice(100, 1200))
    test = {"x_test": digits.test.inputs[0], "y_test": digits.test.labels}
    np.savez(path, x_train=few.inputs[0], y_train=few.labels, **test)
    np.savez(tmp_path / "more.npz", x_train=few.inputs[0], y_train=few.labels, x_unlabelled=rest.inputs[0], **test)

    _, directory, _, _ = trained(nets, tmp_path / "teacher", {"model": nets, "train": {"epochs": 4, "lr": 0.01}})
    teacher = {"model": nets, "weights": str(directory.weights("teacher"))}
    hits = {}
    for name in ("d", "more"):
        _, _, data, logits = trained(nets, tmp_path / name, teacher, source=f"npz:{tmp_path / name}.npz")
        hits[name] = float(np.mean(logits.argmax(1) == data.test.labels))
    assert hits["more"] > hits["d"] + 0.1  # ten times the samples, as many labels


MINIMAL = {"name": "x", "data": {"source": "digits"}, "teacher": {"model": "a.py:B"}, "student": {"model": "a.py:B"}}


def test_balanced_epochs_find_a_rare_class(nets, tmp_path):
    digits = load_data(Recipe.parse(MINIMAL).data, 0, tmp_path)
    keep = (digits.train.labels != 7) | (np.cumsum(digits.train.labels == 7) <= 4)
    test = {"x_test": digits.test.inputs[0], "y_test": digits.test.labels}
    np.savez(tmp_path / "d.npz", x_train=digits.train.inputs[0][keep], y_train=digits.train.labels[keep], **test)
    found = {}
    for balanced in (False, True):
        fitted = {"model": nets, "train": {"epochs": 4, "lr": 0.003, "balanced": balanced}}
        change = f"distill.balanced={str(balanced).lower()}"
        place = tmp_path / str(balanced)
        _, _, data, logits = trained(nets, place, fitted, change, source=f"npz:{tmp_path / 'd.npz'}")
        rare = data.test.labels == 7
        found[balanced] = float(np.mean(logits.argmax(1)[rare] == 7))
    assert found[True] > found[False] + 0.1


def test_spoken_digits_come_through_a_function_of_the_users(shared_data, tmp_path):
    folder = shared_data("spoken-digits") / "recordings"
    recipe = Recipe.load(
        Path(__file__).parents[2] / "models" / "spoken_digits" / "recipe.toml",
        [f"data.args.folder={folder}", "teacher.train.epochs=1", "distill.epochs=1", "distill.baseline=false"],
    )
    data = load_data(recipe.data, recipe.seed, tmp_path)
    assert (len(data.train) + len(data.val), len(data.test)) == (2700, 300)
    assert data.train.inputs[0].shape[1:] == (40, 49, 1)
    assert np.array_equal(np.bincount(data.test.labels), [30] * 10)
    assert data.class_names[3] == "three"
    pictures = data.train.inputs[0]
    assert (pictures.max(axis=(1, 2, 3)) == 255).all()  # each is measured against its own loudest point
    for role, spec in (("teacher", recipe.teacher), ("student", recipe.student)):
        assert load_model(role, spec, data).preprocessing.kind == "image"
