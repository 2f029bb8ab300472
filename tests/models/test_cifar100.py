"""The CIFAR-100 pairs: the recipes hold the papers' schedule, the networks the published sizes."""

from pathlib import Path

import pytest
import torch

from kdexport.distill.layers import stage_ends, trace
from kdexport.distill.optimization import lr_factor
from kdexport.models.networks import load_network
from kdexport.recipe import Recipe

MODELS = Path(__file__).parents[2] / "models"
PAIRS = {
    "cifar100_resnet56_resnet20": (861_620, 278_324),
    "cifar100_resnet32x4_resnet8x4": (7_433_860, 1_233_540),
}


@pytest.mark.parametrize("name", PAIRS)
def test_networks_have_the_published_sizes(name: str) -> None:
    recipe = Recipe.load(MODELS / name / "recipe.toml")
    for spec, parameters in zip((recipe.teacher, recipe.student), PAIRS[name], strict=True):
        network = load_network(spec.model, spec.args, 100)
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters
        images = torch.zeros(2, 3, 32, 32)
        assert network(images).shape == (2, 100)
        assert [layer.path for layer in stage_ends(trace(network, (images,)))] == ["stage1", "stage2", "stage3"]


@pytest.mark.parametrize("name", PAIRS)
def test_the_schedule_is_the_papers(name: str) -> None:
    recipe = Recipe.load(MODELS / name / "recipe.toml")
    assert recipe.name == name
    for training in (recipe.teacher.train, recipe.distill):
        assert training is not None
        assert (training.epochs, training.batch_size, training.optimizer, training.lr) == (240, 64, "sgd", 0.05)
        factors = [lr_factor(training, epoch, 1) for epoch in range(240)]
        changes = [epoch for epoch in range(1, 240) if factors[epoch] != factors[epoch - 1]]
        assert changes == [150, 180, 210]
        assert [factors[epoch] for epoch in (0, 150, 180, 210)] == pytest.approx([1, 0.1, 0.01, 0.001])
    term = recipe.distill.terms[0]
    assert (recipe.distill.label_weight, term.weight, term.options()["temperature"]) == (0.1, 0.9, 4.0)


def test_the_folders_differ_in_widths_alone() -> None:
    texts = [(MODELS / name / "nets.py").read_text().splitlines() for name in PAIRS]
    docstring, widths = [pair for pair in zip(*texts, strict=True) if pair[0] != pair[1]]
    assert "0.86 M" in docstring[0]
    assert widths[0].replace("(16, 16, 32, 64)", "(32, 64, 128, 256)") == widths[1]
