import numpy as np
import pytest
import torch
from torch import nn

from kdexport.data.samples import Split
from kdexport.distill.teacher import Ensemble
from kdexport.models.preprocessing import Preprocessing
from kdexport.recipe import Recipe

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 4)).astype(np.float32)


class Fixed(nn.Module):
    """Says the same of every sample, plus a constant that a softmax does not see."""

    def __init__(self, logits, constant=0.0):
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits) + constant)

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def ensemble(*logits, weights=None, combine="average"):
    members = [(Fixed(rows, constant=7.0 * place), Preprocessing()) for place, rows in enumerate(logits)]
    return Ensemble(members, weights or [1.0] * len(members), combine)


def said(combined):
    return torch.softmax(combined(torch.from_numpy(X)), dim=1)[0].numpy()


def test_averages_logits_whatever_their_constants():
    combined = said(ensemble([2.0, 0.0, 0.0], [0.0, 2.0, 0.0]))
    expected = np.exp([1.0, 1.0, 0.0]) / np.exp([1.0, 1.0, 0.0]).sum()
    np.testing.assert_allclose(combined, expected, rtol=1e-6)


def test_weights_move_the_average():
    combined = said(ensemble([4.0, 0.0, 0.0], [0.0, 4.0, 0.0], weights=[3.0, 1.0]))
    expected = np.exp([3.0, 1.0, 0.0]) / np.exp([3.0, 1.0, 0.0]).sum()
    np.testing.assert_allclose(combined, expected, rtol=1e-6)


def test_confidence_lets_the_surer_member_speak():
    sure, lost = [8.0, 0.0, 0.0], [0.0, 0.2, 0.0]
    average, confident = said(ensemble(sure, lost)), said(ensemble(sure, lost, combine="confidence"))
    assert confident[0] > average[0]
    entropies = [-(p * np.log(p)).sum() for p in (np.exp(row) / np.exp(row).sum() for row in (sure, lost))]
    shares = np.exp(-np.array(entropies)) / np.exp(-np.array(entropies)).sum()
    logits = shares[0] * np.array(sure) + shares[1] * np.array(lost)
    np.testing.assert_allclose(confident, np.exp(logits) / np.exp(logits).sum(), rtol=1e-5)


def test_each_member_sees_its_own_preprocessing():
    class Mean(nn.Module):
        def forward(self, x):
            return torch.stack([x.mean(dim=(1, 2, 3)), torch.zeros(len(x))], dim=1)

    images = torch.full((2, 4, 4, 3), 255, dtype=torch.uint8)
    kinds = [Preprocessing("image"), Preprocessing("image", mean=(0.5,) * 3, std=(0.25,) * 3)]
    combined = Ensemble([(Mean(), kind) for kind in kinds], [1.0, 1.0], "average")
    assert [rows[0, 0].item() for rows in combined.each(images)] == pytest.approx([1.0, 2.0])


def test_tells_how_far_its_members_agree():
    combined = ensemble([9.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    teacher_scores = combined.scores(Split((X,), np.zeros(20, dtype=np.int64)), torch.device("cpu"))
    assert [score.name for score in teacher_scores] == ["teacher", "teacher-2"]
    assert [score.val_score for score in teacher_scores] == [1.0, 0.0]
    assert [score.agreement.top1 for score in teacher_scores] == [1.0, 0.0]
    assert [score.weight for score in teacher_scores] == [0.5, 0.5]


def test_a_recipe_keeps_the_paths_of_all_its_teachers(tmp_path):
    document = {
        "name": "several",
        "data": {"source": "digits"},
        "student": {"model": "nets.py:Student"},
        "teacher": {
            "model": "nets.py:Big",
            "weights": "big.pt",
            "also": [{"model": "more/nets.py:Other", "weights": "other.pt", "weight": 2.0}],
        },
    }
    recipe = Recipe.parse(document, base=tmp_path)
    assert recipe.teacher.also[0].model == f"{tmp_path}/more/nets.py:Other"
    assert recipe.teacher.also[0].weights == f"{tmp_path}/other.pt"
    recipe.write(tmp_path / "recipe.toml")
    assert "more/nets.py:Other" in (tmp_path / "recipe.toml").read_text()
    assert str(tmp_path) not in (tmp_path / "recipe.toml").read_text()
    assert Recipe.load(tmp_path / "recipe.toml") == recipe
