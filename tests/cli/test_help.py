"""Every command's --help, as an 80-column terminal shows it."""

import re

import pytest
import typer
from typer.testing import CliRunner

from kdexport.cli import app

COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_reads_well_at_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, *paragraphs = (COMMANDS[name].help or "").split("\n\n")  # the first is wrapped anew, the rest keep their lines
    assert not [line for text in paragraphs for line in text.splitlines() if len(line) > 78]
    shown = CliRunner().invoke(app, [name, "--help"]).output
    assert not re.search(r"[a-z]  and ", shown), "[brackets] are markup and vanish"
