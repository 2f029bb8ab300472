"""What models/GUIDES.md tells to type works as it stands: all guides in order, in one folder, on fewer epochs.

``kdexport`` runs in this process, so that torch is loaded once.
"""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdexport.cli import app

pytestmark = pytest.mark.slow

GUIDES = Path(__file__).parents[1] / "models" / "GUIDES.md"
BLOCKS = re.compile(r"^```(sh|python|toml)\n(.*?)^```$", re.M | re.S)
SMALLER = {  # the same commands, sooner done
    r'epochs("?( ?[=:] ?| ?=))\d+': r"epochs\g<1>6",
    r"--max-drop 0\.01": "--max-drop 0.9",
    r"6 --extend": "7 --extend",
    r"\[distill\]\n": "[distill]\nbaseline = false\nviews = 1\nbatch_size = 64\nlr = 0.01\n",
    r"\[export\]\n": '[export]\ncalibration = "minmax"\ncalibration_samples = 32\n',
    r"max_seconds = 2\.0": "max_seconds = 0.2\nmin_seconds = 0.02\nrounds = 1",
    r'"max_seconds": 2\.0': '"max_seconds": 0.2, "min_seconds": 0.02, "rounds": 1',
    r"net\(64\)": "net(16)",
    r"test_from: int = 1400": "test_from: int = 700",
}


def guides() -> dict[str, list[tuple[str, str]]]:
    """Return each guide's blocks: language and text."""
    _, *parts = re.split(r"^## ", GUIDES.read_text(encoding="utf-8"), flags=re.M)
    return {part.partition("\n")[0]: BLOCKS.findall(part) for part in parts}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guides")


def test_each_of_the_smaller_settings_makes_something_smaller() -> None:
    text = GUIDES.read_text(encoding="utf-8")
    for pattern, smaller in SMALLER.items():
        text, count = re.subn(pattern, smaller, text)
        assert count, pattern


@pytest.mark.parametrize("guide", list(guides()))
def test_a_guide_works(guide: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for language, text in guides()[guide]:
        for pattern, smaller in SMALLER.items():
            text = re.sub(pattern, smaller, text)
        if file := re.match(r"# (\S+\.(?:py|toml))\n", text):
            (folder / file[1]).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, f"{GUIDES.name}: {guide}", "exec"), {})
        else:
            for line in text.splitlines():
                kdexport(line)


def kdexport(line: str) -> None:
    name, *words = shlex.split(line)
    assert name == "kdexport"
    result = CliRunner().invoke(app, [*words, "--quiet"])
    assert result.exit_code == 0, f"{line}\n{result.exception!r}\n{result.output}"


def test_links_between_the_guides_hold() -> None:
    text = GUIDES.read_text(encoding="utf-8")
    titles = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^## (.*)$", text, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) == titles
    assert [name for name in re.findall(r"\]\(([^)#]+)\)", text) if not (GUIDES.parent / name).exists()] == []
