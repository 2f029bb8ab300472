"""A tiny run on real digits: seconds, not minutes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kdexport.recipe import Recipe

DIGITS = Path(__file__).parents[2] / "models" / "digits" / "recipe.toml"
TINY = (
    "teacher.args.width=8",
    "teacher.train.epochs=2",
    "student.args.width=4",
    "distill.epochs=3",
    "distill.views=2",
    "data.fraction=0.3",
)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Recipe]:
    """Return a function that gives the digits recipe at a size for tests, with further overrides."""
    return lambda *overrides: Recipe.load(DIGITS, [*TINY, *overrides])
