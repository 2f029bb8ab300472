"""Pairs are learned from together, sample by sample: in batches, in parts of them, and by several processes."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

from kdexport.artifacts import RunDirectory
from kdexport.data.samples import Split
from kdexport.distill.batches import Batches
from kdexport.distill.stage import distill
from kdexport.distill.step import _parts
from kdexport.errors import RecipeError
from kdexport.recipe import Recipe
from kdexport.tasks.similarity import Similarity, pair_targets, pairs_in

CODE = """
import numpy as np
from torch import nn

def load(pairs=90):
    draw = np.random.default_rng(0)
    def split(count):
        left = draw.normal(size=(count, 6)).astype("float32")
        right = left * draw.choice([-1, 0.2, 1], size=(count, 1)) + 0.5 * draw.normal(size=(count, 6))
        right = right.astype("float32")
        hidden = [side[:, :3] for side in (left, right)]  # what the score is of
        cosine = (hidden[0] * hidden[1]).sum(1) / np.linalg.norm(hidden[0], axis=1) / np.linalg.norm(hidden[1], axis=1)
        return (left, right), np.round(2.5 + 2.5 * cosine, 1)
    return {"train": split(pairs), "val": split(30), "test": split(40)}

def net(width):
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, width))
"""


def recipe(folder, *overrides):
    (folder / "pairs.py").write_text(CODE)
    document = {
        "name": "pairs",
        "data": {"source": "pairs.py:load"},
        "teacher": {
            "model": "pairs.py:net", "args": {"width": 8}, "train": {"epochs": 20, "lr": 0.02, "batch_size": 30},
        },
        "student": {"model": "pairs.py:net", "args": {"width": 4}},
        "distill": {"epochs": 12, "lr": 0.02, "batch_size": 30, "terms": [{"method": "cosine"}]},
    }  # fmt: skip
    return Recipe.parse(document, base=folder, overrides=overrides)


def split_of(pairs=21):
    targets = pair_targets(np.arange(pairs) / 7)
    return Split((np.arange(2 * pairs, dtype=np.float32)[:, None],), targets, Similarity())


@pytest.mark.parametrize("world", [1, 2])
def test_a_batch_holds_whole_pairs(world):
    seen = []
    for rank in range(world):
        batches = Batches(
            split_of(), batch_size=9, seed=0, augmentation=None, views=1, device=torch.device("cpu"),
            rank=rank, world=world,
        )  # fmt: skip
        for batch in batches.epoch(0):
            first, second, _ = pairs_in(batch.labels.numpy())
            assert 2 * len(first) == len(batch.indices)
            assert (batch.indices[first] // 2 == batch.indices[second] // 2).all()
            seen += batch.indices.tolist()
            for part in _parts(batch, min(2, len(batch.indices) // 2), together=2):
                assert 2 * len(pairs_in(part.labels.numpy())[0]) == len(part.indices)
    assert sorted(seen) == list(range(42))


def test_pairs_teach_by_their_scores_and_by_a_teacher_of_another_width(tmp_path):
    made = distill(recipe(tmp_path), RunDirectory(tmp_path / "run"))
    assert {network.name for network in made.networks} == {"teacher", "student", "student-plain"}
    assert all(network.val_score > 0.5 for network in made.networks)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = (line for line in lines if line["phase"] == "student-plain" and "loss" in line)
    assert last["loss"] < first["loss"]
    assert last["val_terms"]["labels"] < first["val_terms"]["labels"]
    parts = recipe(tmp_path, "distill.micro_batch_size=7", "distill.epochs=1")
    assert distill(parts, RunDirectory(tmp_path / "parts")).networks[1].val_score is not None


def test_what_makes_no_sense_of_pairs_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="balanced = true needs one class per sample"):
        distill(recipe(tmp_path, "teacher.train.balanced=true"), RunDirectory(tmp_path / "run"))


def test_the_validation_score_is_scipys(tmp_path):
    from kdexport.data.datasets import load_data
    from kdexport.distill.batches import predict_all
    from kdexport.models.loading import load_model

    asked = recipe(tmp_path, "distill.epochs=2", "distill.baseline=false", "teacher.train.epochs=2")
    directory = RunDirectory(tmp_path / "run")
    made = distill(asked, directory)
    data = load_data(asked.data, asked.seed, tmp_path / "cache")
    model = load_model("student", asked.student, data, directory.weights("student"))
    outputs = predict_all(model.network, model.preprocessing, data.val, torch.device("cpu")).astype(np.float64)
    assert np.linalg.norm(outputs, axis=1) == pytest.approx(1.0, abs=1e-6)
    first, second, scores = pairs_in(data.val.labels)
    expected = stats.spearmanr((outputs[first] * outputs[second]).sum(axis=1), scores)[0]
    assert made.networks[1].val_score == pytest.approx(expected, abs=1e-9)
