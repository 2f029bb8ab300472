"""README holds what it says: its links, its tree of the house, its code no wider than a page."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\w*\n(.*?)^```$", README, re.M | re.S)


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()] == []


def test_code_is_narrow() -> None:
    assert [line for block in BLOCKS for line in block.splitlines() if len(line) > 90] == []


def test_the_tree_names_every_module_and_folder_of_the_package() -> None:
    tree = next(block for block in BLOCKS if block.startswith("kdexport/\n"))
    named = set(re.findall(r"^  (\w+(?:\.py|/))", tree, re.M))
    there = {f"{path.name}/" for path in (ROOT / "kdexport").iterdir() if (path / "__init__.py").exists()}
    there |= {path.name for path in (ROOT / "kdexport").glob("*.py") if not path.name.startswith("__")}
    assert named == there
