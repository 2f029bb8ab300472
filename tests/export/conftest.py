"""A run directory as the distill stage leaves it: tiny networks with fixed weights, the real digits."""

import os
from pathlib import Path

import pytest
import torch

from kdexport.artifacts import RunDirectory, sha256
from kdexport.models.networks import load_network
from kdexport.models.weights import save_weights
from kdexport.recipe import Recipe
from kdexport.results import DistillResult, TrainedNetwork

NETS = Path(__file__).with_name("nets.py")


@pytest.fixture(scope="session")
def make_run():
    """Return a function that fills a directory and gives what ``export`` takes."""
    return fill


@pytest.fixture(scope="session")
def shared_archive():
    """Return a function that finds an archive of real data; absent, the test skips."""
    folder = Path(os.environ.get("KDEXPORT_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))

    def find(name: str) -> Path:
        archive = folder / f"{name}.tar.xz"
        if not archive.exists():
            pytest.skip(f"the real data {archive.name} is not at hand; set KDEXPORT_TEST_DATA to its folder")
        return archive

    return find


@pytest.fixture(scope="session")
def load_net():
    """Return a function that builds a network of nets.py."""
    return lambda name, **args: load_network(f"{NETS}:{name}", args, None)


def fill(root: Path, seed: int = 0, networks=("teacher", "student"), width: int = 8, **export):
    settings = {"quantize": [], **export}
    document = {
        "name": "tiny",
        "data": {"source": "digits"},
        "teacher": {"model": f"{NETS}:Net", "args": {"width": 12}},
        "student": {"model": f"{NETS}:Net", "args": {"width": width}},
        "export": settings,
    }
    recipe = Recipe.parse(document)
    directory = RunDirectory(root)
    directory.prepare()
    trained = []
    for name in networks:
        side = recipe.teacher if name == "teacher" else recipe.student
        torch.manual_seed(seed)
        network = load_network(side.model, side.args, 10)
        path = directory.weights(name)
        save_weights(network, path)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        trained.append(TrainedNetwork(name, side.model, path.name, sha256(path), parameters, 1000, 1, None, None, None))
    distilled = DistillResult("tiny", tuple("0123456789"), {}, {}, tuple(trained))
    return recipe, distilled, directory
