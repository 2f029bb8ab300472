"""Within one search the same data are loaded once."""

from kdexport.models.fitted_data import load_run_data, loaded_once
from kdexport.recipe import Recipe

SOURCE = """
from pathlib import Path
import numpy as np

def load(classes=2):
    with Path(__file__).with_name("calls").open("a") as calls:
        calls.write("x")
    return {"train": (np.zeros((40, 8, 8, 1), np.uint8), np.arange(40) % classes)}
"""


def test_a_users_function_is_called_once_for_all_candidates(tmp_path) -> None:
    (tmp_path / "data.py").write_text(SOURCE)

    def recipe(width: int, classes: int = 2) -> Recipe:
        return Recipe.parse(
            {
                "name": "once",
                "data": {"source": f"{tmp_path / 'data.py'}:load", "args": {"classes": classes}},
                "teacher": {"model": "nets.py:Teacher"},
                "student": {"model": "nets.py:Student", "args": {"width": width}},
            }
        )

    def calls() -> int:
        return len((tmp_path / "calls").read_text())

    with loaded_once():
        first = load_run_data(recipe(4), tmp_path / "cache")
        assert load_run_data(recipe(8), tmp_path / "cache").train is first.train
        assert calls() == 1
        assert (
            len(load_run_data(recipe(8, classes=4), tmp_path / "cache").class_names) == 4
        )  # others are not taken for it
        assert calls() == 2
    load_run_data(recipe(4), tmp_path / "cache")  # afterwards the file may hold something else
    assert calls() == 3
