"""A search in seconds: tiny networks on digits, and a stopwatch that goes by the files' sizes."""

from pathlib import Path

import numpy as np
import pytest

from kdexport import statistics
from kdexport.recipe import Recipe
from kdexport.results import BenchResult, ExportResult, Machine, Measurement, Memory, ModelFile

NETS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=8, fail=False, nan=False, num_classes=10):
        super().__init__()
        self.nan = nan
        if fail:
            raise ValueError("this width is not for me")
        self.hidden, self.head = nn.Linear(64, width), nn.Linear(width, num_classes)

    def forward(self, image):
        logits = self.head(torch.relu(self.hidden(image.flatten(1))))
        return logits * float("nan") if self.nan and self.training else logits
"""
MS_PER_BYTE = 1e-5  # of the stopwatch: 10 KB take 0.1 ms


def measured(model, size: int, spread: float = 0.01) -> Measurement:
    """Return a measurement that goes by the file's size; three rounds that differ a little."""
    base = size * MS_PER_BYTE * 1e6
    rounds = [np.full(200, int(base * (1 + spread * step)), dtype=np.int64) for step in (-1, 0, 1)]
    return Measurement(
        model, "here", "cpu", "CPUExecutionProvider", {"CPUExecutionProvider": 1.0}, 1, 1,
        statistics.latency(rounds), 1.0, 1.0, 1.0, Memory(50.0 + size / 2**20, 1.0, None),
    )  # fmt: skip


def fake_bench(models, settings=None, *, name="", **_) -> BenchResult:
    """Stand in for ``bench``: nothing is timed."""
    machine = Machine("here", "Linux", "cpu", (), 2, None, "", None, (), None, "3", {}, ())
    timed = tuple(measured(model.name, Path(model.file).stat().st_size) for model in models)
    return BenchResult(name=name, created="2026-11-26T00:00:00+00:00", machine=machine, models=tuple(models),
                       measurements=timed)  # fmt: skip


def fake_export(recipe, distilled, directory, *_) -> ExportResult:
    """Stand in for the export of an untrained network: a file as large as its weights, and no larger."""
    weights = directory.weights("student").read_bytes()
    file = directory.onnx("student")
    file.write_bytes(weights)
    model = ModelFile("student", file.name, "", "fp32", len(weights), distilled.networks[0].parameters, None)
    return ExportResult(recipe.name, (model,))


@pytest.fixture(scope="module")
def nets(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("nets") / "nets.py"
    path.write_text(NETS)
    return path


@pytest.fixture(scope="module")
def recipe_with(nets):
    """Return a function that makes a recipe of a search; its arguments replace tables of it."""

    def make(*spaces, **changes) -> Recipe:
        document = {
            "name": "tiny",
            "data": {"source": "digits", "fraction": 0.3},
            "teacher": {
                "model": f"{nets}:Net",
                "args": {"width": 64},
                "train": {"epochs": 3, "batch_size": 64, "lr": 0.01},
            },
            "distill": {"epochs": 4, "batch_size": 64, "lr": 0.01, "baseline": False},
            "search": {
                "budget": {"latency_ms": 0.2, "drop": 0.5},
                "space": [{"model": f"{nets}:Net", **space} for space in spaces],
                "min_epochs": 1,
                "reduction": 2,
                "finalists": {"count": 1},
            },
        }
        for key, value in changes.items():
            table, _, name = key.partition("__")
            document[table] = {**document[table], name: value} if name else value
        return Recipe.parse(document)

    return make


@pytest.fixture(scope="module")
def stopwatch():
    """Let files be measured by their size, untrained ones not be exported, the pick not be run; give what
    would have run.
    """
    from kdexport.search import final, measure

    ran: list = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "bench", fake_bench)
        patch.setattr(measure, "export", fake_export)
        patch.setattr(final.pipeline, "run", lambda recipe, out, *_, **__: ran.append((recipe, out)))
        yield ran
