"""Every command's --help, as an 80-column terminal shows it."""

import re
import shlex
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from kdexport.cli import app
from kdexport.recipe import Bench, Distill, Export

RENAMED = {"tolerance": "parity_tolerance", "timeout": "timeout_s"}
COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_reads_well_at_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, *paragraphs = (COMMANDS[name].help or "").split("\n\n")  # the first is wrapped anew, the rest keep their lines
    assert not [line for text in paragraphs for line in text.splitlines() if len(line) > 78]
    shown = CliRunner().invoke(app, [name, "--help"]).output
    assert not re.search(r"[a-z]  and ", shown), "[brackets] are markup and vanish"


def page(*arguments: str) -> str:
    return CliRunner().invoke(app, [*arguments, "--help"]).output


def flags(name: str) -> list[Any]:
    return [item for item in COMMANDS[name].params if item.name != "help"]


FLAGS = [(name, flag) for name in sorted(COMMANDS) for flag in flags(name)]


@pytest.mark.parametrize(("name", "flag"), FLAGS, ids=[f"{name}-{flag.name}" for name, flag in FLAGS])
def test_every_flag_is_a_sentence_with_its_default(name: str, flag: Any) -> None:
    text = flag.help or ""
    assert re.match(r"[A-Za-z\[].{8,}\.$", text, re.S), "a sentence, please"
    switch = getattr(flag, "is_flag", False) and not flag.secondary_opts
    if flag.param_type_name == "option" and not switch:
        assert "default" in text, "say what happens without it"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_page_is_whole_at_80_columns_and_without_noise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = page(name)
    assert not re.search(r"<\w+>|\[\[\w|\{\w|│|…", shown)
    assert all(len(line) <= 80 for line in shown.splitlines())
    whole = " ".join(shown.split())
    assert [flag.name for flag in flags(name) if " ".join(flag.help.split()) not in whole] == []


SECTIONS = {"distill": Distill, "bench": Bench, "export": Export}
TOLD = [
    (name, flag, section.model_fields[key].default)
    for name, section in SECTIONS.items()
    for flag in flags(name)
    for key in {flag.name, f"{flag.name}s", RENAMED.get(flag.name)} & section.model_fields.keys()
]


@pytest.mark.parametrize(("name", "flag", "default"), TOLD, ids=[f"{name}-{flag.name}" for name, flag, _ in TOLD])
def test_the_default_that_is_told_is_the_recipes(name: str, flag: Any, default: Any) -> None:
    value = default[0] if isinstance(default, tuple) and default else default
    if isinstance(value, bool) or value in (None, (), {}):
        return
    told = f"{value:g}" if isinstance(value, float) else str(value)
    assert re.search(rf"\b{re.escape(told)}\b", flag.help.partition("default")[2]), told


def examples() -> list[str]:
    found = [re.findall(r"^\s+(kdexport .*)$", command.help or "", re.M) for command in COMMANDS.values()]
    assert all(found), "each page has examples"
    return [line for lines in found for line in lines]


@pytest.mark.parametrize("line", examples())
def test_an_example_names_commands_and_flags_that_there_are(line: str) -> None:
    words = shlex.split(line.partition(" >> ")[0])[1:]
    command = COMMANDS[words[0]]
    command.make_context(words[0], words[1:], resilient_parsing=False)  # parses it, and runs nothing
    assert f"  {line}" in page(words[0])


def test_a_flag_that_is_nearly_right_is_suggested() -> None:
    result = CliRunner().invoke(app, ["bench", "x.onnx", "--batchsize", "3"])
    assert result.exit_code == 2
    assert "Did you mean --batch-size " in result.output  # the nearest first
    assert "Usage: kdexport bench RUN_OR_ONNX... [OPTIONS]" in result.output


def test_a_key_of_the_recipe_typed_as_a_flag_is_told() -> None:
    result = CliRunner().invoke(app, ["run", "recipe.toml", "--max-size-mib", "3"])
    assert result.exit_code == 2
    assert "It is a key of the recipe: --set require.max_size_mib=VALUE" in " ".join(
        re.findall(r"[^\s│]+", result.output)
    )


def test_the_first_four_commands_come_first() -> None:
    shown = CliRunner().invoke(app, []).output
    assert re.findall(r"^  (\w+) ", shown, re.M)[:4] == ["init", "run", "export", "bench"]
