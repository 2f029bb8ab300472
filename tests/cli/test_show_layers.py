import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

RECIPE = Path(__file__).parents[2] / "models" / "digits" / "recipe.toml"


def test_lists_layers_and_trains_nothing(kdexport: Callable[..., Result], tmp_path: Path) -> None:
    result = kdexport("distill", RECIPE, "--show-layers", "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert {"path": "head", "kind": "Linear", "shape": [10], "stage": 3, "usable": True} in made["student"]
    assert made["suggested"][-1][0].startswith("stages.")
    assert not list((tmp_path / "run").glob("*.safetensors"))
    plain = kdexport("distill", RECIPE, "--show-layers", "--out", tmp_path / "run")
    assert "pairs to begin with" in plain.stdout
    assert "stages.1" in plain.stdout
