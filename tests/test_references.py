"""References as text."""

from pathlib import Path

import pytest

from kdexport.references import Reference, absolute, parse, relative


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("digits", Reference("builtin", "digits")),
        ("torchvision:resnet18", Reference("torchvision", "resnet18")),
        ("timm:resnet18.a1_in1k", Reference("timm", "resnet18.a1_in1k")),
        ("hf:org/name", Reference("hf", "org/name")),
        ("nets.py:Student", Reference("file", "nets.py", "Student")),
        ("/deep er/nets.py:Student", Reference("file", "/deep er/nets.py", "Student")),
        ("package.module:Name", Reference("module", "package.module", "Name")),
        ("model.onnx", Reference("path", "model.onnx")),
        ("out/model.pt2", Reference("path", "out/model.pt2")),
        ("imagefolder:photos/all", Reference("imagefolder", "photos/all")),
        ("npz:a:b.npz", Reference("npz", "a:b.npz")),
    ],
)
def test_parse(text: str, reference: Reference) -> None:
    assert parse(text) == reference
    assert str(reference) == text


def test_paths_move_with_their_folder() -> None:
    base = Path("/runs/a")
    assert absolute("nets.py:S", base) == "/runs/a/nets.py:S"
    assert relative("/runs/models/nets.py:S", base) == "../models/nets.py:S"
    assert absolute("torchvision:resnet18", base) == "torchvision:resnet18"
    assert absolute("digits", base) == "digits"


def test_a_hub_name_is_a_path_only_where_the_folder_exists(tmp_path: Path) -> None:
    assert absolute("hf:org/name", tmp_path) == "hf:org/name"
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert absolute("hf:org/name", tmp_path) == f"hf:{tmp_path}/org/name"
