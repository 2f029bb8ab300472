from pathlib import Path

import pytest

from kdexport import results
from kdexport.distill.layers import show_layers
from kdexport.errors import KDExportError


def test_shows_what_a_recipe_can_name(tiny, tmp_path: Path) -> None:
    shown = show_layers(tiny(), tmp_path)
    assert [row.path for row in shown.student if row.stage is not None][-1] == "head"
    assert all(row.shape for row in (*shown.student, *shown.teacher))
    assert shown.suggested[-1][0].startswith("stages")
    document = results.to_json(shown)
    assert document["teacher"][-1] == {"path": "head", "kind": "Linear", "shape": [10], "stage": 2, "usable": True}


def test_says_what_is_wrong_with_a_network(tiny, tmp_path: Path) -> None:
    with pytest.raises(KDExportError, match="Studint"):
        show_layers(tiny("student.model=models/digits/nets.py:Studint"), tmp_path)
