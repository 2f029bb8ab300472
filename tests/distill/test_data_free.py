"""Data-free distillation on digits: the student learns from what was made of the teacher, and from nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kdexport.artifacts import RunDirectory, read_epochs
from kdexport.data.datasets import load_data
from kdexport.distill import setup
from kdexport.distill.batches import predict_all
from kdexport.distill.data_free import synthesize
from kdexport.distill.stage import distill
from kdexport.errors import KDExportError
from kdexport.models.loading import load_model
from kdexport.models.preprocessing import Preprocessing
from kdexport.progress import SILENT
from kdexport.recipe import DataFree, Recipe

DIGITS = Path(__file__).parents[2] / "models" / "digits" / "recipe.toml"

# Whoever looks at a training or validation sample of these data learns nothing: they are noise.
NOISE = """
import numpy as np
from sklearn.datasets import load_digits

def nothing_to_learn_from():
    digits, noise = load_digits(), np.random.default_rng(0)
    images = (digits.images * 15.9).astype(np.uint8)
    nothing = noise.integers(0, 256, images[:1200].shape, dtype=np.uint8), noise.integers(0, 10, 1200)
    return {"train": nothing, "val": nothing, "test": (images, digits.target)}
"""


@pytest.mark.slow  # about a minute: the only proof is a whole training
def test_a_student_of_made_images_knows_real_digits(tmp_path: Path) -> None:
    taught = RunDirectory(tmp_path / "teacher")
    small = ("teacher.args.width=32", "distill.baseline=false")
    recipe = Recipe.load(DIGITS, [*small, "teacher.train.epochs=12", "distill.epochs=1"])
    distill(recipe, taught)
    seen = load_model("teacher", recipe.teacher, load_data(recipe.data, 0, taught.cache)).preprocessing

    (tmp_path / "data.py").write_text(NOISE)
    document = {
        "name": "data_free",
        "data": {"source": f"{tmp_path / 'data.py'}:nothing_to_learn_from"},
        "teacher": {
            "model": f"{DIGITS.with_name('nets.py')}:Teacher",
            "args": {"width": 32},
            "weights": str(taught.weights("teacher")),
            "preprocessing": {"mean": seen.mean, "std": seen.std},
        },
        "student": {
            "model": f"{DIGITS.with_name('nets.py')}:Student",
            "preprocessing": {"mean": seen.mean, "std": seen.std},
        },
        "distill": {
            "epochs": 40,
            "batch_size": 128,
            "lr": 0.01,
            "warmup_epochs": 1,
            "label_weight": 0.0,
            "baseline": False,
            "augment": ["shift", "erase"],
            "views": 8,
            "terms": [{"method": "soft_targets"}],
            "data_free": {"samples": 6_000, "steps": 150},
        },
    }
    free, directory = Recipe.parse(document), RunDirectory(tmp_path / "run")
    distill(free, directory)
    dataset = load_data(free.data, 0, directory.cache)
    student = load_model("student", free.student, dataset, directory.weights("student"))
    logits = predict_all(student.network, student.preprocessing, dataset.test, torch.device("cpu"))
    assert np.mean(logits.argmax(axis=1) == dataset.test.labels) >= 0.90
    log = [line for line in read_epochs(directory.metrics) if line["phase"] == "student"]
    assert all(line["val_accuracy"] is None for line in log)
    assert log[-1]["top1_agreement"] > 0.7


def test_damaged_made_images_are_made_again(tmp_path: Path, tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of theirs: a student was trained on it; cut off, the run ended in a traceback."""
    drawn = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), dtype=np.uint8)
    monkeypatch.setattr(setup, "synthesize", lambda *_, **__: drawn)
    made = ("distill.label_weight=0.0", "distill.data_free.samples=100")
    recipe = tiny("distill.baseline=false", "teacher.train.epochs=1", "distill.epochs=1", *made)
    directory = RunDirectory(tmp_path)
    distill(recipe, directory)
    (images,) = directory.cache.glob("made-*.npy")
    whole, student = images.read_bytes(), directory.weights("student").read_bytes()
    for damaged in (whole[:-1] + b"!", whole[:90]):
        images.write_bytes(damaged)
        (directory.checkpoints / "student" / "done.json").unlink()
        distill(recipe, directory)
        assert images.read_bytes() == whole
        assert directory.weights("student").read_bytes() == student


def make(recipe: Recipe, **options: object) -> np.ndarray:
    dataset = load_data(recipe.data, 0, Path())
    torch.manual_seed(0)
    teacher = load_model("teacher", recipe.teacher, dataset)
    network = teacher.network.eval().requires_grad_(False)
    settings = DataFree(**{"samples": 300, "steps": 8, **options})
    about = {"seed": recipe.seed, "device": torch.device("cpu"), "progress": SILENT}
    before = torch.get_rng_state()
    images = synthesize(network, teacher.preprocessing, (8, 8, 1), settings, **about)
    assert torch.equal(before, torch.get_rng_state())  # the training's own draws are left alone
    return images


def test_equal_seeds_make_equal_images(tiny) -> None:
    one, two, other = make(tiny()), make(tiny()), make(tiny("seed=1"))
    assert one.dtype == np.uint8
    assert one.shape == (300, 8, 8, 1)
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_images_are_as_bright_as_the_teacher_expects(tiny) -> None:
    recipe = tiny()
    mean = load_model("teacher", recipe.teacher, load_data(recipe.data, 0, Path())).preprocessing.mean[0]
    assert make(recipe).mean() / 255 == pytest.approx(mean, abs=0.08)


def test_says_when_steps_cannot_give_so_many_images(tiny) -> None:
    with pytest.raises(KDExportError, match="8 steps cannot give 1000") as caught:
        make(tiny(), samples=1000)
    steps = int(caught.value.hint.rpartition(" ")[2])
    assert len(make(tiny(), samples=1000, steps=steps)) == 1000


def test_wants_a_teacher_of_images() -> None:
    with pytest.raises(KDExportError, match="not 'none' inputs") as caught:
        synthesize(
            torch.nn.Linear(4, 2),
            Preprocessing(),
            (1, 4, 1),
            DataFree(samples=10, steps=4),
            seed=0,
            device=torch.device("cpu"),
            progress=SILENT,
        )
    assert "label_weight = 0" in caught.value.hint


def test_made_samples_have_no_labels(tiny) -> None:
    with pytest.raises(KDExportError, match="label_weight = 0"):
        tiny("distill.data_free={}")
