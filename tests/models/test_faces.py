"""The reference pair of faces: 30 people to learn from and to choose a threshold on, 10 others to verify."""

from pathlib import Path

import numpy as np
import pytest

from kdexport.data.datasets import load_data
from kdexport.models.loading import load_model
from kdexport.recipe import Recipe

RECIPE = Path(__file__).parents[2] / "models" / "faces" / "recipe.toml"


@pytest.fixture(scope="module")
def faces(shared_data, tmp_path_factory):
    folder = shared_data("faces")
    place = folder / "faces" if (folder / "faces").is_dir() else folder
    recipe = Recipe.load(RECIPE, [f"data.source=imagefolder:{place}"])
    return recipe, load_data(recipe.data, 0, tmp_path_factory.mktemp("cache"), task=recipe.task)


def test_nobody_who_is_scored_was_learned_from(faces):
    _, data = faces
    people = [set(np.unique(split.labels).tolist()) for split in (data.train, data.val, data.test)]
    assert [len(found) for found in people] == [24, 6, 10]
    assert len(set.union(*people)) == 40
    assert [len(split) for split in (data.train, data.val, data.test)] == [240, 60, 100]
    assert data.test.inputs[0].shape == (100, 32, 26, 3)


def test_the_student_is_a_thirtieth_of_its_teacher_and_as_wide(faces):
    recipe, data = faces
    networks = [load_model(name, getattr(recipe, name), data, learns=True) for name in ("teacher", "student")]
    sizes = [sum(item.numel() for item in model.network.parameters()) for model in networks]
    assert sizes[0] > 27 * sizes[1]
    for model in networks:
        found = model.network(*model.preprocessing.apply(data.train.take(slice(0, 3)).inputs))
        assert found.shape == (3, 64)
        assert found.norm(dim=1).tolist() == pytest.approx([1.0] * 3)
