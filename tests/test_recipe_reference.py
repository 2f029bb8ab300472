"""The reference of the recipe's keys is complete, true and fresh."""

import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest

from kdexport.recipe import Recipe
from kdexport.recipe.reference import REFERENCE, SCHEMA, markdown, schema
from kdexport.terms import METHODS

MODELS = Path(__file__).parents[1] / "models"
RECIPES = sorted(MODELS.glob("*/recipe.toml"))


def test_the_files_in_models_are_fresh() -> None:
    again = "write them anew: python -m kdexport.recipe.reference models"
    assert (MODELS / REFERENCE).read_text(encoding="utf-8") == markdown(), again
    pytest.importorskip(
        "pydantic", minversion="2.11", reason="pydantic before 2.11 writes some of the schema otherwise"
    )
    assert json.loads((MODELS / SCHEMA).read_text(encoding="utf-8")) == schema(), again


def described() -> list[tuple[str, str, str]]:
    """Every key of every table of the schema: table, key, description."""
    document = schema()
    tables = {"Recipe": document, **document["$defs"]}
    return [
        (name, key, value.get("description", ""))
        for name, table in tables.items()
        for key, value in table["properties"].items()
        if not (key == "method" and name != "OwnLoss") and not value.get("deprecated")
    ]


def test_every_key_is_described_by_sentences() -> None:
    short = [f"{table}.{key}" for table, key, text in described() if not re.match(r"[A-Z\[].{15,}\.$", text, re.S)]
    assert short == []


def test_every_key_has_its_row() -> None:
    text = markdown()
    assert {key for table, key, _ in described() if f"| `{key}` |" not in text} - {
        *("data", "teacher", "student", "distill", "export", "bench", "require", "preprocessing", "train", "also"),
        *("data_free", "prune", "search", "budget", "space", "finalists"),
    } == set()
    assert all(f'method = "{name}"' in text for name in METHODS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_the_schema_takes_the_recipes_that_ship(path: Path) -> None:
    jsonschema.validate(tomllib.loads(path.read_text(encoding="utf-8")), schema())
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert (path.parent / first.removeprefix("#:schema ")).resolve() == MODELS / SCHEMA


def test_the_schema_takes_what_a_run_writes_and_old_names(tmp_path: Path) -> None:
    document = Recipe.load(RECIPES[2]).to_dict(relative_to=tmp_path)
    jsonschema.validate(document, schema())
    jsonschema.validate({**document, "require": {"max_accuracy_drop": 0.01}}, schema())


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 3},
        {"epochs": 0},
        {"epochs": None},
        {"optimizer": "lion"},
        {"terms": [{"method": "soft_target"}]},
        {"terms": [{"method": "dkd", "gamma": 1.0}]},
    ],
)
def test_the_schema_refuses_what_the_recipe_refuses(change: dict[str, object], tmp_path: Path) -> None:
    document = Recipe.load(RECIPES[2]).to_dict(relative_to=tmp_path)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "distill": change}, schema())


def test_the_schema_takes_a_loss_of_ones_own(tmp_path: Path) -> None:
    document = Recipe.load(RECIPES[2]).to_dict(relative_to=tmp_path)
    terms = [{"method": "losses.py:cubic", "power": 3}, {"method": "hint", "student_layer": -1}]
    jsonschema.validate({**document, "distill": {"terms": terms}}, schema())
