"""A recipe of Python objects: networks, samples and functions where a file holds references."""

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from kdexport import Recipe, RunDirectory, figures, run
from kdexport.data.datasets import load_data
from kdexport.errors import RecipeError, SourceError
from kdexport.models.networks import load_network
from kdexport.objects import refer
from kdexport.recipe import Data, Student

IMAGES, LABELS = load_digits(return_X_y=True)
IMAGES = IMAGES.astype(np.float32) / 16
FAST = {
    "export": {"quantize": []},
    "bench": {
        "min_seconds": 0.02, "max_seconds": 0.05, "rounds": 1, "threads": [1], "batch_sizes": [1],
    },
}  # fmt: skip


def network(width, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


class Rows(Dataset):
    """Digits, one sample at a time, as a torch data set gives them."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return torch.from_numpy(IMAGES[self.rows[index]]), int(LABELS[self.rows[index]])


def splits_of(data, tmp_path):
    return load_data(Data(source=data) if isinstance(data, str) else Data.model_validate(data), 0, tmp_path)


def soft(student_logits, teacher_logits, temperature=2.0):
    teacher = (teacher_logits / temperature).softmax(1)
    return -(teacher * (student_logits / temperature).log_softmax(1)).sum(1).mean() * temperature**2


def worst_class(outputs, targets):
    return min(float(np.mean(outputs[targets == one].argmax(1) == one)) for one in np.unique(targets))


def jitter(sample, generator):
    return sample + generator.normal(0, 0.05, sample.shape)


def test_a_whole_run_of_objects(tmp_path):
    teacher = network(64)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    recipe = Recipe(
        teacher={"model": teacher, "train": {"epochs": 3, "lr": 0.01, "batch_size": 64}},
        student=network(12),
        data=(Rows(range(1000)), Rows(range(1000, 1300)), Rows(range(1300, 1797))),
        distill={
            "epochs": 8,
            "lr": 0.02,
            "batch_size": 64,
            "augment": [jitter],
            "terms": [{"method": soft, "temperature": 3.0}],
        },
        scores=[worst_class],
        **FAST,
    )
    assert recipe.name == "run"
    report = run(recipe, tmp_path / "run")
    student = next(model for model in report.models if model.name == "student")
    assert student.score.value > 0.7
    assert student.evaluation.samples == 497  # the third split is the test
    assert student.evaluation.metrics["worst_class"] == min(one.accuracy for one in student.evaluation.per_class)
    for name, tensor in teacher.state_dict().items():  # what was handed over is as it was
        assert torch.equal(tensor, before[name])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    line = [line for line in lines if line["phase"] == "student"][-1]
    assert any(name.startswith("object:soft") for name in line["terms"])
    assert "student" in str(report)
    assert figures.size(student.size_bytes) in str(report)
    assert max(map(len, str(report).splitlines())) <= 100
    page = report._repr_html_()
    assert page.startswith('<iframe srcdoc="&lt;!')
    assert page.count("<") == 2  # the page itself stands in an attribute
    # Equal objects are the same run.
    again = recipe.model_copy(update={"student": Student(model=network(12))})
    weights = (tmp_path / "run" / "student.safetensors").stat().st_mtime_ns
    run(again, tmp_path / "run")
    assert (tmp_path / "run" / "student.safetensors").stat().st_mtime_ns == weights
    written = Recipe.load(tmp_path / "run" / "recipe.toml")
    assert written.student.model == recipe.student.model


@pytest.mark.parametrize(
    ("data", "sizes"),
    [
        ((Rows(range(900)), Rows(range(900, 1200)), Rows(range(1200, 1797))), (900, 300, 597)),
        ((Rows(range(1200)), Rows(range(1200, 1797))), (1080, 120, 597)),
        (((IMAGES[:1200], LABELS[:1200]), (IMAGES[1200:], LABELS[1200:])), (1080, 120, 597)),
        ((IMAGES, LABELS), (1293, 144, 360)),
        (Rows(range(1797)), (1293, 144, 360)),
        (TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS)), (1293, 144, 360)),
        ({"train": (IMAGES[:1200], LABELS[:1200]), "test": Rows(range(1200, 1797))}, (1080, 120, 597)),
        ([(row, label) for row, label in zip(IMAGES, LABELS, strict=True)], (1293, 144, 360)),
        (lambda: {"train": (IMAGES, LABELS)}, (1293, 144, 360)),
    ],
)
def test_samples_in_the_forms_that_python_has(data, sizes, tmp_path):
    dataset = splits_of(data, tmp_path)
    assert tuple(len(getattr(dataset, name)) for name in ("train", "val", "test")) == pytest.approx(sizes, abs=2)
    assert dataset.train.inputs[0].dtype == np.float32
    assert dataset.train.inputs[0].shape[1:] == (64,)
    assert dataset.num_classes == 10


def test_pictures_of_a_data_set_are_pictures(tmp_path):
    from PIL import Image

    pictures = [(Image.fromarray(np.full((6, 8, 3), 20 * n, np.uint8)), n % 2) for n in range(10)]
    dataset = splits_of((pictures, pictures, pictures), tmp_path)
    assert dataset.train.inputs[0].shape == (10, 6, 8, 3)
    assert dataset.preprocessing.kind == "image"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((Rows(range(9)),) * 4, "data has 4 parts"),
        (
            [(np.zeros(3), 0), (np.zeros(4), 1), (np.zeros(4), 1)],
            r"samples of train have different shapes: \[3\], \[4\]",
        ),
        ({"train": [1, 2, 3]}, "a sample of train is a int, not a pair"),
    ],
)
def test_samples_that_are_none(data, message):
    with pytest.raises(RecipeError, match=message):
        Data.model_validate(data)


def test_an_object_that_changed_is_not_mistaken_for_what_it_was(tmp_path):
    net = network(8)
    reference = refer(net)
    with torch.no_grad():
        net[0].weight += 1
    with pytest.raises(SourceError, match="Sequential has changed since the recipe was made"):
        load_network(reference, {})
    assert refer(net) != reference
    assert refer(network(8)) == reference


def test_an_object_of_another_process_is_told():
    with pytest.raises(SourceError, match="was a Python object, and is not in this process"):
        load_network("object:Net-0123456789abcdef", {})


def test_a_factory_is_called_for_each_role(tmp_path):
    made = []

    def factory(num_classes, width=8):
        made.append(width)
        return network(width)

    recipe = Recipe(teacher=factory, student={"model": factory, "args": {"width": 4}}, data=(IMAGES, LABELS))
    assert recipe.teacher.model != recipe.student.model or recipe.student.args == {"width": 4}
    load_network(recipe.student.model, recipe.student.args, 10)
    assert made == [4]


def test_a_class_of_networks_is_called(tmp_path):
    class Net(nn.Linear):
        def __init__(self, width=8, num_classes=10):
            super().__init__(width, num_classes)

    recipe = Recipe(teacher=Net(), student={"model": Net, "args": {"width": 4}}, data=(IMAGES, LABELS))
    assert load_network(recipe.student.model, recipe.student.args, 10).in_features == 4


def test_references_are_texts_in_python_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text("from torch import nn\n\n\nclass Net(nn.Linear):\n    pass\n")
    recipe = Recipe(name="mixed", teacher="nets.py:Net", student=network(4), data="digits")
    assert recipe.teacher.model == f"{tmp_path / 'nets.py'}:Net"
    assert recipe.data.source == "digits"
    assert RunDirectory  # is public
