"""A task of one class and one line goes the whole way: trained, exported, measured, scored and reported."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from kdexport.pipeline import run
from kdexport.recipe import Recipe
from kdexport.report.markdown import markdown
from kdexport.results import Agreement, Evaluation
from kdexport.statistics import mean_interval
from kdexport.tasks import TASKS
from kdexport.tasks.base import Task

DIGITS = Path(__file__).parents[2] / "models" / "digits" / "recipe.toml"


class Ordinal(Task):
    """Classes in an order: the score is how many steps the guess is off, and lower is better."""

    name = "ordinal"
    metric = "steps_off"
    label = "steps off"
    higher_is_better = False
    unit = "value"
    bounds = (0.0, float("inf"))
    losses: ClassVar[int] = 0

    def fits(self, targets):
        return targets.ndim == 1 and targets.dtype.kind == "i"

    def check_targets(self, targets, names, where):
        assert targets.max() < len(names)

    def check_training(self, targets, name):
        assert len(targets)

    def label_loss(self, outputs, targets, *, kind=None, smoothing=0.0, labelled=None, mixed=False):
        Ordinal.losses += 1
        steps = (targets[:, None] - torch.arange(outputs.shape[1], device=targets.device)).abs()
        return (outputs.softmax(1) * steps).sum(1).mean()

    def right_in_batch(self, outputs, targets):
        return outputs.new_zeros(()) + len(targets), (outputs.argmax(1) == targets).sum()

    def score(self, outputs, targets):
        return float(np.abs(outputs.argmax(1) - targets).mean())

    def evaluate(self, outputs, targets, names, split):
        off = np.abs(outputs.argmax(1) - targets)
        score = self.made_score(off.mean(), mean_interval(off))
        samples = tuple(int(value) for value in off)
        return Evaluation(split, len(off), self.name, score, per_sample=samples, chance=2.5)

    def agreement(self, teacher, outputs):
        return Agreement(float(np.mean(teacher.argmax(1) == outputs.argmax(1))), 0.0, None)


@pytest.fixture
def ordinal(monkeypatch):
    monkeypatch.setitem(TASKS, "ordinal", Ordinal())


def test_a_toy_task_goes_the_whole_way(ordinal, tmp_path):
    settings = [
        'task="ordinal"', "teacher.args.width=8", "teacher.train.epochs=2", "student.args.width=4", "distill.epochs=2",
        "export.quantize=[]", "bench.min_seconds=0.02", "bench.max_seconds=0.05", "bench.rounds=1", "bench.threads=[1]",
        "bench.batch_sizes=[1]", "require={ max_drop = 4.0 }",
    ]  # fmt: skip
    report = run(Recipe.load(DIGITS, settings), tmp_path / "run")
    assert Ordinal.losses > 0
    for model in report.models:
        assert model.score.metric == "steps_off"
        assert model.score.higher_is_better is False
        assert model.score.value == pytest.approx(np.mean(model.evaluation.per_sample))
        assert model.accuracy is None
    teacher, student = report.models[0], next(model for model in report.models if model.name == "student")
    trade = next(item for item in report.tradeoffs if item.model == "student" and item.against == "teacher")
    assert trade.score_delta == pytest.approx(student.score.value - teacher.score.value)
    assert trade.accuracy_delta is None
    (gate,) = [gate for gate in report.gates if gate.requirement == "max_drop"]
    picked = next(model for model in report.models if model.name == gate.model)
    assert gate.value == pytest.approx(picked.score.value - teacher.score.value)  # worse is a drop, though it is more
    assert "steps off" in markdown(report)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert '"val_score"' in lines[0]
    assert '"val_accuracy"' not in lines[0]
